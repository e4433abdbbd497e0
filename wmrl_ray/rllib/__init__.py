"""Layer 3: the shells that put Agent, Replay and environments on Ray. The only package that imports ray.

The names below load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmrl_ray.rllib.algorithm import BC, CQL, DT, IQLTDMPC, TDMPC
    from wmrl_ray.rllib.compat import debug_config, init
    from wmrl_ray.rllib.config import BCConfig, CQLConfig, DTConfig, IQLTDMPCConfig, TDMPCConfig
    from wmrl_ray.rllib.train import train_on_ray

_HOMES = {
    "algorithm": ("BC", "CQL", "DT", "IQLTDMPC", "TDMPC"),
    "compat": ("debug_config", "init"),
    "config": ("BCConfig", "CQLConfig", "DTConfig", "IQLTDMPCConfig", "TDMPCConfig"),
    "train": ("train_on_ray",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["BC", "CQL", "DT", "IQLTDMPC", "TDMPC", "BCConfig", "CQLConfig", "DTConfig", "IQLTDMPCConfig", "TDMPCConfig"]
__all__ += ["debug_config", "init", "train_on_ray"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
