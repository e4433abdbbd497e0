"""Studies written by hand, as `wmrl sweep` records them."""

from __future__ import annotations

import json
from pathlib import Path

from wmrl_ray.report import write_report

ROW, OTHER_ROW = "maze2d-umaze-v1", "antmaze-ultra-play-v0"
OURS = "wmrl/pointmaze/umaze-v0"
D4RL = {"name": "maze2d-umaze-v1", "uri": "maze2d-umaze-v1.hdf5", "stand_in": None}


def planned(column="bc", variant="baseline", seed=0, run="bc-0", row=ROW, blocked=None, dataset=OURS):
    return locals()


def write_study(folder: Path, cells, table="table2", **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"schema": "wmrl.study/v1", "paper": "iql_td_mpc", "table": table, "stand_ins": True, "cells": cells}
    (folder / "study.json").write_text(json.dumps(values | changes))
    return folder / "study.json"


def report(tmp_path):
    html, numbers = write_report([tmp_path / "runs"], tmp_path / "report.html")
    (study,) = json.loads(numbers.read_text())["studies"]
    return html.read_text(), study
