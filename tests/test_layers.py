"""Who may import what: DESIGN's table of layers, read from the syntax tree of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "wmrl_ray"


@dataclass(frozen=True)
class Layer:
    """number: a module imports from its own layer and those below. always: what it may import anywhere; lazily: only inside a
    function, so that importing the module stays cheap and works without it."""

    number: int
    always: frozenset[str]
    lazily: frozenset[str] = frozenset()


CORE = frozenset({"numpy", "torch"})
DATA = CORE | {"pyarrow", "h5py"}
READERS = frozenset({"PIL", "minari", "huggingface_hub", "gymnasium", "matplotlib", "h5py"})
SYSTEM = DATA | {"gymnasium", "safetensors", "yaml"}
EXTRAS = frozenset(
    {"mujoco", "gymnasium_robotics", "dm_control", "myosuite", "mani_skill", "sapien", "imageio", "imageio_ffmpeg", "scipy"}
)
SCREEN = frozenset({"typer", "click", "rich", "jinja2", "yaml", "numpy"})

SHARED_AGENT_FILES = ("base", "latent", "simplicial")  # what several algorithms build on; no algorithm of its own

# By the longest matching prefix. `report` reads files only: neither torch nor ray, directly or through what it imports.
LAYERS = {
    "wmrl_ray": Layer(0, frozenset()),
    "wmrl_ray.config": Layer(0, CORE),
    "wmrl_ray.core": Layer(0, CORE),
    "wmrl_ray.data": Layer(1, DATA, READERS),
    "wmrl_ray.data.makers": Layer(2, SYSTEM, EXTRAS | READERS),  # makers run environments
    "wmrl_ray.envs": Layer(2, SYSTEM, EXTRAS | READERS),
    "wmrl_ray.envs.mazes": Layer(2, SYSTEM | {"mujoco"}, EXTRAS),  # a family's file, imported when one of its ids is made
    "wmrl_ray.rollout": Layer(2, SYSTEM, EXTRAS),
    "wmrl_ray.collect": Layer(2, SYSTEM),
    "wmrl_ray.online": Layer(2, SYSTEM),
    "wmrl_ray.rewards": Layer(2, SYSTEM),
    "wmrl_ray.run": Layer(2, SYSTEM),
    "wmrl_ray.checkpoint": Layer(2, SYSTEM),
    "wmrl_ray.policy": Layer(2, SYSTEM),
    "wmrl_ray.train": Layer(2, SYSTEM),
    "wmrl_ray.intents": Layer(2, SYSTEM),
    "wmrl_ray.trackers": Layer(2, frozenset(), frozenset({"tensorboardX", "wandb", "mlflow"})),
    "wmrl_ray.schedule": Layer(2, frozenset()),
    "wmrl_ray.video": Layer(2, frozenset({"numpy"}), frozenset({"imageio_ffmpeg"})),  # `report` films too: no torch
    "wmrl_ray.space": Layer(0, frozenset()),
    "wmrl_ray.rows": Layer(2, frozenset(), SYSTEM),
    "wmrl_ray.fork": Layer(2, SYSTEM),
    "wmrl_ray.search_trial": Layer(2, SYSTEM),
    "wmrl_ray.search": Layer(2, frozenset(), SYSTEM),
    "wmrl_ray.study": Layer(2, frozenset(), SYSTEM),  # its import stays cheap: torch comes with the check of the runs
    "wmrl_ray.rllib": Layer(3, SYSTEM | {"ray", "packaging"}, EXTRAS),
    "wmrl_ray.rllib.jobs": Layer(3, frozenset({"ray", "aiohttp", "requests"})),  # Ray's client raises their errors
    "wmrl_ray.rllib.search": Layer(3, SYSTEM | {"ray"}, frozenset({"optuna"})),
    "wmrl_ray.rllib.searcher": Layer(3, SYSTEM | {"ray", "optuna"}),  # of the extra, loaded where it is asked for
    "wmrl_ray.report": Layer(4, frozenset({"numpy", "jinja2"}), frozenset({"matplotlib", "scipy", "yaml"})),
    "wmrl_ray.bad_pairs": Layer(4, frozenset({"packaging"})),
    "wmrl_ray.doctor": Layer(4, SCREEN | {"packaging"}, EXTRAS | SYSTEM | {"minari", "matplotlib"}),
    "wmrl_ray.sweep": Layer(4, SCREEN, SYSTEM),
    "wmrl_ray.sweep_folder": Layer(4, frozenset(), SYSTEM),
    "wmrl_ray.sweep_search": Layer(4, frozenset(), SYSTEM),
    "wmrl_ray.results": Layer(4, frozenset(), SYSTEM),
    "wmrl_ray.schema": Layer(4, frozenset(), SYSTEM),
    "wmrl_ray.cli": Layer(4, SCREEN, SYSTEM | EXTRAS | {"matplotlib", "minari"}),
    "wmrl_ray.__main__": Layer(4, SCREEN),
}


def modules() -> dict[str, Path]:
    """Every module of the package, by dotted name."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def layer_of(module: str) -> Layer | None:
    """The layer of the longest prefix in the table; the package's own entry stands for `wmrl_ray/__init__.py` alone."""
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        if layer := LAYERS.get(".".join(parts[:length])):
            return layer
    return LAYERS[PACKAGE] if module == PACKAGE else None


