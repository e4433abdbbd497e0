"""The command as a user meets it: arguments in, exit code and both streams out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Wmrl = Callable[..., Outcome]


@pytest.fixture
def wmrl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Wmrl:
    """wmrl("train", ...) runs the command in this process, in an empty folder."""
    from wmrl_ray.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["wmrl", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def tiny(tmp_path: Path, pointmaze_dataset: str) -> Path:
    """A YAML file: 20 updates of behaviour cloning, evaluated twice."""
    values = {
        "algorithm": "bc",
        "dataset": pointmaze_dataset,
        "num_updates": 20,
        "batch_size": 16,
        "updates_per_call": 5,
        "eval_every": 10,
        "eval_episodes": 2,
        "checkpoint_every": 10,
        "log_every": 10,
        "num_eval_runners": 0,
        "envs_per_runner": 2,
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
