"""Fréchet distance between Gaussians fitted to features, and its extrapolation to infinite samples.

FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2 (Heusel et al. 2017, arXiv:1706.08500, eq. 6).
No matrix square root is needed. With any factors S1 = A A^T and S2 = B B^T the last trace is the sum of
the roots of the eigenvalues of B^T S1 B, which is fast, and the nuclear norm |A^T B|_*, which loses no
digits to those roots when S1 or S2 is (nearly) singular and gets cheaper with their rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from metrics.files import InputError
from metrics.statistics import Features, Moments, Statistics, as_tensor, check_tags, from_features


def covariance_factor(sigma: np.ndarray) -> Tensor:
    """A factor A [D, rank] with A A^T = sigma [D, D]: Cholesky, with complete pivoting where sigma is singular.

    Directions below D * eps of the largest variance are rounding noise of a singular sigma and dropped.
    Raises InputError when sigma is not positive semi-definite.
    """
    lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(sigma))
    if not failed:
        return lower
    packed, pivots, rank, _ = lapack.dpstrf(sigma, lower=1)
    columns = torch.from_numpy(np.ascontiguousarray(packed[:, :rank])).tril_()
    factor = torch.empty_like(columns)
    factor[torch.from_numpy(pivots - 1).long()] = columns
    trace = float(np.trace(sigma))
    if abs(float(factor.square().sum()) - trace) > 1e-6 * abs(trace):
        raise InputError("sigma has negative eigenvalues, so it is no covariance; compute the statistics again")
    return factor


@dataclass(frozen=True)
class Gaussian:
    """Statistics with their covariance factor, for repeated distances against the same reference."""

    statistics: Statistics
    factor: Tensor  # [D, rank]

    @classmethod
    def of(cls, statistics: Statistics) -> "Gaussian":
        return cls(statistics, covariance_factor(statistics.sigma))


def _trace_of_root(a: Statistics, b: Gaussian) -> float:
    """tr (S_a^1/2 S_b S_a^1/2)^1/2, to about 1e-9 of tr S_a + tr S_b."""
    if a.num_images > a.dim and b.factor.shape[1] == a.dim:
        product = b.factor.T @ (torch.from_numpy(a.sigma) @ b.factor)  # [rank, rank], same spectrum as S_a S_b
        eigenvalues = torch.linalg.eigvalsh(product).clamp_(min=0)
        roots = eigenvalues.sqrt()
        # An eigenvalue is known to about eps of the largest one, so a small root is known less well.
        noise = 8 * torch.finfo(torch.float64).eps * float(eigenvalues[-1])
        error = float((noise / (roots + noise**0.5)).sum())
        if error <= 1e-9 * float(np.trace(a.sigma) + np.trace(b.statistics.sigma)):
            return float(roots.sum())
    return float(torch.linalg.svdvals(covariance_factor(a.sigma).T @ b.factor).sum())


def frechet_distance(a: Statistics | Gaussian, b: Statistics | Gaussian) -> float:
    """Fréchet distance of two feature distributions, in float64, never negative.

    Raises InputError when dimensions or tags disagree.
    """
    first, target = a.statistics if isinstance(a, Gaussian) else a, _gaussian(b)
    second = target.statistics
    check_tags(first.tags, second.tags)
    if first.dim != second.dim:
        raise InputError(f"features have {first.dim} and {second.dim} dimensions; use the same detector for both")
    traces = np.trace(first.sigma) + np.trace(second.sigma)
    distance = np.square(first.mu - second.mu).sum() + traces - 2 * _trace_of_root(first, target)
    return max(float(distance), 0.0)


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, in the metric's unit."""

    value: float
    standard_error: float


def jackknife(value: float, left_out: Sequence[float]) -> Estimate:
    """Standard error of `value` from the values with each of G blocks left out (Efron 1982, eq. 3.2)."""
    deleted = np.asarray(left_out, dtype=np.float64)
    count = len(deleted)
    return Estimate(value, float(np.sqrt((count - 1) / count * np.square(deleted - deleted.mean()).sum())))


def block_moments(features: Features, num_blocks: int) -> list[Moments]:
    """Moments of disjoint runs of features [N, D], as equal in size as N allows, in order."""
    x = as_tensor(features)
    if len(x) < 2 * num_blocks:
        raise InputError(f"{num_blocks} blocks need at least {2 * num_blocks} images, found {len(x)}; give more images")
    return [Moments(x.shape[1]).update(block) for block in torch.tensor_split(x, num_blocks)]


