"""Datasets made here, with D4RL's recipes and this project's own controllers: stand-ins, on their own score scale.

    make_dataset("pointmaze-umaze", steps=100_000, seed=0)   # -> "wmrl/pointmaze/umaze-v0", a local Minari dataset

A dataset depends on its name, its number of steps and its seed, not on the number of workers (and on the MuJoCo version, which
its metadata records).
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from wmrl_ray.config import check, did_you_mean
from wmrl_ray.data.card import STAND_IN_MARK, Origin
from wmrl_ray.data.datasets import dataset_from_episodes
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.files import check_free
from wmrl_ray.data.makers.shards import MapShards, Shard, ShardSpec, run_shard, split
from wmrl_ray.data.minari_writer import env_spec_json, write_local_minari
from wmrl_ray.data.source import check_minari_id, minari_root

__all__ = [
    "DEMO",
    "DEMO_COMMAND",
    "MAKERS",
    "MakerSpec",
    "MapShards",
    "STAND_IN",
    "STEPS",
    "Shard",
    "ShardSpec",
    "make_dataset",
    "run_shard",
]

STEPS = 1_000_000  # of a dataset under its maker's own id
DEMO = "wmrl/demo/pointmaze-umaze-v0"  # a small one for first runs, which `make demo` makes so
DEMO_COMMAND = f"wmrl data make pointmaze-umaze --steps 50000 --id {DEMO}"
REQUIREMENTS = ("mujoco", "gymnasium-robotics", "gymnasium")  # what the simulation's numbers depend on
STAND_IN = (
    f"{STAND_IN_MARK} made by wmrl_ray's own controller with D4RL's recipe; not D4RL data, scores are on their own scale."
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MakerSpec:
    """A dataset that can be made. family: the module that makes it. style: "" or "play" or "diverse"."""

    name: str
    family: str
    maze: str
    style: str
    env_id: str
    dataset_id: str
    shard_steps: int
    algorithm_name: str
    recipe: str


def make_dataset(
    name: str,
    *,
    steps: int = STEPS,
    seed: int = 0,
    workers: int = 0,
    dataset_id: str | None = None,
    overwrite: bool = False,
    reference_episodes: int = 100,
    map_shards: MapShards | None = None,
    progress: Progress | None = None,
) -> str:
    """Makes a dataset and returns its Minari id.

    Args:
        name: a key of MAKERS.
        steps: of all episodes together, exactly.
        seed: of everything random.
        workers: processes; 0 or 1 works in this one.
        dataset_id: the maker's own by default.
        overwrite: replace a dataset of that id.
        reference_episodes: episodes behind each reference score, of the random policy (0) and of the expert controller (100).
        map_shards: `map_shards(fn, specs)` replaces the processes (Ray): it yields fn(spec) in the order of specs.
        progress: called with (steps made, all steps).

    Raises:
        DataError: unknown name, an id that is none or exists (without `overwrite`), reference scores that come out equal, a
            full disk. Nothing half-written is left.
    """
    if name not in MAKERS:
        raise DataError(f"no maker {name!r}{did_you_mean(name, MAKERS)}; there are: {', '.join(MAKERS)}")
    check(steps >= 1, f"steps = {steps}; at least 1 is needed")
    check(reference_episodes >= 1, f"reference_episodes = {reference_episodes}; at least 1 is needed")
    maker = MAKERS[name]
    dataset_id = maker.dataset_id if dataset_id is None else dataset_id
    check_minari_id(dataset_id)
    check_free(minari_root() / dataset_id, overwrite)

    collect = [
        ShardSpec("collect", maker.family, maker.maze, maker.style, seed, i, steps=n)
        for i, n in enumerate(split(steps, maker.shard_steps))
    ]
    reference = [
        ShardSpec(kind, maker.family, maker.maze, maker.style, seed, i, episodes=n)
        for kind in ("random", "expert")
        for i, n in enumerate(split(reference_episodes, math.ceil(reference_episodes / 4)))
    ]
    specs = [*reference, *collect]
    shards = _tracked((map_shards or _process_map(workers))(run_shard, specs), len(reference), len(specs), steps, progress)

    returns = _reference_returns(shards)
    episodes = [episode for s in shards if s.spec.kind == "collect" for episode in s.episodes]
    origin = Origin(
        env_id=maker.env_id,
        env_spec=env_spec_json(f"wmrl_ray.envs:{maker.env_id}"),
        description=_describe(maker, episodes, returns, seed),
        ref_min_score=_mean(returns["random"]),
        ref_max_score=_mean(returns["expert"]),
    )
    more = {
        "algorithm_name": maker.algorithm_name,
        "author": {"wmrl_ray"},
        "num_episodes_average_score": reference_episodes,
        "requirements": [f"{package}=={importlib.metadata.version(package)}" for package in REQUIREMENTS],
    }
    dataset = dataset_from_episodes(episodes, name=dataset_id, origin=origin)
    write_local_minari(dataset, dataset_id, overwrite=overwrite, more=more)
    return dataset_id


def _describe(maker: MakerSpec, episodes: Sequence[Episode], returns: dict[str, list[float]], seed: int) -> str:
    random, expert = returns["random"], returns["expert"]
    steps = sum(len(e) for e in episodes)
    rewarded = sum(float(e.reward.sum()) for e in episodes) / steps
    reached = sum(e.terminated for e in episodes)
    ended = f" {reached} of {len(episodes)} episodes end at the goal." if maker.family == "antmaze" else ""
    return (
        f"{STAND_IN} {maker.recipe} {steps} steps in {len(episodes)} episodes, seed {seed}; "
        f"reward 1 in {rewarded:.2%} of the steps.{ended} Reference scores, measured in {maker.env_id}: "
        f"random policy {_mean(random):.4g} over {len(random)} episodes (score 0), "
        f"expert controller without noise {_mean(expert):.4g} over {len(expert)} episodes (score 100)."
    )


def _reference_returns(shards: Sequence[Shard]) -> dict[str, list[float]]:
    """Returns of the random policy and of the expert controller.

    Raises:
        DataError: equal means, which make no scale.
    """
    returns = {kind: [r for s in shards if s.spec.kind == kind for r in s.returns] for kind in ("random", "expert")}
    if (mean := _mean(returns["random"])) == _mean(returns["expert"]):
        count = len(returns["random"])
        raise DataError(
            f"the random policy and the expert both have the mean return {mean:.4g} over {count} episodes, so there is no "
            f"scale for scores; use more reference episodes (reference_episodes = {count})"
        )
    return returns


def _tracked(shards: Iterable[Shard], num_reference: int, expected: int, steps: int, progress: Progress | None) -> list[Shard]:
    """Collects the results as they come, the reference episodes first: without a scale nothing more is made.

    Raises:
        DataError: see `_reference_returns`.
        RuntimeError: a `map_shards` lost some.
    """
    done: list[Shard] = []
    for shard in shards:
        done.append(shard)
        if len(done) == num_reference:
            _reference_returns(done)
        if progress is not None:
            progress(sum(s.steps for s in done if s.spec.kind == "collect"), steps)
    if len(done) != expected:
        raise RuntimeError(f"{expected} shards were asked for, {len(done)} came back")
    return done


def _process_map(workers: int) -> MapShards:
    if workers <= 1:
        return lambda fn, specs: map(fn, specs)

    def in_processes(fn: Callable[[ShardSpec], Shard], specs: Sequence[ShardSpec]) -> Iterable[Shard]:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # Why spawn: a fork would copy this process' threads' locks (torch, MuJoCo) in whatever state they are
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(fn, specs)

    return in_processes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _pointmaze(maze: str, title: str) -> MakerSpec:
    return MakerSpec(
        name=f"pointmaze-{maze}",
        family="pointmaze",
        maze=maze,
        style="",
        env_id=f"wmrl/PointMaze-{title}-v0",
        dataset_id=f"wmrl/pointmaze/{maze}-v0",
        shard_steps=50_000,
        algorithm_name="breadth-first waypoints + PD controller",
        recipe="As maze2d: random goals without resets, PD controller on waypoints, action noise 0.5, "
        "reward for the evaluation goal (of the observation after the action), never terminal, pieces of at most 1000 steps.",
    )


def _antmaze(maze: str, title: str, style: str) -> MakerSpec:
    cells = {"play": "starts and goals from a short list picked by hand", "diverse": "any free cell as start and goal"}[style]
    return MakerSpec(
        name=f"antmaze-{maze}-{style}",
        family="antmaze",
        maze=maze,
        style=style,
        env_id=f"wmrl/AntMaze-{title}-v0",
        dataset_id=f"wmrl/antmaze/{maze}-{style}-v0",
        shard_steps=20_000,
        algorithm_name="breadth-first waypoints + scripted gait",
        recipe=f"As antmaze: {cells}, scripted walk along the corridors, action noise 0.2, reward 1 and the end within 0.5 of "
        "the evaluation goal; a reached goal is followed by the next; truncated at the step limit or when the ant has fallen.",
    )


_MAZES = {"umaze": "UMaze", "medium": "Medium", "large": "Large", "ultra": "Ultra"}
_SPECS = [_pointmaze(maze, _MAZES[maze]) for maze in ("umaze", "medium", "large")]
_SPECS += [_antmaze(maze, title, style) for maze, title in _MAZES.items() for style in ("play", "diverse")]
MAKERS: dict[str, MakerSpec] = {spec.name: spec for spec in _SPECS}
