import json
import os

import numpy as np
import pytest
import torch

from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError

TREE = {
    "weights": {"a.weight": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0)}},
        "param_groups": [{"lr": 1e-3, "params": [0], "betas": (0.9, 0.999), "fused": True}],
    },
    "rng": {"state": "123456789012345678901234567890", "array": np.arange(4, dtype=np.int64)},
    "none": None,
}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return a == b


def test_a_tree_comes_back_as_it_was(tmp_path):
    checkpoint.save(tmp_path / "c", TREE, {"update": 7})
    tree, meta = checkpoint.load(tmp_path / "c")
    assert same(TREE, tree) and meta == {"update": 7}
    assert sorted(os.listdir(tmp_path)) == ["c"] and sorted(os.listdir(tmp_path / "c")) == [
        "manifest.json",
        "state.json",
        "tensors.safetensors",
    ]


def test_an_array_that_stands_in_a_tree_twice_comes_back_twice(tmp_path):
    """As rank 0's replay does in the tree of an offline run on Ray."""
    array, empty = np.arange(4.0), np.zeros(0)
    replay = {"starts": array, "half": array[:2], "none": empty}
    tree = {"replay": {"starts": array, "none": empty}, "streams": [{"replay": replay}]}
    checkpoint.save(tmp_path / "c", tree, {})
    assert same(checkpoint.load(tmp_path / "c")[0], tree)


def test_a_new_checkpoint_replaces_an_old_one(tmp_path):
    checkpoint.save(tmp_path / "c", TREE, {"update": 1})
    checkpoint.save(tmp_path / "c", TREE, {"update": 2})
    assert checkpoint.read_meta(tmp_path / "c") == {"update": 2} and os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_flipped_byte_is_found(tmp_path, name):
    file = checkpoint.save(tmp_path / "c", TREE, {}) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is corrupt"):
        checkpoint.load(tmp_path / "c")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "seal", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "c", TREE, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "manifest.json").unlink(), "no manifest.json"),
        (lambda c: (c / "state.json").unlink(), "state.json is missing"),
        (lambda c: (c / "manifest.json").write_text("{"), "manifest.json is corrupt"),
        (lambda c: (c / "manifest.json").write_text(json.dumps({"format": 99, "sha256": {}})), "format 99"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_in_one_line(tmp_path, damage, message):
    folder = checkpoint.save(tmp_path / "c", TREE, {})
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load(folder)
    assert "\n" not in str(error.value) and not checkpoint.is_complete(folder)


def test_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "absent")


def test_what_is_not_data_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a/0: a checkpoint cannot hold a set"):
        checkpoint.save(tmp_path / "c", {"a": [{1, 2}]}, {})


def parted(tmp_path, name="c"):
    """A checkpoint whose replay another process wrote."""
    folder = tmp_path / name
    folder.mkdir()
    part = checkpoint.write_part(folder, "replay", {"online": {"obs": np.arange(12).reshape(3, 4)}, "seed": "7"})
    checkpoint.seal(folder, checkpoint.fill(folder, {"streams": [{"replay": part}], "step": torch.tensor(1)}, {"update": 3}))
    return folder, part


def test_a_part_comes_back_with_the_rest_or_is_left_for_whoever_needs_it(tmp_path, monkeypatch):
    hashed = []
    hash_of = checkpoint.file_sha256
    monkeypatch.setattr(checkpoint, "file_sha256", lambda file: (hashed.append(file.name), hash_of(file))[1])
    folder, _ = parted(tmp_path)
    assert sorted(hashed) == ["replay.safetensors", "state.json", "tensors.safetensors"]  # each once
    tree, meta = checkpoint.load(folder)
    expected = {"online": {"obs": np.arange(12).reshape(3, 4)}, "seed": "7"}
    assert same(tree, {"streams": [{"replay": expected}], "step": torch.tensor(1)}) and meta == {"update": 3}
    tree, _ = checkpoint.load(folder, parts=False)
    assert same(checkpoint.read_part(tree["streams"][0]["replay"]), expected)
    hashed.clear()
    checkpoint.load(folder, parts=False, verified=True)
    assert not hashed


def test_a_damaged_part_a_missing_one_and_one_that_is_not_in_the_manifest_are_refused(tmp_path):
    folder, part = parted(tmp_path)
    content = bytearray((folder / part.file).read_bytes())
    content[-1] ^= 1
    (folder / part.file).write_bytes(content)
    with pytest.raises(CheckpointError, match="replay.safetensors is corrupt"):
        checkpoint.load(folder, parts=False)
    (folder / part.file).unlink()
    with pytest.raises(CheckpointError, match="replay.safetensors is missing"):
        checkpoint.load(folder)
    checkpoint.seal(folder)
    for verified in (False, True):
        with pytest.raises(CheckpointError, match="replay.safetensors is not in its manifest"):
            checkpoint.load(folder, parts=False, verified=verified)
    with pytest.raises(CheckpointError, match=r"lacks \['replay'\], which another process wrote"):
        checkpoint.fill(folder, {"replay": part}, {})


def test_a_replay_is_written_without_a_copy():
    array, tensors = np.zeros((1000, 4), np.uint8), {}
    checkpoint._pack({"obs": array[10:]}, "", tensors, [])
    assert tensors["/obs"].data_ptr() == array[10:].ctypes.data
    frozen = np.zeros(3)
    frozen.setflags(write=False)
    checkpoint._pack({"obs": frozen, "number": np.array(2.0)}, "", tensors, [])
    assert tensors["/number"].shape == ()
