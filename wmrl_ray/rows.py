"""The rows of a study: datasets and tasks, and how to come by what is not on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from shlex import quote
from typing import Any

from wmrl_ray.config import check
from wmrl_ray.data.source import is_local

EXPERTS = "wmrl/expert/"  # demonstrations, which users make themselves


@dataclass(frozen=True)
class DatasetSpec:
    """A row. uri: where its data is expected; None: the agent learns from its own steps alone, in `env`. stand_in: the Minari
    id of our own dataset for the same task, or None.

    family: which of an algorithm's settings it takes. env: to evaluate and step in; None: the dataset's own. not_available:
    one line, why its cells cannot run here. The rest says how to come by the original: source, the package that makes its HDF5
    file; ref_scores, the returns that score 0 and 100 (the file does not say); minari, the id of a remake that Minari hosts.
    """

    uri: str | None = None
    family: str = ""
    stand_in: str | None = None
    source: str | None = None
    env: str | None = None
    env_config: dict[str, Any] = field(default_factory=dict)
    ref_scores: tuple[float, ...] | None = None
    minari: str | None = None
    not_available: str | None = None

    def __post_init__(self) -> None:
        check(self.uri is not None or self.env is not None, "a row needs a uri, or an env where the agent takes its own steps")
        check(
            self.ref_scores is None or len(self.ref_scores) == 2,
            f"ref_scores = {self.ref_scores}; two are needed, the returns that score 0 and 100",
        )


def make_command(uri: str, env: str | None, env_config: Mapping[str, Any]) -> str | None:
    """What makes the dataset on this machine; None: nothing here does, it is to be downloaded or imported."""
    from wmrl_ray.data.makers import DEMO, DEMO_COMMAND, MAKERS

    if (uri := uri.removeprefix("minari://")) == DEMO:
        return DEMO_COMMAND
    for maker in MAKERS.values():
        if maker.dataset_id == uri:
            return f"wmrl data make {maker.name}"
    if uri.startswith(EXPERTS) and env is not None:
        return f"wmrl data make {quote(f'expert:{env}')}" + " --pixels" * (env_config.get("obs") == "pixels")
    return None


def not_whole(uri: str) -> str | None:
    """One line for a stand-in that was made with fewer steps than others' of its id have; None: it is what it says."""
    from wmrl_ray.data.makers import MAKERS, STEPS
    from wmrl_ray.data.readers.minari_files import read_metadata
    from wmrl_ray.data.source import resolve

    maker = next((maker for maker in MAKERS.values() if maker.dataset_id == uri.removeprefix("minari://")), None)
    if maker is None or not is_local(uri):
        return None
    steps = int(read_metadata(resolve(uri).path).get("total_steps", 0))
    if steps >= STEPS:
        return None
    return (
        f"dataset {uri!r} has {steps:,} steps here, and a stand-in of that id has {STEPS:,}; make it whole: "
        f"wmrl data make {maker.name} --overwrite; or name a smaller one by an id of its own (--id) in the study"
    )


def no_stand_in(row: str, spec: DatasetSpec) -> str:
    """One line for a row with data of its own and no stand-in, where stand-ins are asked for."""
    command = None if spec.uri is None else make_command(spec.uri, spec.env, spec.env_config)
    if command is None:
        return f"there is no stand-in for {row}; get the original, and sweep without --stand-ins"
    return f"{row} has no stand-in and needs none: you make its dataset yourself ({command}); sweep without --stand-ins"


def how_to_get(row: str, spec: DatasetSpec, uri: str) -> str:
    """One line for a dataset that is not on this machine."""
    absent = f"dataset {uri!r} is not on this machine"
    if (command := make_command(uri, spec.env, spec.env_config)) is not None:
        instead = " in place of --pixels" * command.endswith("--pixels")  # Why: `wmrl data make` takes one or the other
        trains = f" (trains a TD-MPC2; or --checkpoint RUN of one{instead})" * uri.startswith(EXPERTS)
        return f"{absent}; make it: {command}{trains}"
    if uri != spec.uri or spec.source is None:
        return f"{absent}; make, download or import it there (wmrl data --help)"
    scores = "" if spec.ref_scores is None else " --ref-min {:.10g} --ref-max {:.10g}".format(*spec.ref_scores)
    line = (
        f"{absent}; {spec.source} writes its HDF5 file (gym.make({row!r}).get_dataset()), then: "
        f"wmrl data import FILE {quote(uri)} --env {quote(spec.env or 'ENV')}{scores}"
    )
    if spec.env is None:
        line += (
            f" (ENV: you have to supply an environment in {spec.source}'s coordinates as a Gymnasium "
            "id, module:id; none of the mazes here is in them)"
        )
    if spec.minari:
        line += f"; or a remake with scores of its own, as uri of this row: minari download {quote(spec.minari)}"
    return line if spec.stand_in is None else f"{line}; or --stand-ins"
