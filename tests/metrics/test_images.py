"""Image sets: the same pixels from every container, and every kind of broken or hostile input named."""

import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import images
from metrics.files import InputError
from metrics.images import ImageSet, decode, open_images, sources

COUNT = 7


def pixels(index: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray, form: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form, **options)
    return stream.getvalue()


FILES = {f"{i % 2}/{i}.png": encoded(pixels(i)) for i in range(COUNT)}
ORDER = sorted(range(COUNT), key=lambda i: f"{i % 2}/{i}.png")


def folder(path: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, content in (FILES if files is None else files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zipped(path: Path, files: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in reversed((FILES if files is None else files).items()):
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes] | None = None, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in reversed((FILES if files is None else files).items()):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shards(path: Path) -> Path:
    path.mkdir()
    for half in ("0", "1"):
        zipped(path / f"part-{half}.zip", {k: v for k, v in FILES.items() if k.startswith(half)})
    return path


def arrays(path: Path, save: Callable[..., None] = np.savez, **extra: np.ndarray) -> Path:
    save(path, arr_0=np.stack([pixels(i) for i in ORDER]), **extra)
    return path


def decoded(found: ImageSet, size: int = 3, workers: int = 0) -> list[np.ndarray]:
    members = range(len(found))
    batches = [members[i : i + size] for i in range(0, len(found), size)]
    return [image for batch in found.batches(batches, workers) for image in batch]


CONTAINERS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda t: folder(t / "images"),
    "zip": lambda t: zipped(t / "images.zip"),
    "tar": lambda t: tarred(t / "images.tar"),
    "tar.gz": lambda t: tarred(t / "images.tar.gz", mode="w:gz"),
    "tar.xz": lambda t: tarred(t / "images.tar.xz", mode="w:xz"),
    "folder of zips": lambda t: shards(t / "shards"),
}


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


def test_the_global_random_stream_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    decoded(open_images(folder(tmp_path / "f")), workers=1)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


# --- Conversion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "npy"])
def test_grey_is_repeated_and_alpha_dropped(form: str) -> None:
    def content(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue() if form == "npy" else encoded(array)

    grey, alpha = pixels(0)[:, :, 0], np.concatenate([pixels(1), pixels(2)[:, :, :1]], axis=2)
    np.testing.assert_array_equal(decode(content(grey)), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(decode(content(alpha)), pixels(1))


def test_lossless_webp_is_exact_and_jpeg_is_near() -> None:
    np.testing.assert_array_equal(decode(encoded(pixels(3), "webp", lossless=True)), pixels(3))
    smooth = np.full((16, 16, 3), 90, np.uint8)
    assert np.abs(decode(encoded(smooth, "jpeg")).astype(int) - smooth).max() <= 2


def test_lossy_formats_and_alpha_earn_warnings(tmp_path: Path) -> None:
    rgba = np.concatenate([pixels(0), pixels(1)[:, :, :1]], axis=2)
    files = {"a.jpg": encoded(pixels(0), "jpeg"), "b.webp": encoded(pixels(0), "webp"), "c.png": encoded(rgba)}
    found = open_images(folder(tmp_path, files | {"d.webp": encoded(pixels(0), "webp", lossless=True), "e.gif": b""}))
    assert len(found) == 4
    for part in ("2 images are lossy", "1 images have an alpha", "1 images of other formats"):
        assert sum(part in text for text in found.warnings) == 1


# --- Choice ------------------------------------------------------------------------------------------------------


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


# --- Labels ------------------------------------------------------------------------------------------------------


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
    assert open_images(folder(tmp_path / "c", {"a.png": FILES["0/0.png"], "x/b.png": FILES["0/0.png"]})).labels is None


@pytest.mark.parametrize("record", [b"{", b"[]", b'{"labels": 3}', b'{"labels": [["0/0.png", 1]]}'])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, record: bytes) -> None:
    with pytest.raises(InputError, match=r"dataset\.json"):
        _ = open_images(folder(tmp_path, FILES | {"dataset.json": record})).labels


# --- Broken images -----------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


GOOD = FILES["0/0.png"]
BAD = {
    "truncated.png": (GOOD[: len(GOOD) // 2], "broken"),
    "without-end.png": (GOOD[:-12], "broken"),
    "flipped-bit.png": (GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:], "broken"),
    "empty.png": (b"", "empty"),
    "text.png": (b"no image", "no PNG"),
    "huge.png": (png_header(60_000, 60_000), "larger than"),
    "large.png": (png_header(9000, 9000), "9000 x 9000.*larger than"),
    "deep.png": (png_header(5, 6, depth=16), "8 bits"),
    "deep-grey.png": (png_header(5, 6, depth=16, colour=0), "8 bits"),
    "truncated.jpg": (encoded(pixels(0, 64, 64), "jpeg")[:-300], "broken"),
    "truncated.webp": (encoded(pixels(0, 64, 64), "webp")[:-300], "broken|no PNG"),
    "gif.png": (encoded(pixels(0), "gif"), "no PNG"),
    "animated.png": (
        encoded(pixels(0), save_all=True, append_images=[Image.fromarray(pixels(1))]),
        "2 frames",
    ),
    "floats.npy": (npy(np.zeros((4, 4, 3))), "float64"),
    "planes.npy": (npy(np.zeros((3, 8, 8), np.uint8)), "expected uint8"),
    "objects.npy": (npy(np.array([None])), "object"),
    "truncated.npy": (npy(pixels(0))[:-5], "broken"),
    "header.npy": (npy(pixels(0))[:30], "broken"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(InputError, match=rf"1 of 8 images cannot be used: {name} .*({message})"):
        len(open_images(folder(tmp_path, FILES | {name: content})))


def test_all_bad_images_are_named_at_once_or_left_out_on_request(tmp_path: Path) -> None:
    bad = {name: content for name, (content, _) in BAD.items()}
    path = folder(tmp_path, FILES | bad)
    with pytest.raises(InputError) as caught:
        len(open_images(path))
    assert all(name in str(caught.value) for name in BAD)
    found = open_images(path, skip_bad=True)
    assert len(found) == COUNT
    assert found.digest == open_images(folder(tmp_path / "good")).digest
    assert all(name in found.warnings[-1] for name in BAD)


def test_only_bad_images_are_an_error_even_when_skipped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of 1"):
        len(open_images(folder(tmp_path, {"a.png": b""}), skip_bad=True))


def test_an_image_that_changes_after_the_check_is_named(tmp_path: Path) -> None:
    found = open_images(folder(tmp_path))
    assert len(found) == COUNT
    (tmp_path / "1/3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1/3\.png is empty; its file is broken or has changed"):
        decoded(found)


def test_a_killed_decoder_is_an_error_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_images(folder(tmp_path))
    assert len(found) == COUNT
    monkeypatch.setattr(images, "decode", lambda data: os._exit(9))
    with pytest.raises(InputError, match="decoding process was killed"):
        decoded(found, workers=1)


# --- Broken and hostile containers -------------------------------------------------------------------------------


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
            env=os.environ | {"OMP_NUM_THREADS": "1"} | ({"RANK": rank} | together if rank else {}),
            cwd=Path(__file__).parents[2],
        )
        for rank in ("0", "1", "")
    ]
    outputs = [run.communicate(timeout=240)[0] for run in runs]
    assert outputs[0].startswith("148 ")
    assert outputs[0] == outputs[1] == outputs[2]
