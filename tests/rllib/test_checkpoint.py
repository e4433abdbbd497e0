"""Save and restore: exact, checked, and readable without Ray."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from tests.rllib.fakes import losses, small_bc, small_iql
from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.config import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

Saved = tuple[Path, dict[str, float], float]
ROOT = Path(__file__).parents[2]

SESSION = """
import json, os, signal, sys
from tests.rllib.fakes import losses, small_iql
from wmrl_ray.rllib.compat import init

dataset, folder, num_learners, what, address = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
init(address=address, logging_level="ERROR", log_to_driver=False)
algorithm = small_iql(dataset).learners(num_learners=num_learners).build_algo()
if what == "first":
    for _ in range(3):
        algorithm.train()
    algorithm.save_to_path(folder)
    algorithm.train()  # work that the kill destroys
    os.kill(os.getpid(), signal.SIGKILL)
algorithm.restore_from_path(folder)
print(json.dumps([losses(algorithm.train()) for _ in range(3)] + [algorithm.num_updates, algorithm.training_iteration]))
algorithm.stop()
"""


@pytest.fixture(scope="module")
def six_calls(plane_dataset: str, local_ray: None) -> list[dict[str, float]]:
    """The losses of the last 3 of 6 uninterrupted calls."""
    algorithm = small_iql(plane_dataset).build_algo()
    results = [losses(algorithm.train()) for _ in range(6)]
    algorithm.stop()
    return results[3:]


@pytest.mark.parametrize("num_learners", [0, 1])
def test_killed_after_n_updates_and_restored_in_a_new_process_m_more_are_exactly_those_of_n_plus_m(
    plane_dataset: str, six_calls: list[dict[str, float]], tmp_path: Path, num_learners: int
) -> None:
    def session(what: str) -> subprocess.CompletedProcess[str]:
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-c", SESSION, plane_dataset, str(tmp_path / "saved"), str(num_learners), what, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)

    killed = session("first")
    assert killed.returncode == -9, killed.stderr[-2000:]
    resumed = session("second")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    *results, num_updates, iterations = json.loads(resumed.stdout.splitlines()[-1])
    assert results == six_calls
    assert (num_updates, iterations) == (18, 6)


@pytest.fixture(scope="module")
def saved(plane_dataset: str, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A checkpoint after 3 calls and an evaluation; the losses of the 4th call; the score."""
    algorithm = small_iql(plane_dataset).build_algo()
    for _ in range(3):
        algorithm.train()
    algorithm.evaluate()
    path = Path(algorithm.save_to_path(tmp_path_factory.mktemp("saved") / "3"))
    following = losses(algorithm.train())
    score = algorithm.score
    algorithm.stop()
    return path, following, score


def test_two_learners_continue_a_run_of_one_and_save_the_streams_of_both(saved: Saved, iql: Any, tmp_path: Path) -> None:
    algorithm = iql.learners(num_learners=2).build_algo()
    algorithm.restore_from_path(saved[0])
    assert algorithm.on_learners(lambda learner: learner.agent.num_updates) == [9, 9]
    algorithm.train()
    algorithm.save_to_path(tmp_path / "two")
    expected = losses(algorithm.train())
    algorithm.restore_from_path(tmp_path / "two")
    assert losses(algorithm.train()) == expected
    first, second = algorithm.on_learners(lambda learner: [p.detach().numpy().copy() for p in learner.agent.model.parameters()])
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    algorithm.stop()


def test_from_checkpoint_rebuilds_the_algorithm_with_its_counters(saved: Saved) -> None:
    from wmrl_ray.rllib.algorithm import IQLTDMPC

    path, following, score = saved
    algorithm = IQLTDMPC.from_checkpoint(path)
    assert (algorithm.num_updates, algorithm.training_iteration, algorithm.score) == (9, 3, score)
    result = algorithm.train()
    assert losses(result) == following
    assert result["score"] == score
    algorithm.stop()


