"""Bad versions: every way to make a network worse, as a guide (or, in experiments, a main network) may be.

A degradation is a name with a strength, such as `{"dropout": 0.1}`, applied at inference to any denoiser that can have
it (arXiv:2406.02507 section 4). Several are applied in the order of the registry. What they draw comes from streams of
the images' own seeds, so that it does not depend on the batch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from metrics.files import InputError
from metrics.registry import Registry
from repro.inference import FoldedBlock, fold
from repro.networks import Denoiser, Precond
from repro.streams import SeedStreams

MAIN, GUIDE = 0, 1  # main and guide draw different numbers


class Degraded:
    """A denoiser of the same shape around another one, made worse; draws from `streams`, one per image, once set."""

    key = (MAIN, 0)  # role, and place in the registry: each draws from streams of its own
    streams: SeedStreams | None = None

    def __init__(self, network: Denoiser, strength: float) -> None:
        self.network, self.strength = network, strength
        self.img_resolution, self.img_channels = network.img_resolution, network.img_channels
        self.label_dim, self.sigma_data, self.encoder = network.label_dim, network.sigma_data, network.encoder

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.network(x, sigma, labels)

    def drawn(self) -> SeedStreams:
        """The batch's streams."""
        if self.streams is None:
            raise InputError(f"{type(self).__name__} draws random numbers: give it the seeds of the batch first")
        return self.streams


@dataclass(frozen=True)
class Degradation:
    """One kind of degradation."""

    #: Network and strength -> the worse network; InputError where the network cannot have it.
    apply: Callable[[Denoiser, float], Degraded]
    least: float
    #: Bounds of the strength, `least` included, `most` not.
    most: float


#: In the order in which several are applied.
DEGRADATIONS: Registry[Degradation] = Registry("degradation")


def check_degradations(wanted: Mapping[str, float]) -> None:
    """Raise InputError for an unknown name, or a strength out of bounds."""
    for name, strength in wanted.items():
        kind = DEGRADATIONS[name]
        if not kind.least <= strength < kind.most:
            raise InputError(f"degradation '{name}': strength {strength}, expected {kind.least} <= x < {kind.most}")


def degrade(network: Denoiser, wanted: Mapping[str, float], role: int = MAIN) -> Denoiser:
    """`network` with the degradations `wanted` (name -> strength); none: the network itself.

    `role` keeps the draws of main network and guide apart. Call `seed_degradations` with the streams of every batch.
    """
    check_degradations(wanted)
    for number, name in enumerate(DEGRADATIONS):
        if name in wanted:
            network = DEGRADATIONS[name].apply(network, wanted[name])
            network.key = (role, number)
    return network


def seed_degradations(network: Denoiser | None, streams: SeedStreams) -> None:
    """Tie everything that the degradations of `network` will draw to the seeds of the batch at hand."""
    while isinstance(network, Degraded):
        network.streams = streams.branch(*network.key)
        network = network.network


class DroppedOut(Degraded):
    """Dropout of `rate` inside every block at inference. Weights are shared with `network`, never touched."""

    def __init__(self, network: Denoiser, rate: float) -> None:
        if not isinstance(network, Precond):
            raise InputError("dropout at inference needs one of this project's networks")
        super().__init__(network, rate)
        self.network = fold(network, next(network.parameters()).device)
        for module in self.network.modules():
            if isinstance(module, FoldedBlock):
                module.dropout = self.drop

    def drop(self, x: Tensor) -> Tensor:
        """Zero a share `strength` of the values of `x` [N, C, H, W], and scale the others up."""
        return x * (self.drawn().rand_like(x) >= self.strength).to(x.dtype) / (1 - self.strength)


class RaisedNoise(Degraded):
    """Input noise raised by a fraction, with the conditioning raised to match: sigma' = (1 + strength) sigma."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        raised = sigma * (1 + self.strength)
        extra = (raised**2 - sigma**2).sqrt().reshape(-1, *[1] * (x.ndim - 1))
        return self.network(x + extra * self.drawn().randn_like(x), raised, labels)


class Truncated(Degraded):
    """Naive truncation: the score multiplied by `strength` (arXiv:2406.02507 figure 1)."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x + self.strength * (self.network(x, sigma, labels) - x)


DEGRADATIONS.register("dropout", Degradation(DroppedOut, 0.0, 1.0))
DEGRADATIONS.register("input_noise", Degradation(RaisedNoise, 0.0, math.inf))
