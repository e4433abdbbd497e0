"""The unit of work of a maker: a shard with its own random stream, so that a dataset does not depend on who made which part."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wmrl_ray.data.episode import Episode

MapShards = Callable[[Callable[["ShardSpec"], "Shard"], Sequence["ShardSpec"]], Iterable["Shard"]]


@dataclass(frozen=True)
class ShardSpec:
    """What one worker is asked for; picklable.

    kind: "collect" makes `steps` steps of data; "random" and "expert" run `episodes` episodes in the evaluation environment.
    family: the module of this package that does it. maze, style: what it makes.
    """

    kind: Literal["collect", "random", "expert"]
    family: str
    maze: str
    style: str
    seed: int
    index: int
    steps: int = 0
    episodes: int = 0

    def rng(self) -> np.random.Generator:
        """A stream of this shard alone: the same for a seed, whatever the other shards do."""
        name = zlib.crc32(f"{self.family}-{self.maze}-{self.style}".encode())
        kind = ("collect", "random", "expert").index(self.kind)
        return np.random.default_rng(np.random.SeedSequence((self.seed, name), spawn_key=(kind, self.index)))


@dataclass(frozen=True)
class Shard:
    """The result: data, or the returns of evaluation episodes; `reached` counts commanded goals."""

    spec: ShardSpec
    episodes: list[Episode]
    returns: list[float]
    steps: int
    reached: int = 0


def run_shard(spec: ShardSpec) -> Shard:
    """Makes one shard; the function that a `map_shards` calls, in this or another process."""
    family = importlib.import_module(f"wmrl_ray.data.makers.{spec.family}")
    return family.collect(spec) if spec.kind == "collect" else family.evaluate(spec)


def split(total: int, size: int) -> list[int]:
    """Parts of `size`, and the rest, that sum to `total`."""
    sizes = [size] * (total // size)
    return sizes + [total % size] if total % size else sizes
