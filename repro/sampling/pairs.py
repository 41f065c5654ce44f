"""What decides the bits of an image, apart from its seed: a configuration, and its networks loaded and checked."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from metrics.files import InputError
from metrics.machine import machine
from repro.adapters.interior import network_of
from repro.cuda import replay
from repro.degradations import GUIDE, MAIN, degrade
from repro.guidance import Blend, Guided, check_pair
from repro.networks import Denoiser, Precond
from repro.numerics import numerics
from repro.sampling.sources import SUFFIXES as SUFFIXES
from repro.sampling.sources import Model, load_network
from repro.schedules import checked
from repro.strict import facts, positive, within

#: Noise levels of networks that do not say for which they were made: EDM's.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
#: By how much, relatively, a noise level may lie outside of those that a network was made for: what is rounded.
ROUNDED = 0.01


@dataclass(frozen=True)
class Solver:
    """How images are sampled (`sampler` in a study): every field decides bits."""

    #: Heun steps; the networks are evaluated 2 num_steps - 1 times.
    num_steps: int = 32
    #: Last and first noise level; None: the network's own, else 0.002 and 80.
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    #: Falling noise levels of the steps, in place of EDM's from sigma_max to sigma_min (`repro schedule` finds some).
    schedule: list[float] | None = None
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    #: Seeds per batch; convolutions differ in the last bits between sizes.
    batch_size: int = 50
    #: Run the networks through torch.compile, which moves the last bits.
    compile: bool = False
    #: Whether the VAE's convolutions may use TF32 on CUDA, as in the published runs.
    vae_tf32: bool = True

    def __post_init__(self) -> None:
        positive(self, "num_steps", "sigma_min", "sigma_max", "rho", "batch_size")
        within(self, 1, 100_000, "num_steps", "batch_size")
        within(self, 0, math.inf, "S_churn", "S_min", "S_noise")
        if self.schedule is not None:
            checked([*self.schedule, 0.0])
            if self.num_steps != len(self.schedule):
                raise InputError(f"num_steps is {self.num_steps}, and schedule has {len(self.schedule)} levels")
            if said := [name for name in ("sigma_min", "sigma_max", "rho") if name in facts(self)]:
                raise InputError(f"{said[0]} says nothing beside schedule, which has all noise levels; leave it out")

    def of(self, network: Denoiser) -> "Solver":
        """The same with the range of noise levels that the network was made for, where it has one and none is said."""
        if self.schedule is not None:
            return self
        low, high = (getattr(network, name, None) for name in ("sigma_min", "sigma_max"))
        return replace(
            self,
            sigma_min=low if self.sigma_min is None else self.sigma_min,
            sigma_max=high if self.sigma_max is None else self.sigma_max,
        )

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest noise level; raises InputError where there is nothing between them."""
        if self.schedule is not None:
            return self.schedule[-1], self.schedule[0]
        low = SIGMA_MIN if self.sigma_min is None else self.sigma_min
        high = SIGMA_MAX if self.sigma_max is None else self.sigma_max
        if low >= high:
            raise InputError(f"sigma_max is {high:g}, expected more than sigma_min, {low:g}")
        return low, high

    def arguments(self) -> dict[str, Any]:
        """The solver's arguments of `repro.sampler.sample`."""
        names = ("num_steps", "sigma_min", "sigma_max", "rho", "S_churn", "S_min", "S_max", "S_noise")
        levels = None if self.schedule is None else [*self.schedule, 0.0]
        return {name: getattr(self, name) for name in names} | {"levels": levels}


@dataclass(frozen=True)
class Sharding:
    """How what is sampled is kept (`shards` in a study): no field decides bits."""

    #: Seeds per shard file.
    size: int = 1000
    #: False: images are measured as they are made, and only their features and the first few are kept.
    keep_images: bool = True

    def __post_init__(self) -> None:
        positive(self, "size")


@dataclass(frozen=True)
class Configuration:
    """What decides the bits of an image, apart from its seed and the device type."""

    guided: Guided
    solver: Solver = field(default_factory=Solver)
    #: The class of every image; None: drawn by its seed.
    only_class: int | None = None

    def __post_init__(self) -> None:
        interval = self.guided.interval
        if interval is not None and interval[1] >= self.solver.num_steps:
            raise InputError(f"interval {list(interval)}: the sampler has steps 0 to {self.solver.num_steps - 1}")


