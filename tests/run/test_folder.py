"""The folder of a run: what is written waits for room, and what is read is whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.folder import RunDir


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(algorithm="bc", dataset="x", env="Pendulum-v1")


def test_lines_of_the_log_wait_until_a_full_disk_has_room(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path / "run", config, None)
    run.open_metrics(0)
    run.log(1, {"loss/model": 1.0})
    number = errno.ENOSPC

    def full(*arguments: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("wmrl_ray.run.folder.open", full, raising=False)
        with pytest.warns(UserWarning, match="No space left on device: lines of .*metrics.jsonl wait") as told:
            run.log(2, {"loss/model": 2.0})
            run.log(3, {"loss/model": 3.0})
        assert len(told) == 1 and [line["update"] for line in RunDir(run.path).read_metrics()] == [1]
        assert [line["update"] for line in run.read_metrics()] == [1, 2, 3]
    run.log(4, {"loss/model": 4.0})
    assert [line["update"] for line in RunDir(run.path).read_metrics()] == [1, 2, 3, 4]
    number = errno.EIO
    monkeypatch.setattr("wmrl_ray.run.folder.open", full, raising=False)
    with pytest.raises(OSError, match="metrics.jsonl"):
        run.log(5, {})
