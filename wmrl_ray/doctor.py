"""Is this machine ready? Versions, known-bad pairs, simulators, GPU, OpenGL, disk, memory, ports; each failure with its fix.

Imports neither torch nor ray: versions come from package metadata, the GPU from the driver, and whatever can crash or hang is
tried in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from packaging.version import Version

from wmrl_ray.bad_pairs import BAD_PAIRS, Versions

Status = Literal["ok", "note", "missing", "warn", "broken"]

REQUIRED = (
    "ray",
    "torch",
    "gymnasium",
    "minari",
    "pyarrow",
    "h5py",
    "numpy",
    "scipy",
    "tensorboardX",
    "safetensors",
    "typer",
    "rich",
    "matplotlib",
    "pillow",
    "jinja2",
    "pyyaml",
    "packaging",
)
EXTRAS = {  # package -> the extra that brings it
    "mujoco": "robotics",
    "gymnasium-robotics": "robotics",
    "dm-control": "dmc",
    "myosuite": "myo",
    "mani-skill": "maniskill",
    "sapien": "maniskill",
    "imageio-ffmpeg": "video",
}
INFORMATIVE = ("pandas", "rliable", "viser", "d3rlpy")  # not ours, but in known-bad pairs
RAY_PORTS = {6379: "the head's GCS", 8265: "dashboard and jobs", 10001: "Ray Client"}
PROBE_TIMEOUT_S = 120  # generous: the machine may be shared
DEFAULT_GL = "egl" if sys.platform == "linux" else ""  # elsewhere MuJoCo has one backend, and takes it unasked
INSTALL = "in the checkout: pip install -e '.{}' -c constraints.txt"


@dataclass(frozen=True)
class Finding:
    """One line of the report. broken: will fail. warn: works within limits. missing: an extra is not installed."""

    area: str
    name: str
    status: Status
    detail: str
    fix: str = ""


OURS = """
from wmrl_ray.envs import make_env
e = make_env({!r}); e.reset(seed=0); e.step(e.action_space.sample())
"""
SIMULATORS = {  # name -> (packages, extra, code that loads it and steps once)
    "PointMaze": (
        ("mujoco", "gymnasium-robotics"),
        "robotics",
        "import gymnasium as g, gymnasium_robotics as r; g.register_envs(r); e = g.make('PointMaze_UMaze-v3')\n"
        "e.reset(seed=0); e.step(e.action_space.sample())",
    ),
    "AntMaze": (
        ("mujoco", "gymnasium-robotics"),
        "robotics",
        "import gymnasium as g, gymnasium_robotics as r; g.register_envs(r); e = g.make('AntMaze_UMaze-v5')\n"
        "e.reset(seed=0); e.step(e.action_space.sample())",
    ),
    "FrankaKitchen": (
        ("mujoco", "gymnasium-robotics"),
        "robotics",
        "import gymnasium as g, gymnasium_robotics as r; g.register_envs(r); e = g.make('FrankaKitchen-v1')\n"
        "e.reset(seed=0); e.step(e.action_space.sample())",
    ),
    "DMControl": (("mujoco", "dm-control"), "dmc", OURS.format("dmc/cheetah-run")),
    "MyoSuite": (("mujoco", "myosuite"), "myo", OURS.format("myoHandKeyTurnFixed-v0")),
    "ManiSkill": (
        ("mani-skill", "sapien"),
        "maniskill",
        OURS.format("PickCube-v1") + "from wmrl_ray.envs.maniskill import has_vulkan\n"
        "detail = 'works' if has_vulkan() else 'works from states; no Vulkan renderer, so no pixels'",
    ),
}
FRAME = """
import mujoco
world = '<worldbody><light pos="0 0 3"/><geom type="sphere" size=".3"/></worldbody>'
m = mujoco.MjModel.from_xml_string('<mujoco>' + world + '</mujoco>')
d = mujoco.MjData(m); mujoco.mj_forward(m, d)
r = mujoco.Renderer(m, 48, 64); r.update_scene(d); frame = r.render(); r.close()
assert frame.any(), 'the frame is black'
"""
TORCH = """
import torch
device = 'cuda' if torch.cuda.is_available() else 'cpu'
x = torch.ones(64, 64, device=device)
assert (x @ x).sum().item() == 64**3
print('computes on', device)
"""
RAY = """
import ray
ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
assert ray.get(ray.remote(lambda: 2).remote()) == 2
"""


def examine(full: bool = False) -> list[Finding]:
    """All findings. full: also computes with torch and starts a private local Ray, which takes some ten seconds."""
    versions = installed_versions()
    findings = [*check_versions(versions), *check_pairs(versions)]
    with ThreadPoolExecutor(3) as pool:  # each waits for a process
        probes = [pool.submit(check_simulator, name, versions) for name in SIMULATORS]
        probes.append(pool.submit(check_rendering, versions))
        if full:
            probes += [pool.submit(check_probe, "compute", "torch", TORCH), pool.submit(check_probe, "ray", "local Ray", RAY)]
        findings += [*check_gpu(versions), *check_machine(), *check_ports()]
        findings += [probe.result() for probe in probes]
    return findings


def installed_versions() -> dict[str, Version]:
    """The versions of every package this page knows, without importing one."""
    found = {}
    for name in (*REQUIRED, *EXTRAS, *INFORMATIVE):
        try:
            found[name] = Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return found


def check_versions(versions: Versions) -> Iterator[Finding]:
    python = Version(platform.python_version())
    supported = Version("3.11") <= python < Version("3.14")
    yield Finding("versions", "python", "ok" if supported else "broken", str(python), "" if supported else "use Python 3.11")
    for name in REQUIRED:
        if name in versions:
            yield Finding("versions", name, "ok", str(versions[name]))
        else:
            yield Finding("versions", name, "broken", "not installed", INSTALL.format(""))
    for name, extra in EXTRAS.items():
        if name in versions:
            yield Finding("versions", name, "ok", str(versions[name]))
        else:
            yield Finding("versions", name, "missing", "not installed", INSTALL.format(f"[{extra}]"))


def check_pairs(versions: Versions) -> Iterator[Finding]:
    bad = [Finding("known pairs", p.name, p.status, p.detail, p.fix) for p in BAD_PAIRS if p.applies(versions)]
    yield from bad
    if not any(finding.status in ("warn", "broken") for finding in bad):
        yield Finding("known pairs", "known-bad versions", "ok", f"none of {len(BAD_PAIRS)} that would break wmrl_ray")


def check_simulator(name: str, versions: Versions) -> Finding:
    packages, extra, code = SIMULATORS[name]
    if missing := [package for package in packages if package not in versions]:
        return Finding("simulators", name, "missing", f"{missing[0]} is not installed", INSTALL.format(f"[{extra}]"))
    # The last line printed, after whatever a simulator prints of its own.
    code = f"detail = 'works'\n{code}\nprint(detail)"
    return check_probe("simulators", name, code, "see the known pairs above, or reinstall with constraints.txt")


def check_probe(area: str, name: str, code: str, fix: str = "reinstall with constraints.txt") -> Finding:
    """Runs `code` in a process of its own; its last line of output or of error becomes the detail."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if backend := os.environ.get("MUJOCO_GL") or DEFAULT_GL:
        environment["MUJOCO_GL"] = backend
    environment |= {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        probe = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Finding(area, name, "broken", f"did not answer in {PROBE_TIMEOUT_S} s", fix)
    if probe.returncode:
        lines = [line for line in probe.stderr.splitlines() if line.strip() and not line.startswith(" ")]
        error = next((line for line in lines if "Error" in line), lines[-1] if lines else f"exit code {probe.returncode}")
        return Finding(area, name, "broken", error[:200], fix)
    return Finding(area, name, "ok", probe.stdout.strip().splitlines()[-1] if probe.stdout.strip() else "works")


def check_rendering(versions: Versions) -> Finding:
    """Whether MuJoCo draws a picture that is not black, with the backend that would be used."""
    name = "MuJoCo frame"
    if "mujoco" not in versions:
        return Finding("rendering", name, "missing", "mujoco is not installed", INSTALL.format("[robotics]"))
    backend = os.environ.get("MUJOCO_GL", "")
    if backend.lower() in ("disable", "disabled", "off", "false", "0"):
        return Finding("rendering", name, "note", f"switched off by MUJOCO_GL={backend}", "export MUJOCO_GL=egl to draw")
    found = check_probe("rendering", name, FRAME)
    if found.status == "ok" and not DEFAULT_GL:
        return Finding("rendering", name, "ok", "draws")
    if found.status == "ok":
        note = f"{backend} draws" if backend else "EGL draws; MUJOCO_GL is not set, and your own scripts need it"
        return Finding("rendering", name, "ok" if backend else "note", note, "" if backend else "export MUJOCO_GL=egl")
    fix = "apt-get install libegl1 libopengl0 libgl1 libgl1-mesa-dri, then export MUJOCO_GL=egl (or osmesa: libosmesa6)"
    # Without rendering everything but pictures works; a backend that was asked for and fails also breaks imports.
    return Finding(
        "rendering", name, "broken" if backend else "warn", f"{backend or DEFAULT_GL or 'MuJoCo'}: {found.detail}", fix
    )


def check_gpu(versions: Versions) -> Iterator[Finding]:
    gpus, build = list_gpus(), torch_cuda_build() if "torch" in versions else None
    if gpus:
        yield Finding("compute", "GPU", "ok", "; ".join(gpus))
        if build is None and "torch" in versions:
            yield Finding(
                "compute", "torch build", "warn", "made for the CPU: the GPU stays idle", "install a CUDA build of torch"
            )
    else:
        yield Finding("compute", "GPU", "note", "none: training runs on the CPU")
        if build is not None:
            fix = "on a machine without a GPU install torch from PyTorch's CPU index, before wmrl-ray"
            yield Finding(
                "compute", "torch build", "warn", f"made for CUDA {build}, but there is no GPU: works, and wastes some GB", fix
            )


def list_gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU the driver shows, without torch."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    gpus = []
    for index in range(count.value):
        device, name, size = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_size_t()
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        gpus.append(f"{name.value.decode()} ({size.value / 2**30:.0f} GiB)")
    return gpus


def torch_cuda_build() -> str | None:
    """The CUDA version torch was built for, read from its files; None for a CPU build."""
    spec = util.find_spec("torch")
    version_file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version_file is None or not version_file.exists():
        return None
    for line in version_file.read_text().splitlines():
        if line.startswith("cuda"):
            value = line.split("=", 1)[1].strip().strip("'\"")
            return None if value == "None" else value
    return None


def check_machine() -> Iterator[Finding]:
    """CPU threads, memory, shared memory for Ray's object store, and disk where data and runs go."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS is not set (wmrl_ray uses one thread per process)"
    yield Finding("machine", "CPU", "ok", f"{cores} cores, {setting}")
    memory = available_memory()
    if memory is not None:
        low = memory < 2 * 2**30
        fix = "close other programs, or use a smaller dataset and num_eval_runners=0" if low else ""
        yield Finding("machine", "memory", "warn" if low else "ok", f"{memory / 2**30:.1f} GiB available", fix)
    datasets = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari")
    places = {"disk, datasets": datasets, "disk, runs": Path.cwd()} | (
        {"/dev/shm": Path("/dev/shm")} if Path("/dev/shm").is_dir() else {}
    )
    for name, folder in places.items():
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        needed = 0.5 if name == "/dev/shm" else 2.0  # GiB
        low = free < needed * 2**30
        fix = f"free some space: {needed} GiB are needed" if low else ""
        if low and name == "/dev/shm":
            fix = "give the container more (docker run --shm-size=2g): Ray's object store lives there"
        yield Finding("machine", name, "warn" if low else "ok", f"{free / 2**30:.1f} GiB free in {folder}", fix)


def available_memory() -> int | None:
    """Bytes this process may still take: the machine's, or what its control group leaves."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def check_ports() -> Iterator[Finding]:
    """Whether something listens on Ray's ports: `ray.init()` may join it, `ray start --head` cannot start beside it."""
    for port, purpose in RAY_PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(0.3)
            used = probe.connect_ex(("127.0.0.1", port)) == 0
        if used:
            fix = f"fine for a cluster; else see `ss -ltnp 'sport = :{port}'`. wmrl_ray's own local runs do not need it"
            yield Finding("ray", f"port {port}", "note", f"in use ({purpose})", fix)
        else:
            yield Finding("ray", f"port {port}", "ok", f"free ({purpose})")


def to_json(findings: list[Finding]) -> str:
    """{"ok": no finding is broken, "findings": [...]}."""
    return json.dumps({"ok": not is_broken(findings), "findings": [vars(finding) for finding in findings]}, indent=1)


def is_broken(findings: list[Finding]) -> bool:
    return any(finding.status == "broken" for finding in findings)
