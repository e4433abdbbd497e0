"""Which environments there are, by family: ids, sizes, and whether this machine can make them. Loads no simulator."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Literal

from wmrl_ray.envs import loading
from wmrl_ray.envs.layouts import layout, maze_ids

Status = Literal["ok", "extra missing", "library missing", "renderer missing"]


@dataclass(frozen=True)
class Sizes:
    """obs_dim: O. action_dim: A. max_steps: agent steps of an episode, with the environment's own action repeat."""

    obs_dim: int
    action_dim: int
    max_steps: int


@dataclass(frozen=True)
class Family:
    """The environments of one simulator.

    module: the file of this package whose `make(env_id, **kwargs)` makes one; None: Gymnasium does, from its registry.
    extra: of wmrl-ray that installs `imports`, the modules that it needs. libraries: of the system, which those need.
    pattern: of every id that is the family's; `environments` lists those that the papers use, and small ones for tests.
    has_pixels: takes obs="pixels", for which `find_renderer` returns what is missing, None if nothing is.
    """

    name: str
    module: str | None
    extra: str
    imports: tuple[str, ...]
    libraries: tuple[str, ...]
    pattern: str
    environments: Mapping[str, Sizes]
    find_renderer: Callable[[], str | None]
    has_pixels: bool = False

    def holds(self, env_id: str) -> bool:
        return re.fullmatch(self.pattern, env_id) is not None

    def status(self, pixels: bool = False) -> tuple[Status, str]:
        """What this machine lacks for its environments, and the fix; pixels: for obs="pixels"."""
        for module in self.imports:
            if util.find_spec(module) is None:
                return "extra missing", f"pip install 'wmrl-ray[{self.extra}]'"
        if sys.platform == "linux":
            for library in self.libraries:
                if not loading.has_library(library):
                    return "library missing", loading.library_fix(library)
        if pixels and (fix := self.find_renderer()) is not None:
            return "renderer missing", fix
        return "ok", ""


def family_of(env_id: str) -> Family | None:
    """The family whose file makes this id; None: Gymnasium's registry does."""
    return next((family for family in FAMILIES if family.module is not None and family.holds(env_id)), None)


def known_ids() -> list[str]:
    """Every id that a family lists."""
    return [env_id for family in FAMILIES for env_id in family.environments]


def _find_vulkan() -> str | None:
    """What SAPIEN lacks to draw: a GPU, as software Vulkan is not enough for it. Whether its driver has Vulkan, a try tells."""
    devices = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev/dri").glob("renderD*")]
    return None if devices or sys.platform != "linux" else "a GPU with a Vulkan driver (states work without)"


_MAZES = {
    env_id: Sizes({"point": 4, "ant": 29}[robot], {"point": 2, "ant": 8}[robot], layout(robot, maze).max_episode_steps)
    for env_id, (robot, maze) in maze_ids().items()
}
_DMC = {
    "hopper-hop": (15, 4),
    "cheetah-run": (17, 6),
    "walker-walk": (24, 6),
    "walker-run": (24, 6),
    "quadruped-run": (78, 12),
    "humanoid-walk": (67, 21),
    "dog-stand": (223, 38),
    "dog-walk": (223, 38),
    "dog-trot": (223, 38),
    "dog-run": (223, 38),
    "cartpole-balance": (5, 1),
    "cartpole-swingup": (5, 1),
    "pendulum-swingup": (3, 1),
    "reacher-easy": (6, 2),
}
_MYO = {"KeyTurn": 93, "ObjHold": 91, "PenTwirl": 83}

FAMILIES = (
    Family(
        name="mazes",
        module=None,
        extra="robotics",
        imports=("mujoco", "gymnasium_robotics"),
        libraries=(),
        pattern=r"wmrl/(Point|Ant)Maze-.*",
        environments=_MAZES,
        find_renderer=loading.find_opengl,
    ),
    Family(
        name="DMControl",
        module="dmc",
        extra="dmc",
        imports=("mujoco", "dm_control"),
        libraries=(),
        pattern=r"dmc/.*",
        environments={f"dmc/{name}": Sizes(obs, action, 500) for name, (obs, action) in _DMC.items()},
        find_renderer=loading.find_opengl,
        has_pixels=True,
    ),
    Family(
        name="MyoSuite",
        module="myo",
        extra="myo",
        imports=("mujoco", "myosuite"),
        libraries=(),
        pattern=r"myo[A-Z].*",
        environments={
            f"myoHand{task}{goal}-v0": Sizes(obs, 39, 100) for task, obs in _MYO.items() for goal in ("Fixed", "Random")
        },
        find_renderer=loading.find_opengl,
    ),
    Family(
        name="ManiSkill",
        module="maniskill",
        extra="maniskill",
        imports=("sapien", "mani_skill"),
        libraries=("libX11.so.6", "libGL.so.1", "libglib-2.0.so.0"),
        pattern=r"(Pick|Lift)Cube-v1",
        environments={"PickCube-v1": Sizes(51, 4, 100), "LiftCube-v1": Sizes(42, 4, 100)},
        find_renderer=_find_vulkan,
        has_pixels=True,
    ),
)