@dataclass(frozen=True)
class Import:
    name: str  # dotted: module, or module.name for `from module import name`
    line: int
    lazy: bool  # inside a function; `if TYPE_CHECKING` is not an import at all


def imports(tree: ast.AST, module: str, is_package: bool, lazy: bool = False) -> Iterator[Import]:
    """Every import below `tree`, relative ones resolved against `module`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.orelse:
                yield from imports(child, module, is_package, lazy)
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base]).rstrip(".")
            yield from (Import(f"{base}.{alias.name}", node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield Import(str(node.args[0].value), node.lineno, lazy)
            yield from imports(node, module, is_package, lazy)
        else:
            inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, module, is_package, inside)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What `source`, read as `module`, imports and may not. One line each, with the place."""
    layer = layer_of(module)
    if layer is None:
        return [f"{module} is in no layer: add it to LAYERS in tests/test_layers.py and to the table of the design"]
    found = []
    for item in imports(ast.parse(source), module, is_package):
        top = item.name.split(".")[0]
        where = f"{module}:{item.line} imports {item.name}"
        if top == PACKAGE:
            other = layer_of(item.name) or layer_of(item.name.rpartition(".")[0])
            if other is None:
                found.append(f"{where}, which is in no layer")
            elif other.number > layer.number:
                found.append(f"{where}: upward, from layer {layer.number} to {other.number}")
            elif is_sideways(module, item.name):
                found.append(f"{where}: sideways, between agent files")
        elif top not in sys.stdlib_module_names and top not in layer.always:
            if top not in layer.lazily:
                found.append(f"{where}: layer {layer.number} may not")
            elif not item.lazy:
                found.append(f"{where} at module level: only inside a function")
    return found


def is_sideways(module: str, name: str) -> bool:
    """An algorithm's file imports another's. They share math, nets, models, planner and the base agent, never each other."""
    agents = f"{PACKAGE}.core.agents."
    if not module.startswith(agents) or not name.startswith(agents):
        return False
    own, other = (dotted.removeprefix(agents).split(".")[0] for dotted in (module, name))
    return other not in (own, *SHARED_AGENT_FILES)


