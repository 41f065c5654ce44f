"""Settings of the 2D example; the defaults are the paper's (arXiv:2406.02507 appendix C)."""

from dataclasses import dataclass
from typing import ClassVar

from metrics.files import InputError
from repro.strict import finite, positive, within

TRUE_SEED = 2**31  # first seed of true points; all others stay below (streams repeat at 2^32)
LAST_SEED = TRUE_SEED - 2


@dataclass(frozen=True)
class ToyNetworkSettings:
    """What sets one network apart from the others."""

    classes: str
    """Classes of the mixture it learns: A, B or AB."""
    width: int
    """Channels of its hidden layers."""
    iterations: int
    """Length of its training."""

    def __post_init__(self) -> None:
        if self.classes not in ("A", "B", "AB"):
            raise InputError(f"classes is '{self.classes}', expected A, B or AB")
        positive(self, "width", "iterations")


@dataclass(frozen=True)
class ToyTrainingSettings:
    """What the networks' trainings share; with `ToyNetworkSettings`, all that decides the trained weights."""

    seed: int = 0
    """Settles initial weights, training points and noise levels."""
    num_layers: int = 4
    """Hidden layers after the input layer."""
    batch_size: int = 4096
    ref_lr: float = 0.01
    """Peak learning rate."""
    ref_iterations: int = 512
    """Iterations after which the learning rate decays as 1/sqrt."""
    P_mean: float = -2.3
    """Mean of ln(sigma)."""
    P_std: float = 1.5
    """Standard deviation of ln(sigma)."""
    ema_std: float = 0.010
    """Relative length of the power-function average that is kept."""

    def __post_init__(self) -> None:
        within(self, 0, LAST_SEED, "seed")
        positive(self, "num_layers", "batch_size", "ref_lr", "ref_iterations", "P_std", "ema_std")
        within(self, 0, 0.3, "ema_std")
        finite(self, "P_mean")


@dataclass(frozen=True)
class ToySettings:
    """One run of the 2D example."""

    METHODS: ClassVar[tuple[str, ...]] = ("true", "unguided", "cfg", "autoguidance", "truncation")
    """What is measured: fresh points of the mixture, and samples by every method."""

    training: ToyTrainingSettings = ToyTrainingSettings()
    main: ToyNetworkSettings = ToyNetworkSettings("A", width=64, iterations=4096)
    guide: ToyNetworkSettings = ToyNetworkSettings("A", width=32, iterations=512)
    """Autoguidance: smaller and less trained, same class."""
    unconditional: ToyNetworkSettings = ToyNetworkSettings("AB", width=32, iterations=512)
    """Classifier-free guidance: sees both classes."""
    checkpoint_every: int = 512
    """Iterations between checkpoints; decides no result."""

    autoguidance: float = 3.0
    """Guidance weight w, as is `cfg`."""
    cfg: float = 4.0
    truncation: float = 1.40
    """Factor of the score in naive truncation."""
    num_steps: int = 32
    """Heun steps."""
    sigma_min: float = 0.002
    sigma_max: float = 5.0
    rho: float = 7.0

    sampling_seeds: tuple[int, ...] = (0, 1, 2)
    """One set of samples, and so one row of measures, each."""
    num_samples: int = 16384
    """Points per set."""
    num_true: int = 131072
    """True points that settle the contour of 99% of the mass."""
    num_directions: int = 256
    """Projections of the sliced Wasserstein distance."""
    figures: bool = True
    """Whether the paper's figures 1 and 2 are drawn."""

    def __post_init__(self) -> None:
        positive(self, "checkpoint_every", "num_steps", "sigma_min", "sigma_max", "rho", "num_samples", "num_true")
        positive(self, "num_directions")
        finite(self, "autoguidance", "cfg", "truncation")
        within(self, 0, LAST_SEED, "sampling_seeds")
        if not self.sigma_min < self.sigma_max:
            raise InputError(f"sigma_max is {self.sigma_max}, expected more than sigma_min, {self.sigma_min}")
        if not self.sampling_seeds or len(set(self.sampling_seeds)) < len(self.sampling_seeds):
            raise InputError(f"sampling_seeds is {list(self.sampling_seeds)}, expected distinct seeds, at least one")
