"""Fréchet distance between Gaussians fitted to features, and its extrapolation to infinite samples.

FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2 (Heusel et al. 2017, arXiv:1706.08500, eq. 6). With any
factors S1 = A A^T and S2 = B B^T the last trace is the sum of the roots of the eigenvalues of B^T S1 B, which is fast,
and the nuclear norm |A^T B|_*, which loses no digits to those roots when S1 or S2 is (nearly) singular.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch

from metrics.files import InputError
from metrics.statistics import Features, Moments, Statistics, as_tensor, check_finite, check_tags, from_features

BLOCKED, BLOCK = 1024, 256  # dimensions from which on products are made in blocks of so many columns


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Fréchet distance, never negative, fastest where `b` is used again; InputError if dimensions or tags disagree."""
    check_tags(a.tags, b.tags)
    if a.dim != b.dim:
        raise InputError(f"features have {a.dim} and {b.dim} dimensions; use the same detector for both")
    distance = np.square(a.mu - b.mu).sum() + (np.trace(a.sigma) + np.trace(b.sigma)) - 2 * _trace_of_root(a, b)
    return max(float(distance), 0.0)


def _trace_of_root(a: Statistics, b: Statistics) -> float:
    """tr (S_a^1/2 S_b S_a^1/2)^1/2, to about 1e-9 of tr S_a + tr S_b."""
    if a.num_images > a.dim and b.factor.shape[1] == a.dim:
        # Of a product [rank, rank] with the spectrum of S_a S_b.
        eigenvalues = torch.linalg.eigvalsh(_congruent(torch.from_numpy(a.sigma), b.factor)).clamp_(min=0)
        roots = eigenvalues.sqrt()
        # An eigenvalue is known to about eps of the largest one, so a small root is known less well.
        noise = 8 * torch.finfo(torch.float64).eps * float(eigenvalues[-1])
        if float((noise / (roots + noise**0.5)).sum()) <= 1e-9 * float(np.trace(a.sigma) + np.trace(b.sigma)):
            return float(roots.sum())
    return float(torch.linalg.svdvals(a.factor.T @ b.factor).sum())


def _congruent(sigma: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The lower triangle of B^T S B [D, D], of symmetric S and any B; above it there may be anything.

    Of many dimensions what is zero, since B is triangular, or above the triangle, is not computed: a quarter is left.
    """
    dim = len(sigma)
    blocks = range(0, dim, BLOCK)
    if dim < BLOCKED or any(bool(factor[:i, i : i + BLOCK].any()) for i in blocks):
        return factor.T @ (sigma @ factor)
    product = torch.zeros_like(sigma)
    for i in blocks:
        half = sigma[i:, i:] @ factor[i:, i : i + BLOCK]
        for j in range(i, dim, BLOCK):
            product[j : j + BLOCK, i : i + BLOCK] = factor[j:, j : j + BLOCK].T @ half[j - i :]
    return product


class Estimate(NamedTuple):
    """A value and its standard error, in the metric's unit."""

    value: float
    standard_error: float


def jackknife(value: float, left_out: Sequence[float]) -> Estimate:
    """Standard error of `value` from the values with each of G blocks left out (Efron 1982, eq. 3.2)."""
    deleted, count = np.asarray(left_out, dtype=np.float64), len(left_out)
    return Estimate(value, float(np.sqrt((count - 1) / count * np.square(deleted - deleted.mean()).sum())))


def check_blocks(count: int, num_blocks: int) -> None:
    """Raise InputError where `count` images are fewer than two for each block."""
    if count < 2 * num_blocks:
        raise InputError(f"{num_blocks} blocks need at least {2 * num_blocks} images, found {count}; give more images")


def block_moments(features: Features, num_blocks: int) -> list[Moments]:
    """Moments of disjoint runs of features [N, D], as equal in size as N allows, in order."""
    x = as_tensor(features)
    check_blocks(len(x), num_blocks)
    return [Moments(x.shape[1]).update(block) for block in torch.tensor_split(x, num_blocks)]


def leave_one_out(
    blocks: Sequence[Moments] | Sequence[torch.Tensor], reference: Statistics
) -> list[tuple[float, float]]:
    """FD and FD extrapolated to infinitely many images: of all blocks of features, and with each block left out.

    Extrapolated as by `fd_infinity`, from one half of the blocks, every other one, and the other half; the errors are
    for `jackknife` to find. `blocks`: moments, or features [n, D], which is far faster where all are no more than D.
    """
    distance, every = _of_some(blocks, reference), range(len(blocks))
    halves = [list(every[0::2]), list(every[1::2])]
    whole, parts = distance(every), [distance(half) for half in halves]
    found = [(whole, 2 * whole - sum(parts) / 2)]
    for left_out in every:
        half = left_out % 2
        fewer = distance([block for block in halves[half] if block != left_out])
        rest = distance([block for block in every if block != left_out])
        found.append((rest, 2 * rest - (fewer + parts[1 - half]) / 2))
    return found


def _of_some(
    blocks: Sequence[Moments] | Sequence[torch.Tensor], reference: Statistics
) -> Callable[[Sequence[int]], float]:
    """FD of some of `blocks`, given by their places."""
    if isinstance(blocks[0], Moments):
        moments = cast(Sequence[Moments], blocks)
        return lambda places: _distance([moments[place] for place in places], reference)

    # Of n images with centred features X, tr (S1^1/2 S2 S1^1/2)^1/2 is the sum of the roots of the eigenvalues of
    # X S1 X^T / (n - 1): [n, n] instead of [D, D], and what is left out is left out of it.
    features = cast(Sequence[torch.Tensor], blocks)
    x = torch.cat([block.double() for block in features]) - torch.from_numpy(reference.mu)
    check_finite(x)
    product = x @ (torch.from_numpy(reference.sigma) @ x.T)
    member = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor([len(block) for block in features]))

    def distance(places: Sequence[int]) -> float:
        kept = torch.isin(member, torch.tensor(places)).nonzero()[:, 0]
        mean, inner = x[kept].mean(dim=0), product[kept][:, kept]
        inner = inner - inner.mean(dim=0) - inner.mean(dim=1, keepdim=True) + inner.mean()
        eigenvalues = torch.linalg.eigvalsh(inner / (len(kept) - 1))
        noise = len(kept) * torch.finfo(torch.float64).eps * eigenvalues[-1]  # of those that are 0
        roots = torch.where(eigenvalues > noise, eigenvalues, 0.0).sqrt()
        trace = float((x[kept] - mean).square().sum()) / (len(kept) - 1)
        found = float(mean.square().sum()) + trace + float(np.trace(reference.sigma)) - 2 * float(roots.sum())
        return max(found, 0.0)

    return distance


