"""Downloads a Minari dataset, in bounded time when there is no network."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import explained_os_errors

T = TypeVar("T")
PROBE_SECONDS = 15.0  # for the first answer of the server; the download itself may take as long as it needs


def download(dataset_id: str, root: Path) -> None:
    """Puts the dataset under `root`, complete or not at all.

    Minari's own `download_dataset` first lists the whole remote, with half a minute of retries when nothing answers; here one
    file of this dataset is asked for, once the remote has answered at all.

    Raises:
        DataError: no network, no such id, a missing package, or no space.
    """
    help_line = f"check the id and the network, or copy the dataset to {root / dataset_id} (MINARI_DATASETS_PATH)"
    try:
        from minari.storage.remotes import get_cloud_storage

        storage = get_cloud_storage()
        within(PROBE_SECONDS, lambda: _probe(storage, dataset_id))
    except ImportError as error:
        raise DataError(
            f"dataset {dataset_id!r} is not on this machine and downloading needs a package that is missing "
            f"({first_line(error)}); install it with `pip install 'minari[hf]'`, or {help_line}"
        ) from error
    except Exception as error:  # Why so wide: each kind of remote raises its own library's errors
        raise DataError(
            f"dataset {dataset_id!r} is not on this machine and the remote did not give it ({first_line(error)}); {help_line}"
        ) from error
    building = root / f".download-{uuid.uuid4().hex[:8]}"
    target = root / dataset_id
    try:
        with explained_os_errors(target):
            building.mkdir(parents=True)
            storage.download_dataset(dataset_id, building)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(building / dataset_id, target)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the download of {dataset_id!r} broke off ({first_line(error)}); start it again, or {help_line}"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _probe(storage: Any, dataset_id: str) -> None:
    """Asks for the dataset's metadata. Raises what the remote's library raises; ConnectionError without a way to the Hub."""
    minari_hub = sys.modules.get("minari.storage.remotes.huggingface")  # not loaded: it is another remote
    if minari_hub is None or not isinstance(storage, minari_hub.HuggingFaceStorage):
        storage.get_dataset_metadata(dataset_id)
        return
    from huggingface_hub import constants, get_session

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # Why: it warns of each of its retries; what matters is in the error
    try:
        try:
            # Why first: asked for a file, the Hub's library tries again for 20 s, and its error does not say what was wrong
            get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        except Exception as error:  # Why so wide: those of its HTTP library, which changes with its version
            raise ConnectionError(f"{constants.ENDPOINT}: {first_line(error)}") from error
        storage.get_dataset_metadata(dataset_id)
    finally:
        logger.setLevel(level)


def within(seconds: float, function: Callable[[], T]) -> T:
    """The function's result, or its exception; TimeoutError after `seconds`, leaving it to a daemon thread."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def first_line(error: BaseException) -> str:
    """What to quote of an error in a line of ours."""
    return (str(error).strip().splitlines() or [""])[0][:160] or type(error).__name__
