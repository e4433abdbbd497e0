"""What this process keeps in memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MAPPED, KEPT = 32 << 20, 256 << 20  # bytes; an allocation above MAPPED (glibc's largest) gets pages of its own


@functools.cache
def keep_freed_memory() -> bool:
    """Keeps up to 256 MiB that were freed for the next allocations; True where it could be arranged (Linux with glibc).

    Why: a step allocates and frees tens of tensors of about 1 MiB. With glibc's defaults their pages often go back to the
    system and come again, zeroed: up to 19,000 page faults and 33 of 190 ms in an update of TD-MPC (512 hidden, batch 512).
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, MAPPED) and mallopt(M_TRIM_THRESHOLD, KEPT))


def forget_runs() -> None:
    """Leaves nothing of the runs that this process has done; what they compiled must not be used after it.

    Why: torch counts how often it has compiled a function, in all runs together, and runs it eagerly from the ninth time on.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
