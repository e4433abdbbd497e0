"""FILE_OR_NAME and --set."""

from __future__ import annotations

import datetime
import json
import math

import pytest
import yaml

from wmrl_ray.cli.configs import available, overridden, read_source, read_yaml
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.core.agents import agent_config
from wmrl_ray.run.config import RunConfig


@pytest.mark.parametrize("name", sorted(available()))
def test_every_shipped_configuration_is_valid(name):
    config = from_dict(RunConfig, read_source(name).values)
    agent_config(config.algorithm, config.agent)


def test_a_name_a_file_and_a_run_folder_are_all_understood(tmp_path):
    assert read_source("quick").label == "quick"
    file = tmp_path / "mine.yaml"
    file.write_text("algorithm: bc\ndataset: x\n")
    assert read_source(str(file)).values == {"algorithm": "bc", "dataset": "x"}
    (tmp_path / "config.json").write_text(json.dumps({"algorithm": "bc"}))
    source = read_source(str(tmp_path))
    assert (source.values, source.run_dir) == ({"algorithm": "bc"}, tmp_path)


def test_a_folder_named_tune_configs_here_comes_first(tmp_path, monkeypatch):
    (tmp_path / "tune_configs").mkdir()
    (tmp_path / "tune_configs" / "quick.yaml").write_text("algorithm: mine\n")
    monkeypatch.chdir(tmp_path)
    assert read_source("quick").values == {"algorithm": "mine"}


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        ConfigError, match=r"no configuration named 'quik' \(did you mean 'quick'\?\); there are: .*demo-bc.*quick"
    ):
        read_source("quik")


def test_a_missing_file_is_named_and_the_name_without_a_path_suggested():
    with pytest.raises(ConfigError, match=r"no such file: configs/quick.yaml \(did you mean 'quick'\?\)"):
        read_source("configs/quick.yaml")


def test_a_folder_without_a_run_is_not_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match="a folder without a run"):
        read_source(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("algorithm: [", "line 1: not valid YAML"), ("- bc\n", "holds a list"), ("", "holds a NoneType")],
)
def test_a_file_that_is_no_mapping_is_refused_with_the_place(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_source(str(file))


def test_overrides_are_yaml_scalars_at_dotted_keys():
    values = {"agent": {"plan": {"horizon": 5}}}
    overrides = ["agent.plan.horizon=3", "agent.lr=1e-3", "env=null", "device=cpu", "flag=true", "list=[1, 2]", "text=a=b"]
    assert overridden(values, overrides) == {
        "agent": {"plan": {"horizon": 3}, "lr": 1e-3},
        "env": None,
        "device": "cpu",
        "flag": True,
        "list": [1, 2],
        "text": "a=b",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("off", "off"), ("no", "no"), ("on", "on"), ("True", True), ("1e-3", 1e-3), ("-2.5E4", -2.5e4), ("1.", 1.0), (".5", 0.5)]
    + [("50_000", 50_000), ("-3", -3), ("2026-11-22", datetime.date(2026, 11, 22)), (".inf", math.inf), ("'1e-3'", "1e-3")]
    + [("1e", "1e"), ("e3", "e3"), ("1.5_0", 1.5), ("[off, 2e2]", ["off", 200.0])],
)
def test_words_are_words_and_numbers_are_numbers(text, value):
    """As in YAML 1.2: `compile: off` is one of the settings, and 1e-3 a number."""
    found = read_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("override", ["agent", "=3", "agent.=3", ".x=1", "seed=[1"])
def test_an_override_that_is_none_is_refused_with_its_text(override):
    with pytest.raises(ConfigError, match=f"--set {override!r}".replace("[", r"\[")):
        overridden({}, [override])


def test_setting_below_a_number_is_refused():
    with pytest.raises(ConfigError, match="'seed' is not a mapping"):
        overridden({"seed": 3}, ["seed.x=1"])


def test_what_is_shipped_parses_as_yaml_with_only_known_suffixes():
    for path in available().values():
        assert isinstance(yaml.safe_load(path.read_text()), dict)
