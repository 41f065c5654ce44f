"""Settings found with the same effort for every method: so many trials on the same seeds, of which no result is made.

A method whose weight was looked for longer than another's would win by that. The trials are those of DIRECT (Jones et
al. 1993, as `scipy.optimize.direct` has it), which divides the ranges where the values are good or few, draws no random
numbers and needs no settings.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from metrics.files import InputError, nearest
from metrics.names import named
from repro.degradations import DEGRADATIONS
from repro.guidance import Guided
from repro.streams import parse_seeds
from repro.strict import located, within

Settings = TypeVar("Settings")
#: What is looked for -> least and greatest: `guidance`, and degradations of the guide, by name.
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Tuning:
    """The effort that everything that is tuned gets, the same for all."""

    #: Seed block of every trial; no part of what is reported.
    seeds: str
    #: Different settings that are tried.
    trials: int
    #: Full name of what is optimised, see `metrics.names`.
    metric: str

    def __post_init__(self) -> None:
        parse_seeds(self.seeds)
        within(self, 1, 1000, "trials")
        if not named(self.metric).better:
            raise InputError(f"metric '{self.metric}': no direction is better, so nothing can be optimised")


def check_ranges(over: Ranges, guided: Guided) -> None:
    """Raise InputError for what is no setting of `guided`, or ranges that it cannot have."""
    if not over:
        raise InputError("over is empty, expected what to look for, such as guidance: [1.1, 4]")
    for name, (least, greatest) in over.items():
        if name not in (known := ("guidance", *guided.guide_degradations)):
            raise InputError(f"over: '{name}' is no setting of the guide{nearest(name, known)}")
        if not _floor(name) < least < greatest < math.inf:
            expected = f"{_floor(name):g} < least < greatest"
            raise InputError(f"over.{name} is [{least:g}, {greatest:g}], expected {expected}")
    with located("over"):
        for place in (0.0, 1.0):
            settings_at(over, guided, [place] * len(over))


def settings_at(over: Ranges, guided: Guided, place: Sequence[float]) -> Guided:
    """`guided` with the settings at a place of the unit cube, rounded to 3 digits.

    Along its sides the distance of a setting from where it does nothing (weight 1, strength 0) grows in proportion.
    """
    guidance, strengths = guided.guidance, dict(guided.guide_degradations)
    for (name, (least, greatest)), u in zip(over.items(), place, strict=True):
        floor = _floor(name)
        value = float(f"{floor + (least - floor) * ((greatest - floor) / (least - floor)) ** u:.3g}")
        if name == "guidance":
            guidance = value
        else:
            strengths[name] = DEGRADATIONS[name].at(strengths[name], value)
    return replace(guided, guidance=guidance, guide_degradations=strengths)


def _floor(name: str) -> float:
    """Where a setting does nothing."""
    return 1.0 if name == "guidance" else 0.0


def search(
    value: Callable[[Settings], float], at: Callable[[Sequence[float]], Settings], dim: int, trials: int
) -> list[tuple[Settings, float]]:
    """The first `trials` different settings that DIRECT tries for the least `value`, in order, with their values.

    `at` gives the settings at a place of the unit cube of `dim` sides. Fewer where there are not so many.
    """
    from scipy.optimize import direct  # slow to import

    tried: list[tuple[Settings, float]] = []

    def ask(place: Sequence[float]) -> float:
        settings = at(place)
        for other, known in tried:
            if other == settings:
                return known
        if len(tried) == trials:
            raise StopIteration
        tried.append((settings, value(settings)))
        return tried[-1][1]

    with suppress(StopIteration):
        direct(ask, [(0.0, 1.0)] * dim, maxfun=100 * trials, maxiter=100 * trials, vol_tol=0)
    return tried
