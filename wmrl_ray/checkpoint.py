"""Full-state checkpoints without pickle: complete or absent, and checked.

A checkpoint is a folder: `tensors.safetensors` (every tensor and array of the state, named by its path), `state.json` (the rest
of the state, and `meta`), and `manifest.json` (sha256 of all), written last into a temporary folder that is then renamed.
What is large may be in parts: files of their own, `<name>.safetensors`, which whoever holds it writes and reads.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmrl_ray.data.files import file_sha256, is_full, naming, partial_of, recover, sync, write_json
from wmrl_ray.data.files import replace_folder as replace

__all__ = ["CheckpointError", "is_complete", "is_full", "load", "read_meta", "replace", "save", "seal", "verify", "writing"]

FORMAT = 1
TENSORS, STATE = "tensors.safetensors", "state.json"
TENSOR_KEY = "__tensor__"  # stands in state.json for a tensor; TENSOR_KEY + "np" for an array
PART_KEY = "__part__"  # for what is in a file of its own
FLOAT_KEY = "__float__"  # for a number that JSON does not know: NaN or an infinity


class CheckpointError(ValueError):
    """A checkpoint that is absent, incomplete or corrupt. The message names the file."""


def save(path: Path, tree: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Writes `tree` (nested dicts and lists of tensors, arrays, numbers, strings) and `meta` (JSON) to the folder `path`.

    An existing checkpoint at `path` is replaced only when the new one is complete.

    Raises:
        OSError: it cannot be written; its `filename` is `path`. Nothing is left of it then.
    """
    path = Path(path)
    with writing(path) as partial:
        partial.mkdir()
        seal(partial, fill(partial, tree, meta))
        replace(partial, path)
    return path


def fill(folder: Path, tree: dict[str, Any], meta: dict[str, Any]) -> dict[str, str]:
    """Writes the files of a checkpoint but for its manifest, beside the parts of `tree`. Returns the sha256 that are known."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    parts: list[Part] = []
    skeleton = _pack(tree, "", tensors, parts)
    save_file(tensors, folder / TENSORS)
    write_json(folder / STATE, {"state": skeleton, "meta": meta}, indent=None)
    if missing := [part.name for part in parts if not (folder / part.file).is_file()]:
        raise CheckpointError(f"{folder} lacks {missing}, which another process wrote: is it on storage that all nodes share?")
    return {part.file: part.sha256 for part in parts}


@dataclass(frozen=True)
class Part:
    """Stands in a tree for what is in a file of its own. folder: where it was found."""

    name: str
    sha256: str = ""
    folder: Path | None = None

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"


def write_part(folder: Path, name: str, tree: dict[str, Any]) -> Part:
    """Writes `tree` into `folder`, on the disk and hashed; no array of it is copied. Raises OSError."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    file = folder / Part(name).file
    save_file(tensors, file, {"state": json.dumps(_pack(tree, "", tensors, []))})
    sync(file)
    return Part(name, file_sha256(file))


