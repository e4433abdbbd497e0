"""Matrix products of `core/nets.py` on this processor: torch's own route and oneDNN's, and which of them `nets` takes.

python -m tests.benchmarks.bench_products [--repetitions 15] [--threads 1]

Each in float32, forward under no_grad, and forward with backward. Then the gradient of a plain `.sum()` of a layer's output,
one number expanded: given to oneDNN as it is, and as `nets` gives it. A processor's family goes into `nets.FASTER_WITH_ONEDNN`
by what this prints for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from tests.benchmarks.harness import interleaved, machine, table
from wmrl_ray.core import nets

LAYERS = [(512, 512, 512), (256, 256, 256), (2560, 512, 512), (1024, 64, 512)]  # rows, in, out
STACKED = [(7, 256, 200, 200), (5, 512, 512, 512), (2, 256, 256, 256)]  # layers, rows, in, out


def cases() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Name: a product, and its tensors, which all take gradients."""
    found: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {}
    for rows, n, m in LAYERS:
        tensors = [torch.randn(rows, n), torch.randn(m, n) / n**0.5, torch.randn(m)]
        found[f"linear, [{rows}, {n}] -> {m}"] = nets.linear, tensors
    for k, rows, n, m in STACKED:
        tensors = [torch.randn(k, rows, n), torch.randn(k, n, m) / n**0.5, torch.randn(k, 1, m)]
        found[f"stacked_product, [{k}, {rows}, {n}] -> {m}"] = nets.stacked_product, tensors
    return found


def plain_sums() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    every = cases()
    return {name: every[name] for name in list(every)[:2]}


def direct(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def through(onednn: bool, call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with mock.patch.object(nets, "ONEDNN", onednn):
            call()

    return run


def forward(product: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            product(*tensors)

    return run


def with_backward(product: Callable[..., Tensor], tensors: list[Tensor], *, expanded: bool = False) -> Callable[[], None]:
    tensors = [x.clone().requires_grad_() for x in tensors]
    with torch.no_grad():
        gradient = torch.randn_like(product(*tensors))

    def run() -> None:
        y = product(*tensors)
        torch.autograd.grad(y.sum() if expanded else y, tensors, None if expanded else gradient)

    return run


WHATS: dict[str, Callable[..., Callable[[], None]]] = {"forward": forward, "and backward": with_backward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not torch.backends.mkldnn.is_available():
        raise SystemExit("this torch has no oneDNN")
    measured = {f"{name}, {what}": make(*case) for name, case in cases().items() for what, make in WHATS.items()}
    measured |= {f"{name}, and backward of .sum()": with_backward(*case, expanded=True) for name, case in plain_sums().items()}
    rows = []
    for name, call in measured.items():
        timings = interleaved({"torch": through(False, call), "oneDNN": through(True, call)}, arguments.repetitions)
        plain, onednn = timings["torch"].cpu_ms, timings["oneDNN"].cpu_ms
        rows.append([name, f"{plain:.2f}", f"{onednn:.2f}", f"{plain / onednn:.2f}x"])
    print(f"{machine()}, AMD family {nets.amd_family()}: nets takes {'oneDNN' if nets.ONEDNN else 'torch'}'s\n")
    print(table(["CPU ms, float32", "torch", "oneDNN", "oneDNN's speed-up"], rows))
    x, expanded = torch.randn(256, 256), torch.ones(()).expand(256, 256)
    ways = {"as it is": lambda: direct(x, expanded), "as nets gives it": lambda: nets._onednn(x, expanded, None)}
    timings = interleaved(ways, 3, warmup=1)
    print(f"\na weight [256, 256] that is one number: {', '.join(f'{way} {t.cpu_ms:.2f} ms' for way, t in timings.items())}")


if __name__ == "__main__":
    main()
