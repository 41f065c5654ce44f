"""Noise levels of the sampler."""

import torch
from torch import Tensor


def edm(
    num_steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The EDM schedule sigma_0 ... sigma_{N-1}, then 0: [num_steps + 1] (EDM equation 5)."""
    ramp = torch.arange(num_steps, dtype=dtype, device=device) / max(num_steps - 1, 1)
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = (hi + ramp * (lo - hi)) ** rho
    return torch.cat([levels, torch.zeros_like(levels[:1])])
