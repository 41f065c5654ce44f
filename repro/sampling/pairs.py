"""What decides the bits of an image, apart from its seed: a configuration, and its networks loaded and checked."""

import hashlib
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from metrics.detectors import weights
from metrics.files import InputError, explained, sha256_file
from metrics.machine import machine
from repro import snapshots
from repro.cuda import replay
from repro.degradations import GUIDE, MAIN, degrade
from repro.guidance import Guided, check_pair
from repro.inference import fold
from repro.networks import Denoiser, Precond
from repro.numerics import numerics
from repro.schedules import checked
from repro.strict import facts, positive, within

SUFFIXES = (".safetensors", ".pkl")


@dataclass(frozen=True)
class Solver:
    """How images are sampled (`sampler` in a study): every field decides bits."""

    #: Heun steps; the networks are evaluated 2 num_steps - 1 times.
    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
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
        if self.sigma_min >= self.sigma_max:
            raise InputError(f"sigma_max is {self.sigma_max}, expected more than sigma_min, {self.sigma_min}")
        if self.schedule is not None:
            checked([*self.schedule, 0.0])
            if self.num_steps != len(self.schedule):
                raise InputError(f"num_steps is {self.num_steps}, and schedule has {len(self.schedule)} levels")
            if said := [name for name in ("sigma_min", "sigma_max", "rho") if name in facts(self)]:
                raise InputError(f"{said[0]} says nothing beside schedule, which has all noise levels; leave it out")

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
    guide: Denoiser | None
    main_sha256: str
    guide_sha256: str | None
    device: torch.device

    def __post_init__(self) -> None:
        number, count = self.configuration.only_class, self.main.label_dim
        if number is not None and not 0 <= number < count:
            raise InputError(f"{self.configuration.guided.main}: class {number}, the network has {count} classes")

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides an image's bits besides seed and software versions.

        Networks count as what they are, not by name, and fields at their defaults do not count.
        """
        guided = replace(self.configuration.guided, main=self.main_sha256, guide=self.guide_sha256)
        decides = facts(replace(self.configuration, guided=guided)) | {"device": self.device.type}
        return hashlib.sha256(json.dumps(decides | numerics("sampling"), sort_keys=True).encode()).hexdigest()

    def at(self, guidance: float) -> "Pair":
        """The same loaded networks at another weight; 1 needs no guide, and any other one."""
        if guidance != 1 and self.guide is None:
            raise InputError(f"guidance {guidance} needs a guide, and none is loaded")
        guided = replace(self.configuration.guided, guidance=guidance).active
        pair = replace(self, configuration=replace(self.configuration, guided=guided))
        return pair if guidance != 1 else replace(pair, guide=None, guide_sha256=None)


def load_pair(
    configuration: Configuration, device: torch.device, files: Mapping[str, Sequence[str]] | None = None
) -> Pair:
    """Load and check main and guide before hours are spent.

    `files`: of a network that is code, further files and folders that decide what it is. Raises InputError for files
    that are missing or broken, networks that do not fit together, and a network that would guide itself.
    """
    g, solver = configuration.guided.active, configuration.solver

    def load(source: str) -> tuple[Denoiser, str]:
        network, sha256 = load_network(source, device, (files or {}).get(source, ()))
        if solver.compile and isinstance(network, Precond):
            network.compile()
        return network, sha256

    main, sha256 = load(g.main)
    if hasattr(main.encoder, "tf32"):
        main.encoder.tf32 = solver.vae_tf32
    worse = _replayed(degrade(main, g.main_degradations, MAIN), device, solver)
    pair = Pair(replace(configuration, guided=g), worse, None, sha256, None, device)
    if g.guide is None:
        return pair
    guide, guide_sha256 = load(g.guide)
    check_pair(main, guide, g.main, g.guide)
    if guide_sha256 == sha256 and g.main_degradations == g.guide_degradations:
        raise InputError(f"{g.main} and {g.guide} are the same network: guidance {g.guidance} would do nothing")
    worse = _replayed(degrade(guide, g.guide_degradations, GUIDE), device, solver)
    return replace(pair, guide=worse, guide_sha256=guide_sha256)


def _replayed(network: Denoiser, device: torch.device, solver: Solver) -> Denoiser:
    """The network, as CUDA graphs if the machine is set so and it can be: a plain one, not compiled."""
    if machine().graphs and device.type == "cuda" and isinstance(network, Precond) and not solver.compile:
        replay(network)
    return network


def load_network(source: str, device: torch.device, files: Sequence[str] = ()) -> tuple[Denoiser, str]:
    """A network file, or what `module:function` returns (see `load_code`), ready to sample on `device`; its sha256."""
    if Path(source).suffix not in SUFFIXES and ":" in source:
        return load_code(source, device, files)
    snapshot = snapshots.load(source, as_stored=True)
    network = fold(snapshot.network, device)
    network.encoder = snapshot.encoder
    return network, sha256_file(source)


def load_code(source: str, device: torch.device, files: Sequence[str] = ()) -> tuple[Denoiser, str]:
    """The user's own model, what `function` of `module:function` returns, in evaluation mode on `device`; its sha256.

    The digest is that of its parameters and buffers, of `files`, and of those that it lists in an attribute `files`,
    never of its name. Raises InputError where it cannot be imported, is no Denoiser, or has nothing to tell it by.
    """
    module, _, function = source.partition(":")
    with explained(f"cannot import or make the model {source}"):
        model = getattr(importlib.import_module(module), function)()
    if not isinstance(model, Denoiser):
        raise InputError(f"{source} does not return a Denoiser (see repro.networks.Denoiser)")
    tensors = model.eval().requires_grad_(False).to(device).state_dict() if isinstance(model, torch.nn.Module) else {}
    listed = [*files, *getattr(model, "files", ())]
    if not tensors and not listed:
        raise InputError(
            f"{source}: has neither parameters nor a list `files` of what decides its answers, so that a change of it "
            "would go unnoticed; make it a torch.nn.Module or give it `files`"
        )
    content = [weights.digest(tensors), *(sha256 for path in listed for sha256 in _contents(Path(path)))]
    return model, hashlib.sha256("\n".join(content).encode()).hexdigest()


def _contents(path: Path) -> list[str]:
    """Digests of a file, or of the files in a folder."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, though the model depends on it")
    return [sha256_file(p) for p in sorted([path, *path.rglob("*")]) if p.is_file() and p.suffix != ".pyc"]
