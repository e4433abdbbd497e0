"""Full-state checkpoints without pickle: complete or absent, and checked.

A checkpoint is a folder: `tensors.safetensors` (every tensor and array of the state, named by its path), `state.json` (the rest
of the state, and `meta`), and `manifest.json` (sha256 of both), written last into a temporary folder that is then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = 1
TENSOR_KEY = "__tensor__"  # stands in state.json for a tensor; TENSOR_KEY + "np" for an array


class CheckpointError(ValueError):
    """A checkpoint that is absent, incomplete or corrupt. The message names the file."""


def save(path: Path, tree: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Writes `tree` (nested dicts and lists of tensors, arrays, numbers, strings) and `meta` (JSON) to the folder `path`.

    An existing checkpoint at `path` is replaced only when the new one is complete.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        tensors: dict[str, torch.Tensor] = {}
        skeleton = _pack(tree, "", tensors)
        save_file(tensors, partial / "tensors.safetensors")
        (partial / "state.json").write_text(json.dumps({"state": skeleton, "meta": meta}))
        seal(partial)
        replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def replace(partial: Path, target: Path) -> None:
    """Puts the finished folder `partial` in place of `target`: nothing, an empty folder, or an older checkpoint."""
    if target.exists() and any(target.iterdir()):
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old)
    else:
        os.replace(partial, target)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """(tree, meta) of the checkpoint at `path`, verified.

    Raises:
        CheckpointError: absent, incomplete, or a file differs from the manifest.
    """
    from safetensors.torch import load_file

    path = Path(path)
    verify(path)
    tensors = load_file(path / "tensors.safetensors", device=str(device))
    content = json.loads((path / "state.json").read_text())
    return _unpack(content["state"], tensors), content["meta"]


def read_meta(path: Path) -> dict[str, Any]:
    """The meta of a complete checkpoint, without reading tensors."""
    verify(path)
    return json.loads((Path(path) / "state.json").read_text())["meta"]


def seal(folder: Path) -> None:
    """Writes the manifest of every file in `folder`, all of them on the disk: the last act of writing a checkpoint."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    files = {
        f.relative_to(folder).as_posix(): _sha256(f)
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != "manifest.json"
    }
    temporary = folder / ".manifest.json.partial"
    temporary.write_text(json.dumps({"format": FORMAT, "sha256": files}, indent=1))
    _sync(temporary)
    os.replace(temporary, folder / "manifest.json")


def verify(path: Path) -> None:
    """Raises CheckpointError unless every file of the manifest is there and unchanged."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}")
    manifest = path / "manifest.json"
    if not manifest.exists():
        raise CheckpointError(
            f"{path} is not a complete checkpoint: it has no manifest.json (it was interrupted, or is another folder)"
        )
    try:
        content = json.loads(manifest.read_text())
        files = content["sha256"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{manifest} is corrupt; use another checkpoint of the run") from None
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {content.get('format')!r}; this version reads {FORMAT}")
    for name, digest in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} is incomplete: {name} is missing")
        if _sha256(file) != digest:
            raise CheckpointError(f"{file} is corrupt: its sha256 differs from the manifest; use another checkpoint of the run")


def is_complete(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def _sync(file: Path) -> None:
    with open(file, "rb") as f:
        os.fsync(f.fileno())


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


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
        return value.item()
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
        return tensors[path] if kind == TENSOR_KEY else tensors[path].cpu().numpy()
    return value