@pytest.mark.parametrize("module", modules())
def test_every_module_imports_only_what_its_layer_may(module: str) -> None:
    path = modules()[module]
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("wmrl_ray.core.math", "import ray", "layer 0 may not"),
        ("wmrl_ray.core.math", "def f():\n    from ray import tune", "layer 0 may not"),
        ("wmrl_ray.core.math", "import gymnasium as gym", "layer 0 may not"),
        ("wmrl_ray.core.math", "from wmrl_ray.data import replay", "upward, from layer 0 to 1"),
        ("wmrl_ray.core.agents.tdmpc", "from ...data.replay import Replay", "upward, from layer 0 to 1"),
        ("wmrl_ray.core.agents.tdmpc", "from wmrl_ray.core.agents.bc import BC", "sideways"),
        ("wmrl_ray.core.agents.tdmpc", "from .bc import BC", "sideways"),
        ("wmrl_ray.core.agents.tdmpc", "from wmrl_ray.core.agents import bc", "sideways"),
        ("wmrl_ray.data.replay", "import minari", "only inside a function"),
        ("wmrl_ray.data.replay", "class A:\n    import minari", "only inside a function"),
        ("wmrl_ray.data.replay", "from wmrl_ray.envs import make_env", "upward, from layer 1 to 2"),
        ("wmrl_ray.data.replay", "def f():\n    import_module('ray')", "layer 1 may not"),
        ("wmrl_ray.train", "try:\n    import ray\nexcept ImportError:\n    ray = None", "layer 2 may not"),
        ("wmrl_ray.train", "from wmrl_ray import rllib", "upward, from layer 2 to 3"),
        ("wmrl_ray.cli.train", "def f():\n    import ray", "layer 4 may not"),
        ("wmrl_ray.report.html", "def f():\n    import torch", "layer 4 may not"),
        ("wmrl_ray.helpers", "import os", "in no layer"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, complaint: str) -> None:
    found = violations(module, source)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wmrl_ray.core.agents.tdmpc", "import math\nimport torch\nfrom .base import Agent\nfrom wmrl_ray.core import nets"),
        ("wmrl_ray.core.agents.tdmpc", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray"),
        ("wmrl_ray.data.readers", "def read():\n    import minari"),
        ("wmrl_ray.rllib.learner", "import ray\nfrom wmrl_ray.core.agents import AGENTS"),
        ("wmrl_ray.cli.train", "def f():\n    from wmrl_ray.rllib import train_on_ray"),
    ],
)
def test_what_the_table_allows_is_not_complained_about(module: str, source: str) -> None:
    assert violations(module, source) == []


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def import_without(absent: list[str], names: list[str]) -> subprocess.CompletedProcess[str]:
    lines = ["import sys, importlib", *(f"sys.modules[{name!r}] = None" for name in absent)]
    return run_python("\n".join([*lines, f"for name in {names!r}:\n    importlib.import_module(name)", "print('imported')"]))


def test_without_ray_every_module_of_layers_0_to_2_still_imports() -> None:
    names = [name for name in modules() if (layer := layer_of(name)) and layer.number <= 2]
    assert len(names) > 10
    result = import_without(["ray"], names)
    assert result.stdout.strip() == "imported", result.stderr


def test_blocking_an_import_does_make_it_fail() -> None:
    result = import_without(["torch"], ["wmrl_ray.core.batch"])
    assert "import of torch halted" in result.stderr


def test_the_report_imports_with_neither_torch_nor_ray() -> None:
    names = [name for name in modules() if name.startswith("wmrl_ray.report")]
    if not names:
        pytest.skip("there is no report yet")
    result = import_without(["torch", "ray"], names)
    assert result.stdout.strip() == "imported", result.stderr


def test_importing_the_environments_and_makers_loads_no_simulator() -> None:
    result = run_python(
        "import sys, wmrl_ray.envs, wmrl_ray.data.makers\nprint(sorted({'mujoco', 'dm_control'} & set(sys.modules)))"
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_command_line_starts_without_torch_ray_gymnasium_or_matplotlib() -> None:
    heavy = "{'torch', 'ray', 'gymnasium', 'matplotlib', 'minari', 'pyarrow'}"
    result = run_python(f"import sys, wmrl_ray.cli\nprint(sorted({heavy} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
