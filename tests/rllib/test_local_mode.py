"""`ray.init(local_mode=True)`: the whole system in one process, where a breakpoint works. Each test is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from wmrl_ray.config import ConfigError
from wmrl_ray.rllib import compat

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]

LOCAL = """
import json, os, sys, traceback
import ray
from ray import tune
from tests.rllib.fakes import losses, small_iql
from wmrl_ray.rllib import compat
from wmrl_ray.rllib.algorithm import IQLTDMPC
from wmrl_ray.rllib.learner import AgentLearner

dataset, folder, temp = sys.argv[1:]
ray.init(local_mode=True, num_cpus=2, include_dashboard=False, logging_level="ERROR", _temp_dir=temp)
assert compat.in_local_mode()
pids, stacks = set(), []
update_many = AgentLearner.update_many

def watched(self, num_updates):
    pids.add(os.getpid())
    stacks.append("".join(traceback.format_stack()))
    return update_many(self, num_updates)

AgentLearner.update_many = watched
config = small_iql(dataset).learners(num_learners=2).evaluation(evaluation_num_env_runners=2, evaluation_interval=1)
algorithm = config.build_algo()
found = {"learners": algorithm.config.num_learners}
result = algorithm.train()
found["losses"] = losses(result)
found["evaluated"] = len(algorithm.last_evaluation.returns)
algorithm.evaluate()
path = algorithm.save_to_path(folder + "/saved")
following = losses(algorithm.train())
algorithm.restore_from_path(path)
found["restored"] = losses(algorithm.train()) == following
algorithm.stop()
grid = tune.Tuner(
    IQLTDMPC,
    param_space=config.debugging(seed=tune.grid_search([1, 2])),
    run_config=tune.RunConfig(name="t", storage_path=folder, stop={"training_iteration": 2}, verbose=0),
).fit()
found["tune"] = [(r.config["seed"], r.metrics["num_updates"], r.metrics["score"] == r.metrics["score"]) for r in grid]
found["errors"] = [str(e) for e in grid.errors]
found["one_process"] = pids == {os.getpid()}
found["stack"] = "training_step" in stacks[0] and "foreach_learner" in stacks[0]
print(json.dumps(found))
"""


@pytest.mark.skipif(not compat.HAS_LOCAL_MODE, reason="this Ray has no local_mode")
def test_train_evaluate_restore_and_a_two_trial_tune_run_work_in_local_mode(plane_dataset: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="wmrl-ray-", ignore_cleanup_errors=True) as temp:
        command = [sys.executable, "-c", LOCAL, plane_dataset, str(tmp_path), temp]
        result = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["learners"] == 0  # learner actors cannot work there
    assert found["losses"]["loss/critic"] > 0
    assert found["evaluated"] == 5
    assert found["restored"] is True
    assert sorted(found["tune"]) == [[1, 6, True], [2, 6, True]]
    assert found["errors"] == []
    assert found["one_process"] is True
    assert found["stack"] is True


@pytest.mark.skipif(compat.HAS_LOCAL_MODE, reason="this Ray has local_mode")
def test_a_ray_without_local_mode_is_told_so_with_what_to_use_instead() -> None:
    with pytest.raises(ConfigError, match=r"has no local_mode .*use debug=True \(`wmrl train --debug`\)") as caught:
        compat.init(local_mode=True)
    assert "\n" not in str(caught.value)


def test_a_folder_for_temporary_files_with_too_long_a_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.utils import validate_socket_filepath

    folder = "/tmp/" + "long-name/" * 12
    monkeypatch.setattr(compat.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(compat.ray, "init", lambda **given: validate_socket_filepath(f"{folder}sockets/plasma_store"))
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(ConfigError, match=rf"^TMPDIR = '{folder}' is too long: .*; set a shorter TMPDIR, or RAY_TMPDIR=/tmp$"):
        compat.init()


@pytest.mark.parametrize(
    ("said", "kind", "reads"),
    [
        ("The current node timed out during startup. This could", ConfigError, "did not come up .* too busy; start again"),
        ("something else", RuntimeError, "^something else$"),
    ],
)
def test_a_ray_that_does_not_start_in_time_is_one_line(
    said: str, kind: type[Exception], reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**given: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(compat.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(compat.ray, "init", init)
    with pytest.raises(kind, match=reads) as caught:
        compat.init()
    assert "\n" not in str(caught.value)


def test_the_message_about_local_mode_does_not_depend_on_the_ray_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "HAS_LOCAL_MODE", False)
    with pytest.raises(ConfigError, match="install ray==2.54.1"):
        compat.init(local_mode=True)


DEBUG = """
import json, os, sys
from pathlib import Path
from tests.rllib.fakes import PLANE, TINY_AGENT
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.config import RunConfig

import ray, wmrl_ray.rllib.learner as learner
dataset, folder, temp = sys.argv[1:]
pids = set()
update_many = learner.AgentLearner.update_many
learner.AgentLearner.update_many = lambda self, n: (pids.add(os.getpid()), update_many(self, n))[1]
config = RunConfig(
    "iql_tdmpc", dataset, env=PLANE, num_updates=4, updates_per_call=2, batch_size=8, eval_every=4, eval_episodes=2,
    checkpoint_every=4, log_every=2, device="cpu", num_learners=2, num_eval_runners=2, agent=TINY_AGENT,
)
result = train_on_ray(config, Path(folder) / "run", debug=True)
print(json.dumps([result["finished"], result["eval/episodes"], pids == {os.getpid()}, ray.is_initialized()]))
"""


def test_debug_starts_and_stops_its_own_ray_and_keeps_everything_in_this_process(plane_dataset: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", DEBUG, plane_dataset, str(tmp_path), ""], capture_output=True, text=True, timeout=280, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == [True, 2, True, False]


ONLINE = """
import json, os, sys, warnings
import ray
from tests.rllib.fakes import losses
from tests.rllib.online_fakes import small_online
from wmrl_ray.collect import Collector

temp = sys.argv[1]
ray.init(local_mode=True, num_cpus=2, include_dashboard=False, logging_level="ERROR", _temp_dir=temp)
pids = set()
collect = Collector.collect
Collector.collect = lambda self, *a: (pids.add(os.getpid()), collect(self, *a))[1]
found = {}
settings = {"local": {"num_runners": 2, "schedule": "asynchronous"}, "rllib": {"num_env_runners": 2}, "in turn": {}}
for name, online in settings.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runners = online.pop("num_env_runners", 0)  # RLlib's own name of them
        algorithm = small_online(**online).env_runners(num_env_runners=runners).build_algo()
    found[name + " warned"] = [str(w.message) for w in caught if "num_runners" in str(w.message)]
    found[name] = [losses(algorithm.train()) for _ in range(2)]
    algorithm.stop()
found["one_process"] = pids == {os.getpid()}
print(json.dumps(found))
"""


@pytest.mark.skipif(not compat.HAS_LOCAL_MODE, reason="this Ray has no local_mode")
def test_in_local_mode_runners_become_steps_in_turn_with_a_warning() -> None:
    with tempfile.TemporaryDirectory(prefix="wmrl-ray-", ignore_cleanup_errors=True) as temp:
        result = subprocess.run([sys.executable, "-c", ONLINE, temp], capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["local"] == found["rllib"] == found["in turn"]
    assert found["local"][1]["loss/model"] > 0
    assert "online.num_runners = 2 becomes 0 under local_mode" in found["local warned"][0]
    assert found["in turn warned"] == []
    assert found["one_process"] is True
