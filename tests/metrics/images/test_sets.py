"""Image sets: order, choice, digest, labels, and what worker and torchrun processes make of them."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.files import InputError
from metrics.images import open_images
from tests.metrics.images.making import (
    COUNT,
    FILES,
    GOOD,
    ORDER,
    arrays,
    decoded,
    encoded,
    folder,
    pixels,
    tarred,
    zipped,
)


def test_a_list_keeps_the_order_given_and_names_each_source(tmp_path: Path) -> None:
    one, two = zipped(tmp_path / "b.zip", {"x.png": FILES["0/0.png"]}), folder(tmp_path / "a")
    found = open_images([one, two])
    assert found.names[:2] == ["b.zip/x.png", "a/0/0.png"]
    np.testing.assert_array_equal(decoded(found)[0], pixels(0))
    with pytest.raises(InputError, match="given twice"):
        open_images([two, tmp_path / "." / "a"])


def test_worker_processes_give_what_this_process_gives(tmp_path: Path) -> None:
    for source in (folder(tmp_path / "f"), zipped(tmp_path / "x.zip"), tarred(tmp_path / "x.tar")):
        found = open_images(source)
        for a, b in zip(decoded(found), decoded(found, 2, workers=2), strict=True):
            np.testing.assert_array_equal(a, b)


def test_machine_says_how_many_processes_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_images(folder(tmp_path))
    for workers in ("0", "1", "2"):
        monkeypatch.setenv("REPRO_WORKERS", workers)
        pids = {pid for batch in found.batches([[0], [1]], use=lambda data: os.getpid()) for pid in batch}
        assert len(pids - {os.getpid()}) == int(workers)


def test_the_global_random_stream_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    decoded(open_images(folder(tmp_path / "f")), workers=1)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_lossy_formats_and_alpha_earn_warnings(tmp_path: Path) -> None:
    rgba = np.concatenate([pixels(0), pixels(1)[:, :, :1]], axis=2)
    files = {"a.jpg": encoded(pixels(0), "jpeg"), "b.webp": encoded(pixels(0), "webp"), "c.png": encoded(rgba)}
    found = open_images(folder(tmp_path, files | {"d.webp": encoded(pixels(0), "webp", lossless=True), "e.gif": b""}))
    assert len(found) == 4
    for part in ("2 images are lossy", "1 images have an alpha", "1 images of other formats"):
        assert sum(part in text for text in found.warnings) == 1


def test_the_first_images_are_taken_unless_a_seed_is_given_and_it_is_said(tmp_path: Path) -> None:
    found = open_images(folder(tmp_path))
    first = found.subset(4)
    assert first.names == found.names[:4]
    assert "first 4 of 7" in first.warnings[0]
    chosen = found.subset(4, seed=1)
    assert chosen.names == found.subset(4, seed=1).names == sorted(chosen.names)
    assert len({tuple(found.subset(4, seed=s).names) for s in range(8)}) > 3
    assert len({x.digest for x in (found, first, chosen)}) == 3
    assert found.subset(COUNT).digest == found.digest
    with pytest.raises(InputError, match="holds 7 images, so 8"):
        found.subset(8)


def test_any_changed_pixel_or_order_changes_the_digest(tmp_path: Path) -> None:
    before = open_images(folder(tmp_path / "a")).digest
    changed = pixels(3)
    changed[0, 0, 0] ^= 1
    assert open_images(folder(tmp_path / "b", FILES | {"1/3.png": encoded(changed)})).digest != before
    swapped = FILES | {"1/3.png": FILES["1/5.png"], "1/5.png": FILES["1/3.png"]}
    assert open_images(folder(tmp_path / "c", swapped)).digest != before
    array = open_images(arrays(tmp_path / "a.npz")).digest
    np.savez(tmp_path / "b.npz", arr_0=np.load(tmp_path / "a.npz")["arr_0"] ^ np.uint8(1))
    assert open_images(tmp_path / "b.npz").digest != array


def test_labels_come_from_dataset_json(tmp_path: Path) -> None:
    record = json.dumps({"labels": [[name, i + 10] for i, name in enumerate(FILES)]}).encode()
    expected = [i + 10 for i in ORDER]
    files = FILES | {"dataset.json": record}
    for source in (folder(tmp_path / "f", files), zipped(tmp_path / "x.zip", files), tarred(tmp_path / "x.tar", files)):
        np.testing.assert_array_equal(open_images(source).labels, expected)
    np.testing.assert_array_equal(open_images(tmp_path / "f").subset(3).labels, expected[:3])


def test_labels_come_from_class_folders_by_number_or_place(tmp_path: Path) -> None:
    np.testing.assert_array_equal(open_images(folder(tmp_path / "a")).labels, [0, 0, 0, 0, 1, 1, 1])
    named = {f"{'cat' if i < 2 else 'dog'}/{i}.png": FILES["0/0.png"] for i in range(5)}
    np.testing.assert_array_equal(open_images(folder(tmp_path / "b", named)).labels, [0, 0, 1, 1, 1])
    dated = {f"2023010{i % 2 + 1}/{i}.png": FILES["0/0.png"] for i in range(4)}  # beyond the classes that there may be
    np.testing.assert_array_equal(open_images(folder(tmp_path / "d", dated)).labels, [0, 0, 1, 1])
    assert open_images(folder(tmp_path / "c", {"a.png": FILES["0/0.png"], "x/b.png": FILES["0/0.png"]})).labels is None


@pytest.mark.parametrize("record", [b"{", b"[]", b'{"labels": 3}', b'{"labels": [["0/0.png", 1]]}'])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, record: bytes) -> None:
    with pytest.raises(InputError, match=r"dataset\.json"):
        _ = open_images(folder(tmp_path, FILES | {"dataset.json": record})).labels


def test_an_image_that_changes_after_the_check_is_named(tmp_path: Path) -> None:
    found = open_images(folder(tmp_path))
    assert len(found) == COUNT
    (tmp_path / "1/3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1/3\.png is empty; its file is broken or has changed"):
        decoded(found)


ORPHANS = """
import multiprocessing, os, sys
from metrics.images import open_images
batches = open_images(sys.argv[1]).batches([[0]] * 3000, num_workers=2)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), 9)
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(encoded(np.zeros((1024, 1024, 3), np.uint8)))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with open(tmp_path / "out", "w") as out:  # a pipe would be held open by what lives on
        subprocess.run([sys.executable, "-c", ORPHANS, str(tmp_path / "images")], stdout=out, env=environment)
    workers = (tmp_path / "out").read_text().split()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(lives(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.1)


def lives(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_decoder_is_an_error_for_people(tmp_path: Path) -> None:
    found = open_images(folder(tmp_path))
    assert len(found) == COUNT
    with pytest.raises(InputError, match="decoding process was killed"):
        list(found.batches([range(3), range(3)], 1, lambda data: os._exit(9)))


def test_two_processes_that_share_the_check_find_what_one_finds(tmp_path: Path) -> None:
    files = {f"{i:03d}.png": FILES[f"{i % 2}/{i % 2}.png"] for i in range(150)}
    path = folder(tmp_path / "images", files | {"070.png": b"", "149.png": GOOD[:40]})
    script = (
        "import sys\n"
        "from metrics import distributed\n"
        "from metrics.images import open_images\n"
        "distributed.init()\n"
        "found = open_images(sys.argv[1], skip_bad=True)\n"
        "batch = next(found.batches([range(3)], 0))\n"
        "print(len(found), found.digest, found.warnings, [int(x.sum()) for x in batch])\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": rank} | together,
            cwd=Path(__file__).parents[3],
        )
        for rank in ("0", "1")
    ]
    outputs = [run.communicate(timeout=240)[0] for run in runs]
    found = open_images(path, skip_bad=True)
    (batch,) = found.batches([range(3)], 0)
    assert len(found) == 148
    alone = f"{len(found)} {found.digest} {found.warnings} {[int(x.sum()) for x in batch]}\n"
    assert outputs == [alone, alone]
