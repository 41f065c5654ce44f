"""The methods that the 2D example compares, and their samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from repro.degradations import Degraded, Truncated, seed_degradations
from repro.networks import Denoiser
from repro.sampler import sample
from repro.streams import SeedStreams
from repro.toy.model import ToyNetwork
from repro.toy.settings import ToySettings


@dataclass(frozen=True)
class Method:
    """One way of sampling; `guidance` is the weight w, or the factor of the score in truncation."""

    name: str
    title: str
    guidance: float
    network: Denoiser
    guide: Denoiser | None = None
    #: What makes the guide worse, as rows say it.
    worse: str = ""


def methods(settings: ToySettings, networks: dict[str, ToyNetwork]) -> list[Method]:
    """The paper's four, in the order of its figure 1, from the networks `main`, `guide` and `unconditional`."""
    main, w_cfg, w_auto, factor = networks["main"], settings.cfg, settings.autoguidance, settings.truncation
    return [
        Method("unguided", "No guidance", 1.0, main),
        Method("cfg", f"CFG, w = {w_cfg:g}", w_cfg, main, networks["unconditional"]),
        Method("truncation", f"Score × {factor:g}", factor, Truncated(main, factor)),
        Method("autoguidance", f"Autoguidance, w = {w_auto:g}", w_auto, main, networks["guide"]),
    ]


def draw(method: Method, settings: ToySettings, seed: int) -> Tensor:
    """Samples [num_samples, 2] float32; the methods start from the same noise.

    What a guide draws comes from a stream per point.
    """
    if isinstance(method.guide, Degraded):
        first = seed * settings.num_samples
        seed_degradations(method.guide, SeedStreams("cpu", range(first, first + settings.num_samples)))
    noise = torch.randn([settings.num_samples, 2], generator=torch.Generator().manual_seed(seed))
    return solve(method, settings, noise, settings.sigma_max)


def solve(method: Method, settings: ToySettings, noise: Tensor, sigma_max: float) -> Tensor:
    """Where the sampler takes unit noise [N, 2] scaled to `sigma_max`."""
    weight = 1.0 if method.guide is None else method.guidance
    schedule = (settings.num_steps, settings.sigma_min, sigma_max, settings.rho)
    return sample(method.network, noise, None, method.guide, weight, None, *schedule)


def trajectories(method: Method, settings: ToySettings, start: Tensor, sigma_max: float) -> Tensor:
    """Paths [num_steps + 1, N, 2] of the sampler from noisy points `start` [N, 2] at level `sigma_max`.

    The method's main network is a ToyNetwork.
    """
    assert isinstance(method.network, ToyNetwork)
    asked: list[Tensor] = []
    with method.network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0])):
        end = solve(method, settings, start / sigma_max, sigma_max)
    return torch.stack([*asked[::2], end])  # Heun asks twice per step, first at its beginning
