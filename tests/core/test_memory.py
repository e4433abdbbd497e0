import resource
import sys

import pytest
import torch

from wmrl_ray.core.memory import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_was_freed_is_used_again_without_page_faults():
    assert keep_freed_memory()

    def allocate() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [torch.ones(512, 512) for _ in range(30)]  # 1 MiB each: 256 pages
        del held
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    allocate()
    assert min(allocate() for _ in range(3)) < 256
