"""The methods that the 2D example compares, and their samples."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repro.guidance import Truncated, Wrapper
from repro.networks import Denoiser
from repro.sampler import sample
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


def methods(settings: ToySettings, networks: dict[str, ToyNetwork]) -> list[Method]:
    """The paper's four, in the order of its figure 1, from the networks `main`, `guide` and `unconditional`."""
    main = networks["main"]
    guide, unconditional = networks["guide"], networks["unconditional"]
    w_cfg, w_auto, factor = settings.cfg, settings.autoguidance, settings.truncation
    return [
        Method("unguided", "No guidance", 1.0, main),
        Method("cfg", f"CFG, w = {w_cfg:g}", w_cfg, main, unconditional),
        Method("truncation", f"Score × {factor:g}", factor, Truncated(main, factor)),
        Method("autoguidance", f"Autoguidance, w = {w_auto:g}", w_auto, main, guide),
    ]


def draw(method: Method, settings: ToySettings, seed: int) -> Tensor:
    """Samples [num_samples, 2] float32; the methods start from the same noise."""
    noise = torch.randn([settings.num_samples, 2], generator=torch.Generator().manual_seed(seed))
    return solve(method, settings, noise, settings.sigma_max)


def solve(method: Method, settings: ToySettings, noise: Tensor, sigma_max: float) -> Tensor:
    """Where the sampler takes unit noise [N, 2] scaled to `sigma_max`."""
    schedule: dict[str, Any] = {
        "num_steps": settings.num_steps,
        "sigma_min": settings.sigma_min,
        "sigma_max": sigma_max,
        "rho": settings.rho,
    }
    if method.guide is None:
        return sample(method.network, noise, **schedule)
    return sample(method.network, noise, guide=method.guide, guidance=method.guidance, **schedule)


def trajectories(method: Method, settings: ToySettings, start: Tensor, sigma_max: float) -> Tensor:
    """Paths [num_steps + 1, N, 2] of the sampler from noisy points `start` [N, 2] at level `sigma_max`."""
    recorder = _Recorder(method.network)
    recorded = Method(method.name, method.title, method.guidance, recorder, method.guide)
    end = solve(recorded, settings, start / sigma_max, sigma_max)
    steps = recorder.seen[::2]  # Heun asks twice per step, first at its beginning
    return torch.stack([*steps, end])


class _Recorder(Wrapper):
    """A denoiser that keeps the points it is asked about."""

    def __init__(self, network: Denoiser) -> None:
        super().__init__(network)
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(x.clone())
        return self.network(x, sigma, labels)
