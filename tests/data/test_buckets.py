"""Datasets in a bucket, over S3's own protocol: a server that answers what pyarrow's client asks."""

from __future__ import annotations

import os
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.data.fakes import assert_holds, names_under, step_table, transitions, write_hdf5, write_minari, write_parquet
from wmrl_ray.data import buckets
from wmrl_ray.data.catalog import verify
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError, Episode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


class Bucket(ThreadingHTTPServer):
    """The folders of `root` are buckets. asked: (method, key) of each request. refuses: to give a file."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.asked, self.refuses = root, [], False

    def uri(self, path: str) -> str:
        return f"s3://{path}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        key, options = urllib.parse.unquote(path).strip("/"), dict(urllib.parse.parse_qsl(query))
        self.server.asked.append((self.command, key))
        file = self.server.root / key
        if "list-type" in options:
            return self._answer(200, self._listing(key, options.get("prefix", "")))
        if self.server.refuses and self.command == "GET":
            return self._answer(403, b"")
        if not file.is_file():
            return self._answer(404 if "/" in key else 200, b"")
        content = file.read_bytes()
        begin, _, end = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(begin) : int(end) + 1 if end else None]
        self._answer(206 if self.headers.get("Range") else 200, part, file.stat().st_mtime)

    def _listing(self, bucket: str, prefix: str) -> bytes:
        root = self.server.root / bucket
        keys = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
        found = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{(root / key).stat().st_size}</Size></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        count = f"<KeyCount>{found.count('<Key>')}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"<?xml version='1.0'?><ListBucketResult><Name>{bucket}</Name>{count}{found}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes, modified: float = 0.0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", self.date_time_string(modified))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def bucket(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    (home / "s3/mine/sets").mkdir(parents=True)
    server = Bucket(home / "s3")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["d.hdf5", "d.parquet", "tables", "x-v0"])
def test_a_file_or_folder_in_a_bucket_is_read_and_copied_once(
    home: Path, episodes: list[Episode], bucket: Bucket, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = home / "s3/mine/sets"
    if kind == "d.hdf5":
        write_hdf5(there / kind, transitions(episodes))
    elif kind == "x-v0":
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(there))
        write_minari(kind, episodes, data_format="arrow")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(home / "minari"))
    elif kind == "tables":
        write_parquet(there / kind / "a.parquet", step_table(episodes[:1]))
        write_parquet(there / kind / "b.parquet", step_table(episodes[1:]))
    else:
        write_parquet(there / kind, step_table(episodes))
    dataset = open_dataset(bucket.uri(f"mine/sets/{kind}"))
    assert_holds(dataset, episodes)
    assert (dataset.card.uri, dataset.card.name) == (f"s3://mine/sets/{kind}", kind.partition(".")[0])
    copied = len(bucket.asked)
    assert open_dataset(bucket.uri(f"mine/sets/{kind}")).card == dataset.card
    again = bucket.asked[copied:]
    assert not [key for method, key in again if method == "GET" and "/" in key], "the files were copied again"
    assert verify(bucket.uri(f"mine/sets/{kind}")).card.sha256 == dataset.card.sha256


def test_what_has_changed_in_the_bucket_is_copied_again(home: Path, episodes: list[Episode], bucket: Bucket) -> None:
    file = home / "s3/mine/sets/d.hdf5"
    write_hdf5(file, transitions(episodes))
    uri = bucket.uri("mine/sets/d.hdf5")
    assert len(open_dataset(uri)) == 4
    write_hdf5(file, transitions(episodes[:2]))
    os.utime(file, (0, file.stat().st_mtime + 1))  # Why: the protocol's times are of whole seconds
    assert_holds(open_dataset(uri), episodes[:2])
    (home / "cache").rename(home / "before")
    assert len(open_dataset(uri, cache_dir=home / "mine")) == verify(uri, cache_dir=home / "mine").card.num_episodes == 2
    assert (home / "mine/downloads").is_dir() and not (home / "cache").exists()  # copied where the user said


@pytest.mark.parametrize("key", ["AKIA1:hidden@mine", "AKIA1:hid/den@mine"])
def test_a_key_in_the_uri_is_refused_and_not_shown(home: Path, key: str) -> None:
    with pytest.raises(DataError, match=r"dataset 's3://...' carries a key.*set AWS_ACCESS_KEY_ID") as caught:
        open_dataset(f"s3://{key}/d.npz")
    assert "AKIA1" not in str(caught.value) and "hid" not in str(caught.value)


def test_what_is_not_there_or_does_not_answer_is_one_line(
    home: Path, episodes: list[Episode], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="does not exist: the bucket has no file of that name"):
        open_dataset(bucket.uri("mine/sets/no.hdf5"))
    monkeypatch.setattr(buckets, "ANSWER_SECONDS", 0.5)
    silent = bucket.uri("mine/sets/d.hdf5").replace(str(bucket.server_port), "9")  # nobody listens there
    with pytest.raises(DataError, match=r"cannot be listed \(.*check the name, the network") as caught:
        open_dataset(silent)
    assert "\n" not in str(caught.value)
    assert not (home / "cache").exists()


def test_a_copy_that_breaks_off_leaves_nothing_behind(home: Path, episodes: list[Episode], bucket: Bucket) -> None:
    write_hdf5(home / "s3/mine/sets/d.hdf5", transitions(episodes))
    bucket.refuses = True
    with pytest.raises(DataError, match="the copy of mine/sets/d.hdf5 .* broke off") as caught:
        open_dataset(bucket.uri("mine/sets/d.hdf5"))
    assert "\n" not in str(caught.value) and names_under(home / "cache") <= {"downloads"}
    bucket.refuses = False
    assert_holds(open_dataset(bucket.uri("mine/sets/d.hdf5")), episodes)
