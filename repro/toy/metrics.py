"""What the paper's 2D figures only show, measured: outliers, density, coverage of the mixture, distance to it."""

import math

import torch
from torch import Tensor

from repro.toy.mixture import OFFSETS, Mixture

MASS = 0.99  # of the true distribution inside the contour beyond which a sample is an outlier


def contour_level(log_density: Tensor, mass: float = MASS) -> float:
    """Log density of the contour that holds `mass` of the distribution, from the values [N] at many true points."""
    position = int((1 - mass) * len(log_density))
    return log_density.kthvalue(position + 1).values.item()


def outliers(log_density: Tensor, level: float) -> float:
    """Share of samples whose log density [N] lies below `level`: 0 ... 1."""
    return (log_density < level).double().mean().item()


def coverage_jsd(assigned: Tensor, weights: Tensor) -> float:
    """Jensen-Shannon divergence, in nats, of the share of samples per part of the mixture from its true weight.

    0 = every part receives its share; ln 2 = none does. `assigned` [N]: index of each sample's part; `weights` [K].
    Counts fluctuate, so that even N samples of the mixture itself have about K / 8N.
    """
    counts = torch.bincount(assigned, minlength=len(weights))
    return jensen_shannon(counts.double() / len(assigned), weights)


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon divergence in nats of two discrete distributions [K], each summing to 1."""
    middle = (p + q) / 2
    terms = torch.xlogy(p, p / middle).nan_to_num() + torch.xlogy(q, q / middle).nan_to_num()
    return terms.sum().item() / 2


def sliced_wasserstein(a: Tensor, b: Tensor, num_directions: int) -> float:
    """Mean over directions of the 1-Wasserstein distance of the projections of two point sets, both [N, 2].

    The directions divide the half circle evenly.
    """
    angles = torch.arange(num_directions, dtype=a.dtype) * (math.pi / num_directions)
    directions = torch.stack([angles.cos(), angles.sin()])  # [2, D]
    projected_a, projected_b = ((points @ directions).T.sort(dim=1).values for points in (a, b))
    return (projected_a - projected_b).abs().mean().item()


def measure(mixture: Mixture, samples: Tensor, true: Tensor, level: float, num_directions: int) -> dict[str, float]:
    """Every measure of `samples` [N, 2] against as many `true` points and the contour `level`."""
    log_density = mixture.log_density(samples)
    components = mixture.assign(samples)
    return {
        "outliers": outliers(log_density, level),
        "log_density": log_density.mean().item(),
        "log_density_median": log_density.median().item(),
        "component_jsd": coverage_jsd(components, mixture.component_weights),
        "branch_jsd": coverage_jsd(components // len(OFFSETS), mixture.weights),
        "sliced_wasserstein": sliced_wasserstein(samples.double(), true.double(), num_directions),
    }
