"""Timing for benchmarks: interleaved repetitions, medians, this machine's matrix-product rates, Markdown tables."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Timing:
    """Seconds of each repetition: on the clock, and of this process's CPU, which other processes disturb less."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def wall_ms(self) -> float:
        return 1e3 * statistics.median(self.wall)

    @property
    def cpu_ms(self) -> float:
        return 1e3 * statistics.median(self.cpu)


def interleaved(variants: Mapping[str, Callable[[], object]], repetitions: int, warmup: int = 3) -> dict[str, Timing]:
    """Times each variant once per round, round after round, so that a slow minute of the machine hits all of them alike."""
    for call in variants.values():
        for _ in range(warmup):
            call()
    timings = {name: Timing() for name in variants}
    for _ in range(repetitions):
        for name, call in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.process_time() - cpu)
    return timings


def flops(call: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products in one eager call, backward included; nothing elementwise."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _linear_flops}) as counter:
        call()
    return float(counter.get_total_flops())


def _linear_flops(
    x_shape: Sequence[int], weight_shape: Sequence[int], *args: object, out_shape: object = None, **kwargs: object
) -> int:
    rows = 1
    for size in x_shape[:-1]:
        rows *= size
    return 2 * rows * weight_shape[0] * weight_shape[1]


KINDS = {  # of operators, by what their names contain; the first match counts
    "products": ("mm", "linear_pointwise", "mkldnn_linear", "matmul"),
    "activations and norms": ("elu", "tanh", "layer_norm", "softplus", "sigmoid"),
    "optimiser": ("adam", "foreach", "lerp"),
    "copies": ("copy_", "cat", "clone", "contiguous", "stack", "repeat"),
    "everything else": ("",),
}


def time_shares(call: Callable[[], object], calls: int = 3) -> dict[str, float]:
    """The share of one thread's time in each kind of operator."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            call()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        kind = next(kind for kind, words in KINDS.items() if any(word in event.key.lower() for word in words))
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: value / total for kind, value in spent.items()}


def gemm_rates(rows: int = 512, width: int = 512, calls: int = 50, repetitions: int = 9) -> dict[str, float]:
    """GFLOP/s of a `width` x `width` linear layer on `rows` rows, by the route that computes it, with the threads set now."""
    x, weight, bias = torch.randn(rows, width), torch.randn(width, width), torch.randn(width)
    low = [tensor.bfloat16() for tensor in (x, weight, bias)]

    def repeat(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                call()

        return run

    variants = {
        "fp32, torch's linear": repeat(lambda: F.linear(x, weight, bias)),
        "bf16, torch's linear": repeat(lambda: F.linear(*low)),
    }
    if torch.backends.mkldnn.is_available():
        variants["fp32, oneDNN"] = repeat(lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    with torch.no_grad():
        timings = interleaved(variants, repetitions)
    work = 2 * rows * width * width * calls
    return {name: work / min(timing.cpu) / 1e9 for name, timing in timings.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


RATIO_HEADER = ["", "ms", "CPU ms", "speed-up", "in CPU time"]


def ratio_table(timings: Mapping[str, Timing], bases: Collection[str], shares: Mapping[str, int] | None = None) -> str:
    """Each variant beside the fastest of `bases`, those that were timed.

    shares: how many environments a variant's call plans for at once, where that is not one; times are per environment.
    """
    peers = [timings[name] for name in bases if name in timings]
    lines = []
    for name, timing in timings.items():
        share, ratios = (shares or {}).get(name, 1), ["-", "-"]
        if peers:
            wall, cpu = min(peer.wall_ms for peer in peers), min(peer.cpu_ms for peer in peers)
            ratios = [f"{wall * share / timing.wall_ms:.2f}x", f"{cpu * share / timing.cpu_ms:.2f}x"]
        lines.append([name, f"{timing.wall_ms / share:.1f}", f"{timing.cpu_ms / share:.1f}", *ratios])
    return table(RATIO_HEADER, lines)


def machine() -> str:
    """The processor and the software that a figure belongs to."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the platform's own name stands
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{name}, {capability}, {threads} thread(s), torch {torch.__version__}, Python {platform.python_version()}"


def report_differences(results: Mapping[str, Mapping[str, float]], bound: float) -> None:
    """Prints what was compared, a column for each of `results`. Ends the process where a difference is not below `bound`."""
    whats = dict.fromkeys(what for found in results.values() for what in found)
    rows = [[what, *(f"{found[what]:.1e}" if what in found else "-" for found in results.values())] for what in whats]
    print(f"{machine()}\n\n{table(['largest difference / max(1, largest)', *results], rows)}")
    beyond = [f"{what} of {name}" for name, found in results.items() for what in found if not found[what] < bound]  # NaN too
    if beyond:
        raise SystemExit(f"not below {bound:.0e}: {', '.join(beyond)}")
