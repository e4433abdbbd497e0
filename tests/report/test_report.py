"""The report as a whole: the numbers it gives, what it refuses to mix, and that it opens offline."""

from __future__ import annotations

import html.parser
import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from wmrl_ray.cli.configs import read_study
from wmrl_ray.config import ConfigError
from wmrl_ray.report import write_report
from wmrl_ray.report.summary import D4RL_NAME
from wmrl_ray.report.words import duration, number, signed

PUBLISHED = {
    "name": "d4rl/maze2d-umaze-v1",
    "uri": "minari://d4rl/maze2d-umaze-v1",
    "sha256": "ef" * 32,
    "stand_in": None,
}


def numbers_of(tmp_path, *runs):
    html_path, json_path = write_report(runs or [tmp_path / "runs"], tmp_path / "report.html")
    return html_path.read_text(), json.loads(json_path.read_text())


def test_the_table_holds_mean_std_iqm_and_interval_over_seeds(tmp_path, write_run):
    for seed, score in enumerate((10.0, 20.0, 60.0)):
        write_run(f"bc-{seed}", seed=seed, scores=(0.0, score))
    _, numbers = numbers_of(tmp_path)
    (row,) = numbers["scales"][0]["datasets"][0]["rows"]
    assert (row["label"], row["seeds"], row["updates"], row["episodes"]) == ("bc", [0, 1, 2], [200, 200, 200], 60)
    assert row["score"]["mean"] == row["score"]["iqm"] == pytest.approx(30.0)
    assert row["score"]["std"] == pytest.approx(np.std([10, 20, 60], ddof=1))
    assert row["score"]["ci_low"] >= 10.0 and row["score"]["ci_high"] <= 60.0
    assert row["return"]["mean"] == pytest.approx(80.0)  # 20 + 2 * 30


def test_stand_in_and_published_datasets_never_share_a_table(tmp_path, write_run):
    write_run("ours")
    write_run("theirs", card=PUBLISHED)
    page, numbers = numbers_of(tmp_path)
    assert [scale["scale"] for scale in numbers["scales"]] == ["stand_in", "published"]
    assert [len(scale["datasets"]) for scale in numbers["scales"]] == [1, 1]
    assert all(scale["aggregate"] == [] for scale in numbers["scales"])
    assert "Stand-in: A replacement of D4RL&#39;s maze2d-umaze" in page
    assert page.count("must not be\n  compared") == 1
    assert page.index("Stand-in datasets") < page.index("D4RL datasets (published reference scores)")


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("D4RL/pointmaze/umaze-v2", "own"),  # Minari's remake
        ("D4RL/antmaze/large-play-v1", "own"),
        ("d4rl/antmaze-umaze-v2", "published"),
        ("d4rl/antmaze-large-play-intents-0123456789ab-v2", "published"),
        ("d4rl/maze2d-umaze-intents-my_manager-v1", "published"),
        ("maze2d-umaze-v1", "published"),
        ("halfcheetah-medium-expert-v2", "published"),
        ("mine/pointmaze/umaze-v0", "own"),
        ("my-D4RL/pointmaze-v0", "own"),
        ("hopper", "own"),
    ],
)
def test_only_d4rls_reference_scores_count_as_published(tmp_path, write_run, name, scale):
    write_run("bc-0", card=PUBLISHED | {"name": name, "uri": f"minari://{name}"})
    page, numbers = numbers_of(tmp_path)
    assert [entry["scale"] for entry in numbers["scales"]] == [scale]
    assert ("scales of their own" in page) == (scale == "own")


@pytest.mark.parametrize("name", ["iql_td_mpc/table1", "iql_td_mpc/table2", "iql_td_mpc/table3", "mabe/table1"])
def test_what_the_shipped_studies_import_is_published_and_the_remakes_are_not(name):
    for row, spec in read_study(name).values["datasets"].items():
        for uri in (spec["uri"], row):
            assert D4RL_NAME.fullmatch(uri), uri
        assert not any(D4RL_NAME.fullmatch(uri) for uri in (spec.get("minari"), spec.get("stand_in")) if uri)


