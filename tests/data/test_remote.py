"""Downloading a Minari id: whole or not at all, and in bounded time without a network."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.data.fakes import assert_holds, names_under, write_minari
from wmrl_ray.data import remote
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError, Episode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


class FakeRemote:
    """A remote that serves datasets from a folder, as Minari's cloud storages do; refuses to be listed."""

    def __init__(self, folder: Path, fault: Any = None) -> None:
        self.folder, self.fault = folder, fault

    def get_dataset_metadata(self, dataset_id: str) -> dict:
        if isinstance(self.fault, threading.Event):
            self.fault.wait(30)
        elif isinstance(self.fault, Exception):
            raise self.fault
        if not (self.folder / dataset_id).is_dir():
            raise FileNotFoundError(f"404: no {dataset_id} here\nmore lines")
        return {}

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        shutil.copytree(self.folder / dataset_id, path / dataset_id)
        if self.fault == "broken":
            raise ConnectionError("the line went dead")

    def list_datasets(self, prefix: str | None = None) -> list[str]:
        raise AssertionError("never list the remote: it takes half a minute without a network")


@pytest.fixture
def serve(home: Path, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(home / "far"))
    write_minari("D4RL/set-v2", episodes)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(home / "minari"))

    def start(fault: Any = None) -> None:
        monkeypatch.setattr("minari.storage.remotes.get_cloud_storage", lambda: FakeRemote(home / "far", fault))

    return start


def test_an_id_that_is_not_here_is_downloaded_once(home: Path, episodes: list[Episode], serve: Any) -> None:
    serve()
    assert_holds(open_dataset("D4RL/set-v2"), episodes)
    serve(ConnectionError("gone"))
    assert_holds(open_dataset("minari://D4RL/set-v2"), episodes)
    assert {name.split("/")[0] for name in names_under(home / "minari")} == {"D4RL"}


def test_no_network_is_one_clear_line(home: Path, serve: Any) -> None:
    serve(ConnectionError("Name or service not known\n" * 5))
    with pytest.raises(
        DataError, match="'D4RL/set-v2' is not on this machine.*Name or service.*check the id and the network"
    ) as e:
        open_dataset("D4RL/set-v2")
    assert "\n" not in str(e.value)


def test_an_id_that_the_remote_does_not_have_is_one_clear_line(serve: Any) -> None:
    serve()
    with pytest.raises(DataError, match="404: no D4RL/other-v1 here.*check the id"):
        open_dataset("D4RL/other-v1")


def test_a_remote_that_never_answers_is_given_up(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    serve(release)
    monkeypatch.setattr(remote, "PROBE_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DataError, match="no answer within 0.3 s"):
        open_dataset("D4RL/set-v2")
    assert time.monotonic() - started < 10
    release.set()


def test_a_download_that_breaks_off_leaves_nothing(home: Path, serve: Any) -> None:
    serve("broken")
    with pytest.raises(DataError, match="broke off .the line went dead.; start it again"):
        open_dataset("D4RL/set-v2")
    assert names_under(home / "minari") <= {"D4RL"}


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is not None, reason="the package is installed")
def test_a_missing_download_package_is_named_with_the_command(home: Path) -> None:
    with pytest.raises(DataError, match="pip install 'minari"):
        open_dataset("D4RL/pointmaze/umaze-v2")


def test_our_own_ids_are_never_asked_for_remotely(home: Path, serve: Any) -> None:
    serve(AssertionError("asked"))
    with pytest.raises(DataError, match="make it with `wmrl data make`"):
        open_dataset("wmrl/pointmaze/umaze-v0")


@pytest.mark.parametrize("cause", ["no such host", "refused"])
def test_a_hub_that_cannot_be_reached_is_named_at_once_and_its_library_is_silent(
    home: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening: refuses
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}" if cause == "refused" else "http://hub.test"
        said: list[str] = []
        listener = logging.Handler()
        monkeypatch.setattr(listener, "emit", lambda record: said.append(record.getMessage()))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("MINARI_REMOTE", raising=False)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        if cause == "no such host":

            def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
                raise socket.gaierror(-2, "Name or service not known")

            monkeypatch.setattr(socket, "getaddrinfo", resolve)
        hub.close_session()  # which would keep the proxies of before
        logging.getLogger("huggingface_hub").addHandler(listener)
        try:
            with pytest.raises(DataError) as caught:
                open_dataset("nothing/here-v0")
        finally:
            logging.getLogger("huggingface_hub").removeHandler(listener)
            hub.close_session()
    expected = "Connection refused" if cause == "refused" else "Name or service not known"
    assert f"({endpoint}: [Errno" in str(caught.value) and expected in str(caught.value)
    assert "\n" not in str(caught.value) and "check the id and the network" in str(caught.value)
    assert said == []
