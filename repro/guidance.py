"""Guidance: which networks are asked, and how their answers are combined.

D_w = w D_main + (1 - w) D_guide; the guide is a worse version of the main network (autoguidance,
arXiv:2406.02507 section 3) or an unconditional one (classifier-free guidance).
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metrics.files import InputError, nearest
from metrics.registry import Registry
from repro import schedules
from repro.cuda import side_by_side
from repro.degradations import Strength, check_degradations
from repro.networks import Denoiser
from repro.strict import finite

#: (x, sigma, weight of each guide) -> D(x; sigma), [N, ...].
Denoise = Callable[[Tensor, Tensor, Sequence[float]], Tensor]
#: (D_main, D_guide, w) -> D_w, all [N, ...].
Rule = Callable[[Tensor, Tensor, float], Tensor]

#: What makes a rule of its settings, anew for every batch, so that one with a memory begins each without.
RULES: Registry[Callable[..., Rule]] = Registry("guidance rule")

#: How the weight of a guided step depends on its place u, from 0 at the first one to 1 at the last, for a weight w.
RAMPS: dict[str, Callable[[float, float], float]] = {
    "constant": lambda w, u: w,
    "linear": lambda w, u: 1 + 2 * (w - 1) * u,  # arXiv:2404.13040; both ramps have mean w
    "cosine": lambda w, u: 1 + (w - 1) * (1 - math.cos(math.pi * u)),
}


@dataclass(frozen=True)
class OtherGuide:
    """One more guide, beside the first."""

    #: Guiding network, as in `Guided`.
    guide: str
    #: Its part of the guidance, w_i = 1 + share (w - 1); the first guide has what the others leave of 1.
    share: float
    #: Name -> strength of what makes it worse.
    degradations: dict[str, Strength] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finite(self, "share")
        check_degradations(self.degradations)


@dataclass(frozen=True)
class Guided:
    """A main network and what guides it: one value wherever a configuration is named."""

    #: Main network: a file, or whatever the holder's field says.
    main: str
    #: Guiding network; None, or any, where there is no guidance.
    guide: str | None = None
    #: Weight w of D_w = w D_main + (1 - w) D_guide, of all guides together; 1 = no guidance.
    guidance: float = 1.0
    #: Guided sampler steps, first and last, inclusive; None: all.
    interval: tuple[int, int] | None = None
    #: How the answers of main network and guide are combined, a name of `RULES`.
    rule: str = "linear"
    #: Name -> strength of what makes the main network worse at inference (`repro.degradations`).
    main_degradations: dict[str, Strength] = field(default_factory=dict)
    #: The same for the guide.
    guide_degradations: dict[str, Strength] = field(default_factory=dict)
    #: Settings of the rule.
    rule_settings: dict[str, float] = field(default_factory=dict)
    #: How the weight rises over the guided steps, a name of `RAMPS`.
    ramp: str = "constant"
    #: Further guides, of which each has a share (arXiv:2406.02507 appendix B.2).
    other_guides: list[OtherGuide] = field(default_factory=list)

    def __post_init__(self) -> None:
        finite(self, "guidance")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise InputError(f"interval {list(self.interval)}: expected [first, last] sampler steps, first <= last")
        make_rule(self.rule, self.rule_settings)
        if self.ramp not in RAMPS:
            raise InputError(f"ramp '{self.ramp}' is unknown{nearest(self.ramp, RAMPS)}")
        check_degradations(self.main_degradations)
        check_degradations(self.guide_degradations)
        if self.guidance != 1 and self.guide is None:
            raise InputError(f"guidance {self.guidance} needs a guide")
        if self.guidance != 1 and (self.main, self.main_degradations) in self.guides:
            raise InputError(f"guidance {self.guidance} with the main network as its own guide does nothing; use 1")
        if self.other_guides and self.rule != "linear":
            raise InputError(f"rule '{self.rule}' takes one guide, found {len(self.guides)}; several need rule linear")

    @property
    def guides(self) -> list[tuple[str | None, dict[str, Strength]]]:
        """Every guide with its degradations, the first one first."""
        others = [(other.guide, other.degradations) for other in self.other_guides]
        return [(self.guide, self.guide_degradations), *others]

    @property
    def networks(self) -> list[str]:
        """The main network, then every guide."""
        return [self.main, *(guide for guide, _ in self.guides if guide is not None)]

    @property
    def shares(self) -> list[float]:
        """Of every guide, 1 in all."""
        others = [other.share for other in self.other_guides]
        return [1 - math.fsum(others), *others]

    @property
    def weights(self) -> list[float]:
        """w_i of D_main + sum_i (w_i - 1)(D_main - D_i), of every guide."""
        return [1 + share * (self.guidance - 1) for share in self.shares]

    @property
    def active(self) -> "Guided":
        """What is left of it when it is sampled: weight 1 means no guide, whatever else is named."""
        return self if self.guidance != 1 else Guided(self.main, main_degradations=self.main_degradations)


def linear() -> Rule:
    """D_g + w (D_m - D_g)."""
    return lambda D_main, D_guide, w: D_guide.lerp(D_main, w)


def apg(beta: float = -0.5, r: float = math.inf, eta: float = 0.0) -> Rule:
    """Adaptive projected guidance (arXiv:2410.02416): what is parallel to D_m counts `eta` times, steps are bounded.

    The difference D_m - D_g takes `beta` times that of the evaluation before along, is shortened to the norm `r` per
    sample, and split into the part parallel to D_m and the rest. beta 0, r inf and eta 1 are `linear`.
    """
    running: Tensor | float = 0.0

    def join(D_main: Tensor, D_guide: Tensor, w: float) -> Tensor:
        nonlocal running
        running = D_main - D_guide + beta * running
        delta, along = running.double(), D_main.double()
        delta = delta * (r / _sum(delta * delta).sqrt()).clamp(max=1).nan_to_num(nan=1.0)
        parallel = along * (_sum(delta * along) / _sum(along * along)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return (D_main + (w - 1) * (delta - parallel + eta * parallel)).to(D_main.dtype)

    return join


def rescaled(phi: float = 0.7) -> Rule:
    """`linear`, of which a share `phi` has the standard deviation of D_m, per sample (arXiv:2305.08891, sec. 3.4)."""

    def join(D_main: Tensor, D_guide: Tensor, w: float) -> Tensor:
        D_w = D_guide.lerp(D_main, w)
        wanted, found = (_sum((D - _sum(D) / D[0].numel()) ** 2).sqrt() for D in (D_main, D_w))
        return D_w * (1 - phi + phi * torch.where(found > 0, wanted / found, 1.0))

    return join


def _sum(D: Tensor) -> Tensor:
    """Over everything but the samples: [N, ...] -> [N, 1, ...]."""
    return D.sum(dim=list(range(1, D.ndim)), keepdim=True)


RULES.register("linear", linear)
RULES.register("apg", apg)
RULES.register("rescaled", rescaled)


def make_rule(name: str, settings: Mapping[str, float]) -> Rule:
    """A rule by its name; raises InputError for a name or a setting that there is not, and one that is no number."""
    known = inspect.signature(RULES[name]).parameters
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"guidance rule {name} has no setting '{key}'{nearest(key, known)}")
        if math.isnan(value):
            raise InputError(f"{key} of guidance rule {name} is not a number")
    return RULES[name](**settings)


def combine(D_main: Tensor, D_guide: Tensor, w: float, rule: str = "linear", **settings: float) -> Tensor:
    """One combination of answers [N, ...] by a rule, as if nothing had been before; see `RULES`."""
    return make_rule(rule, settings)(D_main, D_guide, w)


def step_weights(
    weights: Sequence[float], num_steps: int, interval: tuple[int, int] | None = None, ramp: str = "constant"
) -> list[list[float]]:
    """The guides' weights in each of `num_steps` steps: 1, no guidance, outside `interval`, and inside by `ramp`."""
    first, last = interval or (0, num_steps - 1)
    count = last - first

    def weight(w: float, step: int) -> float:
        return RAMPS[ramp](w, (step - first) / count) if count else w

    return [[weight(w, i) if first <= i <= last else 1.0 for w in weights] for i in range(num_steps)]