def read_part(part: Part, device: str = "cpu") -> dict[str, Any]:
    """The tree of a part that `load` has found, and checked; arrays are maps of the file."""
    from safetensors import safe_open

    assert part.folder is not None
    with safe_open(part.folder / part.file, "pt", device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        return _unpack(json.loads(file.metadata()["state"]), tensors, _no_part)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """The name of a folder beside `path` to write to and then `replace` it with; gone afterwards. An error of the file system
    names `path`, whichever library noticed it.
    """
    partial = partial_of(path)
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(
    path: Path, device: str | torch.device = "cpu", *, parts: bool = True, verified: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tree, meta) of the checkpoint at `path`, verified.

    Args:
        parts: False leaves every `Part` for whoever needs it, to be read with `read_part`.
        verified: it was just now, with a folder around it.

    Raises:
        CheckpointError: absent, incomplete, or a file differs from the manifest.
    """
    from safetensors.torch import load_file

    path = Path(path)
    files = _verify_content(path, TENSORS, STATE, hashes=not verified)
    tensors = load_file(path / TENSORS, device=str(device))
    content = json.loads((path / STATE).read_text())

    def find(name: str) -> Any:
        part = Part(name, folder=path)
        if part.file not in files:
            raise CheckpointError(f"{path} is no checkpoint of an agent: {part.file} is not in its manifest")
        return read_part(part, str(device)) if parts else part

    return _unpack(content["state"], tensors, find), content["meta"]


def read_meta(path: Path) -> dict[str, Any]:
    """The meta of a complete checkpoint, without reading tensors."""
    _verify_content(Path(path), STATE)
    return json.loads((Path(path) / STATE).read_text())["meta"]


def seal(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Writes the manifest of every file in `folder`, all of them on the disk: the last act of writing a checkpoint.

    Args:
        known: sha256 of files, by their names in the manifest, that were hashed when they were written.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    files = {
        (name := f.relative_to(folder).as_posix()): (known or {}).get(name) or file_sha256(f)
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != "manifest.json"
    }
    write_json(folder / "manifest.json", {"format": FORMAT, "sha256": files})


def verify(path: Path, *, hashes: bool = True) -> list[str]:
    """The files of the manifest, by name. Raises CheckpointError unless each is inside the folder, there and unchanged.

    Args:
        hashes: False: unchanged is not looked at.
    """
    recover(path := Path(path))
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}")
    manifest = path / "manifest.json"
    if not manifest.exists():
        raise CheckpointError(
            f"{path} is not a complete checkpoint: it has no manifest.json (it was interrupted, or is another folder)"
        )
    try:
        content = json.loads(manifest.read_text())
        files = dict(content["sha256"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{manifest} is corrupt; use another checkpoint of the run") from None
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {content.get('format')!r}; this version reads {FORMAT}")
    for name, digest in files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):  # Why: who made the manifest may have made the links too
            raise CheckpointError(f"{path} is not to be trusted: {name!r} in its manifest leads out of the folder")
        if not file.is_file():
            raise CheckpointError(f"{path} is incomplete: {name} is missing")
        if hashes and file_sha256(file) != digest:
            raise CheckpointError(f"{file} is corrupt: its sha256 differs from the manifest; use another checkpoint of the run")
    return list(files)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of the files of a sealed folder, by name."""
    return dict(json.loads((folder / "manifest.json").read_text())["sha256"])


def _verify_content(path: Path, *needed: str, hashes: bool = True) -> list[str]:
    """As `verify`; and what will be read is in the manifest, so that it was checked."""
    files = verify(path, hashes=hashes)
    if missing := set(needed) - set(files):
        raise CheckpointError(f"{path} is no checkpoint of an agent: {min(missing)} is not in its manifest")
    return files


def is_complete(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def _no_part(name: str) -> Any:
    raise CheckpointError(f"a part cannot hold another, {name!r}")


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor], parts: list[Part]) -> Any:
    """The JSON skeleton of `value`; its tensors and arrays go into `tensors` under their paths, uncopied where that can be."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # Why a copy: a model's may share their memory
        return {TENSOR_KEY: path}
    if isinstance(value, np.ndarray):
        array = torch.from_numpy(np.require(value, requirements=["C", "W"]))  # Why no copy: a replay's may be gigabytes
        is_there_already = any(other.data_ptr() == array.data_ptr() for other in tensors.values())
        tensors[path] = array.clone() if is_there_already else array  # safetensors takes no memory twice
        return {TENSOR_KEY + "np": path}
    if isinstance(value, Part):
        parts.append(value)
        return {PART_KEY: value.name}
    if isinstance(value, dict):
        # JSON keys are strings; optimisers number their parameters. The skeleton remembers which.
        return {"__dict__": [[k, _pack(v, f"{path}/{k}", tensors, parts)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(v, f"{path}/{i}", tensors, parts) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT_KEY: str(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, torch.Tensor], find: Callable[[str], Any]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors, find) for v in value]
    if isinstance(value, dict):
        if "__dict__" in value:
            return {k: _unpack(v, tensors, find) for k, v in value["__dict__"]}
        ((kind, path),) = value.items()
        if kind == FLOAT_KEY:
            return float(path)
        if kind == PART_KEY:
            return find(path)
        return tensors[path] if kind == TENSOR_KEY else tensors[path].cpu().numpy()
    return value
