"""Work that falls into independent shards, over Ray actors: what dataset makers take as `map_shards`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.util.actor_pool import ActorPool

S = TypeVar("S")
R = TypeVar("R")


@ray.remote(num_cpus=1)
class ShardWorker:
    """One process that runs shards, one after another."""

    def run(self, function: Callable[[Any], Any], spec: Any) -> Any:
        return function(spec)


def ray_map_shards(
    function: Callable[[S], R],
    specs: Sequence[S],
    *,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[R]:
    """`map(function, specs)` over actors of the running Ray, results in the order of `specs`.

    Args:
        function: importable by the workers.
        specs: one argument per shard.
        num_workers: actors; None: one per CPU of the cluster, at most one per shard.
        progress: called with (shards done, all shards) as results come in.

    Raises:
        The error of the first shard that fails, with the worker's traceback in its cause.
    """
    if not specs:
        return
    available = int(ray.cluster_resources().get("CPU", 1))
    workers = [ShardWorker.remote() for _ in range(max(1, min(num_workers or available, available, len(specs))))]
    try:
        results = ActorPool(workers).map(lambda worker, spec: worker.run.remote(function, spec), specs)
        for done, result in enumerate(results, start=1):
            if progress is not None:
                progress(done, len(specs))
            yield result  # type: ignore[misc]
    finally:
        for worker in workers:
            ray.kill(worker)
