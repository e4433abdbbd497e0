"""Full-state checkpoints without pickle: complete or absent, and checked.

A checkpoint is a folder: `tensors.safetensors` (every tensor and array of the state, named by its path), `state.json` (the rest
of the state, and `meta`), and `manifest.json` (sha256 of both), written last into a temporary folder that is then renamed.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
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
FLOAT_KEY = "__float__"  # for a number that JSON does not know: NaN or an infinity


class CheckpointError(ValueError):
    """A checkpoint that is absent, incomplete or corrupt. The message names the file."""


def save(path: Path, tree: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Writes `tree` (nested dicts and lists of tensors, arrays, numbers, strings) and `meta` (JSON) to the folder `path`.

    An existing checkpoint at `path` is replaced only when the new one is complete.

    Raises:
        OSError: it cannot be written; its `filename` is `path`. Nothing is left of it then.
    """
    from safetensors.torch import save_file

    path = Path(path)
    with writing(path) as partial:
        partial.mkdir()
        tensors: dict[str, torch.Tensor] = {}
        skeleton = _pack(tree, "", tensors)
        save_file(tensors, partial / TENSORS)
        write_json(partial / STATE, {"state": skeleton, "meta": meta}, indent=None)
        seal(partial)
        replace(partial, path)
    return path


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


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """(tree, meta) of the checkpoint at `path`, verified.

    Raises:
        CheckpointError: absent, incomplete, or a file differs from the manifest.
    """
    from safetensors.torch import load_file

    path = Path(path)
    _verify_content(path, TENSORS, STATE)
    tensors = load_file(path / TENSORS, device=str(device))
    content = json.loads((path / STATE).read_text())
    return _unpack(content["state"], tensors), content["meta"]


def read_meta(path: Path) -> dict[str, Any]:
    """The meta of a complete checkpoint, without reading tensors."""
    _verify_content(Path(path), STATE)
    return json.loads((Path(path) / STATE).read_text())["meta"]


def seal(folder: Path) -> None:
    """Writes the manifest of every file in `folder`, all of them on the disk: the last act of writing a checkpoint."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    files = {
        f.relative_to(folder).as_posix(): file_sha256(f)
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != "manifest.json"
    }
    write_json(folder / "manifest.json", {"format": FORMAT, "sha256": files})


def verify(path: Path) -> list[str]:
    """The files of the manifest, by name. Raises CheckpointError unless each is inside the folder, there and unchanged."""
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
        if file_sha256(file) != digest:
            raise CheckpointError(f"{file} is corrupt: its sha256 differs from the manifest; use another checkpoint of the run")
    return list(files)


def _verify_content(path: Path, *needed: str) -> None:
    """As `verify`; and what will be read is in the manifest, so that it was checked."""
    if missing := set(needed) - set(verify(path)):
        raise CheckpointError(f"{path} is no checkpoint of an agent: {min(missing)} is not in its manifest")


def is_complete(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The JSON skeleton of `value`; its tensors and arrays go into `tensors` under their paths."""
    if isinstance(value, torch.Tensor | np.ndarray):
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
        else:
            tensors[path] = torch.from_numpy(np.array(value, order="C"))  # a copy; a replay's arrays may be gigabytes
        return {TENSOR_KEY if isinstance(value, torch.Tensor) else TENSOR_KEY + "np": path}
    if isinstance(value, dict):
        # JSON keys are strings; optimisers number their parameters. The skeleton remembers which.
        return {"__dict__": [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT_KEY: str(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if isinstance(value, dict):
        if "__dict__" in value:
            return {k: _unpack(v, tensors) for k, v in value["__dict__"]}
        ((kind, path),) = value.items()
        if kind == FLOAT_KEY:
            return float(path)
        return tensors[path] if kind == TENSOR_KEY else tensors[path].cpu().numpy()
    return value
