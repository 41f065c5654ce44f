"""Vendi score: how many different images there are, without a reference (Friedman and Dieng 2022, arXiv:2210.02410).

exp of the entropy of the eigenvalues of K / N, where K holds the images' similarities, here the cosines of their
features: 1 where all are alike, N where all are orthogonal. K / N = X X^T / N has the eigenvalues of X^T X / N besides
zeros, so the smaller of the two is taken.
"""

import torch

from metrics.files import InputError
from metrics.statistics import Features, as_tensor, check_finite

CHUNK = 4096  # rows that are float64 at a time


def vendi_score(features: Features) -> float:
    """Between 1 and the smaller of N and D, for features [N, D] of any float type; computed in float64.

    Memory beyond the features is O(min(N, D)^2 + CHUNK * D). Raises InputError on NaN, on other shapes, and on features
    that are zero throughout, which have no direction.
    """
    x = as_tensor(features)
    if x.ndim != 2 or not len(x):
        raise InputError(f"features have shape {[*x.shape]}, expected [N, D] of at least one image")
    check_finite(x)
    if len(x) <= x.shape[1]:
        rows = _directions(x, 0)
        product = rows @ rows.T  # [N, N]
    else:
        product = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)  # [D, D]
        for start in range(0, len(x), CHUNK):
            rows = _directions(x[start : start + CHUNK], start)
            product.addmm_(rows.T, rows)
    shares = torch.linalg.eigvalsh(product / len(x)).clamp(min=0)
    return float(torch.special.entr(shares).sum().exp())


def _directions(x: torch.Tensor, start: int) -> torch.Tensor:
    """Features scaled to length 1, in float64; `start` is the number of the first."""
    lengths = x.double().norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        image = start + int((lengths[:, 0] == 0).nonzero()[0, 0])
        raise InputError(f"features of image {image} are all zero, which have no cosine; look at the image")
    return x.double() / lengths
