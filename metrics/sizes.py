"""The sizes of images: how they are written down, and what they do to a distance."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from metrics.errors import InputError

#: The tag that has the size of the images that features or statistics are of.
TAG = "image_size"
WRITTEN = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})(?:\.\.([1-9][0-9]{0,5})x([1-9][0-9]{0,5}))?")


@dataclass(frozen=True)
class Extent:
    """Width and height in pixels of the smallest and of the largest image of a set, by area; written `32x32`, or
    `32x32..500x375` where sizes are mixed."""

    smallest: tuple[int, int]
    largest: tuple[int, int]

    @classmethod
    def of(cls, sizes: Iterable[tuple[int, int]]) -> Self:
        """Of heights and widths of at least one image."""
        ordered = sorted({(width, height) for height, width in sizes}, key=lambda size: (size[0] * size[1], size))
        return cls(ordered[0], ordered[-1])

    @classmethod
    def read(cls, text: object) -> Self | None:
        """What a tag says; None where there is none, or one that is not understood."""
        found = WRITTEN.fullmatch(str(text))
        if found is None:
            return None
        width, height, *largest = (int(number) for number in found.groups() if number)
        return cls((width, height), (largest[0], largest[1]) if largest else (width, height))

    def __str__(self) -> str:
        ends = [f"{width}x{height}" for width, height in (self.smallest, self.largest)]
        return "..".join(ends if self.is_mixed else ends[:1])

    @property
    def is_mixed(self) -> bool:
        """Whether there are several sizes."""
        return self.smallest != self.largest

    @property
    def aspects(self) -> set[Fraction]:
        """Width over height, of the smallest and of the largest."""
        return {Fraction(*self.smallest), Fraction(*self.largest)}


def cautions(name: str, size: Extent | None, reference: str, other: Extent | None) -> list[str]:
    """What the sizes of a set and of its reference, called by name, do to a distance between them; None: unknown."""
    sides: Mapping[str, Extent | None] = {name: size, reference: other}
    found = []
    for side, extent in sides.items():
        if extent is None:
            continue
        if extent.is_mixed:
            effect = "the detector resizes each by another factor, so that their sharpness differs within the set"
            found.append(f"{side}: images of mixed sizes, {extent}: {effect}")
        if extent.aspects != {Fraction(1)}:
            effect = "the detector squeezes them to squares; published values are of central crops"
            found.append(f"{side}: images that are not square, {extent}: {effect}")
    if size is not None and other is not None and size != other:
        effect = (
            "the detector resizes the two by different factors, which can move the distance by more than a model does"
        )
        found.append(f"{name}: images of {size} against {other} of {reference}: {effect} (docs/comparable.md)")
        if size.aspects != other.aspects:
            effect = "shapes are distorted on one side, and not, or otherwise, on the other"
            found.append(
                f"{name}: images of another aspect ratio than those of {reference}, {size} and {other}: {effect}"
            )
    return found


def refuse(found: Iterable[str]) -> None:
    """Raise InputError for the first of the cautions, if there is one."""
    for text in found:
        raise InputError(f"{text}; make the sizes the same, or measure without --strict-size")