@dataclass(frozen=True)
class Pair:
    """A main network and, where there is guidance, its guide."""

    configuration: Configuration
    main: Denoiser
    #: Of several a `Blend`.
    guide: Denoiser | None
    main_sha256: str
    #: Of several guides in their order, with + between them.
    guide_sha256: str | None
    device: torch.device

    def __post_init__(self) -> None:
        guided = self.configuration.guided
        if self.configuration.only_class is not None:
            self.check_class(self.configuration.only_class)
        _check_levels(self.configuration.solver.of(self.main), self.main, guided.main)
        for guide, (name, _) in zip(self.guides, guided.guides, strict=False):
            _check_levels(self.configuration.solver.of(self.main), guide, str(name))

    def check_class(self, number: int) -> None:
        """Raise InputError for a class that the main network has not."""
        name, count = self.configuration.guided.main, self.main.label_dim
        if not 0 <= number < count:
            raise InputError(f"{name}: class {number}, the network has {count} classes")

    @property
    def guides(self) -> list[Denoiser]:
        """Every guiding network."""
        if isinstance(self.guide, Blend):
            return self.guide.guides
        return [] if self.guide is None else [self.guide]

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides an image's bits besides seed and software versions.

        Networks count as what they are, not by name, and fields at their defaults do not count.
        """
        guided = self.configuration.guided
        others = [replace(other, guide="") for other in guided.other_guides]
        guided = replace(guided, main=self.main_sha256, guide=self.guide_sha256, other_guides=others)
        decides = facts(replace(self.configuration, guided=guided)) | {"device": self.device.type}
        return hashlib.sha256(json.dumps(decides | numerics("sampling"), sort_keys=True).encode()).hexdigest()

    def at(self, guidance: float) -> "Pair":
        """The same loaded networks at another weight; 1 needs no guide, and any other one."""
        if guidance != 1 and self.guide is None:
            raise InputError(f"guidance {guidance} needs a guide, and none is loaded")
        guided = replace(self.configuration.guided, guidance=guidance).active
        pair = replace(self, configuration=replace(self.configuration, guided=guided))
        return pair if guidance != 1 else replace(pair, guide=None, guide_sha256=None)


def _check_levels(solver: Solver, network: Denoiser, name: str) -> None:
    """Raise InputError where a sampler goes beyond the noise levels that a network was made for, if it says which."""
    low, high = solver.span
    least, most = getattr(network, "sigma_min", 0.0), getattr(network, "sigma_max", math.inf)
    if low < least * (1 - ROUNDED) or high > most * (1 + ROUNDED):
        raise InputError(
            f"{name}: was made for noise levels sigma of {least:g} to {most:g}, and the sampler takes {low:g} to "
            f"{high:g}; set sigma_min and sigma_max"
        )


def load_pair(configuration: Configuration, device: torch.device, models: Mapping[str, Model] | None = None) -> Pair:
    """Load and check main network and guides before hours are spent; one of diffusers, named twice, is loaded once.

    `models`: what the names stand for that are neither files nor folders. Raises InputError for files that are missing
    or broken, networks that do not fit together, and a network that would guide itself.
    """
    g = configuration.guided.active
    loaded: dict[str, tuple[Denoiser, str]] = {}

    def load(source: str) -> tuple[Denoiser, str]:
        if source not in loaded or network_of(loaded[source][0]) is None:  # others may keep something of a call
            loaded[source] = load_network(source, device, models)
        return loaded[source]

    return pair_of(configuration, device, load(g.main), *(load(str(name)) for name, _ in g.guides if name))


def pair_of(
    configuration: Configuration,
    device: torch.device,
    main: tuple[Denoiser, str],
    *guides: tuple[Denoiser, str],
) -> Pair:
    """The pair of networks at hand, each with what tells it from others, made ready and checked; see `load_pair`."""
    g, (network, sha256) = configuration.guided.active, main
    solver = configuration.solver.of(network)
    for each, _ in (main, *guides):
        if solver.compile and isinstance(each, Precond):
            each.compile()
    if hasattr(network.encoder, "tf32"):
        network.encoder.tf32 = solver.vae_tf32
    worse = _replayed(degrade(network, g.main_degradations, MAIN), device, solver)
    pair = Pair(replace(configuration, guided=g, solver=solver), worse, None, sha256, None, device)
    if not guides:
        return pair
    joined = []
    for number, ((name, degradations), (guide, found)) in enumerate(zip(g.guides, guides, strict=True)):
        check_pair(network, guide, g.main, str(name))
        if found == sha256 and g.main_degradations == degradations:
            raise InputError(f"{g.main} and {name} are the same network: guidance {g.guidance} would do nothing")
        worse = degrade(guide, degradations, GUIDE + number)  # each draws from streams of its own
        joined.append(_replayed(worse, device, solver))
    blend = joined[0] if len(joined) == 1 else Blend(joined, g.shares)
    return replace(pair, guide=blend, guide_sha256="+".join(found for _, found in guides))


def _replayed(network: Denoiser, device: torch.device, solver: Solver) -> Denoiser:
    """The network, as CUDA graphs if the machine is set so and it can be: a plain one, not compiled."""
    if machine().graphs and device.type == "cuda" and isinstance(network, Precond) and not solver.compile:
        replay(network)
    return network
