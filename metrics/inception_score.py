"""Inception score: how sharply and how diversely a classifier labels the images (Salimans et al. 2016,
arXiv:1606.03498): exp of the mean KL divergence of p(y|x) from p(y), over equal runs of the images.
"""

import torch

from metrics.files import InputError
from metrics.statistics import Features, as_tensor, check_finite

SPLITS = 10


def check_splits(count: int, num_splits: int = SPLITS) -> None:
    """Raise InputError where there are fewer images than splits."""
    if count < num_splits:
        raise InputError(f"the Inception score over {num_splits} splits needs as many images, found {count}")


def inception_score(logits: Features, num_splits: int = SPLITS) -> tuple[float, float]:
    """Mean over the splits, between 1 and the number of classes C, and standard deviation, in float64.

    `logits` are [N, C], of images in the order given. Raises InputError for fewer images than splits and on NaN.
    """
    x = as_tensor(logits).double()
    check_splits(len(x), num_splits)
    check_finite(x)
    scores = []
    for split in torch.tensor_split(x, num_splits):
        log_p = split.log_softmax(dim=1)  # [n, C]
        log_marginal = log_p.logsumexp(dim=0) - torch.tensor(len(split), dtype=x.dtype).log()  # [C]
        scores.append(float((log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp()))
    values = torch.tensor(scores, dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))