def guided_steps(
    sigma_lo: float,
    sigma_hi: float,
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    levels: Sequence[float] | Tensor | None = None,
) -> tuple[int, int]:
    """Sampler steps of the interval (sigma_lo, sigma_hi]: (first, last), inclusive; of EDM's `levels` by default.

    The bounds are rounded step values in the papers, so each snaps to the nearest noise level (in log sigma)
    before `first` = the level at sigma_hi and `last` = the one before the level at sigma_lo
    (arXiv:2404.07724 equations 5 and 6). A literal comparison would shift (0.28, 2.90] by a step.
    Raises InputError for bounds out of order, or with no step between them.
    """
    if not 0 < sigma_lo < sigma_hi:
        raise InputError(f"guidance interval ({sigma_lo}, {sigma_hi}]: expected 0 < sigma_lo < sigma_hi")
    t_steps = schedules.edm(num_steps, sigma_min, sigma_max, rho) if levels is None else schedules.checked(levels)
    logs = t_steps[:-1].log()
    first, end = (int((logs - math.log(sigma)).abs().argmin()) for sigma in (sigma_hi, sigma_lo))
    if end <= first:
        raise InputError(f"guidance interval ({sigma_lo}, {sigma_hi}] holds none of the {len(logs)} steps")
    return first, end - 1


