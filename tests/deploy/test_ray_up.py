"""deploy/ray-up by Ray's own validator and schema; and what is open."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import yaml

from tests.deploy.manifests import ROOT

ray = pytest.importorskip("ray")
FILES = sorted((ROOT / "deploy" / "ray-up").glob("*.yaml"))


def read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def check(config: dict[str, Any]) -> None:
    """Ray's validator where it is; its schema alone where that has moved."""
    config = copy.deepcopy(config)
    try:
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError:
        import jsonschema

        jsonschema.validate(config, json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()))
    else:
        validate_config(prepare_config(config))


def test_there_is_a_file() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_rays_validator_takes_it_and_refuses_a_typo(file: Path) -> None:
    check(read(file))
    for broken in ({"max_worker": 3}, {"file_mount": {}}):
        with pytest.raises(Exception, match=next(iter(broken))):
            check(read(file) | broken)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_is_open_but_ssh_from_one_network(file: Path) -> None:
    config, text = read(file), file.read_text()
    assert "0.0.0.0" not in text
    # Why a group made beforehand: Ray adds SSH from everywhere to the rules of one that it makes
    assert "security_group" not in config["provider"]
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert list(config["file_mounts"].values()) == ["~/.ray/auth_token"]  # the token's place, not the token
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(config["docker"]["run_options"])
    for node in config["available_node_types"].values():
        (group,) = node["node_config"]["SecurityGroupIds"]
        assert group.startswith("sg-")
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ray_makes_no_security_group_of_its_own(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own code, which would ask AWS for one and open its SSH to everyone."""
    names = ("boto3", "boto3.exceptions", "boto3.resources.base", "botocore", "botocore.client", "botocore.config")
    with patch.dict(sys.modules, {name: MagicMock(__version__="99") for name in names}):  # boto3 is no dependency of ours
        aws = pytest.importorskip("ray.autoscaler._private.aws.config", reason="Ray's AWS provider has moved")
    assert "0.0.0.0/0" in json.dumps(aws._create_default_inbound_rules({"sg-1"}))
    asked: list[list[str]] = []
    monkeypatch.setattr(aws, "_upsert_security_groups", lambda config, types: asked.append(types) or dict.fromkeys(types, None))
    aws._configure_security_group(read(file))
    assert asked == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_runners_and_learners_come_and_go_and_the_head_does_no_work(file: Path) -> None:
    nodes = read(file)["available_node_types"]
    assert nodes[read(file)["head_node_type"]]["resources"] == {"CPU": 0}
    for name, resource in (("runners", "runner"), ("learners", "learner")):
        assert nodes[name]["min_workers"] == 0 < nodes[name]["max_workers"]
        assert nodes[name]["resources"][resource] >= 1
