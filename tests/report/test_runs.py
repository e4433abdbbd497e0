"""Reading run directories, whole and damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wmrl_ray.config import ConfigError
from wmrl_ray.report.runs import find_runs, read_run


def test_a_finished_run_reads_without_a_warning(write_run):
    run = read_run(write_run("bc-0", scores=(10.0, 30.0)))
    assert run.warnings == []
    assert (run.algorithm, run.seed, run.num_updates, run.is_complete) == ("bc", 0, 200, True)
    assert (run.final("eval/score_mean"), run.seconds, run.updates_per_s) == (30.0, 4.0, 50.0)
    assert [path.shape for path in run.trajectories()] == [(61, 4)] * 5


def test_the_final_score_is_the_last_one_not_the_best(write_run):
    assert read_run(write_run("bc-0", scores=(90.0, 30.0))).final("eval/score_mean") == 30.0


def test_an_unfinished_run_says_how_far_it_came(write_run):
    run = read_run(write_run("bc-0", scores=(10.0,), planned=500))
    assert run.warnings == ["incomplete: 100 of 500 updates; its last evaluation is what the tables show"]
    assert run.updates_per_s == pytest.approx(50.0)


def test_a_manager_needs_no_evaluation_and_others_do(write_run):
    for algorithm, expected in (("manager", []), ("bc", ["no evaluation yet: it is left out of the tables"])):
        path = write_run(f"{algorithm}-0", algorithm=algorithm)
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        kept = [line for line in lines if "eval/return_mean" not in line]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        assert read_run(path).warnings == expected


@pytest.mark.parametrize(
    ("obs", "offsets"),
    [(np.zeros((4, 2)), [0, 2, 5]), (np.zeros((4, 2)), [0, 0, 4]), (np.zeros(4), [0, 4]), (np.zeros((4, 2)), [])],
)
def test_trajectories_whose_offsets_do_not_fit_are_a_one_line_error(write_run, obs, offsets):
    path = write_run("bc-0")
    np.savez(path / "trajectories.npz", obs=obs, offsets=np.array(offsets, dtype=np.int64))
    with pytest.raises(ConfigError, match="not a readable trajectories file"):
        read_run(path).trajectories()


@pytest.mark.parametrize("start", [0, 200, 400, 2000])
def test_compressed_trajectories_with_damaged_bytes_are_a_one_line_error(write_run, start):
    path = write_run("bc-0")
    with np.load(path / "trajectories.npz") as arrays:
        np.savez_compressed(path / "trajectories.npz", **arrays)
    content = bytearray((path / "trajectories.npz").read_bytes())
    content[start : start + 60] = bytes(60)
    (path / "trajectories.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="not a readable trajectories file"):
        read_run(path).trajectories()


def test_a_last_line_cut_in_half_is_a_warning(write_run):
    path = write_run("bc-0")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 300, "loss/cri')
    run = read_run(path)
    assert run.num_updates == 200
    assert any("cut off" in warning for warning in run.warnings)


def test_a_damaged_line_in_the_middle_is_a_warning_with_its_number(write_run):
    path = write_run("bc-0")
    whole = read_run(path).lines
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[1] = "garbage"
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(path)
    assert run.lines == [whole[0], *whole[2:]]
    assert "line 2 of metrics.jsonl is damaged; it is ignored" in run.warnings


def test_lines_written_after_a_resume_replace_those_they_repeat(write_run):
    path = write_run("bc-0", scores=(10.0, 30.0))
    with (path / "metrics.jsonl").open("a") as file:
        for update, score in ((100, 11.0), (200, 31.0)):
            line = {"update": update, "time_s": 9.0, "eval/return_mean": 0.0, "eval/score_mean": score, "eval/episodes": 20}
            file.write(json.dumps(line) + "\n")
    run = read_run(path)
    assert [(line["update"], line["eval/score_mean"]) for line in run.evaluations] == [(100, 11.0), (200, 31.0)]


def test_a_run_without_its_dataset_card_or_metrics_is_read_with_warnings(write_run):
    path = write_run("bc-0")
    (path / "dataset.json").unlink()
    (path / "metrics.jsonl").unlink()
    warnings = read_run(path).warnings
    assert any("dataset.json is missing" in warning for warning in warnings)
    assert any("metrics.jsonl is missing" in warning for warning in warnings)


def test_runs_are_found_below_a_folder_once_each(write_run):
    first, second = write_run("a/bc-0"), write_run("a/bc-1", seed=1)
    assert find_runs([first.parent, first]) == [first, second]


def test_a_missing_folder_and_a_folder_without_runs_are_one_line_errors(tmp_path):
    with pytest.raises(ConfigError, match="no such run directory"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="holds no run"):
        find_runs([tmp_path])


def test_a_config_inside_a_checkpoint_is_not_a_run(write_run):
    path = write_run("bc-0")
    checkpoint = path / "checkpoints" / "00000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    assert find_runs([path.parent]) == [path]


def test_a_run_without_a_dataset_is_named_by_its_environment_and_has_a_curve_over_its_steps(tmp_path) -> None:
    config = {"algorithm": "tdmpc2", "dataset": None, "env": "dmc/walker-walk", "num_updates": 400}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = [{"update": u, "online/steps": max(200, u), "online/return_mean": float(u)} for u in (100, 200, 300, 400)]
    lines += [{"update": 400, "eval/return_mean": 7.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(tmp_path)
    assert run.dataset["name"] == "dmc/walker-walk" and not any("dataset.json" in warning for warning in run.warnings)
    steps, values = run.curve_over_steps("online/return_mean")
    assert steps.tolist() == [200, 300, 400] and values.tolist() == [200.0, 300.0, 400.0]
    steps, values = run.curve_over_steps("eval/return_mean")
    assert steps.tolist() == [400] and values.tolist() == [7.0]
    assert not len(run.curve_over_steps("loss/model")[0])
