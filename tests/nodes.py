"""Clusters of several nodes on one machine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SMALL: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}


@contextlib.contextmanager
def cluster_of_nodes() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`: a head without CPUs, to which this process is connected. The caller adds nodes."""
    import ray
    from ray._common.utils import get_ray_temp_dir
    from ray._private import services
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="wmrl-nodes-")
    Path(get_ray_temp_dir()).mkdir(exist_ok=True)  # Why: a Cluster writes its address there, and no other Ray may have run yet
    closed = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", _patient(services.get_node))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, **SMALL})
        reaper = threading.Thread(target=_reap, args=(cluster, closed), daemon=True)
        reaper.start()
        try:
            ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            closed.set()
            reaper.join()
            with contextlib.suppress(Exception):  # it would end processes that are gone already
                cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _reap(cluster: Any, closed: threading.Event) -> None:
    """What init does on a real node. Why: a worker ends when its raylet's pid is free, and a dead child's is only once its
    parent, here this process, has asked for its exit status. Without it the workers of a killed node live on.
    """
    while not closed.wait(0.2):
        for node in cluster.list_all_nodes():
            for infos in list(node.all_processes.values()):
                for info in infos:
                    info.process.poll()


def _patient(get_node: Any) -> Any:
    """Why: Ray gives a node 30 seconds to appear, which a busy machine may not have."""

    def wait(*arguments: Any) -> Any:
        deadline = time.monotonic() + 300
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    return wait