def guided(
    network: Denoiser,
    labels: Tensor | None,
    guides: Sequence[Denoiser] = (),
    rule: str = "linear",
    rule_settings: Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    streams: bool = False,
) -> Denoise:
    """Denoiser (x, sigma, weights) -> D(x; sigma) in `dtype`: `network` guided by `guides`, of one weight each.

    One guide: `rule`. Several: D_main + sum_i (w_i - 1)(D_main - D_i) (arXiv:2406.02507 equation 6). A guide of
    weight 1 is never evaluated. Conditional guides get the labels. `streams`: the networks run side by side on CUDA.
    """
    if len(guides) > 1 and rule != "linear":
        raise InputError(f"rule '{rule}' takes one guide, found {len(guides)}; several need rule linear")
    join = make_rule(rule, rule_settings or {})

    def ask(model: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
        return model(x, sigma, labels if model.label_dim else None).to(dtype)

    def denoise(x: Tensor, sigma: Tensor, weights: Sequence[float]) -> Tensor:
        active = [(guide, w) for guide, w in zip(guides, weights, strict=True) if w != 1]
        models = [network, *(guide for guide, _ in active)]
        calls = [partial(ask, model, x, sigma) for model in models]
        together = streams and x.device.type == "cuda" and len(calls) > 1
        D_main, *answers = side_by_side(calls, x.device) if together else (call() for call in calls)
        if len(active) == 1:
            return join(D_main, answers[0], active[0][1])
        return sum(((w - 1) * (D_main - D_i) for D_i, (_, w) in zip(answers, active, strict=True)), start=D_main)

    return denoise


class Blend:
    """Several guides as one, whose answer is the mean of theirs by `shares`, 1 in all.

    With weight w it is D_main + sum_i (w_i - 1)(D_main - D_i), w_i = 1 + share_i (w - 1) (arXiv:2406.02507 equation 6).
    """

    def __init__(self, guides: Sequence[Denoiser], shares: Sequence[float]) -> None:
        if len(guides) != len(shares) or not math.isclose(math.fsum(shares), 1, abs_tol=1e-9):
            raise InputError(f"{len(guides)} guides with shares {list(shares)}: expected one for each, 1 in all")
        self.guides, self.shares = list(guides), list(shares)
        first = next((guide for guide in guides if guide.label_dim), guides[0])
        self.label_dim, self.encoder = first.label_dim, first.encoder
        self.img_resolution, self.img_channels = first.img_resolution, first.img_channels
        self.sigma_data = first.sigma_data

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of the answers [N, ...]; a guide without a share is not asked."""
        asked = [(guide, share) for guide, share in zip(self.guides, self.shares, strict=True) if share]
        answers = ((guide(x, sigma, labels if guide.label_dim else None), share) for guide, share in asked)
        return torch.stack([answer * share for answer, share in answers]).sum(dim=0)


def check_pair(main: Denoiser, guide: Denoiser, main_name: str = "main", guide_name: str = "guide") -> None:
    """Raise InputError where a guide differs from `main` in shape, sigma_data or encoder or, if it has any, classes."""
    ours = _facts(main)
    for key, fact in _facts(guide).items():
        if fact != ours[key] and (key, fact) != ("label_dim", 0):
            raise InputError(f"{guide_name} cannot guide {main_name}: {key} is {fact}, expected {ours[key]}")


def _facts(model: Denoiser) -> dict[str, Any]:
    facts = {key: getattr(model, key) for key in ("img_resolution", "img_channels", "sigma_data", "label_dim")}
    # How many at once changes nothing.
    encoder = model.encoder.config() | {"batch_size": None} if hasattr(model.encoder, "config") else model.encoder
    return facts | {"encoder": encoder}
