"""Images on their way to files and people: PNGs, uncompressed zips of them, and grids."""

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from metrics.files import atomic_write
from metrics.images import decode

GREY = b"IHDR\x08\x00"  # of a PNG's header, bytes 12 to 15, 24 and 25: 8 bits, one channel


def _picture(pixels: NDArray[np.uint8]) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, C] as a PNG, grey where C is 1; the same pixels give the same bytes."""
    stream = io.BytesIO()
    _picture(pixels).save(stream, "png", compress_level=1)
    return stream.getvalue()


def write_png(path: str | Path, pixels: NDArray[np.uint8]) -> None:
    """The same as a file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_png(pixels))


def decode_png(data: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels [H, W, C] uint8 as `metrics.images.decode` makes them (C = 3), but C = 1 for 8-bit grey ones."""
    pixels = decode(data)
    grey = data[12:16] + data[24:26] == GREY if isinstance(data, bytes) else data.shape[2:] == (1,)
    return pixels[:, :, :1] if grey else pixels


def write_zip(path: str | Path, entries: Iterable[tuple[str, bytes | str]]) -> None:
    """Write names with their content as an uncompressed zip, atomically; the same bytes whenever it is written."""
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)  # ZipInfo: no time stamp of today


def write_grid(path: str | Path, images: Sequence[NDArray[np.uint8]], columns: int, scale: int = 1) -> None:
    """`image_grid` as a PNG, atomically."""
    with atomic_write(path) as temporary:
        image_grid(images, columns, scale).save(temporary, format="png")


def image_grid(images: Sequence[NDArray[np.uint8]], columns: int, scale: int = 1) -> PIL.Image.Image:
    """Images uint8 [H, W, C] side by side, row by row, each pixel `scale` x `scale`."""
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    rows[-1] = np.pad(rows[-1], ((0, 0), (0, rows[0].shape[1] - rows[-1].shape[1]), (0, 0)))
    return _picture(np.concatenate(rows).repeat(scale, axis=0).repeat(scale, axis=1))
