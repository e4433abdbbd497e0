"""FILE_OR_NAME and `--set key=value` -> the plain dict that RunConfig or Study is built from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml import YAMLError

from wmrl_ray.config import ConfigError, did_you_mean, read_json, with_key
from wmrl_ray.run.settings import of_record

PACKAGE = Path(__file__).resolve().parent.parent
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    """Where a configuration came from. run_dir: the run it belongs to, when a run folder was named."""

    label: str
    values: dict[str, Any]
    run_dir: Path | None = None


def config_folders() -> list[Path]:
    """Where names are looked up: here, in the checkout this package runs from, and in the installed package."""
    folders = [Path.cwd() / "tune_configs", PACKAGE.parent / "tune_configs", PACKAGE / "_tune_configs"]
    return [folder for i, folder in enumerate(folders) if folder.is_dir() and folder not in folders[:i]]


def available() -> dict[str, Path]:
    """Name -> file of every shipped configuration; the folder nearest to the user wins."""
    found: dict[str, Path] = {}
    for folder in config_folders():
        for path in sorted(folder.glob("*.y*ml")):
            found.setdefault(path.stem, path)
    return found


def read_available() -> Iterator[Source]:
    """Every shipped configuration of a single run, those of the folder nearest to the user first."""
    from wmrl_ray.study import is_study

    for name, path in available().items():
        values = _read_yaml(path)
        if not is_study(values):
            yield Source(name, values)


def available_studies() -> dict[str, Path]:
    """`paper/table` -> file of every shipped study: those in the folders of tune_configs, without what they include (_*)."""
    found: dict[str, Path] = {}
    for folder in config_folders():
        for path in sorted(folder.glob("*/*.y*ml")):
            if not path.name.startswith("_"):
                found.setdefault(f"{path.parent.name}/{path.stem}", path)
    return found


def read_study(name: str) -> Source:
    """The study that FILE_OR_NAME means: a YAML file, or a name such as iql_td_mpc/table2. What it includes is merged in.

    Raises:
        ConfigError: nothing has that name, the file is not a YAML mapping, or it is the configuration of a single run.
    """
    from wmrl_ray.study import is_study

    path, names = Path(name), available_studies()
    if not path.is_file() and name in names:
        path = names[name]
    if not path.is_file():
        if name in available():
            raise ConfigError(f"{name} is a single run, not a study; start it with: wmrl train {shlex.quote(name)}")
        what = "no such file" if path.suffix in SUFFIXES else "no study named"
        known = ", ".join(sorted(names)) or "none found"
        nearest = [full for full in names if full.rpartition("/")[2] == path.stem]
        meant = f" (did you mean {nearest[0]!r}?)" if nearest else did_you_mean(name, names)
        raise ConfigError(f"{what}: {name}{meant}; there are: {known}; or give a YAML file")
    values = _with_included(path)
    if not is_study(values):
        raise ConfigError(f"{name} is a single run, not a study; start it with: wmrl train {shlex.quote(name)}")
    return Source(path.stem, values)


def read_source(name: str) -> Source:
    """The configuration that FILE_OR_NAME means: a YAML file, a run folder, or a name in tune_configs.

    Raises:
        ConfigError: nothing has that name (the message lists what there is), the file is not a YAML mapping, or it is a study.
    """
    source = _read_source(name)
    from wmrl_ray.study import is_study

    if is_study(source.values):
        raise ConfigError(f"{name} is a study of many runs, not a single one; start it with: wmrl sweep {shlex.quote(name)}")
    return source


def _read_source(name: str) -> Source:
    path = Path(name)
    if path.is_dir() and (path / "config.json").exists():
        return Source(path.name, of_record(read_json(path / "config.json", "restore it")), path)
    if path.is_file():
        return Source(path.stem, _read_yaml(path))
    names = available()
    if name in names:
        return Source(name, _read_yaml(names[name]))
    if name in (studies := available_studies()):
        return Source(name, _with_included(studies[name]))
    known = ", ".join(sorted(names)) or "none found"
    if path.is_dir():
        raise ConfigError(f"{name} is a folder without a run in it (no config.json); give a YAML file or one of: {known}")
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        hint = f"{did_you_mean(path.stem, names)}; names that work without a path: {known}"
        raise ConfigError(f"no such file: {name}{hint}")
    raise ConfigError(f"no configuration named {name!r}{did_you_mean(name, names)}; there are: {known}; or give a YAML file")


def agent_overrides(overrides: list[str]) -> dict[str, Any]:
    """The `agent` part of `--set` where an agent that exists acts with other settings; ConfigError for any other key."""
    changes = overridden({"agent": {}}, overrides)
    for key in changes.keys() - {"agent"}:
        raise ConfigError(f"--set {key}=...: only settings of the agent can be changed here, e.g. agent.plan.horizon=5")
    return changes["agent"]


def overridden(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with `agent.plan.horizon=3`, ... over them; the right-hand side is read as YAML, but for comments: a `#` is part
    of the value, as the shell has handed it over.

    Raises:
        ConfigError: no `=`, an empty key, or a value that is not YAML.
    """
    found = dict(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip() or not all(key.strip().split(".")):
            raise ConfigError(f"--set {override!r} is not key=value; for example --set agent.plan.horizon=3")
        try:
            value = read_yaml(text, comments=False)
        except YAMLError:
            raise ConfigError(
                f"--set {override!r}: the value {text!r} is not valid YAML; quote it or close its brackets"
            ) from None
        found = with_key(found, key.strip(), value)
    return found


def _with_included(path: Path) -> dict[str, Any]:
    """The file's mapping over that of the file which its `include:` names, beside it."""
    values = _read_yaml(path)
    included = values.pop("include", None)
    if included is None:
        return values
    other = path.parent / str(included)
    if Path(str(included)).name != str(included) or not other.is_file():
        raise ConfigError(f"{path}: include = {included!r}; there is no such file beside it")
    return _merged(_read_yaml(other), values)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`; mappings that both have are merged in the same way."""
    both = {
        key: _merged(below[key], above[key]) for key in below.keys() & above.keys() if _are_mappings(below[key], above[key])
    }
    return {**below, **above, **both}


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def read_yaml(text: str, *, comments: bool = True) -> Any:
    """What it says in YAML 1.2, of plain data. (PyYAML reads 1.1, where `off` is false and `1e-3` a word.)

    Args:
        comments: False takes a text with ` #` in it that is not quoted as it stands.

    Raises:
        yaml.YAMLError: it is not YAML; or, without comments, a list or mapping with one.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not comments and text[node.end_mark.index if node else 0 :].strip():
            if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None):
                return text.strip()
            raise YAMLError("a comment behind the value")
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Resolves booleans and floats as YAML 1.2's core schema does."""

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text())
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; give a YAML file") from None
    return _mapping(values, path)


def _mapping(values: Any, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; expected a mapping such as 'algorithm: bc'")
    return values
