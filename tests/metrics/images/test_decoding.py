"""One image: what it is turned into, and every kind of broken one named."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metrics.files import InputError
from metrics.images import decode, decoding, open_images
from metrics.images.decoding import inspect
from tests.metrics.images.making import (
    COUNT,
    FILES,
    GOOD,
    encoded,
    folder,
    npy,
    pixels,
)


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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


BAD = {
    "truncated.png": (GOOD[: len(GOOD) // 2], "broken|cut short"),
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


def grid(width: int, height: int, depth: int, colour: int, interlaced: int, missing: int) -> bytes:
    """A PNG with valid checksums whose compressed rows lack their last bytes."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # first column and row, and steps, of Adam7
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    lengths = [len(range(x, width, dx)) for x, _, dx, _ in passes]
    rows = [len(range(y, height, dy)) for _, y, _, dy in passes]
    size = sum(n * (1 + -(-length * depth * samples // 8)) for length, n in zip(lengths, rows, strict=True) if length)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(3 * 2)) if colour == 3 else b""
    stream = zlib.compress(bytes(size - missing))
    half = len(stream) // 2
    parts = chunk(b"IDAT", stream[:half]) + chunk(b"IDAT", stream[half:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + parts + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (2, 0), (8, 0), (8, 2), (1, 3), (8, 3), (8, 4), (8, 6)])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5), (17, 9), (2, 30)])
def test_the_rows_of_a_png_are_counted(width: int, height: int, depth: int, colour: int, interlaced: int) -> None:
    """A decoder fills up what is missing with black and says nothing, so that it would be measured as if whole."""
    inspect(grid(width, height, depth, colour, interlaced, 0))
    row = 1 + -(-width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8)
    for missing in (1, 2, row):
        short = grid(width, height, depth, colour, interlaced, missing)
        for use in (inspect, decode):
            with pytest.raises(InputError, match="it was cut short"):
                use(short)


@pytest.mark.parametrize("shade", [0, None])
def test_rows_are_counted_wherever_the_pieces_end(monkeypatch: pytest.MonkeyPatch, shade: int | None) -> None:
    """What a match of the compression still has to give is in no input any more."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    content = encoded(noise if shade is None else np.full_like(noise, shade))
    for piece in (1, 7, 100, 181, 182, 40 * 181 - 1, 40 * 181):
        monkeypatch.setattr(decoding, "PIECE", piece)
        inspect(content)
