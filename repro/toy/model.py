"""The 2D example's network: a magnitude-preserving MLP whose output is a log density (arXiv:2406.02507 appendix C)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.networks import SILU_MAGNITUDE, MPConv
from repro.toy.by_hand import InputGradient


class ToyNetwork(nn.Module):
    """Unnormalised log density of noisy points, its score, and the denoiser that follows from it.

    Satisfies `repro.networks.Denoiser`, with points [N, 2] in place of images.

    Args:
        width: channels of every hidden layer.
        num_layers: hidden layers after the input layer.
    """

    img_resolution, img_channels, label_dim, sigma_data = 1, 2, 0, 0.5
    encoder: Any = None

    def __init__(self, width: int = 64, num_layers: int = 4) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList([MPConv(4, width), *(MPConv(width, width) for _ in range(num_layers))])
        self.gain = nn.Parameter(torch.zeros([]))

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """G(x; sigma) = gain mean(F^2) / sigma - |c_in x|^2 / 2 (eq. 14): [N, 2], sigma number, [N] or [N, 1] -> [N].

        F is the MLP of (c_in x, ln(sigma) / 4, 1). At gain 0, where training starts, G is one broad Gaussian.
        """
        sigma, c_in, y = self._inputs(x, sigma)
        for i, weight in enumerate(self._weights()):
            y = F.linear(F.silu(y) if i else y, weight)  # [N, width]
        return self.gain * y.square().mean(1) / sigma.squeeze(1) - (c_in * x).square().sum(1) / 2

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Gradient of `log_density` by x, [N, 2]; differentiable by the parameters, not by x."""
        sigma, c_in, inputs = self._inputs(x, sigma)
        gradient = InputGradient.apply(self.gain / (self.width * sigma), inputs, *self._weights())
        return c_in * (gradient - c_in * x)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """D(x; sigma) = x + sigma^2 score, [N, 2] (EDM eq. 3). `labels` are there for the protocol only."""
        return x + _per_point(sigma, x) ** 2 * self.score(x, sigma)

    def _inputs(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Sigma [N, 1], c_in [N, 1] and what the MLP sees, [N, 4]."""
        sigma = _per_point(sigma, x)
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        return sigma, c_in, torch.cat([c_in * x, sigma.log() / 4, torch.ones_like(sigma)], dim=1)

    def _weights(self) -> list[Tensor]:
        """[out, in] of each layer; the scale of the magnitude-preserving SiLU is moved into the layer that follows."""
        first, *others = (layer.scaled_weight() for layer in self.layers if isinstance(layer, MPConv))
        return [first, *(weight / SILU_MAGNITUDE for weight in others)]


def _per_point(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Sigma as [N, 1] in the dtype of x [N, 2]."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1).expand(len(x), 1)
