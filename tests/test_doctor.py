"""The doctor: the pairs it knows, what it finds here, and that a failure carries its fix."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from wmrl_ray import doctor

TESTED = {
    "ray": "2.54.1", "torch": "2.13.0", "gymnasium": "1.2.2", "mujoco": "3.11.0", "dm-control": "1.0.44",
    "gymnasium-robotics": "1.4.2", "rich": "14.3.4", "pandas": "2.3.3",
}  # fmt: skip


def pairs(**changes: str) -> dict[str, str]:
    """{name of the pair: status} with these versions instead of the tested ones."""
    versions = TESTED | {name.replace("_", "-"): version for name, version in changes.items()}
    found = doctor.check_pairs({name: Version(version) for name, version in versions.items()})
    return {f.name: f.status for f in found if f.name != "known-bad versions"}


def test_the_tested_versions_have_no_pair_that_breaks():
    assert pairs() == {"ray < 2.55: CVE-2026-41486": "note"}


@pytest.mark.parametrize(
    ("changes", "name", "status"),
    [
        ({"mujoco": "3.12.0"}, "mujoco >= 3.12 with the kitchen", "broken"),
        ({"mujoco": "4.0.0"}, "mujoco >= 4 with dm-control", "broken"),
        ({"dm_control": "1.0.50"}, "dm-control newer than its mujoco", "broken"),
        ({"gymnasium": "1.3.0"}, "gymnasium other than 1.2.2 with ray[rllib]", "broken"),
        ({"pandas": "3.1.1", "rliable": "1.2.0"}, "pandas 3 with rliable", "warn"),
        ({"pandas": "3.1.1"}, "pandas 3 with ray < 2.55", "note"),
        ({"rich": "15.0.0", "viser": "1.1.1"}, "rich >= 15 with viser", "warn"),
        ({"ray": "2.60.0"}, "ray > 2.54.1: no local_mode", "note"),
        ({"ray": "2.61.0"}, "ray outside the tested range", "warn"),
        ({"d3rlpy": "2.8.1"}, "d3rlpy 2.8.1 and gymnasium", "warn"),
    ],
)
def test_a_known_bad_pair_is_recognised(changes, name, status):
    assert pairs(**changes)[name] == status


def test_ray_with_the_fix_is_free_of_the_cve_note():
    assert "ray < 2.55: CVE-2026-41486" not in pairs(ray="2.60.0")


def test_dm_control_matched_with_its_mujoco_is_no_mismatch():
    assert "dm-control newer than its mujoco" not in pairs(dm_control="1.0.50", mujoco="3.17.0")


def test_every_pair_names_its_fix():
    assert all(pair.detail and pair.fix for pair in doctor.BAD_PAIRS)


def test_a_missing_extra_is_not_a_failure_and_a_missing_requirement_is():
    found = {f.name: f for f in doctor.check_versions({"ray": Version("2.54.1")})}
    assert (found["myosuite"].status, found["torch"].status, found["ray"].status) == ("missing", "broken", "ok")
    assert "[myo]" in found["myosuite"].fix and "pip install" in found["torch"].fix


def test_what_the_package_requires_is_what_the_doctor_looks_for():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[^A-Za-z0-9_-]", dependency)[0] for dependency in project["dependencies"]}
    assert required == set(doctor.REQUIRED)
    assert set(doctor.EXTRAS.values()) <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("AntMaze", "mujoco", "robotics"), ("MyoSuite", "mujoco", "myo"), ("ManiSkill", "mani-skill", "maniskill")],
)
def test_every_family_of_simulators_is_looked_for(name, package, extra):
    found = doctor.check_simulator(name, {})
    assert (found.status, found.detail) == ("missing", f"{package} is not installed")
    assert f"'.[{extra}]'" in found.fix


@pytest.mark.parametrize("name", list(doctor.SIMULATORS))
def test_the_probe_of_a_simulator_loads_it_where_it_is_installed(name):
    versions = doctor.installed_versions()
    packages, *_ = doctor.SIMULATORS[name]
    found = doctor.check_simulator(name, versions)
    if set(packages) <= set(versions):
        assert found.status == "ok" and found.detail.startswith("works"), found
    else:
        assert found.status == "missing"


def test_what_a_simulator_prints_is_not_taken_for_the_finding(monkeypatch):
    monkeypatch.setattr(doctor, "SIMULATORS", {"MyoSuite": ((), "myo", "print('MyoSuite:> Registering')")})
    assert doctor.check_simulator("MyoSuite", {}).detail == "works"


def test_no_backend_is_forced_where_mujoco_has_only_one(monkeypatch):
    monkeypatch.setattr(doctor, "DEFAULT_GL", "")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert doctor.check_probe("x", "x", "import os; print(os.environ.get('MUJOCO_GL'))").detail == "None"


def test_a_simulator_without_its_package_is_not_installed():
    found = doctor.check_simulator("FrankaKitchen", {"mujoco": Version("3.11.0")})
    assert (found.status, found.detail) == ("missing", "gymnasium-robotics is not installed")


def test_a_probe_that_fails_reports_its_error_and_the_fix():
    found = doctor.check_probe("simulators", "x", "raise AttributeError('flex_vertedge')", "mend it")
    assert (found.status, found.detail, found.fix) == ("broken", "AttributeError: flex_vertedge", "mend it")


def test_a_probe_that_crashes_does_not_take_the_doctor_with_it():
    found = doctor.check_probe("simulators", "x", "import os; os.abort()")
    assert (found.status, found.detail) == ("broken", "exit code -6")


def test_a_probe_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.5)
    assert doctor.check_probe("simulators", "x", "import time; time.sleep(30)").detail == "did not answer in 0.5 s"


def test_a_gl_backend_that_does_not_exist_is_broken_with_the_packages_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    found = doctor.check_rendering({"mujoco": Version("3.11.0")})
    assert found.status == "broken" and "nonsense" in found.detail and "libegl1" in found.fix


def test_rendering_switched_off_is_respected(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    assert doctor.check_rendering({"mujoco": Version("3.11.0")}).status == "note"


def test_a_port_in_use_is_seen(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(doctor, "RAY_PORTS", {port: "test"})
        (found,) = doctor.check_ports()
        assert (found.status, found.detail) == ("note", "in use (test)")
    (found,) = doctor.check_ports()
    assert (found.status, found.detail) == ("ok", "free (test)")


def test_the_cuda_build_is_read_without_importing_torch(tmp_path, monkeypatch):
    for text, expected in (("cuda: Optional[str] = '12.8'\n", "12.8"), ("cuda: Optional[str] = None\n", None)):
        (tmp_path / "torch").mkdir(exist_ok=True)
        (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0'\n" + text)
        (tmp_path / "torch" / "__init__.py").touch()
        spec = doctor.util.spec_from_file_location("torch", tmp_path / "torch" / "__init__.py")
        monkeypatch.setattr(doctor.util, "find_spec", lambda name, spec=spec: spec)
        assert doctor.torch_cuda_build() == expected


def test_a_cuda_build_without_a_gpu_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "list_gpus", lambda: [])
    monkeypatch.setattr(doctor, "torch_cuda_build", lambda: "12.8")
    assert {f.name: f.status for f in doctor.check_gpu({"torch": Version("2.13.0")})} == {"GPU": "note", "torch build": "warn"}


def test_the_command_prints_json_and_agrees_with_its_exit_code():
    script = "from wmrl_ray.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script, "doctor", "--json"], capture_output=True, text=True, timeout=120)
    content = json.loads(done.stdout)
    broken = [finding for finding in content["findings"] if finding["status"] == "broken"]
    assert content["ok"] == (not broken)
    assert done.returncode == (1 if broken else 0)
    assert all(finding["fix"] for finding in broken)
    areas = {"versions", "known pairs", "compute", "machine", "ray", "simulators", "rendering"}
    assert {finding["area"] for finding in content["findings"]} == areas


def test_the_doctor_loads_neither_torch_nor_ray():
    script = (
        "import sys; from wmrl_ray import doctor\n"
        "list(doctor.check_gpu(doctor.installed_versions())); list(doctor.check_machine())\n"
        "assert not {'torch', 'ray', 'mujoco', 'minari'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
