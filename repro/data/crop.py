"""The crop of ImageNet that the published networks and reference statistics rest on."""

import numpy as np
import PIL.Image
from numpy.typing import NDArray


def center_crop_dhariwal(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Centre crop to `size` x `size` as ADM prepares ImageNet: uint8 [H, W, C] -> uint8 [size, size, C].

    Halved by box filter while the shorter side is at least twice the size, then bicubic to the size (Dhariwal and
    Nichol 2021, whose resampling the published reference statistics are bound to).
    """
    picture = PIL.Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), PIL.Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], PIL.Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]
