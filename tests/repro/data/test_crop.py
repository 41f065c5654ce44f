"""Cropping of training images: golden bytes, and the size asked for."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.data import center_crop_dhariwal


@pytest.mark.parametrize("index", range(4))
def test_crops_match_the_golden_bytes(index: int, golden: Path) -> None:
    image = np.asarray(PIL.Image.open(golden / f"crop-{index}.png").convert("RGB"))
    expected = np.load(golden / "center-crop-dhariwal-64.npz")[f"out{index}"]
    np.testing.assert_array_equal(center_crop_dhariwal(image, 64), expected)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64]))
def test_crops_have_the_size_asked_for(height, width, size):
    if max(height, width) > 60 * min(height, width):
        return  # a sliver that no data set holds; bicubic enlargement of it takes long
    crop = center_crop_dhariwal(np.zeros((height, width, 3), dtype=np.uint8), size)
    assert crop.shape == (size, size, 3)
