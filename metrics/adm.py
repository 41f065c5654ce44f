"""Precision and recall as the ADM evaluator computes them (Dhariwal and Nichol 2021, arXiv:2105.05233, section 2.2).

By definition they are those of `metrics.neighbours`: improved precision and recall, a ball reaching from a point to its
k-th nearest neighbour. What differs is the arithmetic, which moves published values in the third decimal: squared
distances are |u|^2 - 2 uv + |v|^2 of features that are not centred, every step rounded to float16; a block of 10,000
points against 10,000 in which one is not finite, all of it, is in float32 instead. A point is not left out of its own
neighbours: its distance to itself, 0 but for rounding, counts as the first.

Sums of squares and products are accumulated in float32, as GPUs do; TensorFlow's order of summation is not imitated.
"""

from collections.abc import Iterator

import torch

from metrics.neighbours import check_k
from metrics.statistics import Features, comparable

BLOCK = 10_000


def adm_precision_recall(real: Features, fake: Features, k: int = 3) -> dict[str, float]:
    """`adm_precision` and `adm_recall` of features [N, D] and [M, D], in the evaluator's arithmetic.

    Published values have k = 3, Inception's pooled features, the 10,000 images of a reference batch and all samples.
    Raises InputError on other shapes, NaN, or too few images for the neighbours.
    """
    x, y = (side.float() for side in comparable(real, fake))
    for side in (x, y):
        check_k(k, len(side))
    real_radii, fake_radii = _radii(x, k), _radii(y, k)
    recalled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    precise = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for rows in _blocks(len(x)):
        for columns in _blocks(len(y)):
            squared = _squared_distances(x[rows], y[columns])
            recalled[rows] |= (squared <= fake_radii[None, columns]).any(dim=1)
            precise[columns] |= (squared <= real_radii[rows, None]).any(dim=0)
    return {"adm_precision": int(precise.sum()) / len(y), "adm_recall": int(recalled.sum()) / len(x)}


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def _radii(x: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distances [N] to the k-th nearest other point, if each point is the nearest to itself."""
    radii = []
    for rows in _blocks(len(x)):
        nearest = torch.empty(len(x[rows]), 0, device=x.device)
        for columns in _blocks(len(x)):
            nearest = torch.cat([nearest, _smallest(_squared_distances(x[rows], x[columns]), k + 1)], dim=1)
        radii.append(_smallest(nearest, k + 1)[:, k])
    return torch.cat(radii)


def _smallest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Up to `count` of each row, ascending."""
    return values.topk(min(count, values.shape[1]), largest=False).values


def _squared_distances(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Squared distances [n, m] float32 of two blocks."""
    for dtype in (torch.float16, torch.float32):
        a, b = u.to(dtype), v.to(dtype)
        norms = [side.square().sum(dim=1, dtype=torch.float32).to(dtype) for side in (a, b)]
        product = (a.float() @ b.float().T).to(dtype)
        squared = product.mul_(-2).add_(norms[0][:, None]).add_(norms[1][None]).clamp_(min=0).float()
        if bool(torch.isfinite(squared).all()):
            break
    return squared