def test_restoring_an_older_checkpoint_also_replaces_the_weights_of_the_runners(saved: Saved, iql: Any) -> None:
    algorithm = iql.build_algo()
    for _ in range(6):
        algorithm.train()
    algorithm.evaluate()
    assert algorithm.score != saved[2]
    algorithm.restore_from_path(saved[0])
    algorithm.evaluate()
    assert algorithm.score == saved[2]
    algorithm.stop()


def test_rllibs_get_state_and_set_state_carry_everything_too(iql: Any) -> None:
    algorithm = iql.build_algo()
    algorithm.train()
    state = algorithm.get_state()
    expected = losses(algorithm.train())
    algorithm.set_state(state)
    assert algorithm.num_updates == 3
    assert losses(algorithm.train()) == expected
    algorithm.stop()


def test_a_policy_loads_without_ray_and_without_pickle(saved: Saved) -> None:
    code = (
        "import sys, pickle; sys.modules['ray'] = None; pickle.load = pickle.loads = None\n"
        "import numpy as np, torch; from wmrl_ray.policy import Policy; torch.load = None\n"
        f"policy = Policy.load({str(saved[0])!r}); policy.reset(seed=0)\n"
        "print(policy.act(np.zeros(4, np.float32)).shape, policy.meta['algorithm'], policy.meta['update'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert result.stdout.strip() == "(2,) iql_tdmpc 9", result.stderr[-2000:]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no manifest"])
def test_a_damaged_checkpoint_is_refused_with_one_line_that_names_the_file(
    saved: Saved, bc: Any, tmp_path: Path, damage: str
) -> None:
    import shutil

    path = tmp_path / "damaged"
    shutil.copytree(saved[0], path)
    file = path / "policy" / "tensors.safetensors"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "delete":
        file.unlink()
    else:
        file = path / "manifest.json"
        file.unlink()
    from wmrl_ray.rllib.algorithm import IQLTDMPC

    with pytest.raises(CheckpointError) as caught:
        IQLTDMPC.from_checkpoint(path)
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_appears_whole_or_not_at_all(plane_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wmrl_ray import checkpoint

    algorithm = small_bc(plane_dataset).build_algo()
    algorithm.train()
    target = tmp_path / "here"
    algorithm.save_to_path(target)
    before = (target / "manifest.json").read_text()

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "seal", full)
    algorithm.train()
    with pytest.raises(OSError, match="No space left"):
        algorithm.save_to_path(target)
    assert (target / "manifest.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    monkeypatch.undo()
    algorithm.save_to_path(target)
    assert (target / "manifest.json").read_text() != before
    with pytest.raises(ConfigError, match="local folder"):
        algorithm.save_to_path("s3://bucket/x")
    assert math.isnan(algorithm.score)
    algorithm.stop()


def test_a_pickle_planted_in_rllibs_files_runs_only_where_it_is_trusted(saved: Saved, iql: Any, tmp_path: Path) -> None:
    """Whoever plants it can seal the folder too."""
    from wmrl_ray.rllib.algorithm import IQLTDMPC

    path, mark = tmp_path / "planted", tmp_path / "executed"
    shutil.copytree(saved[0], path)
    planted = [file for file in path.iterdir() if file.suffix in (".pkl", ".pickle")]
    assert planted
    for file in planted:
        file.write_bytes(pickle.dumps(Payload(mark)))
    checkpoint.seal(path)
    algorithm = iql.build_algo()
    algorithm.restore_from_path(path)
    assert (algorithm.num_updates, algorithm.training_iteration) == (9, 3)
    assert losses(algorithm.train()) == saved[1]
    algorithm.stop()
    again = IQLTDMPC.from_checkpoint(path)
    assert losses(again.train()) == saved[1]
    again.stop()
    assert not mark.exists()
    with pytest.raises(Exception):  # noqa: B017 - RLlib's, which has unpickled a stranger's object by then
        IQLTDMPC.from_checkpoint(path, trust_pickle=True)
    assert mark.exists()


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)
