"""Containers: each gives the same pixels, and every broken or hostile one is refused by name."""

import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metrics.files import InputError
from metrics.files.reading import read_entry
from metrics.images import open_images, sources
from tests.metrics.images.making import (
    CONTAINERS,
    COUNT,
    FILES,
    GOOD,
    ORDER,
    arrays,
    decoded,
    folder,
    npy,
    pixels,
    tarred,
    zipped,
)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_pixels_in_the_same_order_and_one_digest(tmp_path: Path, name: str) -> None:
    found = open_images(CONTAINERS[name](tmp_path))
    assert len(found) == COUNT
    for image, index in zip(decoded(found), ORDER, strict=True):
        np.testing.assert_array_equal(image, pixels(index))
    assert found.digest == open_images(folder(tmp_path / "again")).digest
    assert found.warnings == []


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_its_rows_and_classes(tmp_path: Path, save: Callable[..., None]) -> None:
    found = open_images(arrays(tmp_path / "x.npz", save, arr_1=np.arange(COUNT)))
    for image, index in zip(decoded(found), ORDER, strict=True):
        np.testing.assert_array_equal(image, pixels(index))
    np.testing.assert_array_equal(found.labels, np.arange(COUNT))


def linked_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    return path


def linked_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("a.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    return path


def cut(path: Path, keep: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def overstated() -> bytes:
    return npy(np.zeros((7, 6, 5, 3), np.uint8)).replace(b"(7, 6, 5, 3)", b"(9, 6, 5, 3)")


def save(path: Path, **content: np.ndarray) -> Path:
    np.savez(path, **content)
    return path


def gzipped_zeros(path: Path) -> Path:
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    path.write_bytes(b"".join(packed.compress(bytes(2**20)) for _ in range(150)) + packed.flush())
    return path


IMAGES = np.zeros((7, 6, 5, 3), np.uint8)
CONTAINER_CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda t: t / "nowhere", "nowhere: no such file"),
    "empty folder": (lambda t: folder(t / "f", {"notes.txt": b""}), "holds no images"),
    "other formats only": (lambda t: folder(t / "f", {"a.gif": b""}), "1 of other formats"),
    "images and archives": (lambda t: zipped(folder(t / "f") / "x.zip").parent, "holds images .* and archives"),
    "single image": (lambda t: folder(t / "f") / "0/0.png", "not a folder, zip"),
    "zip with escaping name": (lambda t: zipped(t / "x.zip", {"../a.png": GOOD}), "points outside"),
    "zip with absolute name": (lambda t: zipped(t / "x.zip", {"/a.png": GOOD}), "points outside"),
    "zip with drive": (lambda t: zipped(t / "x.zip", {"C:\\a.png": GOOD}), "points outside"),
    "zip bomb": (lambda t: zipped(t / "x.zip", {"a.png": bytes(100 * 2**20)}), "unpack to"),
    "zip packed by bzip2": (lambda t: zipped(t / "x.zip", method=zipfile.ZIP_BZIP2), "packed in another way"),
    "npz packed by LZMA": (lambda t: zipped(t / "x.npz", {"arr_0.npy": npy(IMAGES)}, zipfile.ZIP_LZMA), "another way"),
    "zip with link": (lambda t: linked_zip(t / "x.zip"), "is a link"),
    "truncated zip": (lambda t: cut(zipped(t / "x.zip")), "cannot be read"),
    "tar with escaping name": (lambda t: tarred(t / "x.tar", {"../../a.png": GOOD}), "points outside"),
    "tar with link": (lambda t: linked_tar(t / "x.tar"), "is a link"),
    "truncated tar": (lambda t: cut(tarred(t / "x.tar", {"a.png": bytes(99_999)})), "truncated|cannot be read"),
    "truncated tar.gz": (lambda t: cut(tarred(t / "x.tar.gz", mode="w:gz")), "cannot be unpacked"),
    "gzip bomb": (lambda t: gzipped_zeros(t / "x.tar.gz"), "unpacks to more than"),
    "gzip of something else": (lambda t: _gzip(t / "x.gz", b"text" * 400), "cannot be read"),
    "npz without arr_0": (lambda t: save(t / "x.npz", images=np.zeros(3)), "no array 'arr_0'"),
    "npz of floats": (lambda t: save(t / "x.npz", arr_0=np.zeros((2, 4, 4, 3))), "float64"),
    "npz in planes": (lambda t: save(t / "x.npz", arr_0=np.zeros((2, 3, 8, 8), np.uint8)), "expected uint8"),
    "npz of objects": (lambda t: save(t / "x.npz", arr_0=np.array([[None]])), "object"),
    "npz that overstates": (lambda t: zipped(t / "x.npz", {"arr_0.npy": overstated()}), "not what the"),
    "truncated npz": (lambda t: cut(arrays(t / "x.npz")), "cannot be read"),
}  # fmt: skip


def _gzip(path: Path, content: bytes) -> Path:
    path.write_bytes(zlib.compress(content, wbits=31))
    return path


@pytest.mark.parametrize("name", CONTAINER_CASES)
def test_a_bad_container_is_refused_by_name(tmp_path: Path, name: str) -> None:
    build, message = CONTAINER_CASES[name]
    with pytest.raises(InputError, match=message):
        open_images(build(tmp_path))


def test_an_entry_gives_no_more_than_it_states(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a.png": bytes(2**26)})
    content, stated = path.read_bytes(), struct.pack("<I", 2**26)
    assert content.count(stated) == 2  # before the entry, and in the directory at the end
    path.write_bytes(content.replace(stated, struct.pack("<I", 100)))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("a.png").file_size == 100
        tracemalloc.start()
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            read_entry(archive, "a.png")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2**20


def test_a_record_of_classes_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    record = folder(tmp_path) / "dataset.json"
    record.touch()
    os.truncate(record, 2**28 + 1)
    with pytest.raises(InputError, match=r"dataset\.json has more than 268435456 bytes"):
        _ = open_images(tmp_path).labels


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", GOOD)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", GOOD)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for _ in range(2):
            member = tarfile.TarInfo("a.png")
            member.size = len(GOOD)
            tar.addfile(member, io.BytesIO(GOOD))
    for name in ("x.zip", "x.tar"):
        with pytest.raises(InputError, match="twice"):
            open_images(tmp_path / name)


def test_hidden_files_are_no_images_and_links_in_a_circle_end(tmp_path: Path) -> None:
    path = folder(tmp_path, FILES | {"._0.png": b"resource fork", "__MACOSX/a.png": b"", ".cache/b.png": b""})
    (path / "0" / "loop").symlink_to(path)
    assert len(open_images(path)) == COUNT
    assert len(open_images(zipped(tmp_path / "x.zip", FILES | {"__MACOSX/._a.png": b""}))) == COUNT


def test_unpacked_copies_are_removed_with_the_image_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.tempfile, "tempdir", str(tmp_path))
    found = open_images(tarred(tmp_path / "x.tar.gz", mode="w:gz"))
    assert len(decoded(found, workers=1)) == COUNT
    assert len(list(tmp_path.glob("images-*.tar"))) == 1
    del found
    assert not list(tmp_path.glob("images-*"))