def test_datasets_with_reference_scores_of_their_own_have_a_table_of_their_own(tmp_path, write_run):
    write_run("theirs", card=PUBLISHED)
    write_run("mine", card=PUBLISHED | {"name": "mine", "uri": "mine.npz"})
    _, numbers = numbers_of(tmp_path)
    assert [scale["scale"] for scale in numbers["scales"]] == ["published", "own"]
    assert all(scale["aggregate"] == [] for scale in numbers["scales"])


def test_the_trajectories_are_those_of_the_first_seed_that_saved_some(tmp_path, write_run):
    write_run("bc-0", seed=0, trajectories=False)
    write_run("bc-1", seed=1)
    page, numbers = numbers_of(tmp_path)
    assert "Trajectories of the last evaluation" in page
    assert not any("trajectories" in warning for warning in numbers["warnings"])


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_truncated_trajectories_file_is_a_warning(tmp_path, write_run, kept):
    cut = write_run("bc-0", seed=0) / "trajectories.npz"
    content = cut.read_bytes()
    cut.write_bytes(content[: int(kept * len(content))])
    write_run("bc-1", seed=1)
    page, numbers = numbers_of(tmp_path)
    (warning,) = [warning for warning in numbers["warnings"] if "trajectories" in warning]
    assert warning.startswith(f"runs/bc-0: {cut}: not a readable trajectories file")
    assert "Trajectories of the last evaluation" in page  # the next seed's


def test_durations_read_like_a_clock():
    seconds = (None, 0.4, 9.97, 59, 65, 3900)
    assert [duration(s) for s in seconds] == ["–", "0.4 s", "10 s", "59 s", "1 min 05 s", "1 h 05 min"]


def test_what_rounds_to_zero_has_no_minus():
    assert [number(-0.04), number(-0.06), signed(-0.04), signed(-3.0)] == ["0.0", "−0.1", "+0.0", "−3.0"]


def test_two_contents_under_one_dataset_name_are_kept_apart(tmp_path, write_run):
    write_run("short", seed=0)
    write_run("long", seed=1, card={"sha256": "cd" * 32})
    _, numbers = numbers_of(tmp_path)
    names = [dataset["name"] for dataset in numbers["scales"][0]["datasets"]]
    assert names == ["wmrl/pointmaze/umaze-v0 [abababab]", "wmrl/pointmaze/umaze-v0 [cdcdcdcd]"]


def test_runs_with_different_settings_are_not_averaged(tmp_path, write_run):
    write_run("h3", "tdmpc", 0, agent={"horizon": 3, "lr": 3e-4})
    write_run("h5", "tdmpc", 1, agent={"horizon": 5, "lr": 3e-4})
    _, numbers = numbers_of(tmp_path)
    labels = [row["label"] for row in numbers["scales"][0]["datasets"][0]["rows"]]
    assert sorted(labels) == ["tdmpc (horizon=3)", "tdmpc (horizon=5)"]
    assert numbers["config"]["different"] == {"agent.horizon": {"tdmpc (horizon=3)": 3, "tdmpc (horizon=5)": 5}}
    assert numbers["config"]["shared"]["agent.lr"] == 3e-4


def test_runs_on_other_hardware_are_seeds_of_the_same_experiment(tmp_path, write_run):
    write_run("cpu", seed=0, device="cpu", num_eval_runners=0)
    write_run("gpu", seed=1, device="cuda", num_eval_runners=2)
    _, numbers = numbers_of(tmp_path)
    assert [row["seeds"] for row in numbers["scales"][0]["datasets"][0]["rows"]] == [[0, 1]]


def test_seeds_evaluated_and_tracked_otherwise_are_of_one_experiment_and_longer_runs_are_not(tmp_path, write_run):
    others: dict = {"eval_episodes": 5, "max_failures": 0, "call_timeout_s": 60.0, "runner_resources": {"a_node": 1.0}}
    write_run("a", seed=0, scores=(10.0, 20.0, 30.0), eval_every=100, track=["tensorboard"])
    write_run("b", seed=1, scores=(10.0, 50.0), planned=200, num_updates=300, eval_every=150, track=["tensorboard", "wandb"])
    write_run("c", seed=2, scores=(10.0, 20.0, 40.0), eval_every=100, **others)
    write_run("long", seed=3, scores=(10.0, 20.0, 40.0, 50.0), eval_every=100)
    _, numbers = numbers_of(tmp_path)
    rows = numbers["scales"][0]["datasets"][0]["rows"]
    assert sorted((row["label"], row["seeds"]) for row in rows) == [
        ("bc (num_updates=300)", [0, 1, 2]),
        ("bc (num_updates=400)", [3]),
    ]


