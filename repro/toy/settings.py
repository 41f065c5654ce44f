"""Settings of the 2D example; the defaults are the paper's (arXiv:2406.02507 appendix C)."""

from dataclasses import dataclass, field

from metrics.files import InputError, nearest
from repro.degradations import Strength
from repro.guidance import Guided
from repro.streams import parse_seeds
from repro.strict import finite, located, positive, within
from repro.toy.metrics import NAMES
from repro.trials import Tuning, check_ranges

TRUE_SEED = 2**31  # first seed of true points; all others stay below (streams repeat at 2^32)
LAST_SEED = TRUE_SEED - 2
#: Networks of the paper's methods, fields of `ToySettings`.
ROLES = ("main", "guide", "unconditional")


@dataclass(frozen=True)
class ToyNetworkSettings:
    """What sets one network apart from the others."""

    #: Classes of the mixture it learns: A, B or AB.
    classes: str
    #: Channels of its hidden layers.
    width: int
    #: Length of its training.
    iterations: int

    def __post_init__(self) -> None:
        if self.classes not in ("A", "B", "AB"):
            raise InputError(f"classes is '{self.classes}', expected A, B or AB")
        positive(self, "width", "iterations")


@dataclass(frozen=True)
class ToyTrainingSettings:
    """What the networks' trainings share; with `ToyNetworkSettings`, all that decides the trained weights."""

    #: Settles initial weights, training points and noise levels.
    seed: int = 0
    #: Hidden layers after the input layer.
    num_layers: int = 4
    batch_size: int = 4096
    #: Peak learning rate.
    ref_lr: float = 0.01
    #: Iterations after which the learning rate decays as 1/sqrt.
    ref_iterations: int = 512
    #: Mean of ln(sigma).
    P_mean: float = -2.3
    #: Standard deviation of ln(sigma).
    P_std: float = 1.5
    #: Relative length of the power-function average that is kept.
    ema_std: float = 0.010

    def __post_init__(self) -> None:
        within(self, 0, LAST_SEED, "seed")
        positive(self, "num_layers", "batch_size", "ref_lr", "ref_iterations", "P_std", "ema_std")
        within(self, 0, 0.3, "ema_std")
        finite(self, "P_mean")


@dataclass(frozen=True)
class ToyTuned:
    """A method beside the paper's, whose settings are looked for before it is measured."""

    #: What is looked for -> least and greatest: `guidance`, and degradations of the guide, by name.
    over: dict[str, tuple[float, float]]
    #: The guide; None: the main network.
    network: ToyNetworkSettings | None = None
    #: What makes the guide worse: of what there is, `input_noise` applies to points.
    guide_degradations: dict[str, Strength] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self.over, self.guided)
        if self.network is None and not self.guide_degradations:
            raise InputError("expected a network, or guide_degradations of the main one")
        if others := self.guide_degradations.keys() - {"input_noise"}:
            raise InputError(f"degradation '{min(others)}' is not for points; expected input_noise")

    @property
    def guided(self) -> Guided:
        """With the settings before any are looked for."""
        return Guided("main", "guide", guide_degradations=self.guide_degradations)


@dataclass(frozen=True)
class ToySettings:
    """One run of the 2D example."""

    #: What is measured: fresh points of the mixture, and samples by every method.
    METHODS = ("true", "unguided", "cfg", "autoguidance", "truncation")

    training: ToyTrainingSettings = ToyTrainingSettings()
    main: ToyNetworkSettings = ToyNetworkSettings("A", width=64, iterations=4096)
    #: Autoguidance: smaller and less trained, same class.
    guide: ToyNetworkSettings = ToyNetworkSettings("A", width=32, iterations=512)
    #: Classifier-free guidance: sees both classes.
    unconditional: ToyNetworkSettings = ToyNetworkSettings("AB", width=32, iterations=512)
    #: Iterations between checkpoints; decides no result.
    checkpoint_every: int = 512

    #: Further methods by name, and the effort of looking for their settings; `seeds` is one sampling seed.
    tuned: dict[str, ToyTuned] = field(default_factory=dict)
    tuning: Tuning | None = None

    #: Guidance weight w, as is `cfg`.
    autoguidance: float = 3.0
    cfg: float = 4.0
    #: Factor of the score in naive truncation.
    truncation: float = 1.40
    #: Heun steps.
    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 5.0
    rho: float = 7.0

    #: One set of samples, and so one row of measures, each.
    sampling_seeds: tuple[int, ...] = (0, 1, 2)
    #: Points per set.
    num_samples: int = 16384
    #: True points that settle the contour of 99% of the mass.
    num_true: int = 131072
    #: Projections of the sliced Wasserstein distance.
    num_directions: int = 256
    #: Whether the paper's figures 1 and 2 are drawn.
    figures: bool = True

    def __post_init__(self) -> None:
        positive(self, "checkpoint_every", "num_steps", "sigma_min", "sigma_max", "rho", "num_samples", "num_true")
        positive(self, "num_directions")
        finite(self, "autoguidance", "cfg", "truncation")
        within(self, 0, LAST_SEED, "sampling_seeds")
        if not self.sigma_min < self.sigma_max:
            raise InputError(f"sigma_max is {self.sigma_max}, expected more than sigma_min, {self.sigma_min}")
        if not self.sampling_seeds or len(set(self.sampling_seeds)) < len(self.sampling_seeds):
            raise InputError(f"sampling_seeds is {list(self.sampling_seeds)}, expected distinct seeds, at least one")
        if taken := self.tuned.keys() & {*self.METHODS, *ROLES}:  # what is tuned has its networks beside theirs
            raise InputError(f"tuned.{min(taken)}: is a method of the paper's or a network's; choose another name")
        if self.tuned:
            self._check_tuning()

    def _check_tuning(self) -> None:
        if self.tuning is None:
            raise InputError("missing key tuning: tuned needs seeds, trials and metric")
        with located("tuning"):
            if self.tuning.metric not in NAMES:
                raise InputError(
                    f"metric '{self.tuning.metric}' is not measured here{nearest(self.tuning.metric, NAMES)}"
                )
            seeds = parse_seeds(self.tuning.seeds)
            if len(seeds) > 1 or seeds[0] > LAST_SEED or seeds[0] in self.sampling_seeds:
                raise InputError(f"seeds is {self.tuning.seeds}, expected one seed that is none of sampling_seeds")

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of everything that is measured."""
        return (*self.METHODS, *self.tuned)
