"""Files are there whole or as they were, whoever is killed when; and JSON holds numbers only."""

from __future__ import annotations

import ast
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

import wmrl_ray
from wmrl_ray import checkpoint
from wmrl_ray.cli.errors import user_message
from wmrl_ray.config import ConfigError
from wmrl_ray.data import files
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.log import as_log, read_log

TEXTS = {"envs.py", "sweep.py"}  # print names and points of a grid, no measured number


class Killed(BaseException):
    """What kill -9 is to the code after it: nothing of it runs."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_cannot_be_finished_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(file := tmp_path / "a.json", {"x": 1})

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError) as error:
        files.write_json(file, {"x": 2})
    assert error.value.filename == str(file) and files.is_full(error.value)
    assert json.loads(file.read_text()) == {"x": 1} and names(tmp_path) == ["a.json"]


def test_a_file_and_its_name_are_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = files.sync, os.replace
    monkeypatch.setattr(files, "sync", lambda path: (done.append(f"sync {path.name[:1]}"), sync(path)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    files.write_text(tmp_path / "deep" / "a.txt", "é")
    assert done == ["sync .", "replace", "sync d"] and (tmp_path / "deep/a.txt").read_bytes() == "é".encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_never_holds_what_is_no_number(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=rf"a\.json: b\.1\.c = {value}"):
        files.write_json(tmp_path / "a.json", {"a": 1.0, "b": [2.0, {"c": value}]})
    assert names(tmp_path) == []


def test_a_checkpoint_keeps_what_json_cannot_hold(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", {"score": float("nan"), "best": -float("inf"), "n": 1.5}, {})
    tree, _ = checkpoint.load(tmp_path / "c")
    assert str(tree) == "{'score': nan, 'best': -inf, 'n': 1.5}" and "NaN" not in (tmp_path / "c/state.json").read_text()


def a_folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "x").write_text(text)
    return path


@pytest.mark.parametrize("kill_at", [0, 1, 2])
def test_a_kill_while_a_folder_is_replaced_leaves_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Before, between and after the two renames; whoever reads next finds it at its path."""
    target, partial, calls = a_folder(tmp_path / "t.1", "old"), a_folder(tmp_path / ".new.partial", "new"), [0]

    def rename(source: Any, to: Any, really: Any = os.rename) -> None:
        calls[0] += 1
        if calls[0] == kill_at + 1:
            raise Killed
        really(source, to)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "rename", rename)
        patch.setattr(files.shutil, "rmtree", lambda *args, **kwargs: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            files.replace_folder(partial, target)
    assert target.exists() == (kill_at != 1)
    files.recover(target)
    assert (target / "x").read_text() == ("new" if kill_at == 2 else "old")
    files.replace_folder(a_folder(tmp_path / ".newer.partial", "newer"), target)
    assert (target / "x").read_text() == "newer"
    files.remove_partials(tmp_path)
    assert names(tmp_path) == ["t.1"]


def test_a_reader_between_the_renames_does_not_stop_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, partial, calls = a_folder(tmp_path / "t", "old"), a_folder(tmp_path / ".n.partial", "new"), [0]

    def rename(source: Any, to: Any, really: Any = os.rename) -> None:
        calls[0] += 1
        if calls[0] == 2:
            files.recover(target)
        really(source, to)

    monkeypatch.setattr(files.os, "rename", rename)
    files.replace_folder(partial, target)
    assert (target / "x").read_text() == "new" and names(tmp_path) == ["t"] and calls[0] == 5


def test_a_checkpoint_is_read_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", {"n": 1}, {"update": 1})
    (tmp_path / "c").rename(tmp_path / ".c.0123456789ab.old")
    assert checkpoint.load(tmp_path / "c") == ({"n": 1}, {"update": 1})
    (tmp_path / "c").rename(tmp_path / ".c.0123456789ab.old")
    checkpoint.save(tmp_path / "c", {"n": 2}, {"update": 2})
    assert checkpoint.read_meta(tmp_path / "c") == {"update": 2} and names(tmp_path) == ["c"]


def test_names_of_partial_files_are_nobody_elses() -> None:
    found = {files.partial_of(Path("/x/results.parquet")).name for _ in range(100)}
    assert len(found) == 100 and all(name.startswith(".results.") and name.endswith(".parquet") for name in found)


def test_a_number_that_is_none_stops_at_the_file_with_its_key_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(files.NumberError, match=r"result\.json: eval\.return = nan is no number that JSON knows") as caught:
        files.write_json(tmp_path / "result.json", {"eval": {"return": float("nan")}})
    assert user_message(caught.value) == str(caught.value) and names(tmp_path) == []


def test_a_log_of_an_older_version_loses_its_nan_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "loss": 2.0, "eval/return_mean": NaN, "x": -Infinity}\n')
    assert read_log(tmp_path / "metrics.jsonl") == ([{"update": 1, "loss": 2.0}], [], False)
    with pytest.raises(files.NumberError, match=r"metrics\.jsonl: loss = inf"):
        as_log([{"update": 1, "loss": float("inf")}])


def test_a_setting_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env_config = \{'gravity': nan\} cannot be recorded"):
        RunConfig("bc", dataset="x", env_config={"gravity": float("nan")})


def test_what_is_printed_or_written_as_json_has_no_nan() -> None:
    """Every `json.dumps` whose text goes out says allow_nan=False; files go through `as_json`, which does."""
    for path in sorted(Path(wmrl_ray.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in ("print", "write", "write_text"):
                inside = [each for each in ast.walk(call) if isinstance(each, ast.Call)]
                dumps = [each for each in inside if ast.unparse(each.func) == "json.dumps"]
                lacking = [each for each in dumps if "allow_nan=False" not in map(ast.unparse, each.keywords)]
                assert not [each for each in lacking if path.name not in TEXTS], f"{path}:{call.lineno}"
    assert not [path for path in Path(wmrl_ray.__file__).parent.rglob("*.py") if "json.dump(" in path.read_text()]
