"""CVE-2026-41486: Ray before 2.55 unpickles the metadata of its Arrow extension types when a schema is read. Ours must not."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.fakes import small_episode, step_table
from wmrl_ray.data.arrow import RAY_EXTENSION_TYPES


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def infected(folder: Path, mark: Path, suffix: str, name: str) -> Path:
    """A good dataset with one more column, whose field metadata carry a pickle under the name of a Ray extension type."""
    table = step_table([small_episode(0, 4)])
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Payload(mark))}
    storage = pa.array([[1]] * len(table), pa.list_(pa.int64()))
    field = pa.field("extra", storage.type, metadata=metadata)
    table = table.append_column(field, storage)
    path = folder / f"bad{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return path


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_pickle_planted_in_a_schema_does_not_run_even_after_ray_data_is_imported(home: Path, suffix: str) -> None:
    pytest.importorskip("ray.data")
    mark = home / "executed"
    path = infected(home, mark, suffix, "ray.data.arrow_tensor")
    result = run(f"""
import ray.data, wmrl_ray.data
dataset = wmrl_ray.data.open_dataset({str(path)!r})
import ray.data.extensions
dataset = wmrl_ray.data.open_dataset({str(path)!r})
wmrl_ray.data.verify({str(path)!r})
assert dataset.card.num_steps == 4
""")
    assert result.returncode == 0, result.stderr
    assert not mark.exists(), "the payload ran"


def test_the_same_file_does_run_it_where_pyarrow_is_left_as_ray_sets_it(home: Path) -> None:
    """Guards the test above: its payload is a real one (on a Ray that has the hole)."""
    ray = pytest.importorskip("ray")
    if tuple(map(int, ray.__version__.split(".")[:2])) >= (2, 55):
        pytest.skip("this Ray has the fix")
    mark = home / "executed"
    path = infected(home, mark, ".parquet", "ray.data.arrow_tensor")
    run(f"import ray.data, pyarrow.parquet as pq; pq.read_schema({str(path)!r})")
    assert mark.exists()


def test_our_list_names_every_type_that_the_installed_ray_registers() -> None:
    pytest.importorskip("ray.data")
    result = run("""
import pyarrow as pa
names = []
register = pa.register_extension_type
pa.register_extension_type = lambda type: (names.append(type.extension_name), register(type))
import ray.data, ray.data.extensions
print(*(name for name in names if name.startswith("ray")))
""")
    assert result.returncode == 0, result.stderr
    found = set(result.stdout.split())
    assert found and found <= set(RAY_EXTENSION_TYPES)
