"""What digits are made of: a map and an original, estimated for images, and how much they vary within a class.

Every real digit is one of 1,797 originals under a random affine map. A small network, trained here on real digits,
estimates the map of an image; its original is the nearest of its class under that map.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metrics.progress import progress
from repro.data.digits import MAPS, NUM_CLASSES, Classifier, Digits, originals, render

FACTORS = (*MAPS, "original")
UNSEEN = 5  # of so many originals one is kept from the regressor, for its error on digits that are new to it
BATCH = 128


@dataclass(frozen=True)
class Made:
    """What images are made of, known or estimated."""

    classes: NDArray[np.int64]
    #: [5, N], as in MAPS.
    maps: NDArray[np.float64]
    #: Numbers of originals [N].
    items: NDArray[np.int64]

    def __getitem__(self, some: Any) -> "Made":
        return Made(self.classes[some], self.maps[:, some], self.items[some])


class Regressor(Classifier):
    """Images from 0 to 255 -> maps in units of their extents, for every class that they might be of."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(self.dim, NUM_CLASSES * len(MAPS))

    def maps(self, images: Tensor, classes: NDArray[np.int64]) -> Tensor:
        """Maps [N, 5] of images [N, 1, 16, 16] of known classes."""
        return self.logits(images).unflatten(1, (NUM_CLASSES, -1))[torch.arange(len(images)), classes]


def train(data: Digits, seed: int, steps: int) -> Regressor:
    """Train on real images, blurred and with noise, so that it bears what is not quite a digit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Regressor()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in progress("regressor", range(steps), unit="batch"):
        positions = np.arange(step * BATCH, (step + 1) * BATCH)
        items, maps = data.factors(seed, positions)
        seen = items % UNSEEN > 0
        images, classes = data.draw(seed, positions[seen])
        blur, noise = torch.rand([2, len(images), 1, 1, 1], generator=generator)
        x = images.float().lerp(F.avg_pool2d(images.float(), 3, 1, 1), 0.7 * blur)
        x += 25 * noise * torch.randn(x.shape, generator=generator)
        target = torch.from_numpy(maps[:, seen].T / data.extents).float()
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(network.maps(x, classes), target).backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def estimate(
    network: Regressor, data: Digits, images: Tensor, classes: NDArray[np.int64], own: NDArray[np.int64] | None = None
) -> Made:
    """What images uint8 [N, 1, 16, 16] are made of; with `own` [N] each of another original than that."""
    parts = zip(images.split(BATCH), np.split(classes, range(BATCH, len(classes), BATCH)), strict=True)
    maps = torch.cat([network.maps(x, c) for x, c in parts]).double().numpy().T * data.extents[:, None]
    return Made(classes, maps, nearest(images, classes, maps, own))


def nearest(
    images: Tensor, classes: NDArray[np.int64], maps: NDArray[np.float64], own: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The original [N] of its class, other than its `own` where that is given, nearest to each image under its map."""
    found = np.empty(len(images), np.int64)
    for i, image in enumerate(images):
        members = np.flatnonzero(originals()[1] == classes[i])
        if own is not None:
            members = members[members != own[i]]
        under = render(members, np.repeat(maps[:, [i]], len(members), axis=1))
        found[i] = members[int((under - image / 255).square().sum(dim=(1, 2, 3)).argmin())]
    return found


@dataclass(frozen=True)
class Calibration:
    """How estimates of maps depend on true ones, both [10, 5]: slope, and variance of what that does not explain."""

    slope: NDArray[np.float64]
    error: NDArray[np.float64]

    @classmethod
    def of(cls, true: Made, found: Made) -> "Calibration":
        """By least squares within each class."""
        slope, error = np.empty([2, NUM_CLASSES, len(MAPS)])
        for c, k in np.ndindex(slope.shape):
            x, y = true.maps[k, true.classes == c], found.maps[k, true.classes == c]
            slope[c, k] = np.cov(x, y)[0, 1] / x.var(ddof=1)
            error[c, k] = (y - slope[c, k] * x).var(ddof=1)
        return cls(slope, error)


def spreads(found: Made, calibration: Calibration) -> NDArray[np.float64]:
    """Spread of FACTORS within each class, and, in the last column, of the mean over classes, [6, 11].

    Of the parts of the map the standard deviation that true ones would have; of originals the effective number, one
    over the chance that two images have the same (Hill's number of order 2).
    """
    within = np.empty([len(FACTORS), NUM_CLASSES])
    for c in range(NUM_CLASSES):
        members = found[found.classes == c]
        variance = members.maps.var(axis=1, ddof=1) - calibration.error[c]
        within[:-1, c] = (variance / calibration.slope[c] ** 2).clip(min=0)
        within[-1, c] = same_original(members.items)
    table = np.column_stack([within, within.mean(axis=1)])
    with np.errstate(divide="ignore"):  # few images may all have different originals
        return np.vstack([np.sqrt(table[:-1]), 1 / table[-1:]])


def same_original(items: NDArray[np.int64]) -> float:
    """The chance that two images have the same original, without bias."""
    counts = np.bincount(items)
    return float((counts * (counts - 1)).sum() / (len(items) * (len(items) - 1)))
