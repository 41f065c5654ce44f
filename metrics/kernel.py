"""Kernel Inception distance: the unbiased squared MMD under a cubic kernel (Binkowski et al. 2018,
arXiv:1801.01401), k(x, y) = (x.y / D + 1)^3, averaged over random subsets.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metrics.files import InputError
from metrics.statistics import Features, as_tensor


@dataclass(frozen=True)
class KernelDistance:
    """Mean over the subsets (near zero or below for equal distributions), their standard deviation `spread`,
    and the standard error of the mean over subsets; the sampling of the images themselves is not in it.
    """

    value: float
    spread: float
    standard_error: float


def kernel_distance(
    real: Features, fake: Features, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """KID of features [N, D] and [M, D], in float64.

    Subsets are drawn without replacement, `fake` before `real`, from NumPy's Mersenne Twister, which with
    the default seed are the subsets of torch-fidelity for (first, second) = (fake, real).
    Raises InputError when either side has fewer than `subset_size` images, on other shapes, or on NaN.
    """
    x, y = as_tensor(fake), as_tensor(real)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(
            f"features have shapes {tuple(y.shape)} and {tuple(x.shape)}, expected [N, D] and [M, D]; "
            "use the same detector for both"
        )
    if min(len(x), len(y)) < subset_size or subset_size < 2:
        raise InputError(
            f"KID with subsets of {subset_size} images needs as many on both sides, found {len(y)} and {len(x)}; "
            "choose a smaller subset size of at least 2"
        )
    if not (bool(torch.isfinite(x).all()) and bool(torch.isfinite(y).all())):
        raise InputError("features hold NaN or infinity; look for broken images or weights")
    rng = np.random.RandomState(seed)  # the generator behind the published figures
    values = np.empty(num_subsets)
    for i in range(num_subsets):
        first = x[rng.choice(len(x), subset_size, replace=False)]
        second = y[rng.choice(len(y), subset_size, replace=False)]
        values[i] = unbiased_mmd2(first.double(), second.double())
    spread = float(values.std())
    return KernelDistance(float(values.mean()), spread, spread / num_subsets**0.5)


def unbiased_mmd2(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of MMD^2 between x [N, D] and y [M, D] (Binkowski et al., eq. 4)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    within_x, within_y = kernel(x, x), kernel(y, y)
    off_diagonal = (within_x.sum() - within_x.trace()) / (n * (n - 1)) + (within_y.sum() - within_y.trace()) / (
        m * (m - 1)
    )
    return float(off_diagonal - 2 * kernel(x, y).mean())