def block_distances(features: Features, reference: Statistics | Gaussian, num_blocks: int) -> list[float]:
    """The distance of each disjoint block on its own; each has the bias of its own, smaller, image count."""
    target = _gaussian(reference)
    return [_distance([block], target) for block in block_moments(features, num_blocks)]


def frechet_with_error(features: Features, reference: Statistics | Gaussian, num_blocks: int = 10) -> Estimate:
    """FD of features [N, D] with its sampling error, by the jackknife over `num_blocks` disjoint blocks."""
    target, blocks = _gaussian(reference), block_moments(features, num_blocks)
    return jackknife(_distance(blocks, target), [_distance(rest, target) for rest in _leave_one_out(blocks)])


def paired_difference(a: Features, b: Features, reference: Statistics | Gaussian, num_blocks: int = 10) -> Estimate:
    """FD(a) - FD(b) against one reference for features [N, D] of the same N seeds in the same order.

    Each jackknife replicate leaves the same seeds out of both, so what the pairs share cancels and the
    error is that of the difference. Negative: a is nearer to the reference.
    """
    if len(a) != len(b):
        raise InputError(f"a paired comparison needs the same images on both sides, found {len(a)} and {len(b)}")
    target = _gaussian(reference)
    blocks = [block_moments(x, num_blocks) for x in (a, b)]
    first, second = (_leave_one_out(x) for x in blocks)
    left_out = [_distance(p, target) - _distance(q, target) for p, q in zip(first, second, strict=True)]
    return jackknife(_distance(blocks[0], target) - _distance(blocks[1], target), left_out)


def fd_infinity(features: Features, reference: Statistics | Gaussian, num_blocks: int = 10, seed: int = 0) -> Estimate:
    """FD extrapolated to infinitely many images, with its standard error.

    FD's bias is linear in 1/N to first order (Chong and Forsyth 2020, arXiv:1911.07023). The line goes
    through FD of all N images and the mean FD of two random disjoint halves, both of which use every image
    once, so that their sampling noise is common and only the bias is extrapolated away. What remains is of
    order (D/N)^2. The error is that of the whole estimator, by the jackknife over blocks.
    """
    x = as_tensor(features)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    target, half = _gaussian(reference), max(num_blocks // 2, 2)
    halves = [block_moments(part, half) for part in torch.tensor_split(x[order], 2)]

    def extrapolate(whole: float, parts: Sequence[float]) -> float:
        return 2 * whole - sum(parts) / 2

    distances = [_distance(blocks, target) for blocks in halves]
    value = extrapolate(_distance(halves[0] + halves[1], target), distances)
    left_out = [
        extrapolate(_distance(rest + halves[1 - i], target), [_distance(rest, target), distances[1 - i]])
        for i in (0, 1)
        for rest in _leave_one_out(halves[i])
    ]
    return jackknife(value, left_out)


def per_class_distances(
    features: Features, labels: np.ndarray, reference: Features, reference_labels: np.ndarray
) -> dict[int, float]:
    """FD between the images [N, D] and the reference images [M, D] of each class that both sides hold twice or more."""
    x, y = as_tensor(features), as_tensor(reference)
    distances = {}
    for label in np.intersect1d(labels, reference_labels).tolist():
        members, others = np.flatnonzero(labels == label), np.flatnonzero(reference_labels == label)
        if min(len(members), len(others)) >= 2:
            distances[int(label)] = frechet_distance(from_features(x[members]), from_features(y[others]))
    return distances


def _gaussian(reference: Statistics | Gaussian) -> Gaussian:
    return reference if isinstance(reference, Gaussian) else Gaussian.of(reference)


def _leave_one_out(blocks: Sequence[Moments]) -> list[list[Moments]]:
    return [[*blocks[:i], *blocks[i + 1 :]] for i in range(len(blocks))]


def _distance(blocks: Sequence[Moments], target: Gaussian) -> float:
    joined = Moments(target.statistics.dim, blocks[0].mean.device)
    for block in blocks:
        joined.merge(block)
    return frechet_distance(joined.finalize(), target)
