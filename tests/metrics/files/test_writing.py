"""What is written is there whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metrics.files import (
    InputError,
    atomic_write,
    load_npz,
    sha256_file,
    write_csv,
    write_json,
    write_npz,
    write_text,
)

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_file_replaces_the_old_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    write_text(path, "μ and σ")
    write_json(tmp_path / "new" / "b.json", {"μ": [1, 2.5, None]})
    assert path.read_text(encoding="utf-8") == "μ and σ"
    assert json.loads((tmp_path / "new" / "b.json").read_text(encoding="utf-8")) == {"μ": [1, 2.5, None]}
    assert names(tmp_path / "new") == ["a.txt", "b.json"]


def test_tables_and_arrays_come_back_and_hold_no_objects(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    assert (tmp_path / "x.csv").read_text() == "a,b\n1,x\n2,y\n"
    array = np.arange(6.0).reshape(2, 3)
    content = {"a": array, "b/text": np.array("μ")}
    write_npz(tmp_path / "x.npz", content)
    np.savez_compressed(tmp_path / "packed.npz", allow_pickle=False, **content)
    for name in ("packed.npz", "x.npz"):
        loaded = load_npz(tmp_path / name)
        np.testing.assert_array_equal(loaded["a"], array)
        assert str(loaded["b/text"]) == "μ"
    with pytest.raises(ValueError, match="pickle"):
        write_npz(tmp_path / "x.npz", {"a": np.array([None])})
    assert load_npz(tmp_path / "x.npz").keys() == loaded.keys()


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def fail_half_way(path: Path, error: Exception) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise error


def test_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(path, RuntimeError("half way"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_full_disk_is_an_error_for_people_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(InputError, match=r"a\.txt: no space left on the disk"):
        fail_half_way(path, OSError(errno.ENOSPC, "No space left on device"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "x")


def test_error_of_another_file_is_not_blamed_on_the_written_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "other").read_bytes()


WRITE_FOREVER = """
import sys, time
from metrics.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_killed_writer_leaves_the_old_file_and_its_rest_is_swept_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    write_text(path, "old")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    (tmp_path / ".other.txt.host-1.tmp").write_text("another's")
    write_text(path, "while the other still writes")
    assert len(names(tmp_path)) == 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_text() == "while the other still writes"

    write_text(path, "new")

    assert path.read_text() == "new"
    assert names(tmp_path) == [".other.txt.host-1.tmp", "a[1].txt"]
