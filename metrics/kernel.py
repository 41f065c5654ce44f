"""Kernel Inception distance (Binkowski et al. 2018, arXiv:1801.01401).

The unbiased squared MMD under a cubic kernel, k(x, y) = (x.y / D + 1)^3, averaged over random subsets.
"""

import numpy as np
from torch import Tensor

from metrics.files import InputError
from metrics.statistics import Features, comparable


def kernel_distance(
    real: Features, fake: Features, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """KID of features [N, D] and [M, D], in float64: mean over the subsets, near zero or below for equal
    distributions, and their standard deviation, in which the sampling of the images themselves is not.

    Subsets are drawn without replacement, `fake` before `real`, from NumPy's Mersenne Twister, which with
    the default seed are the subsets of torch-fidelity for (first, second) = (fake, real).
    Raises InputError when either side has fewer than `subset_size` images, on other shapes, or on NaN.
    """
    y, x = comparable(real, fake)
    check_subsets(len(y), len(x), subset_size)
    rng = np.random.RandomState(seed)  # the generator behind the published figures

    def drawn(side: Tensor) -> Tensor:
        return side[rng.choice(len(side), subset_size, replace=False)].double()

    values = [unbiased_mmd2(drawn(x), drawn(y)) for _ in range(num_subsets)]
    return float(np.mean(values)), float(np.std(values))


def check_subsets(real: int, fake: int, subset_size: int) -> None:
    """Raise InputError where a side has fewer images than a subset."""
    if min(real, fake) < subset_size or subset_size < 2:
        need = f"KID with subsets of {subset_size} images needs as many on both sides, found {real} and {fake}"
        raise InputError(f"{need}; choose a smaller subset size of at least 2")


def unbiased_mmd2(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of MMD^2 between x [N, D] and y [M, D] (Binkowski et al., eq. 4)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