def test_a_dataset_without_reference_scores_is_ranked_by_return(tmp_path, write_run):
    card = {"name": "mine", "stand_in": None, "ref_min_score": None, "ref_max_score": None, "env_id": None}
    write_run("weak", "bc", scores=(10.0,), card=card)
    write_run("strong", "tdmpc", scores=(90.0,), card=card)
    page, numbers = numbers_of(tmp_path)
    assert numbers["scales"][0]["scale"] == "returns"
    assert [row["label"] for row in numbers["scales"][0]["datasets"][0]["rows"]] == ["tdmpc", "bc"]
    assert "normalised score" not in page


def test_the_aggregate_covers_only_algorithms_that_ran_on_every_dataset(tmp_path, write_run):
    medium = {"name": "wmrl/pointmaze/medium-v0", "sha256": "cd" * 32}
    write_run("a", "bc", scores=(20.0,))
    write_run("b", "bc", scores=(40.0,), card=medium)
    write_run("c", "tdmpc", scores=(50.0,))
    _, numbers = numbers_of(tmp_path)
    (row,) = numbers["scales"][0]["aggregate"]
    assert (row["label"], row["score"]["n"], row["score"]["mean"]) == ("bc", 2, 30.0)


def test_incomplete_repeated_and_single_seeds_are_warned_about(tmp_path, write_run):
    write_run("one", seed=3, scores=(10.0,), planned=300)
    write_run("two", seed=3, scores=(10.0, 20.0, 30.0))
    write_run("alone", "tdmpc")
    page, numbers = numbers_of(tmp_path)
    text = "\n".join(numbers["warnings"])
    assert "runs/one: incomplete: 100 of 300 updates" in text
    assert "seed 3 is there more than once" in text
    assert "different numbers of updates (100, 300)" in text
    assert "tdmpc on wmrl/pointmaze/umaze-v0: one seed only" in text
    assert all(warning.split(":")[0] in page for warning in numbers["warnings"])


