"""PNGs, zips and grids of images."""

import io
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from repro.pixels import decode_png, encode_png, image_grid, write_zip

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_back_its_pixels(channels: int) -> None:
    pixels = PIXELS[0, :, :, :channels]
    data = encode_png(pixels)
    np.testing.assert_array_equal(decode_png(data), pixels)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(data))), pixels.squeeze())
    assert encode_png(pixels) == data


def test_a_zip_holds_what_it_was_given_uncompressed_and_without_a_date(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", [("b/1.png", b"12"), ("note.json", "{}")])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {entry.filename: archive.read(entry) for entry in archive.infolist()} == {
            "b/1.png": b"12",
            "note.json": b"{}",
        }
        assert {(entry.compress_type, entry.date_time[0]) for entry in archive.infolist()} == {
            (zipfile.ZIP_STORED, 1980)
        }


def test_a_grid_shows_images_row_by_row(tmp_path: Path) -> None:
    grid = np.asarray(image_grid(list(PIXELS), columns=3, scale=2))
    assert grid.shape == (2 * 2 * 4, 3 * 2 * 6, 3)
    np.testing.assert_array_equal(grid[8:16:2, 12:24:2], PIXELS[4])
    assert not grid[8:, 24:].any()
    assert image_grid(list(PIXELS[..., :1]), columns=3).mode == "L"
