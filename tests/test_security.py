"""What others wrote is read and never run: configurations, checkpoints, datasets, run folders."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from tests.data.fakes import small_episode, write_minari
from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.cli.configs import overridden, read_source, read_study
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.data import open_dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import file_sha256
from wmrl_ray.data.source import check_minari_id, resolve
from wmrl_ray.envs import make_env
from wmrl_ray.policy import Policy
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.folder import RunDir
from wmrl_ray.study import Study

UNSAFE = ("pickle.load", "torch.load(", "allow_pickle=True", "yaml.load(", "eval(", "exec(")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Exists when something planted ran."""
    return tmp_path / "executed"


def test_the_payload_is_a_real_one(mark: Path) -> None:
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


# -- configurations ---------------------------------------------------------------------------------------------------------

TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/apply:subprocess.check_call [[touch, '{mark}']]",
    "!!python/name:os.system",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/module:antigravity",
]


@pytest.mark.parametrize("tag", TAGS)
def test_a_yaml_tag_makes_no_object(tag: str, mark: Path, tmp_path: Path) -> None:
    text = tag.format(mark=mark)
    for name, read in (("run", read_source), ("study", read_study)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"algorithm: bc\ndataset: {text}\n")
        with pytest.raises(ConfigError, match="not valid YAML") as error:
            read(str(file))
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        overridden({}, [f"dataset={text}"])
    assert not mark.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"algorithm": "os.system"},
        {"algorithm": "wmrl_ray.core.agents.bc:BC"},
        {"algorithm": "__import__('os')"},
        {"algorithm": "bc", "agent": {"__class__": "os.system"}},
        {"algorithm": "bc", "__class__": "os.system"},
        {"algorithm": "bc", "callbacks": "os.system"},
    ],
)
def test_no_key_names_what_to_import(values: dict[str, Any], mark: Path) -> None:
    from wmrl_ray.core.agents import agent_config

    with pytest.raises(ConfigError, match="unknown") as error:
        config = from_dict(RunConfig, {"dataset": "x.npz", **values})
        agent_config(config.algorithm, config.agent)
    assert "\n" not in str(error.value)


def test_a_dunder_in_a_dotted_key_reaches_no_attribute() -> None:
    values: dict[str, Any] = {"algorithm": "bc", "dataset": "x.npz"}
    values = overridden(values, ["agent.__class__.__init__=1", "__globals__.os=2"])
    with pytest.raises(ConfigError, match="unknown key '__globals__'"):
        from_dict(RunConfig, values)


