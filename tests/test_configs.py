"""Every shipped configuration can be run as it is, and the pins stand where the project says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.core.agents import agent_config
from wmrl_ray.data.makers import DEMO, DEMO_COMMAND, MAKERS
from wmrl_ray.data.makers.experts import expert_dataset_id
from wmrl_ray.envs.catalog import known_ids
from wmrl_ray.run.config import RunConfig

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "tune_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_builds_its_run_and_its_agent(path: Path) -> None:
    config = from_dict(RunConfig, yaml.safe_load(path.read_text()))
    agent = agent_config(config.algorithm, config.agent)
    assert agent.window >= 1
    if config.dataset is None:
        assert config.learns_online and config.env in known_ids()
    else:
        experts = {expert_dataset_id(env_id) for env_id in known_ids()}
        assert config.dataset in {DEMO, *experts, *(maker.dataset_id for maker in MAKERS.values())}


@pytest.mark.parametrize("num_runners", [1, 2, 4, 10])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_of_steps_of_its_own_takes_more_runners(path: Path, num_runners: int) -> None:
    """Turns of the synchronous schedule end with the learner's calls."""
    values = yaml.safe_load(path.read_text())
    if from_dict(RunConfig, values).learns_online:
        values["online"] = {**values.get("online", {}), "num_runners": num_runners}
        from_dict(RunConfig, values)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_says_in_its_first_line_what_it_is_and_is_named_after_its_algorithm(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert path.stem == "quick" or path.stem.endswith(yaml.safe_load(text)["algorithm"].replace("_", "-"))


def test_a_misspelt_key_in_a_config_is_refused_with_the_right_one() -> None:
    values = yaml.safe_load(CONFIGS[0].read_text())
    with pytest.raises(ConfigError, match="did you mean 'num_updates'"):
        from_dict(RunConfig, values | {"num_update": 10})
    with pytest.raises(ConfigError, match="did you mean 'expectile'"):
        agent_config("iql_tdmpc", {"expectle": 0.9})


def test_the_demo_makes_the_dataset_that_its_configs_read() -> None:
    makefile = (ROOT / "Makefile").read_text()
    trained = re.findall(r"wmrl train (demo-[a-z-]+)", makefile)
    assert sorted(trained) == ["demo-bc", "demo-iql-tdmpc"]
    for name in trained:
        dataset = yaml.safe_load((ROOT / f"tune_configs/{name}.yaml").read_text())["dataset"]
        assert dataset == DEMO
    assert DEMO_COMMAND.removeprefix("wmrl ") in makefile


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_the_two_sets_of_pins_differ_in_ray_alone() -> None:
    locked, latest = pins("constraints.txt"), pins("constraints-ray-latest.txt")
    assert {name for name in locked.keys() | latest.keys() if locked.get(name) != latest.get(name)} == {"ray"}
    assert (locked["ray"], latest["ray"]) == ("2.54.1", "2.60.0")


def test_every_dependency_of_every_extra_is_pinned_inside_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked, latest = pins("constraints.txt"), pins("constraints-ray-latest.txt")
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    requirements = [r for r in map(Requirement, lines) if r.name != project["name"]]
    assert len(requirements) > 25
    for requirement in requirements:
        for pinned in (locked, latest):
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
