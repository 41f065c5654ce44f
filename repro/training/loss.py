"""What training minimises, and how fast: loss and learning rate as the papers give them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EDM2Loss:
    """Denoising loss with learned uncertainty (EDM2 eq. 21), per pixel; ln(sigma) has mean `P_mean` and standard
    deviation `P_std`, the data have standard deviation `sigma_data`."""

    P_mean: float = -0.4
    P_std: float = 1.0
    sigma_data: float = 0.5

    def __call__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        sigma: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Loss [N, C, H, W] of latents `images` [N, C, H, W] with one-hot `labels` [N, label_dim].

        `sigma` [N, 1, 1, 1] and unit-variance `noise` [N, C, H, W], in this order, come from the global generator
        when None.
        """
        if sigma is None:
            normal = torch.randn([images.shape[0], 1, 1, 1], device=images.device)
            sigma = (normal * self.P_std + self.P_mean).exp()
        if noise is None:
            noise = torch.randn_like(images)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        denoised, logvar = network(images + noise * sigma, sigma, labels, return_logvar=True)
        return (weight / logvar.exp()) * (denoised - images) ** 2 + logvar


def learning_rate(cur_nimg: int, batch_size: int, ref_lr: float, ref_batches: float, rampup_Mimg: float) -> float:
    """Learning rate of the step that starts at `cur_nimg` images: linear ramp-up, then 1/sqrt decay (EDM2 eq. 67)."""
    lr = ref_lr
    if ref_batches > 0:
        lr /= math.sqrt(max(cur_nimg / (ref_batches * batch_size), 1))
    if rampup_Mimg > 0:
        lr *= min(cur_nimg / (rampup_Mimg * 1e6), 1)
    return lr