@pytest.mark.parametrize("module", ["../evil", "./evil", "data/evil", "/tmp/evil", "evil;import os", "..evil", ".evil"])
def test_an_environment_id_imports_modules_and_never_files(
    module: str, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "data", tmp_path / "here"):
        folder.mkdir(exist_ok=True)
        (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    with pytest.raises(ConfigError, match="is no module"):
        make_env(f"{module}:Any-v0")
    assert not mark.exists()


def test_an_environment_id_may_import_an_installed_module_and_nothing_is_hidden_about_it(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Gymnasium's own ids do: `module:Name`. So who runs a configuration trusts it as far as the modules on the path."""
    (tmp_path / "installed_by_the_user.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be made"):
        make_env("installed_by_the_user:Any-v0")
    assert mark.exists()


# -- names that become paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../out", "/etc/x", "..", "a/../../b", "~/x", ".", "a\\..\\b"])
@pytest.mark.parametrize("where", ["paper", "table", "datasets", "algorithms"])
def test_names_in_a_study_stay_below_its_folder(name: str, where: str) -> None:
    values: dict[str, Any] = {
        "paper": "p", "table": "t", "variants": {"baseline": {}}, "datasets": {"d": {"uri": "x"}}, "algorithms": {"bc": {}},
    }  # fmt: skip
    from_dict(Study, values)
    values[where] = name if isinstance(values[where], str) else {name: next(iter(values[where].values()))}
    with pytest.raises(ConfigError, match="leads out of the sweep's folder"):
        from_dict(Study, values)


def test_an_included_file_lies_beside_the_one_that_includes_it(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("paper: p")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "study.yaml").write_text("include: ../secret.yaml\ntable: t\n")
    with pytest.raises(ConfigError, match="no such file beside it"):
        read_study(str(tmp_path / "in" / "study.yaml"))


@pytest.mark.parametrize("name", ["../../x-v0", "/tmp/x-v0", "a/../b-v0", "x-v0/../../y-v0", "a//b-v0", "x-v0\n", "~/x-v0"])
def test_a_dataset_id_is_no_path(name: str) -> None:
    with pytest.raises(DataError, match="is not a Minari id"):
        check_minari_id(name)
    with pytest.raises(DataError):
        resolve(f"minari://{name}")


# -- checkpoints ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path / "saved", {"weights": torch.arange(3.0)}, {"update": 1})


def forge(folder: Path, **entries: str) -> None:
    """More names in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] |= entries
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_names_only_what_is_inside(saved: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    digest = file_sha256(secret)
    for name in ("../secret", str(secret), "a/../../secret"):
        good = (saved / "manifest.json").read_bytes()
        forge(saved, **{name: digest})
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            checkpoint.load(saved)
        (saved / "manifest.json").write_bytes(good)
    checkpoint.load(saved)


@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.TENSORS])
def test_a_link_out_of_a_checkpoint_is_not_followed(saved: Path, tmp_path: Path, name: str) -> None:
    os.rename(saved / name, tmp_path / name)
    (saved / name).symlink_to(tmp_path / name)  # the same content, so that the sha256 is right
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        checkpoint.load(saved)


def test_what_a_manifest_does_not_list_is_not_read(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["sha256"][checkpoint.TENSORS]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    (saved / checkpoint.TENSORS).write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="is not in its manifest"):
        checkpoint.load(saved)


def test_a_pickle_in_the_place_of_tensors_or_state_does_not_run(saved: Path, mark: Path) -> None:
    for name in (checkpoint.TENSORS, checkpoint.STATE):
        good = (saved / name).read_bytes()
        for content in (pickle.dumps(Payload(mark)), _torch_file(saved, mark)):
            (saved / name).write_bytes(content)
            checkpoint.seal(saved)  # whoever plants it can count its sha256 too
            with pytest.raises(Exception):  # noqa: B017 - whatever the reader says; it must not run
                checkpoint.load(saved)
            with pytest.raises(Exception):  # noqa: B017
                Policy.load(saved)
        (saved / name).write_bytes(good)
    assert not mark.exists()


def _torch_file(folder: Path, mark: Path) -> bytes:
    torch.save(Payload(mark), folder / "torch.pt")
    content = (folder / "torch.pt").read_bytes()
    (folder / "torch.pt").unlink()
    return content


def test_pruning_deletes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    run, elsewhere = RunDir(tmp_path / "run"), tmp_path / "elsewhere"
    checkpoint.save(elsewhere, {}, {})
    for update in (2, 3, 4):
        checkpoint.save(run.checkpoint_path(update), {}, {})
    run.checkpoint_path(1).symlink_to(elsewhere)
    run.prune_checkpoints(4, keep=2)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["00000003", "00000004"]
    assert checkpoint.is_complete(elsewhere)


# -- datasets (Parquet and Arrow: data/test_arrow_security.py) ----------------------------------------------------------------


def test_a_pickle_in_an_npz_does_not_run(tmp_path: Path, mark: Path) -> None:
    good = {"obs": np.zeros((4, 2)), "action": np.zeros((4, 1)), "reward": np.zeros(4), "terminated": np.zeros(4)}
    for key in good:
        planted = np.empty(4, object)
        planted[:] = Payload(mark)
        np.savez(tmp_path / f"{key}.npz", **{**good, key: planted}, allow_pickle=True)  # type: ignore[arg-type]
        with pytest.raises(DataError):
            open_dataset(str(tmp_path / f"{key}.npz"))
    (tmp_path / "whole.npz").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(DataError):
        open_dataset(str(tmp_path / "whole.npz"))
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["link", "storage", "virtual"])
def test_an_hdf5_file_reads_no_other_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can name one, which the reader would open with the user's rights."""

    def plant(group: Any, name: str, values: np.ndarray) -> None:
        secret, raw = tmp_path / "secret.h5", tmp_path / "raw"
        with h5py.File(secret, "w") as file:
            file["secret"] = values
        raw.write_bytes(values.tobytes())
        if name in group:
            del group[name]
        if kind == "link":
            group[name] = h5py.ExternalLink(str(secret), "/secret")
        elif kind == "storage":
            group.create_dataset(name, values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)])
        else:
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource(str(secret), "secret", values.shape)
            group.create_virtual_dataset(name, layout)

    path = tmp_path / "d4rl.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"], file["rewards"] = np.zeros((8, 2)), np.zeros((8, 1)), np.zeros(8)
        file["terminals"], file["timeouts"] = np.zeros(8, bool), np.arange(8) % 4 == 3
    open_dataset(str(path))
    with h5py.File(path, "a") as file:
        plant(file, "rewards", np.full(8, 7.0))
    with pytest.raises(DataError, match="lie in another file"):
        open_dataset(str(path))

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari("planted-v0", [small_episode(0, 4)])
    open_dataset("planted-v0")
    with h5py.File(tmp_path / "planted-v0" / "data" / "main_data.hdf5", "a") as file:
        plant(file["episode_0"], "rewards", np.full(4, 7.0))
    with pytest.raises(DataError, match="lie in another file"):
        open_dataset("planted-v0")


def test_trajectories_of_a_run_folder_are_never_unpickled(tmp_path: Path, mark: Path) -> None:
    from wmrl_ray.report.runs import read_run

    (tmp_path / "config.json").write_text(json.dumps({"algorithm": "bc", "num_updates": 1}))
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "eval/return_mean": 1.0}\n')
    good = {"obs": np.zeros((3, 2)), "intended": np.zeros((3, 2)), "offsets": np.array([0, 3])}
    planted = np.empty(1, object)
    planted[:] = Payload(mark)
    for key in ("obs", "intended", "offsets"):
        np.savez(tmp_path / "trajectories.npz", allow_pickle=True, **{**good, key: planted})  # type: ignore[arg-type]
        run = read_run(tmp_path)
        with pytest.raises(ConfigError, match="not a readable trajectories file"):
            run.intended() if key == "intended" else run.trajectories()
        assert not mark.exists()
    (tmp_path / "trajectories.npz").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ConfigError, match="not a readable trajectories file"):
        read_run(tmp_path).trajectories()
    assert not mark.exists()


def test_nothing_in_the_package_opens_a_pickle_that_a_user_could_be_sent() -> None:
    """The exceptions: Tune's own record of an error of this sweep, and RLlib's loader where `trust_pickle` asks for it."""
    package = Path(checkpoint.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        for number, text in enumerate(path.read_text().splitlines(), start=1):
            if any(word in text.replace(".eval(", "") for word in UNSAFE):
                found.append(f"{path.relative_to(package)}:{number}")
    assert [name.partition(":")[0] for name in found] == ["rllib/trials.py"], found


def test_a_configuration_is_written_so_that_yaml_can_read_it_back_without_tags(tmp_path: Path) -> None:
    from wmrl_ray.config import to_dict

    values = to_dict(RunConfig("bc", "x.npz"))
    assert yaml.safe_load(yaml.safe_dump(values)) == values
