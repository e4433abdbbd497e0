"""Layer 3: the shells that put Agent, Replay and environments on Ray. The only package that imports ray.

The names below load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmrl_ray.rllib.algorithm import AWAC, BC, CQL, DT, IQL, IQLTDMPC, TD3BC, TDMPC, Manager
    from wmrl_ray.rllib.compat import debug_config, init
    from wmrl_ray.rllib.config import (
        AWACConfig,
        BCConfig,
        CQLConfig,
        DTConfig,
        IQLConfig,
        IQLTDMPCConfig,
        IQMPCConfig,
        IQSACConfig,
        ManagerConfig,
        TD3BCConfig,
        TDMPC2Config,
        TDMPCConfig,
    )
    from wmrl_ray.rllib.online import IQMPC, IQSAC, TDMPC2
    from wmrl_ray.rllib.train import train_on_ray

_HOMES = {
    "algorithm": ("AWAC", "BC", "CQL", "DT", "IQL", "IQLTDMPC", "Manager", "TD3BC", "TDMPC"),
    "compat": ("debug_config", "init"),
    "config": (
        "AWACConfig",
        "BCConfig",
        "CQLConfig",
        "DTConfig",
        "IQLConfig",
        "IQLTDMPCConfig",
        "IQMPCConfig",
        "IQSACConfig",
        "ManagerConfig",
        "TD3BCConfig",
        "TDMPC2Config",
        "TDMPCConfig",
    ),
    "online": ("IQMPC", "IQSAC", "TDMPC2"),
    "train": ("train_on_ray",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AWAC",
    "BC",
    "CQL",
    "DT",
    "IQL",
    "IQLTDMPC",
    "IQMPC",
    "IQSAC",
    "TD3BC",
    "TDMPC",
    "TDMPC2",
    "AWACConfig",
    "BCConfig",
    "CQLConfig",
    "DTConfig",
    "IQLConfig",
    "IQLTDMPCConfig",
    "IQMPCConfig",
    "IQSACConfig",
    "Manager",
    "ManagerConfig",
    "TD3BCConfig",
    "TDMPC2Config",
    "TDMPCConfig",
    "debug_config",
    "init",
    "train_on_ray",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
