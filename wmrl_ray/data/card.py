"""What a dataset is, in numbers: its card, and a picture of the states it visits."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmrl_ray.data.episode import DataError, obs_dim_of

if TYPE_CHECKING:
    from wmrl_ray.data.datasets import Dataset

STAND_IN_MARK = "STAND-IN:"  # a description that starts so says that the dataset replaces one that could not be had


@dataclass(frozen=True)
class Origin:
    """What the source says about itself, beside the arrays.

    env_spec: JSON of the environment (gymnasium's EnvSpec). ref_min_score, ref_max_score: mean returns of a random and of an
    expert controller, measured as the description says. action_repeat: how often each action was taken. notes: what the reader
    changed or dropped. terminal_obs_known: false where the last observation of a terminated episode only repeats the one before
    it. trajectories: (number, mean return, largest return) of trajectories up to their first terminal, where they go on after
    it as further episodes; the card's returns are then these. base_name, base_sha256: of the dataset that this one is, but for
    the vectors behind its observations.
    """

    env_id: str | None = None
    env_spec: str | None = None
    ref_min_score: float | None = None
    ref_max_score: float | None = None
    action_repeat: int | None = None  # None: not known
    description: str = ""
    notes: tuple[str, ...] = ()
    terminal_obs_known: bool = True
    trajectories: tuple[float, ...] = ()
    base_name: str | None = None
    base_sha256: str | None = None

    def __post_init__(self) -> None:
        if len(self.trajectories) not in (0, 3) or not np.isfinite(self.trajectories).all():
            raise ValueError(f"trajectories = {self.trajectories}, where a number and two returns are needed")


@dataclass(frozen=True, kw_only=True)
class DatasetCard(Origin):
    """One page about a dataset: its origin and its numbers; plain, so that JSON holds it (`config.to_dict`).

    sha256 is of the arrays, whatever the format they came in: an export of a dataset has the sha256 of the dataset.
    source_sha256 is of the source's files. obs_dim: O, or (C, h, w) of images. obs_mean, obs_std: [O], over all
    observations; of images empty. return_mean, return_max: over episodes (see `trajectories`), undiscounted. stand_in: the
    sentence that says what this dataset stands in for, None for an original.
    """

    uri: str
    name: str
    sha256: str
    source_sha256: str
    num_steps: int
    num_episodes: int
    num_terminated: int
    episode_length_min: int
    episode_length_max: int
    obs_dim: int | tuple[int, int, int]
    action_dim: int
    obs_mean: tuple[float, ...]
    obs_std: tuple[float, ...]
    return_mean: float
    return_max: float
    stand_in: str | None = None
    cache_path: str = ""

    @property
    def has_scale(self) -> bool:
        """Whether returns can be normalised: both reference scores are there and differ."""
        return self.ref_min_score is not None and self.ref_max_score is not None and self.ref_min_score != self.ref_max_score

    def normalized_score(self, episode_return: float) -> float:
        """0 for a return of ref_min_score, 100 for ref_max_score.

        Raises:
            DataError: the dataset has no score scale (`has_scale`).
        """
        if self.ref_min_score is None or self.ref_max_score is None or not self.has_scale:
            raise DataError(
                f"dataset {self.name!r} has no reference scores that a return can be normalised with (ref_min_score = "
                f"{self.ref_min_score}, ref_max_score = {self.ref_max_score}); report the return itself, or store two "
                "different ones in the dataset's metadata"
            )
        return 100.0 * (float(episode_return) - self.ref_min_score) / (self.ref_max_score - self.ref_min_score)


def make_card(
    arrays: dict[str, np.ndarray], origin: Origin, *, uri: str, name: str, source_sha256: str = "", cache_path: str = ""
) -> DatasetCard:
    """The card of flat arrays (see `Dataset` for their layout)."""
    obs, reward, starts = arrays["obs"], arrays["reward"], arrays["episode_starts"]
    lengths = np.diff(starts) - 1
    returns = np.add.reduceat(reward.astype(np.float64), starts[:-1])  # an episode's last row has reward 0
    return_mean, return_max = origin.trajectories[1:] or (float(returns.mean()), float(returns.max()))
    mean, std = _mean_std(obs) if obs.ndim == 2 else (np.empty(0), np.empty(0))
    sha256 = content_sha256(arrays)
    description = origin.description.strip()
    return DatasetCard(
        **{**vars(origin), "description": description},
        uri=uri,
        name=name,
        sha256=sha256,
        source_sha256=source_sha256 or sha256,
        num_steps=int(lengths.sum()),
        num_episodes=len(lengths),
        num_terminated=int(np.count_nonzero(arrays["terminated"])),
        episode_length_min=int(lengths.min()),
        episode_length_max=int(lengths.max()),
        obs_dim=obs_dim_of(obs),
        action_dim=arrays["action"].shape[1],
        obs_mean=tuple(mean.tolist()),
        obs_std=tuple(std.tolist()),
        return_mean=return_mean,
        return_max=return_max,
        stand_in=stand_in_of(description),
        cache_path=cache_path,
    )


def content_sha256(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over the arrays' names, types, shapes and bytes, in a fixed order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def plot_states(
    dataset: Dataset,
    path: str | Path,
    *,
    walls: np.ndarray | None = None,
    extent: tuple[float, float, float, float] | None = None,
    goal: tuple[float, float] | None = None,
    bins: int = 120,
) -> np.ndarray:
    """Writes a picture of how often each place is visited: a histogram of the first two observation dimensions.

    Args:
        dataset: an opened dataset with at least 2 observation dimensions.
        path: of the picture; its ending says the format (.png, .svg, .pdf).
        walls: [R, C] bool, drawn in grey; row 0 is the top (largest y), as in `envs.maze_layout`.
        extent: (x_min, x_max, y_min, y_max) of the walls and of the histogram; None: the range of the data.
        goal: xy of a star.
        bins: per axis.

    Returns: counts [bins, bins], the first axis is y upwards.

    Raises:
        DataError: fewer than 2 observation dimensions, or images.
    """
    if not isinstance(dataset.card.obs_dim, int):
        raise DataError(f"the observations of {dataset.card.name!r} are images; a picture of states needs vectors")
    if dataset.card.obs_dim < 2:
        raise DataError(f"a picture of states needs 2 observation dimensions, {dataset.card.name!r} has {dataset.card.obs_dim}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, y = np.asarray(dataset.obs[:, 0]), np.asarray(dataset.obs[:, 1])
    bounds = extent or (float(x.min()), float(x.max()), float(y.min()), float(y.max()))
    edges = [_edges(bounds[2], bounds[3], bins), _edges(bounds[0], bounds[1], bins)]
    counts, y_edges, x_edges = np.histogram2d(y, x, bins=edges)  # type: ignore[arg-type]
    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)  # Why not pyplot: no global state, no display
    axes = figure.add_subplot()
    frame = (float(x_edges[0]), float(x_edges[-1]), float(y_edges[0]), float(y_edges[-1]))
    if walls is not None:
        axes.imshow(np.where(walls, 0.55, np.nan), origin="upper", extent=frame, cmap="gray", vmin=0, vmax=1, aspect="equal")
    shown = np.where(counts > 0, np.log10(np.maximum(counts, 1)), np.nan)
    image = axes.imshow(shown, origin="lower", extent=frame, cmap="viridis", aspect="equal" if walls is not None else "auto")
    if goal is not None:
        axes.plot(*goal, marker="*", markersize=16, color="tab:red", linestyle="none", label="goal")
        axes.legend(loc="upper right")
    figure.colorbar(image, ax=axes, label="visits (log10)")
    axes.set(xlabel="obs[0]", ylabel="obs[1]", title=f"{dataset.card.name}: {dataset.card.num_steps:,} steps")
    from wmrl_ray.data.files import atomic_path

    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=110)
    return counts


def plot_images(dataset: Dataset, path: str | Path, *, num_episodes: int = 4, num_images: int = 6) -> None:
    """Writes a picture of the newest frame of images [C, h, w] at even distances: a row for each of the first episodes.

    path: its ending says the format (.png, .svg, .pdf). Frames are RGB where 3 divides C, else the last channel in grey.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = min(num_episodes, len(dataset))
    figure = Figure(figsize=(1.6 * num_images, 1.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, num_images, squeeze=False)
    for number in range(rows):
        obs = dataset.episode(number).obs
        newest = obs[:, -3:] if obs.shape[1] % 3 == 0 else obs[:, -1:]
        for axes, step in zip(panels[number], np.linspace(0, len(obs) - 1, num_images).astype(int), strict=True):
            axes.imshow(newest[step].transpose(1, 2, 0), cmap="gray")
            axes.set_axis_off()
            axes.set_title(f"{number}: step {step}", fontsize=8)
    figure.suptitle(f"{dataset.card.name}: {dataset.card.num_steps:,} steps", fontsize=10)
    from wmrl_ray.data.files import atomic_path

    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=110)


def _edges(low: float, high: float, bins: int) -> np.ndarray:
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


def _mean_std(obs: np.ndarray, chunk: int = 65536) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [O] in float64, a chunk at a time so that mapped data are not copied whole."""
    mean = sum(obs[i : i + chunk].sum(0, dtype=np.float64) for i in range(0, len(obs), chunk)) / len(obs)
    square = sum(((obs[i : i + chunk] - mean) ** 2).sum(0, dtype=np.float64) for i in range(0, len(obs), chunk)) / len(obs)
    return np.asarray(mean), np.sqrt(square)


def stand_in_of(description: str) -> str | None:
    """The first sentence of a description that starts with `STAND-IN:`, without that word; None for an original."""
    if not description.startswith(STAND_IN_MARK):
        return None
    words = " ".join(description[len(STAND_IN_MARK) :].split())
    return re.split(r"(?<=[.!?])\s(?=[A-Z])", words, maxsplit=1)[0]


def card_from_dict(values: dict[str, Any]) -> DatasetCard:
    """The card that `config.to_dict` wrote."""
    from wmrl_ray.config import from_dict

    return from_dict(DatasetCard, values)
