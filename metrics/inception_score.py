"""Inception score: how sharply and how diversely a classifier labels the images (Salimans et al. 2016,
arXiv:1606.03498): exp of the mean KL divergence of p(y|x) from p(y), over equal runs of the images.
"""

from dataclasses import dataclass

import torch

from metrics.files import InputError
from metrics.statistics import Features, as_tensor


@dataclass(frozen=True)
class InceptionScore:
    """Mean over the splits, between 1 and the number of classes, and their standard deviation."""

    value: float
    spread: float


def inception_score(logits: Features, num_splits: int = 10) -> InceptionScore:
    """Inception score of logits [N, C] of images in the order given, in float64.

    Raises InputError when there are fewer images than splits or on NaN.
    """
    x = as_tensor(logits).double()
    if len(x) < num_splits:
        raise InputError(f"the Inception score over {num_splits} splits needs as many images, found {len(x)}")
    if not bool(torch.isfinite(x).all()):
        raise InputError("logits hold NaN or infinity; look for broken images or weights")
    scores = []
    for split in torch.tensor_split(x, num_splits):
        log_p = split.log_softmax(dim=1)  # [n, C]
        log_marginal = log_p.logsumexp(dim=0) - torch.tensor(len(split), dtype=x.dtype).log()  # [C]
        scores.append(float((log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp()))
    values = torch.tensor(scores, dtype=torch.float64)
    return InceptionScore(float(values.mean()), float(values.std(correction=0)))
