"""A page of images beside their nearest training images: those nearest to any of them, and those farthest away.

A small distance is what a copy has, a large one what no training image resembles: faults, or what is rare. Distances
are between features of one detector, in which two images may be near that do not look alike, and the reverse.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from metrics import distributed
from metrics.command_line import PAGE
from metrics.evaluation import Extractor, Paths
from metrics.files import InputError
from metrics.images import ImageSet
from metrics.memorisation import authentic
from metrics.neighbours import nearest

LARGEST = 256  # pixels of a side that is shown
STYLE = """
body { font: 14px sans-serif; margin: 2em }
table { border-collapse: collapse }
td { padding: 4px 8px; vertical-align: top }
td:nth-child(2) { border-left: 3px solid #888 }
img { height: 128px; image-rendering: pixelated; display: block }
.copy { color: #b00 }
"""


@dataclass(frozen=True)
class Shown:
    """An image with its nearest training images, in order; all by number."""

    image: int
    #: Whether it is, as `metrics.memorisation.authentic` has it.
    is_authentic: bool
    neighbours: Sequence[int]
    distances: Sequence[float]


def select(
    train: NDArray[np.float32], fake: NDArray[np.float32], count: int = 16, neighbours: int = 3
) -> tuple[list[Shown], list[Shown]]:
    """The `count` images of features [M, D] nearest to training features [L, D], nearest first, and the farthest ones.

    InputError: fewer training images than `neighbours`, or than two; other shapes; NaN.
    """
    distances, numbers = (found.cpu().numpy() for found in nearest(fake, train, neighbours))
    order = np.argsort(distances[:, 0], kind="stable")

    def shown(images: NDArray[np.intp]) -> list[Shown]:
        judged = zip(images.tolist(), authentic(train, fake[images]).tolist(), strict=True)
        return [Shown(i, is_authentic, numbers[i].tolist(), distances[i].tolist()) for i, is_authentic in judged]

    return shown(order[:count]), shown(order[::-1][:count])


def make_sheet(
    extractor: Extractor, images: Paths, train: Paths, count: int = 16, neighbours: int = 3
) -> tuple[str, int]:
    """The page, as HTML that stands alone, and how many of the images on it are suspected copies.

    Every process of torchrun must call this; the first gets the page.
    Raises InputError where images cannot be read, on features in their place, and on more than one detector.
    """
    if len(extractor.names) != 1:
        raise InputError(f"a sheet is of distances in one detector's features, found {[*extractor.names]}; choose one")
    sides, (name,) = [extractor.open(source) for source in (images, train)], extractor.names
    pictures = [(side.name, side.images) for side in sides if side.images is not None]
    for side in sides:
        if side.images is None:
            raise InputError(f"{side.name}: holds features, and a sheet shows the images themselves; name these")
    fake, real = (extractor.extract(side).features[name].gather() for side in sides)
    if distributed.rank() != 0:
        return "", 0
    parts = select(real, fake, count, neighbours)
    copies = {row.image for part in parts for row in part if not row.is_authentic}
    return render(parts, pictures[0], pictures[1], name), len(copies)


def render(
    parts: tuple[list[Shown], list[Shown]], ours: tuple[str, ImageSet], theirs: tuple[str, ImageSet], detector: str
) -> str:
    """The page of what was selected of our images, beside training images, both with the names of their sets."""
    (name, images), (source, train) = ours, theirs
    titles = "Nearest to a training image: the most suspicious", "Farthest from all training images: the worst"
    body = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>{len(images)} images (sha256 {images.digest}), each beside the nearest of {len(train)} training images of "
        f"{html.escape(source)} (sha256 {train.digest}), by the distance between features of {html.escape(detector)}. "
        "Suspected copies, in red, are nearer to a training image than that is to any other (Alaa et al. 2022). Images "
        f"of more than {LARGEST} pixels on a side are shrunk.</p>",
    ]
    for title, rows in zip(titles, parts, strict=True):
        body += [f"<h2>{title}</h2>", "<table>", *_rows(rows, images, train), "</table>"]
    head = f'<html><head><meta charset="utf-8"><title>{html.escape(name)}</title><style>{STYLE}</style></head>'
    return "\n".join([PAGE.decode(), head, "<body>", *body, "</body></html>"]) + "\n"


def _rows(rows: Sequence[Shown], ours: ImageSet, theirs: ImageSet) -> list[str]:
    made = _pictures(ours, [row.image for row in rows])
    found = iter(_pictures(theirs, [number for row in rows for number in row.neighbours]))
    lines = []
    for row, picture in zip(rows, made, strict=True):
        mark = "" if row.is_authentic else ' class="copy"'
        cells = [f"<td{mark}>{picture}{html.escape(ours.names[row.image])}</td>"]
        for number, distance in zip(row.neighbours, row.distances, strict=True):
            cells.append(f"<td>{next(found)}{distance:.4g} from {html.escape(theirs.names[number])}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return lines


def _pictures(images: ImageSet, numbers: Sequence[int]) -> list[str]:
    """The images as HTML, with their pixels in it."""
    tags = []
    for (pixels,) in images.batches([[number] for number in numbers], num_workers=0):
        picture, stream = PIL.Image.fromarray(pixels), io.BytesIO()
        picture.thumbnail((LARGEST, LARGEST))
        picture.save(stream, "png")
        tags.append(f'<img alt="" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">')
    return tags
