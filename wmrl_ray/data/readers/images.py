"""Observations that are images: recognised by type and shape, and brought to [C, h, w] of uint8."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.values import numbers_of, rows_of

SMALLEST = 16  # rows and columns of a picture without a channel axis, and of one whose type is not uint8


def observations_of(values: Any, name: str, where: str, own: bool = False) -> tuple[np.ndarray, list[str]]:
    """[N, O] f32, or images [N, C, h, w] u8; and notes about what was changed.

    Args:
        own: written by this project, whose images are [C, h, w] whatever their sizes.

    Raises:
        DataError: no numbers, or what may be images of a layout or type that is not certain.
    """
    values = numbers_of(values, name, where)
    shape = values.shape[1:]
    axis = 0 if own and values.dtype == np.uint8 and len(shape) == 3 else channel_axis(shape, values.dtype, name, where)
    if axis is not None:
        return channels_first(values, axis), image_notes(shape, axis)
    notes = [f"{name} of shape {list(shape)} joined to vectors"] if len(shape) > 1 and max(shape) > 1 else []
    return rows_of(values, name, where), notes


def channel_axis(shape: Sequence[int], dtype: Any, name: str, where: str) -> int | None:
    """Which axis of one observation is its channels: 0, 2, or -1 where a grey picture has none; None: it is no image.

    The channels are fewer than the rows and the columns of a picture. Raises DataError where that does not tell.
    """
    shape, dtype = tuple(shape), np.dtype(dtype)
    if dtype != np.uint8:
        axis = _fewest(shape) if len(shape) == 3 else None
        if axis in (0, 2) and shape[axis] <= 4 and sorted(shape)[1] >= SMALLEST:
            raise DataError(
                f"{where}: {name} has the shape {list(shape)} of {dtype}, as images of floats have; store them as uint8"
            )
        return None
    if len(shape) == 3:
        if (axis := _fewest(shape)) in (0, 2):
            return axis
        raise DataError(
            f"{where}: {name} has the shape {list(shape)} of uint8, in which no first or last axis is the shortest; store "
            "images as [channels, height, width] with fewer channels than rows and columns"
        )
    if len(shape) == 2 and min(shape) >= SMALLEST:
        return -1
    if len(shape) >= 2 and int(np.prod(shape)) > 1:
        raise DataError(
            f"{where}: {name} has the shape {list(shape)} of uint8; store images as [channels, height, width] (frames joined "
            "along the channels), and vectors as [size]"
        )
    if int(np.prod(shape)) >= SMALLEST * SMALLEST:
        raise DataError(
            f"{where}: {name} is {int(np.prod(shape)):,} numbers of uint8, as images that were flattened; store them as "
            "[channels, height, width], or as floats if they are a vector"
        )
    return None


def channels_first(images: np.ndarray, axis: int) -> np.ndarray:
    """[N, C, h, w] from images whose channels are that axis of one (see `channel_axis`)."""
    return images[:, None] if axis == -1 else np.ascontiguousarray(np.moveaxis(images, axis + 1, 1))


def image_notes(shape: Sequence[int], axis: int) -> list[str]:
    """What `channels_first` does to images [shape], in words."""
    if axis == 0:
        return []
    became = [1, *shape] if axis == -1 else [shape[2], shape[0], shape[1]]
    return [f"images {list(shape)} became {became} (channels first)"]


def decoded(frames: Iterable[Any], shape: Sequence[int], where: str) -> np.ndarray:
    """[N, *shape] u8 from JPEGs, as Minari stores images by default.

    Raises:
        DataError: one of another size than its space.
    """
    from PIL import Image

    images = []
    for number, frame in enumerate(frames):
        image = np.asarray(Image.open(io.BytesIO(bytes(frame))), np.uint8)
        if image.shape != tuple(shape):
            raise DataError(
                f"{where}: observation {number} is an image {list(image.shape)}, its space has {list(shape)}; repair it or the "
                "space"
            )
        images.append(image)
    return np.stack(images) if images else np.zeros((0, *shape), np.uint8)


def _fewest(shape: Sequence[int]) -> int | None:
    """The axis that is shorter than both others."""
    shortest = int(np.argmin(shape))
    return shortest if list(shape).count(shape[shortest]) == 1 else None
