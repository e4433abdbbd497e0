import os
import subprocess
import sys

import pytest

# A fresh process: in one that has run other tests the heap may hold enough that was freed, whatever the thresholds are.
FAULTS = """
import resource, sys
import torch
from wmrl_ray.core.memory import keep_freed_memory

def faults_of_allocating():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(512, 512) for _ in range(30)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert sys.argv[1] == "default" or keep_freed_memory()
faults_of_allocating()
print(min(faults_of_allocating() for _ in range(3)))
"""


def faults_of_allocating(memory: str) -> int:
    """Page faults of 30 tensors of 1 MiB, 256 pages each, that were allocated and freed before."""
    # glibc's default is fixed by naming it (else the first large free moves it)
    fixed = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
    ran = subprocess.run([sys.executable, "-c", FAULTS, memory], env=os.environ | fixed, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_was_freed_is_used_again_without_page_faults():
    assert faults_of_allocating("kept") < min(256, faults_of_allocating("default") / 10)
