"""One image: its pixels, and whether it is sound.

Every image becomes RGB, uint8 [H, W, 3]: grey is repeated in the three channels, palettes and CMYK are converted,
an alpha channel is dropped (as PIL's convert("RGB") does, and the usual FID tools with it), an EXIF orientation is not
applied. Images of 16 bits a channel, of floats, or with several frames are not converted but reported.
"""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from metrics.files import InputError, explained
from metrics.files.reading import read_npy_header

#: Largest image that is decoded: 8192 x 8192.
MAX_PIXELS = 2**26
#: Columns, rows and first column, first row of the passes of an interlaced PNG (PNG specification, 8.2).
ADAM7 = ((8, 8, 0, 0), (8, 8, 4, 0), (4, 8, 0, 4), (4, 4, 2, 0), (2, 4, 0, 2), (2, 2, 1, 0), (1, 2, 0, 1))
PIECE = 2**20  # bytes that are unpacked at a time
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by a PNG's colour type
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


def decode(data: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] uint8 of an encoded image (PNG, JPEG, WebP, npy) or of pixels with 1, 3 or 4 channels.

    InputError: anything wrong with it; the message goes behind the image's name.
    """
    pixels = data if isinstance(data, np.ndarray) else _read_npy(data)
    if pixels is None:
        return _with_pil(data, lambda image: np.asarray(image.convert("RGB")))
    pixels = np.atleast_3d(pixels)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]


def _read_npy(data: bytes) -> NDArray[np.uint8] | None:
    """Pixels [H, W] or [H, W, C] of an npy file, None where it is of another kind."""
    if not data.startswith(b"\x93NUMPY"):
        return None
    with explained("is broken", errors=(ValueError,)):
        shape, _, dtype = read_npy_header(io.BytesIO(data))
        if dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
            raise InputError(f"is {dtype} {shape}, expected uint8 [H, W, 3]")
        _check_size(shape[1], shape[0])
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _with_pil(data: Any, use: Callable[[PIL.Image.Image], Any]) -> Any:
    if not data:
        raise InputError("is empty")
    # Pillow's decoders raise nearly anything on broken data, and warn of sizes and of how palettes hold transparency.
    with explained("is broken"), warnings.catch_warnings(action="ignore"):
        try:
            with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                _check_size(*image.size)
                if image.mode not in MODES or any("16" in str(tile.args) for tile in getattr(image, "tile", ())):
                    raise InputError(f"has more than 8 bits a channel (mode {image.mode})")
                if (frames := getattr(image, "n_frames", 1)) > 1:
                    raise InputError(f"has {frames} frames, expected one")
                if image.format == "PNG":
                    _check_rows(data)
                return use(image)
        except PIL.Image.DecompressionBombError:
            raise InputError(f"is larger than {MAX_PIXELS} pixels") from None
        except PIL.UnidentifiedImageError:
            raise InputError("is no PNG, JPEG, WebP or npy, or its header is broken") from None


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise InputError(f"is {width} x {height}, empty or larger than {MAX_PIXELS} pixels")


def _check_rows(data: bytes) -> None:
    """Raise InputError where the compressed rows of a sound PNG end early, which decoders fill up with black."""
    width, height, bits, kind, interlaced = struct.unpack(">IIBB2xB", data[16:29])
    expected = 0
    for dx, dy, x, y in ADAM7 if interlaced else ((1, 1, 0, 0),):
        columns, lines = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
        expected += lines * (1 + (columns * bits * CHANNELS[kind] + 7) // 8) if columns > 0 else 0  # 1: its filter
    stream, found, at = zlib.decompressobj(), 0, 8
    while at < len(data) and found < expected and not stream.eof:
        size, part = struct.unpack_from(">I4s", data, at)
        packed, more = data[at + 8 : at + 8 + size], part == b"IDAT"
        while more and found < expected:
            rows = stream.decompress(packed, PIECE)
            found, packed, more = found + len(rows), stream.unconsumed_tail, len(rows) == PIECE
        at += 12 + size
    if found < expected:
        raise InputError(f"has {found} bytes of pixels and filters, expected {expected}; it was cut short")


class Finding(NamedTuple):
    """What a check of one sound image found; the digest is of its content."""

    sha256: bytes
    #: Height and width.
    size: tuple[int, int]
    lossy: bool = False
    alpha: bool = False


def inspect(data: bytes | NDArray[np.uint8]) -> Finding:
    """Check an image. A PNG is believed by its checksums and the number of its bytes; others are decoded."""
    if isinstance(data, np.ndarray):
        sha256 = hashlib.sha256(str(data.shape).encode() + data.tobytes()).digest()
        return Finding(sha256, data.shape[:2], alpha=data.shape[2] == 4)
    sha256, pixels = hashlib.sha256(data).digest(), _read_npy(data)
    if pixels is not None:
        return Finding(sha256, pixels.shape[:2], alpha=pixels.shape[2:] == (4,))

    def verified(image: PIL.Image.Image) -> Finding:
        alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
        lossy = image.format == "JPEG" or (image.format == "WEBP" and b"VP8L" not in data[:64])
        (image.verify if image.format == "PNG" else image.load)()
        return Finding(sha256, image.size[::-1], lossy, alpha)

    return _with_pil(data, verified)