def frechet_with_error(features: Features, reference: Statistics, num_blocks: int = 10) -> Estimate:
    """FD of features [N, D] with its sampling error, by the jackknife over `num_blocks` disjoint blocks."""
    whole, *left_out = [_distance(x, reference) for x in _replicates(block_moments(features, num_blocks))]
    return jackknife(whole, left_out)


def check_paired(a: int, b: int) -> None:
    """Raise InputError where two sets are not of the same number of images."""
    if a != b:
        raise InputError(f"a paired comparison needs the same images on both sides, found {a} and {b}")


def paired_difference(a: Features, b: Features, reference: Statistics, num_blocks: int = 10) -> Estimate:
    """FD(a) - FD(b) against one reference for features [N, D] of the same N seeds in the same order.

    Each jackknife replicate leaves the same seeds out of both, so the error is that of the difference. Negative: a is
    nearer to the reference.
    """
    check_paired(len(a), len(b))
    pairs = zip(_replicates(block_moments(a, num_blocks)), _replicates(block_moments(b, num_blocks)), strict=True)
    whole, *left_out = [_distance(p, reference) - _distance(q, reference) for p, q in pairs]
    return jackknife(whole, left_out)


def fd_infinity(features: Features, reference: Statistics, num_blocks: int = 10, seed: int = 0) -> Estimate:
    """FD extrapolated to infinitely many images, with its standard error.

    FD's bias is linear in 1/N to first order (Chong and Forsyth 2020, arXiv:1911.07023). The line goes through FD of
    all N images and the mean FD of two random disjoint halves, both of which use every image once, so that their
    sampling noise is common. A bias of order (D/N)^2 remains. The error is the whole estimator's, by the jackknife.
    """
    x = as_tensor(features)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    halves = [block_moments(part, max(num_blocks // 2, 2)) for part in torch.tensor_split(x[order], 2)]
    distances = [_distance(blocks, reference) for blocks in halves]

    def extrapolate(whole: Sequence[Moments], parts: Sequence[float]) -> float:
        return 2 * _distance(whole, reference) - sum(parts) / 2

    left_out = [
        extrapolate(rest + halves[1 - i], [_distance(rest, reference), distances[1 - i]])
        for i in (0, 1)
        for rest in _replicates(halves[i])[1:]
    ]
    return jackknife(extrapolate(halves[0] + halves[1], distances), left_out)


def check_halves(count: int, num_blocks: int = 10) -> None:
    """Raise InputError where `count` images are too few for `fd_infinity`."""
    check_blocks(count // 2, max(num_blocks // 2, 2))


def per_class_distances(
    features: Features, labels: np.ndarray, reference: Features, reference_labels: np.ndarray
) -> dict[int, float]:
    """FD between the images [N, D] and the reference images [M, D] of each class that both sides hold twice or more."""
    x, y = as_tensor(features), as_tensor(reference)
    shared = np.intersect1d(labels, reference_labels).tolist()
    large = [c for c in shared if min((labels == c).sum(), (reference_labels == c).sum()) >= 2]
    return {c: frechet_distance(from_features(x[labels == c]), from_features(y[reference_labels == c])) for c in large}


def _replicates(blocks: list[Moments]) -> list[list[Moments]]:
    return [blocks, *(blocks[:i] + blocks[i + 1 :] for i in range(len(blocks)))]  # all, and all but each


def _distance(blocks: Sequence[Moments], target: Statistics) -> float:
    return frechet_distance(Moments(target.dim, blocks[0].mean.device).merge(*blocks).finalize(), target)
