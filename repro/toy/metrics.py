"""What the paper's 2D figures only show, measured: outliers, density, coverage of the mixture, distance to it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metrics.names import VALUES, Name
from repro.toy.mixture import OFFSETS, Mixture

MASS = 0.99  # of the true distribution inside the contour beyond which a sample is an outlier
#: What `measure` gives.
NAMES = {
    name: VALUES.register(name, Name(label, better, decimals, of_features=False))
    for name, label, better, decimals in (
        ("outliers", "outliers", -1, 4),
        ("log_density", "log-density", 0, 3),
        ("log_density_median", "median log-density", 0, 3),
        ("component_jsd", "component JSD", -1, 4),
        ("branch_jsd", "branch JSD", -1, 4),
        ("sliced_wasserstein", "sliced Wasserstein", -1, 4),
    )
}


def contour_level(log_density: Tensor) -> float:
    """Log density of the contour that holds MASS of the distribution, from the values [N] at many true points."""
    return log_density.kthvalue(int((1 - MASS) * len(log_density)) + 1).values.item()


def coverage_jsd(assigned: Tensor, weights: Tensor) -> float:
    """Jensen-Shannon divergence, in nats, of the share of samples per part of the mixture from its true weight [K].

    0 = every part receives its share; ln 2 = none does; N samples of the mixture itself have about K / 8N.
    `assigned` [N]: index of each sample's part.
    """
    shares = torch.bincount(assigned, minlength=len(weights)).double() / len(assigned)
    middle = (shares + weights) / 2
    terms = torch.xlogy(shares, shares / middle).nan_to_num() + torch.xlogy(weights, weights / middle).nan_to_num()
    return terms.sum().item() / 2


def sliced_wasserstein(a: Tensor, b: Tensor, num_directions: int) -> float:
    """Mean of the 1-Wasserstein distances of two point sets [N, 2], projected on evenly spaced directions."""
    angles = torch.arange(num_directions, dtype=a.dtype) * (math.pi / num_directions)
    directions = torch.stack([angles.cos(), angles.sin()])  # [2, D]
    projected_a, projected_b = ((points @ directions).T.sort(dim=1).values for points in (a, b))
    return (projected_a - projected_b).abs().mean().item()


def measure_without(
    mixture: Mixture, samples: Tensor, true: Tensor, level: float, num_directions: int, groups: Sequence[slice]
) -> list[dict[str, float]]:
    """What `measure` gives of samples [N, 2] and true points [N, 2], each time without one of some groups of both."""
    log_density, components = mixture.log_density(samples), mixture.assign(samples)
    member = torch.full([len(samples)], -1, dtype=torch.int16)  # the group of each
    for number, group in enumerate(groups):
        member[group] = number
    transport = [0.0 for _ in groups]
    angles = torch.arange(num_directions, dtype=torch.float64) * (math.pi / num_directions)
    for part in angles.split(16):  # of which the order is found once for all groups
        directions = torch.stack([part.cos(), part.sin()])
        sides = [(points.double() @ directions).T.sort(dim=1) for points in (samples, true)]
        owners = [member[side.indices] for side in sides]
        for number in range(len(groups)):
            a, b = (
                s.values.masked_select(of != number).view(len(part), -1) for s, of in zip(sides, owners, strict=True)
            )
            transport[number] += (a - b).abs().mean().item() * len(part) / num_directions
    return [
        _values(mixture, log_density[member != number], components[member != number], level, distance)
        for number, distance in enumerate(transport)
    ]


def measure(mixture: Mixture, samples: Tensor, true: Tensor, level: float, num_directions: int) -> dict[str, float]:
    """Every measure of `NAMES` of `samples` [N, 2] against as many `true` points and the contour `level`."""
    distance = sliced_wasserstein(samples.double(), true.double(), num_directions)
    return _values(mixture, mixture.log_density(samples), mixture.assign(samples), level, distance)


def _values(
    mixture: Mixture, log_density: Tensor, components: Tensor, level: float, distance: float
) -> dict[str, float]:
    """The same of log densities [N] and components [N] of samples, and their sliced Wasserstein distance."""
    return {
        "outliers": (log_density < level).double().mean().item(),  # their share
        "log_density": log_density.mean().item(),
        "log_density_median": log_density.median().item(),
        "component_jsd": coverage_jsd(components, mixture.component_weights),
        "branch_jsd": coverage_jsd(components // len(OFFSETS), mixture.weights),
        "sliced_wasserstein": distance,
    }
