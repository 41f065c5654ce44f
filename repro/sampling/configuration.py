"""What decides the bits of an image, apart from its seed and the device type; and what does not."""

import math
from dataclasses import dataclass, field

from metrics.files import InputError
from repro.guidance import Guided
from repro.strict import positive, within


@dataclass(frozen=True)
class Solver:
    """How images are sampled (`sampler` in a study): every field decides bits."""

    #: Heun steps; the networks are evaluated 2 num_steps - 1 times.
    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
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
        within(self, 0, math.inf, "S_churn", "S_min", "S_noise")
        if self.sigma_min >= self.sigma_max:
            raise InputError(f"sigma_max is {self.sigma_max}, expected more than sigma_min, {self.sigma_min}")

    def arguments(self) -> dict[str, float]:
        """The solver's arguments of `repro.sampler.sample`."""
        names = ("num_steps", "sigma_min", "sigma_max", "rho", "S_churn", "S_min", "S_max", "S_noise")
        return {name: getattr(self, name) for name in names}


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

    def __post_init__(self) -> None:
        interval = self.guided.interval
        if interval is not None and interval[1] >= self.solver.num_steps:
            raise InputError(f"interval {list(interval)}: the sampler has steps 0 to {self.solver.num_steps - 1}")
