"""Sizes of images: written down and read, and what is said of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.files import InputError
from metrics.sizes import Extent, cautions, refuse

SIDES = st.integers(1, 99_999)


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5))
def test_what_is_written_is_read(sizes: list[tuple[int, int]]) -> None:
    extent = Extent.of(sizes)
    assert Extent.read(str(extent)) == extent
    assert extent.is_mixed == (len({*sizes}) > 1)
    areas = [height * width for height, width in sizes]
    assert [w * h for w, h in (extent.smallest, extent.largest)] == [min(areas), max(areas)]


@pytest.mark.parametrize("text", [None, "", "8", "8x", "0x8", "8x8..", "8x8...9x9", "x" * 99, "8x8\n", 17, "1e3x5"])
def test_what_is_no_size_is_not_known(text: object) -> None:
    assert Extent.read(text) is None


def test_width_comes_first() -> None:
    assert str(Extent.of([(375, 500), (32, 32)])) == "32x32..500x375"


def test_every_caution_says_what_it_does_to_the_number() -> None:
    square, larger, wide = (Extent.read(text) for text in ("32x32", "64x64", "64x32"))
    mixed = Extent.read("32x32..64x32")
    assert cautions("a", square, "r", square) == []
    assert cautions("a", None, "r", square) == []
    assert len(cautions("a", square, "r", larger)) == 1
    assert len(cautions("a", wide, "r", wide)) == 2  # both sides are squeezed
    assert len(cautions("a", wide, "r", square)) == 3
    assert len(cautions("a", mixed, "r", None)) == 2
    for text in cautions("a", mixed, "r", larger):
        assert "detector" in text or "distorted" in text
    refuse([])
    with pytest.raises(InputError, match="--strict-size"):
        refuse(cautions("a", square, "r", larger))
