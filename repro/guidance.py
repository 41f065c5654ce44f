"""Guided denoisers: which networks are asked, and how their answers are combined.

D_w = w D_main + (1 - w) D_guide; the guide is a worse version of the main network (autoguidance,
arXiv:2406.02507 section 3) or an unconditional one (classifier-free guidance).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metrics.files import InputError
from repro.networks import Block, Denoiser, InferenceDropout, Precond, prepare

Denoise = Callable[[Tensor, Tensor], Tensor]


def noise_levels(
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


def guided_steps(
    sigma_lo: float,
    sigma_hi: float,
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
) -> tuple[int, int]:
    """Sampler steps of the interval (sigma_lo, sigma_hi]: (first, last), inclusive.

    The bounds are rounded step values in the papers, so each snaps to the nearest noise level (in log sigma)
    before `first` = the level at sigma_hi and `last` = the one before the level at sigma_lo
    (arXiv:2404.07724 equations 5 and 6). A literal comparison would shift (0.28, 2.90] by a step.

    Raises:
        InputError: bounds out of order, or no step between them.
    """
    if not 0 < sigma_lo < sigma_hi:
        raise InputError(f"guidance interval ({sigma_lo}, {sigma_hi}]: expected 0 < sigma_lo < sigma_hi")
    logs = noise_levels(num_steps, sigma_min, sigma_max, rho)[:-1].log()
    first = int((logs - math.log(sigma_hi)).abs().argmin())
    last = int((logs - math.log(sigma_lo)).abs().argmin()) - 1
    if last < first:
        raise InputError(f"guidance interval ({sigma_lo}, {sigma_hi}] holds none of the {num_steps} steps")
    return first, last


def guided(
    network: Denoiser,
    labels: Tensor | None,
    guides: Sequence[Denoiser] = (),
    weights: Sequence[float] = (),
    dtype: torch.dtype = torch.float32,
) -> Denoise:
    """Denoiser (x, sigma) -> D(x; sigma) in `dtype`: `network` guided by `guides` with `weights`.

    One guide: D_w = lerp(D_guide, D_main, w). Several: D_main + sum_i (w_i - 1)(D_main - D_i)
    (arXiv:2406.02507 equation 6). A guide of weight 1 is never evaluated. Conditional guides get the labels.
    """
    active = [(guide, w) for guide, w in zip(guides, weights, strict=True) if w != 1]

    def ask(model: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        return model(x, sigma, labels if model.label_dim else None).to(dtype)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        D_main = ask(network, x, sigma)
        if len(active) == 1:
            guide, w = active[0]
            return ask(guide, x, sigma).lerp(D_main, w)
        D_x = D_main
        for guide, w in active:
            D_x = D_x + (w - 1) * (D_main - ask(guide, x, sigma))
        return D_x

    return denoise


def split_weight(guidance: float, alpha: float) -> tuple[float, float]:
    """Weights (unconditional guide, conditional guide) of a total weight: alpha 0 = CFG, 1 = autoguidance.

    arXiv:2406.02507 appendix B.2: w_u = (1 - alpha)(w - 1) + 1, w_c = alpha (w - 1) + 1.
    """
    return (1 - alpha) * (guidance - 1) + 1, alpha * (guidance - 1) + 1


def check_pair(main: Denoiser, guide: Denoiser, main_name: str = "main", guide_name: str = "guide") -> None:
    """Refuse a guide that cannot guide `main`, before hours are spent.

    Raises:
        InputError: img_resolution, img_channels, sigma_data or encoder differ, or label_dim does where the
            guide is conditional.
    """
    facts: list[tuple[str, Any, Any]] = [
        (key, getattr(main, key), getattr(guide, key)) for key in ("img_resolution", "img_channels", "sigma_data")
    ]
    facts.append(("encoder", _encoder_config(main), _encoder_config(guide)))
    if guide.label_dim:
        facts.append(("label_dim", main.label_dim, guide.label_dim))
    for key, ours, theirs in facts:
        if ours != theirs:
            raise InputError(f"{guide_name} cannot guide {main_name}: {key} is {theirs}, expected {ours}")


def _encoder_config(model: Denoiser) -> Any:
    config = getattr(model.encoder, "config", None)
    if config is None:
        return model.encoder
    return {key: value for key, value in config().items() if key != "batch_size"}


class Wrapper:
    """A denoiser around another one, with the same shapes."""

    def __init__(self, network: Denoiser) -> None:
        self.network = network
        self.img_resolution = network.img_resolution
        self.img_channels = network.img_channels
        self.label_dim = network.label_dim
        self.sigma_data = network.sigma_data
        self.encoder = network.encoder

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Truncated(Wrapper):
    """Naive truncation: the score multiplied by `factor` (arXiv:2406.02507 figure 1)."""

    def __init__(self, network: Denoiser, factor: float) -> None:
        super().__init__(network)
        self.factor = factor

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x + self.factor * (self.network(x, sigma, labels) - x)


class Corruption(Wrapper):
    """A synthetic degradation (arXiv:2406.02507 section 4) that draws random numbers of its own.

    `reseed` ties the draws to the seeds of a batch, so that images repeat whatever ran before.
    """

    stream = 0

    def __init__(self, network: Denoiser, stream: int = 0) -> None:
        super().__init__(network)
        self.stream = stream  # main and guide draw independently
        self.generator: torch.Generator | None = None

    def reseed(self, seeds: Sequence[int], device: torch.device | str) -> None:
        """Start the draws of the batch that begins with `seeds[0]`."""
        self.generator = torch.Generator(device)
        self.generator.manual_seed((seeds[0] * 2 + self.stream + 1) * 0x9E3779B1 % 2**32)


class RaisedNoise(Corruption):
    """Input noise raised by `fraction`, with the conditioning raised to match: sigma' = (1 + fraction) sigma."""

    def __init__(self, network: Denoiser, fraction: float, stream: int = 0) -> None:
        super().__init__(network, stream)
        self.fraction = fraction

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        raised = sigma * (1 + self.fraction)
        noise = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        extra = (raised**2 - sigma**2).sqrt().reshape(-1, *[1] * (x.ndim - 1))
        return self.network(x + extra * noise, raised, labels)


class Dropped(Corruption):
    """Dropout of `rate` inside every block at inference. Weights are shared with `network`, never touched."""

    def __init__(self, network: Precond, rate: float, stream: int = 0) -> None:
        super().__init__(network, stream)
        self.dropout = InferenceDropout(rate)
        self.network = prepare(network, next(network.parameters()).device)
        for module in self.network.modules():
            if isinstance(module, Block):
                module.inference_dropout = self.dropout

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.dropout.generator = self.generator
        return self.network(x, sigma, labels)
