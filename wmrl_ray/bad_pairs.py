"""Versions that install together without complaint and fail when they run: what `wmrl doctor` knows about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

Versions = Mapping[str, Version]


@dataclass(frozen=True)
class BadPair:
    """One combination. applies: whether the installed versions are it. status: as in `doctor.Finding`."""

    name: str
    applies: Callable[[Versions], bool]
    status: Literal["note", "warn", "broken"]
    detail: str
    fix: str


def _has(versions: Versions, *names: str) -> bool:
    return all(name in versions for name in names)


def _mujoco_for(dm_control: Version) -> Version:
    """The oldest mujoco that a dm-control release takes: 1.0.44 needs 3.11, 1.0.45 needs 3.12, ... 1.0.50 needs 3.17."""
    return Version(f"3.{dm_control.micro - 33}") if dm_control >= Version("1.0.44") else Version("0")


BAD_PAIRS = (
    BadPair(
        "mujoco >= 4 with dm-control",
        lambda v: _has(v, "mujoco", "dm-control") and v["mujoco"] >= Version("4"),
        "broken",
        "every suite.load fails: MjModel has no attribute 'flex_vertedge' (seen with dm-control up to 1.0.50)",
        "pip install 'mujoco==3.11.0' 'dm-control==1.0.44'",
    ),
    BadPair(
        "mujoco >= 3.12 with the kitchen",
        lambda v: _has(v, "mujoco", "gymnasium-robotics") and v["mujoco"] >= Version("3.12"),
        "broken",
        "FrankaKitchen fails in mujoco_utils.py: an enum no longer equals a numpy integer",
        "pip install 'mujoco==3.11.0' (with 'dm-control==1.0.44')",
    ),
    BadPair(
        "dm-control newer than its mujoco",
        lambda v: _has(v, "mujoco", "dm-control") and v["mujoco"] < _mujoco_for(v["dm-control"]),
        "broken",
        "each dm-control release needs its own mujoco: 1.0.44 is the one for 3.11",
        "pip install 'mujoco==3.11.0' 'dm-control==1.0.44'",
    ),
    BadPair(
        "gymnasium other than 1.2.2 with ray[rllib]",
        lambda v: _has(v, "ray", "gymnasium") and v["gymnasium"] != Version("1.2.2"),
        "broken",
        "ray[rllib] is made for gymnasium 1.2.2 exactly; `pip check` does not notice, because it ignores extras",
        "pip install 'gymnasium==1.2.2'",
    ),
    BadPair(
        "d3rlpy 2.8.1 and gymnasium",
        lambda v: _has(v, "d3rlpy") and v["d3rlpy"] >= Version("2.8.1"),
        "warn",
        "it pins gymnasium 1.0.0 and downgrades what ray[rllib] needs",
        "pip install 'd3rlpy==2.8.0', or keep it in an environment of its own",
    ),
    BadPair(
        "pandas 3 with rliable",
        lambda v: _has(v, "pandas", "rliable") and v["pandas"] >= Version("3"),
        "warn",
        "`import rliable.library` fails; wmrl_ray does not use it (its report has its own statistics)",
        "pip install 'pandas<3', if you use rliable",
    ),
    BadPair(
        "pandas 3 with ray < 2.55",
        lambda v: _has(v, "pandas", "ray") and v["pandas"] >= Version("3") and v["ray"] < Version("2.55"),
        "note",
        "ray.data.from_pandas fails (SettingWithCopyWarning is gone); wmrl_ray never uses ray.data",
        "pip install 'pandas<3', if you use ray.data",
    ),
    BadPair(
        "rich >= 15 with viser",
        lambda v: _has(v, "rich", "viser") and v["rich"] >= Version("15"),
        "warn",
        "viser (through myosuite) needs rich < 15",
        "pip install 'rich<15'",
    ),
    BadPair(
        "ray < 2.55: CVE-2026-41486",
        lambda v: _has(v, "ray") and v["ray"] < Version("2.55"),
        "note",
        "ray.data unpickles metadata of a Parquet file when it opens it; wmrl_ray never reads Parquet through ray.data",
        "do not open untrusted Parquet files with ray.data; ray 2.60 has the fix (and no local_mode)",
    ),
    BadPair(
        "ray > 2.54.1: no local_mode",
        lambda v: _has(v, "ray") and v["ray"] >= Version("2.55"),
        "note",
        "ray.init(local_mode=True) is refused by this Ray",
        "use `wmrl train --debug` (the same in one process), or pip install 'ray[default,rllib,tune]==2.54.1'",
    ),
    BadPair(
        "ray outside the tested range",
        lambda v: _has(v, "ray") and not Version("2.54.1") <= v["ray"] < Version("2.61"),
        "warn",
        "tested with 2.54.1 and 2.60.0",
        "pip install 'ray[default,rllib,tune]==2.54.1'",
    ),
)
