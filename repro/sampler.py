"""The EDM sampler (Karras et al. 2022, Algorithm 2) and its per-seed random streams."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from metrics.files import InputError
from repro import schedules
from repro.guidance import guided, step_weights
from repro.networks import Denoiser
from repro.streams import SeedStreams as SeedStreams

NAMED = 4  # failures of a batch that its error names


class NonFiniteError(RuntimeError):
    """Latents became infinite or NaN; `failures` lists (index in the batch, sampler step)."""

    def __init__(self, failures: list[tuple[int, int]]) -> None:
        self.failures = failures
        super().__init__(self.told("sample", lambda index: index))

    def told(self, what: str, number: Callable[[int], int]) -> str:
        """One line that names the first of them, each by its `number`, and counts the others."""
        named = ", ".join(f"{what} {number(index)} at step {step}" for index, step in self.failures[:NAMED])
        others = f" and {len(self.failures) - NAMED} more" if self.failures[NAMED:] else ""
        return f"non-finite latents: {named}{others}"


def draw_inputs(
    network: Denoiser, seeds: Sequence[int] | SeedStreams, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Unit normal noise [N, C, H, W] and uniformly drawn one-hot labels [N, label_dim], or None.

    The label is not drawn for an unconditional network. Pass `SeedStreams` to go on drawing from them (churn).
    """
    streams = seeds if isinstance(seeds, SeedStreams) else SeedStreams(device, seeds)
    num = len(streams.seeds)
    noise = streams.randn([num, network.img_channels, network.img_resolution, network.img_resolution])
    if not network.label_dim:
        return noise, None
    return noise, torch.eye(network.label_dim, device=streams.device)[streams.randint(network.label_dim, [num])]


@torch.no_grad()
def sample(
    network: Denoiser,
    noise: Tensor,
    labels: Tensor | None = None,
    guide: Denoiser | Sequence[Denoiser] | None = None,
    guidance: float | Sequence[float] = 1.0,
    interval: tuple[int, int] | None = None,
    num_steps: int = 32,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7,
    levels: Sequence[float] | Tensor | None = None,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
    dtype: torch.dtype = torch.float32,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    rule: str = "linear",
    rule_settings: Mapping[str, float] | None = None,
    ramp: str = "constant",
    streams: bool = False,
) -> Tensor:
    """Solve the probability-flow ODE by Heun's method: noise [N, ...] -> latents, `dtype`, same shape.

    Args:
        network: main network.
        noise: unit normal, [N, C, H, W] (or [N, D] for the 2D toy).
        labels: one-hot [N, label_dim]; required where `network` is conditional.
        guide: guiding network, or several.
        guidance: weight w; one per guide where there are several. 1 = no guidance.
        interval: (first, last) sampler steps that are guided, in both evaluations, inclusive; None = all.
        num_steps: N; the networks are evaluated 2N - 1 times.
        sigma_min, sigma_max, rho: the EDM schedule; its range is the network's own, else 0.002 to 80.
        levels: another one (`repro.schedules`), N noise levels and 0; `num_steps` and its range do not count then.
        S_churn, S_min, S_max, S_noise: stochasticity (EDM Algorithm 2); 0 = deterministic.
        dtype: arithmetic of the solver; networks run in their own precision.
        randn_like: source of churn noise.
        rule, rule_settings: how answers are combined, a name of `repro.guidance.RULES`, and its settings.
        ramp: how the weight rises over the guided steps, a name of `repro.guidance.RAMPS`.
        streams: main network and guides side by side on CUDA, which changes no bit.

    Raises InputError where labels are missing, or guide and guidance do not fit together; NonFiniteError on overflow.
    """
    guides, weights = _pair_guides(guide, guidance)
    if network.label_dim and labels is None:
        raise InputError(f"the network has {network.label_dim} classes: labels are required")
    if labels is None and any(g.label_dim for g in guides):
        raise InputError("a conditional guide needs labels, and the main network has none")
    denoise = guided(network, labels, guides, rule, rule_settings, dtype, streams)

    if levels is None:
        sigma_min = getattr(network, "sigma_min", 0.002) if sigma_min is None else sigma_min
        sigma_max = getattr(network, "sigma_max", 80.0) if sigma_max is None else sigma_max
        t_steps = schedules.edm(num_steps, sigma_min, sigma_max, rho, dtype, noise.device)
    else:
        t_steps, num_steps = schedules.checked(levels).to(noise.device, dtype), len(levels) - 1
    # gamma_i of Algorithm 2.
    gammas = [min(S_churn / num_steps, math.sqrt(2) - 1) if S_min <= t <= S_max else 0.0 for t in t_steps[:-1].tolist()]
    steps = step_weights(weights, num_steps, interval, ramp)
    failed_at = torch.full([len(noise)], -1, device=noise.device)
    x_next = noise.to(dtype) * t_steps[0]
    for i, (gamma, w, t_cur, t_next) in enumerate(zip(gammas, steps, t_steps[:-1], t_steps[1:], strict=True)):
        # Raise the noise level a little, where there is churn.
        t_hat, x_hat = t_cur, x_next
        if gamma > 0:
            t_hat = t_cur + gamma * t_cur
            x_hat = x_next + (t_hat**2 - t_cur**2).sqrt() * S_noise * randn_like(x_next)

        # Euler step.
        d_cur = (x_hat - denoise(x_hat, t_hat, w)) / t_hat
        x_next = x_hat + (t_next - t_hat) * d_cur

        # Second-order correction.
        if i < num_steps - 1:
            d_prime = (x_next - denoise(x_next, t_next, w)) / t_next
            x_next = x_hat + (t_next - t_hat) * (0.5 * d_cur + 0.5 * d_prime)

        # Noted on the device: one synchronisation at the end instead of one per step.
        failed_at = torch.where((failed_at < 0) & ~x_next.flatten(1).isfinite().all(dim=1), i, failed_at)

    if failures := [(index, step) for index, step in enumerate(failed_at.tolist()) if step >= 0]:
        raise NonFiniteError(failures)
    return x_next


def _pair_guides(
    guide: Denoiser | Sequence[Denoiser] | None, guidance: float | Sequence[float]
) -> tuple[list[Denoiser], list[float]]:
    guides = [] if guide is None else list(guide) if isinstance(guide, Sequence) else [guide]
    weights = [float(w) for w in guidance] if isinstance(guidance, Sequence) else [float(guidance)]
    if not guides and any(w != 1 for w in weights):
        raise InputError(f"guidance weight {guidance} without a guide would do nothing; give a guide or weight 1")
    if guides and len(guides) != len(weights):
        raise InputError(f"{len(guides)} guides but {len(weights)} guidance weights; expected one weight each")
    return guides, weights[: len(guides)]
