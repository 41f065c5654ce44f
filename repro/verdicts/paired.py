"""Paired differences: all methods share seeds, noise and labels, so a difference is far less noisy than its two values.

Every configuration leaves its values with each of some groups of seeds left out (`repro.rows.Replicate`). The jackknife
of the difference of two configurations is the difference of their replicates (Efron 1982, eq. 3.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from metrics.files import InputError
from metrics.frechet import jackknife
from repro.rows import REAL, WHOLE

LEVEL = 0.05  # of all verdicts of a study together


@dataclass(frozen=True)
class Difference:
    """Value of one configuration minus that of another, of the same seeds, in the metric's unit."""

    ours: float
    theirs: float
    standard_error: float
    #: Groups of seeds that the jackknife leaves out, each once; or training seeds that it is the mean of.
    groups: int
    num_images: int

    @property
    def value(self) -> float:
        return self.ours - self.theirs

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95%, on its own: not corrected for other differences."""
        return self.value - self._least(LEVEL), self.value + self._least(LEVEL)

    def p(self, margin: float) -> float:
        """Two-sided p-value of the difference being `margin`, by Student's t with one degree of freedom less than
        groups."""
        from scipy.special import stdtr  # slow to import

        away = abs(self.value - margin)
        if not self.standard_error:
            return float(not away)
        return 2 * float(stdtr(self.groups - 1, -away / self.standard_error))

    def needed(self, margin: float, level: float) -> float:
        """How many times as much would tell the difference from `margin` at a level, if it is what it seems to be."""
        away = abs(self.value - margin)
        return (self._least(level) / away) ** 2 if away else math.inf

    def _least(self, level: float) -> float:
        """How far from a margin the difference, on its own, tells itself from it."""
        from scipy.special import stdtrit  # slow to import

        return float(stdtrit(self.groups - 1, 1 - level / 2)) * self.standard_error


def difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> Difference:
    """The difference of two configurations in one metric, of their replicates (columns of `repro.rows.Replicate`).

    Raises InputError where they are not of the same seeds.
    """
    a, b = (side.set_index("left_out") for side in (ours, theirs))
    groups = [name for name in a.index if name not in (WHOLE, REAL)]
    if len(groups) < 2 or {*groups, WHOLE} != {*b.index} - {REAL}:
        raise InputError("not of the same seeds")
    value, other = a["value"], b["value"]
    found = jackknife(float(value[WHOLE] - other[WHOLE]), (value[groups] - other[groups]).to_list())
    whole = float(value[WHOLE]), float(other[WHOLE])
    return Difference(*whole, found.standard_error, len(groups), int(a["num_images"][WHOLE]))


def mean(differences: Sequence[Difference]) -> Difference:
    """The mean of the same difference over several training seeds, with the error that their spread gives it.

    The networks are then a sample of those that the method could have trained, so that it speaks of the method.
    """
    error = np.std([each.value for each in differences], ddof=1) / math.sqrt(len(differences))
    ours, theirs = (float(np.mean([getattr(each, side) for each in differences])) for side in ("ours", "theirs"))
    return Difference(ours, theirs, float(error), len(differences), sum(each.num_images for each in differences))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected so that rejecting those up to a level errs in the whole family that rarely (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate([(len(p) - place) * p[i] for place, i in enumerate(order)])
    found = np.empty(len(p))
    found[order] = np.minimum(corrected, 1.0)
    return [float(each) for each in found]