def test_a_run_that_was_never_evaluated_is_listed_but_not_in_a_table(tmp_path, write_run):
    write_run("bc-0", scores=(), planned=100, trajectories=False)
    page, numbers = numbers_of(tmp_path)
    assert numbers["scales"][0]["datasets"][0]["rows"] == []
    assert [run["name"] for run in numbers["runs"]] == ["runs/bc-0"]
    assert "No run on this dataset has been evaluated yet" in page


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch, and checks that tags close."""

    VOID = {"meta", "br", "img", "input", "link", "hr"}

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.fetched += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data", "srcset") and not (v or "").startswith("#")
        ]
        if tag in ("script", "iframe", "object", "link"):
            self.fetched.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def test_the_page_is_well_formed_and_fetches_nothing(tmp_path, write_run):
    for seed in range(2):
        write_run(f"bc-{seed}", "bc", seed, scores=(1.0, 2.0, 3.0))
        write_run(f"td-{seed}", "tdmpc", seed, scores=(1.0, 5.0, 9.0))
    text, _ = numbers_of(tmp_path)
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"url\((?!#)|@import", text)
    assert text.count("<svg") == 4  # scores, trajectories, losses of two algorithms
    assert "#010203" not in text and "#040506" not in text


def test_the_behaviour_has_a_score_only_where_its_episodes_are_those_of_the_environment(tmp_path, write_run):
    write_run("whole")
    write_run("pieces", card={"name": "pieces", "sha256": "cd" * 32, "episode_length_max": 1000})
    page, numbers = numbers_of(tmp_path)
    cards = {dataset["name"]: dataset["card"] for dataset in numbers["scales"][0]["datasets"]}
    assert cards["wmrl/pointmaze/umaze-v0"]["behaviour_score"] == 50.0  # (120 - 20) / (220 - 20)
    assert "behaviour_score" not in cards["pieces"]
    assert page.count("own episodes average") == 1


def test_code_that_changed_between_sessions_is_shown_and_warned_of(tmp_path, write_run):
    first = {"python": "3.11.2", "git_revision": "abc123", "started": "2026-01-01T00:00:00Z", "command": "wmrl train"}
    again = {**first, "update": 100, "started": "2026-01-02T00:00:00Z"}
    sessions = [{"update": 0, **first}, again, {**again, "update": 150, "git_revision": "def456"}]
    run = write_run("bc-0")
    (run / "environment.json").write_text(json.dumps(first))
    (run / "sessions.json").write_text(json.dumps({"sessions": sessions}))
    page, numbers = numbers_of(tmp_path)
    assert [(entry["runs"], entry["values"]["git_revision"]) for entry in numbers["environment"]] == [
        (["runs/bc-0"], "abc123"),
        (["runs/bc-0 from update 150"], "def456"),
    ]
    assert (
        "runs/bc-0: from update 150 on it is the work of another session, which differs in git_revision" in numbers["warnings"]
    )
    assert "bc-0 from update 150" in page


def test_markup_in_a_dataset_name_is_escaped(tmp_path, write_run):
    write_run("bc-0", card={"name": "<script>alert(1)</script>", "description": "<b>"}, trajectories=False)
    page, _ = numbers_of(tmp_path)
    assert "<script>" not in page and "<b>" not in page


def test_the_report_file_must_be_html_in_an_existing_folder(tmp_path, write_run):
    run = write_run("bc-0")
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        write_report([run], tmp_path / "report.json")
    with pytest.raises(ConfigError, match="no such folder"):
        write_report([run], tmp_path / "nowhere" / "report.html")


def test_the_report_needs_neither_torch_nor_ray_nor_a_simulator(tmp_path, write_run):
    run = write_run("bc-0")
    script = (
        "import sys\n"
        "for name in ('torch', 'ray', 'mujoco', 'dm_control'): sys.modules[name] = None\n"
        "from wmrl_ray.report import write_report\n"
        f"write_report([{str(run)!r}], {str(tmp_path / 'report.html')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert "Trajectories of the last evaluation" in (tmp_path / "report.html").read_text()


def test_workers_of_different_managers_are_seeds_of_one_experiment(tmp_path, write_run):
    for seed in (0, 1, 2):
        card = {
            "name": f"d-intents-manager-s{seed}-v0",
            "sha256": f"{seed}" * 64,
            "base_name": "d-v0",
            "base_sha256": "ab" * 32,
        }
        write_run(f"d/bc-intents-s{seed}", seed=seed, scores=(1.0, 10.0 * seed), card=card)
        write_run(f"d/bc-intents-skip4-s{seed}", seed=seed, scores=(1.0, 5.0), card=card | {"sha256": f"{seed}a" * 32})
        write_run(f"d/bc-baseline-s{seed}", seed=seed, card={"name": "d-v0"})
    _, numbers = numbers_of(tmp_path)
    rows = {d["name"]: {r["label"]: r["seeds"] for r in d["rows"]} for s in numbers["scales"] for d in s["datasets"]}
    assert rows == {
        "d-v0": {"bc": [0, 1, 2]},
        "d-v0 with intents": {"bc (variant=intents)": [0, 1, 2], "bc (variant=intents-skip4)": [0, 1, 2]},
    }


def test_profiles_and_improvements_are_on_the_page_for_what_ran_on_every_dataset(tmp_path, write_run):
    for name, seed in itertools.product(("a", "b"), (0, 1)):
        write_run(f"{name}/bc-{seed}", "bc", seed, (1.0, 10.0), card={"name": name, "sha256": name * 64})
        write_run(f"{name}/iql-{seed}", "iql", seed, (1.0, 60.0 + seed), card={"name": name, "sha256": name * 64})
    write_run("a/dt-0", "dt", 0, (1.0, 90.0), card={"name": "a", "sha256": "a" * 64})  # not on b
    page, numbers = numbers_of(tmp_path)
    scale = numbers["scales"][0]
    assert list(scale["profiles"]["curves"]) == ["bc", "iql"]
    assert scale["improvement"] == [{"first": "bc", "second": "iql", "probability": 0.0, "ci_low": 0.0, "ci_high": 0.0}]
    assert "Performance profiles" in page and "Probability of improvement" in page
