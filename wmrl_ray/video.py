"""Frames -> a video file, for `wmrl evaluate` and `wmrl report`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wmrl_ray.config import ConfigError, check

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".mp4", ".mkv")  # what holds H.264


def check_video_path(path: Path) -> None:
    """Raises ConfigError before the work for a video that could not be written after it."""
    check(path.suffix in SUFFIXES, f"--video {path} must end in one of {', '.join(SUFFIXES)}")
    check(path.parent.is_dir(), f"no such folder for the video: {path.parent}; create it first")
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--video needs imageio-ffmpeg; in the checkout: pip install -e '.[video]' -c constraints.txt"
        ) from None


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Writes frames [h, w, 3] uint8, all of one size and at least one, with ffmpeg; complete or absent.

    Raises:
        ConfigError: ffmpeg did not write a file that plays back every frame; what was at `path` is still there.
    """
    import imageio_ffmpeg
    import numpy as np  # lazily: `wmrl --help` starts without it

    from wmrl_ray.data.files import replacing

    frames = iter(frames)
    first = next(frames)
    height, width = (size // 2 * 2 for size in first.shape[:2])  # Why even: H.264 with 4:2:0 colours takes no others
    sent = 0
    with replacing(path) as partial:
        writer = imageio_ffmpeg.write_frames(
            str(partial), (width, height), fps=fps, codec="libx264", macro_block_size=2, ffmpeg_log_level="error"
        )
        try:
            writer.send(None)
            for frame in itertools.chain([first], frames):
                writer.send(np.ascontiguousarray(frame[:height, :width]))
                sent += 1
            writer.close()
            readable = count_frames(partial)
        except OSError as error:  # ffmpeg ended early, or is not there
            raise ConfigError(f"no video {path}: {' '.join(str(error).split())[:300]}") from error
        check(
            readable == sent,
            f"no video {path}: ffmpeg wrote {readable} readable frames of {sent}; is the disk full, or "
            f"{imageio_ffmpeg.get_ffmpeg_exe()} without libx264?",
        )


def count_frames(video: Path) -> int:
    """How many frames ffmpeg can decode. Raises OSError if there are none."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(video))
    next(reader)  # the header
    return sum(1 for _ in reader)
