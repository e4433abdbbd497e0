"""The published schema of studies: it is what the code reads, and every shipped study is valid by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.studies import tiny_values
from wmrl_ray.cli.configs import available_studies, read_study
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.study import Study, expand

jsonschema = pytest.importorskip("jsonschema")

FOLDER = Path(__file__).parent.parent / "tune_configs"
FILE = FOLDER / "sweep.schema.json"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schema_is_the_generated_one() -> None:
    # Why another process: in this one other tests' files have put their fakes among the agents
    command = [sys.executable, "-m", "wmrl_ray", "sweep", "--schema"]
    generated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert FILE.read_text() == generated, f"renew it: wmrl sweep --schema > {FILE.name}"


def test_every_shipped_study_is_valid_alone_and_with_what_it_includes(validator: Any) -> None:
    assert len(available_studies()) >= 17
    for name, path in available_studies().items():
        text = path.read_text()
        validator.validate(yaml.safe_load(text))
        validator.validate(read_study(name).values)
        assert f"# yaml-language-server: $schema={Path('..') / FILE.name}" in text.splitlines()
        assert (path.parent / ".." / FILE.name).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": [0]},
        {"seeds": []},
        {"run": {"num_update": 3}},
        {"run": {"seed": 3}},
        {"run": {"online": {"num_envss": 3}}},
        {"algorithms": {"bc": {"run": {"agent": {"lrr": 1}}}}},
        {"algorithms": {"bc": {"families": {"a": {"agent": {"lr": [1]}}}}}},
        {"algorithms": {"bc": {"family": {}}}},
        {"variants": {"intent": {}}},
        {"datasets": {"plane": {"url": "x"}}},
        {"search": {"agent.lr": {"loguniforme": [1, 2]}}},
        {"search": {"agent.lr": {"uniform": [1]}}},
        {"search": {"agent.lr": {"uniform": [1, 2], "choice": [1]}}},
        {"tune": {"scheduler": "ashe"}},
        {"tune": {"num_sample": 3}},
        {"grid": {"agent.lr": []}},
        {"include": 3},
    ],
)
def test_what_the_code_refuses_by_its_form_the_schema_refuses_too(
    tmp_path: Path, validator: Any, changes: dict[str, Any]
) -> None:
    values = tiny_values(tmp_path)
    validator.validate(values)
    broken = values | changes
    assert not validator.is_valid(broken)
    with pytest.raises(ConfigError):
        expand(from_dict(Study, broken))


def test_a_file_without_include_needs_its_own_rows_and_columns(validator: Any) -> None:
    assert not validator.is_valid({"paper": "p", "table": "t"}) and validator.is_valid(
        {"include": "_common.yaml", "table": "t"}
    )
