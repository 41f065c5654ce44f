"""The fractal mixture by its definition: a sum over Gaussians in float64, the oracle of what is computed faster."""

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from repro.toy.mixture import OFFSETS, Mixture


def component_covariances(mixture: Mixture) -> Tensor:
    """[K, 2, 2]."""
    return mixture.covariances.repeat_interleave(len(OFFSETS), dim=0)


def distribution(mixture: Mixture, sigma: float = 0.0) -> MixtureSameFamily:
    """The mixture with noise of one level."""
    covariances = component_covariances(mixture) + sigma**2 * torch.eye(2, dtype=torch.float64)
    return MixtureSameFamily(Categorical(mixture.component_weights), MultivariateNormal(mixture.means, covariances))


def moments(mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Mean [2] and covariance [2, 2] of the whole mixture."""
    mean = mixture.component_weights @ mixture.means
    apart = mixture.means - mean
    between = torch.einsum("k,ki,kj->ij", mixture.component_weights, apart, apart)
    return mean, between + torch.einsum("k,kij->ij", mixture.component_weights, component_covariances(mixture))


def noisy_points(mixture: Mixture, sigma: Tensor, seed: int = 0) -> Tensor:
    """Points [N, 2] float32 of the mixture at noise levels `sigma` [N]."""
    generator = torch.Generator().manual_seed(seed)
    return mixture.sample(len(sigma), generator) + sigma[:, None] * torch.randn([len(sigma), 2], generator=generator)
