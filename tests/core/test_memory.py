import ctypes
import resource
import sys

import pytest
import torch

from wmrl_ray.core.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory


def faults_of_allocating() -> int:
    """Page faults of 30 tensors of 1 MiB, 256 pages each, which are freed again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(512, 512) for _ in range(30)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_was_freed_is_used_again_without_page_faults():
    libc = ctypes.CDLL(None)
    # As in a fresh process; in this one something large may have been freed before, which moves glibc's thresholds
    assert libc.mallopt(M_MMAP_THRESHOLD, 128 << 10) and libc.mallopt(M_TRIM_THRESHOLD, 128 << 10)
    assert min(faults_of_allocating() for _ in range(3)) > 30 * 200
    assert keep_freed_memory.__wrapped__()  # whether or not an agent was built in this process before
    faults_of_allocating()
    assert min(faults_of_allocating() for _ in range(3)) < 256
