"""Valid files of every format, mutated at random: what was written, or one line; never a traceback or other values.

A mutation drops, retypes, reshapes, nulls, truncates or adds something, but makes no other meaning of the same numbers.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.fakes import flat_arrays, row_table, small_episode, step_table, transitions, write_hdf5, write_minari
from wmrl_ray.data.card import make_card
from wmrl_ray.data.datasets import Dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.source import resolve

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari", "ignore::RuntimeWarning")

EPISODES = [small_episode(0, 4), small_episode(1, 7, True), small_episode(2, 1), small_episode(3, 5, True)]
NAMES = ["qpos", "x", "dones", "is_last", "discounts", "episode_id2", "infos", "metadata", "action2", ""]
JUNK = [None, 3, -1, 10**15, 0.5, "text", [], [1], {}, {"id": 5}, "[1", "{}", True, float("nan")]
FLAGS = ("terminated", "terminals", "timeouts", "terminations", "truncations")
Document = dict[str, Any]

# -- mutations of a document: arrays by name ---------------------------------------------------------------------------------


def mutate_array(draw: Callable[..., Any], document: Document) -> None:
    kind = draw(st.sampled_from(["drop", "retype", "reshape", "null", "odd", "truncate", "extra"]))
    name = draw(st.sampled_from(sorted(document))) if document else ""
    if kind == "extra" or not document:
        document[draw(st.sampled_from(NAMES[:-1]))] = np.zeros(draw(st.integers(0, 20)))
        return
    if kind == "drop":
        del document[name]
        return
    values = document[name]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        return  # mutated before
    if kind == "retype":
        whole = values.dtype.kind in "biu" or name.endswith(FLAGS)
        exact = ["f8", ">f8", *(["i8", ">i4", "u4"] if whole else []), "f4" if values.dtype.itemsize <= 4 else "f8"]
        wrong = ["S8", "c8", [("a", "f4"), ("b", "i4")]]
        with np.errstate(all="ignore"):
            dtype = draw(st.sampled_from([*exact, *wrong]))
            document[name] = np.zeros(values.shape, dtype) if isinstance(dtype, list) else values.astype(dtype)
    elif kind == "reshape":
        shapes = [(*values.shape, 1), (-1,), (1, *values.shape), values.shape[::-1]]
        shapes += [(values.shape[0], 1, *values.shape[1:])] if values.ndim else []
        shape = draw(st.sampled_from(shapes))
        document[name] = values.T if shape == values.shape[::-1] else values.reshape(shape)
    elif kind in ("null", "odd") and values.size:
        spoiled = values.astype(np.float64).copy()
        wrong = [np.nan, np.inf] if kind == "null" else [7.5, -3.0, 1e300]
        # Why only flags: another number is another value, not damage
        if kind == "null" or name.endswith(FLAGS):
            spoiled.reshape(-1)[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from(wrong))
            document[name] = spoiled
    elif kind == "truncate" and values.ndim:
        keep = draw(st.integers(0, len(values)))
        document[name] = values[:keep] if draw(st.booleans()) else values[len(values) - keep :]


def mutate_column(draw: Callable[..., Any], document: Document) -> None:
    """The same for columns of a table, as lists of Python values."""
    kind = draw(st.sampled_from(["drop", "retype", "reshape", "null", "null inside", "odd", "extra"]))
    name = draw(st.sampled_from(sorted(document)))
    rows = len(document[name])
    where = draw(st.integers(0, max(rows - 1, 0)))
    values = list(document[name])
    if kind == "extra" or not rows:
        document[draw(st.sampled_from(NAMES))] = [0] * rows
    elif kind == "drop" and len(document) > 1:
        del document[name]
    elif kind == "null":
        document[name] = [None if i == where else value for i, value in enumerate(values)]
    elif kind == "null inside" and isinstance(values[where], list):
        values[where] = [None, *values[where][1:]]
        document[name] = values
    elif kind == "odd" and isinstance(values[where], bool):
        document[name] = [2.5 if i == where else float(value or 0) for i, value in enumerate(values)]
    elif kind == "reshape" and draw(st.booleans()):
        document[name] = [None if value is None else [value] for value in values]
    elif kind == "reshape" and isinstance(values[where], list):
        # Why one row only: a table of narrower rows is another table
        values[where] = draw(st.sampled_from([[], values[where][:1], values[where] * 2]))
        document[name] = values
    elif kind == "retype":
        change = draw(st.sampled_from([str, repr, lambda v: {"a": v}, lambda v: b"x"]))
        document[name] = [None if value is None else change(value) for value in values]


def table_of(document: Document) -> pa.Table | None:
    try:
        return pa.table({name: pa.array(values) for name, values in document.items()})
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None  # no such table can be written


# -- formats: a document, and how it is written -------------------------------------------------------------------------------


def write_d4rl(folder: Path, document: Document) -> Path:
    return write_hdf5(folder / "d.hdf5", document)


def write_npz(folder: Path, document: Document) -> Path:
    np.savez(folder / "d.npz", **document)
    return folder / "d.npz"


def write_parquet(folder: Path, document: Document) -> Path | None:
    if (table := table_of(document)) is None:
        return None
    pq.write_table(table, folder / "d.parquet")
    return folder / "d.parquet"


def write_ipc(path: Path, document: Document) -> Path | None:
    if (table := table_of(document)) is None:
        return None
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def write_minari_hdf5(folder: Path, document: Document) -> Path:
    (folder / "data").mkdir()
    write_hdf5(folder / "data" / "main_data.hdf5", {k: v for k, v in document.items() if k != "metadata.json"})
    (folder / "data" / "metadata.json").write_text(json.dumps(document["metadata.json"]))
    return folder


def write_minari_arrow(folder: Path, document: Document) -> Path | None:
    for name, columns in document.items():
        (folder / "data" / name).mkdir(parents=True) if name != "metadata.json" else None
        if name != "metadata.json" and write_ipc(folder / "data" / name / "part-0.arrow", columns) is None:
            return None
    (folder / "data" / "metadata.json").write_text(json.dumps(document["metadata.json"]))
    return folder


def columns_of(table: pa.Table) -> Document:
    return {name: table[name].to_pylist() for name in table.column_names}


@pytest.fixture(scope="module")
def minari_documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    """What Minari itself writes, by data format."""
    root, documents = tmp_path_factory.mktemp("minari"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        for data_format in ("hdf5", "arrow"):
            write_minari(f"{data_format}-v0", EPISODES, data_format=data_format)
            data = root / f"{data_format}-v0" / "data"
            documents[data_format] = {"metadata.json": json.loads((data / "metadata.json").read_text())}
    with h5py.File(root / "hdf5-v0/data/main_data.hdf5") as file:
        for number in range(len(EPISODES)):
            for key in ("observations", "actions", "rewards", "terminations", "truncations"):
                documents["hdf5"][f"episode_{number}/{key}"] = file[f"episode_{number}/{key}"][()]  # type: ignore[index]
    for number in range(len(EPISODES)):
        (path,) = (root / "arrow-v0/data" / str(number)).glob("*.arrow")
        documents["arrow"][str(number)] = columns_of(pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all())
    return documents


def mutate_arrays(draw: Callable[..., Any], document: Document) -> None:
    metadata = document.get("metadata.json")
    if metadata is not None and draw(st.integers(0, 3)) == 0:
        mutate_metadata(draw, metadata)
    else:
        arrays = {name: values for name, values in document.items() if name != "metadata.json"}
        mutate_array(draw, arrays)
        for name in [name for name in document if name != "metadata.json"]:
            del document[name]
        # a new key of a Minari file lies in one of its episodes
        document |= {name if metadata is None or "/" in name else f"episode_1/{name}": v for name, v in arrays.items()}


def mutate_episode(draw: Callable[..., Any], document: Document) -> None:
    episodes = sorted(name for name in document if name != "metadata.json")
    kind = draw(st.integers(0, 4))
    if kind == 0:
        mutate_metadata(draw, document["metadata.json"])
    elif kind == 1 and episodes:
        del document[draw(st.sampled_from(episodes))]
    elif kind == 2 and episodes:
        name, rows = draw(st.sampled_from(episodes)), draw(st.sampled_from([slice(0, -1), slice(1, None), slice(0, 0)]))
        document[name] = {column: values[rows] for column, values in document[name].items()}
    elif episodes:
        mutate_column(draw, document[draw(st.sampled_from(episodes))])


def mutate_metadata(draw: Callable[..., Any], metadata: Document) -> None:
    ours = ["env_spec", "eval_env_spec", "ref_min_score", "wmrl_notes", "wmrl_sha256", "wmrl_intents", "wmrl_env_id"]
    ours += ["wmrl_trajectories", "wmrl_terminal_obs_known", "wmrl_action_repeat"]
    # Why not the actions' bounds: others are another meaning of the same numbers, not damage
    name = draw(st.sampled_from(sorted({*metadata, *ours, "description"})))
    if draw(st.booleans()):
        metadata.pop(name, None)
    else:
        metadata[name] = draw(st.sampled_from(JUNK))


FORMATS: dict[str, tuple[Callable[[], Document], Callable[[Path, Document], Path | None], Callable[..., None]]] = {
    "d4rl hdf5": (lambda: transitions(EPISODES), write_d4rl, mutate_arrays),
    "d4rl npz": (lambda: transitions(EPISODES), write_npz, mutate_arrays),
    "npz": (lambda: flat_arrays(EPISODES), write_npz, mutate_arrays),
    "parquet": (lambda: columns_of(step_table(EPISODES)), write_parquet, mutate_column),
    "arrow": (lambda: columns_of(row_table(EPISODES)), lambda f, d: write_ipc(f / "d.arrow", d), mutate_column),
}


def _check_one(name: str, folder: Path, minari: dict[str, Document], seen: dict[str, int], draw: Callable[..., Any]) -> None:
    if name.startswith("minari"):
        layout = name.removeprefix("minari ")
        original, write = minari[layout], write_minari_hdf5 if layout == "hdf5" else write_minari_arrow
        mutate = mutate_arrays if layout == "hdf5" else mutate_episode
    else:
        make, write, mutate = FORMATS[name]
        original = make()
    document = copy.deepcopy(original)
    for _ in range(draw(st.integers(0, 2))):
        mutate(draw, document)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = write(folder, document)
    if path is None:
        return
    if draw(st.integers(0, 9)) == 0:  # cut off behind some byte
        file = draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
        file.write_bytes(file.read_bytes()[: draw(st.integers(0, file.stat().st_size))])
    try:
        source = resolve(path)
        arrays, origin = source.read()
        card = make_card(arrays, origin, uri=source.uri, name=source.name)
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        seen["refused"] = seen.get("refused", 0) + 1
        return
    seen["read"] = seen.get("read", 0) + 1
    found = Dataset(card=card, **arrays)
    if any("no next_observations" in note for note in card.notes) or any("no timeouts" in note for note in card.notes):
        check_documented(found)
        return
    assert len(found) == len(EPISODES)
    for mine, written in zip(found, EPISODES, strict=True):
        assert np.array_equal(mine.obs, written.obs) and np.array_equal(mine.action, written.action)
        assert np.array_equal(mine.reward, written.reward) and mine.terminated == written.terminated


def check_documented(found: Dataset) -> None:
    """D4RL's layout without next_observations (see `readers.d4rl`): what is there is a written step with its own number."""
    steps = {(*e.obs[t], *e.action[t], e.reward[t]): t == len(e) - 1 and e.terminated for e in EPISODES for t in range(len(e))}
    for episode in found:
        for t in range(len(episode)):
            terminated = steps[(*episode.obs[t], *episode.action[t], episode.reward[t])]
            assert terminated == (t == len(episode) - 1 and episode.terminated) or not found.card.notes


def run_fuzz(name: str, examples: int, folder: Path, minari: dict[str, Document], repeatable: bool) -> None:
    seen: dict[str, int] = {}
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    rules = settings(max_examples=examples, deadline=None, derandomize=repeatable, database=None, suppress_health_check=checks)

    @rules
    @given(st.data())
    def fuzz(data: Any) -> None:
        _check_one(name, folder / "mutated-v0", minari, seen, data.draw)

    fuzz()
    # A fuzz that is refused, or read, all the time proves nothing.
    assert seen["read"] > examples // 20 and seen["refused"] > examples // 20, seen


ALL = [*FORMATS, "minari hdf5", "minari arrow"]


@pytest.mark.parametrize("name", ALL)
def test_a_mutated_file_gives_what_was_written_or_one_line(
    name: str, tmp_path: Path, minari_documents: dict[str, Document]
) -> None:
    # Why fewer of Minari's: each is a folder of files
    run_fuzz(name, 100 if name.startswith("minari") else 200, tmp_path, minari_documents, repeatable=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_2000_mutated_files_give_what_was_written_or_one_line(
    name: str, tmp_path: Path, minari_documents: dict[str, Document]
) -> None:
    run_fuzz(name, 2000, tmp_path, minari_documents, repeatable=False)
