"""Training images: what the trainer asks of a data set, deterministic order, cropping, folders and zips."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from torch import Tensor


class TrainingData(Protocol):
    """An endless stream of labelled images, each a function of (seed, position) alone.

    `batch(seed, positions)` returns what the encoder takes (uint8 pixels or stored latents, [N, C, H, W]) and one-hot
    labels [N, label_dim] float32; it is called from a background thread. `img_resolution` and `img_channels` are those
    of the encoded latents, `digest` tells this data from any other.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    encoder: Any
    digest: str

    def batch(self, seed: int, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]: ...


def mix(*keys: int | NDArray[Any]) -> NDArray[np.uint64]:
    """Hash integers into 64 well-mixed bits (the finaliser of SplitMix64 over each in turn); arrays broadcast.

    A counter-based random source: what is drawn for one image does not depend on who drew what before it.
    """
    state = np.zeros([], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = state ^ np.asarray(key).astype(np.uint64)
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(*keys: int | NDArray[Any]) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on the integers `keys` alone; arrays broadcast."""
    return (mix(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(length)


def shuffled(seed: int, positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Item at each position of an endless stream that shuffles `length` items anew in every pass over them."""
    epochs = positions // length
    items = np.empty_like(positions)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        items[inside] = _epoch_order(seed, int(epoch), length)[positions[inside] % length]
    return items


def center_crop_dhariwal(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Centre crop to `size` x `size` as ADM prepares ImageNet: uint8 [H, W, C] -> uint8 [size, size, C].

    Halved by box filter while the shorter side is at least twice the size, then bicubic to the size (Dhariwal and
    Nichol 2021, whose resampling the published reference statistics are bound to).
    """
    picture = PIL.Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), PIL.Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), PIL.Image.Resampling.BICUBIC
    )
    pixels = np.asarray(picture)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def one_hot(labels: Sequence[int] | NDArray[Any], label_dim: int) -> NDArray[np.float32]:
    """Class numbers [N] -> [N, label_dim] float32."""
    return np.eye(label_dim, dtype=np.float32)[np.asarray(labels, dtype=np.int64)]
