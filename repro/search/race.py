"""Finding a guide: the snapshot, EMA lengths and weight that serve a main network best (arXiv:2406.02507 app. B.1).

The paper's pruned local grid search, with images spent where they decide. All candidates are measured on the same
seeds, so that their differences are far less noisy than their values. A local grid is a race: many candidates on few
images, the better half on twice as many, those of before among them, and so on; the distance falls with the number of
images, so only values of equal counts are compared. What remains is measured once more on seeds without part in it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metrics.files import InputError
from repro.search.distance import SampledDistance
from repro.search.space import Candidate, Space
from repro.study import parse_seeds


@dataclass(frozen=True)
class Row:
    """One measurement of the search path, in race `step`."""

    step: int
    #: `screening`, `level 1`, ..., or `fresh seeds`.
    stage: str
    candidate: Candidate
    seeds: str
    num_images: int
    value: float
    #: Whether the candidate went on to the next rung, or won the last.
    kept: bool
    #: Whether it became the best setting so far with this measurement.
    accepted: bool
    #: Different images generated so far, all candidates together.
    images: int


@dataclass(frozen=True)
class Finalist:
    """A setting with its distance on the search's seeds, and on the fresh blocks."""

    candidate: Candidate
    search: float
    mean: float
    min: float
    max: float
    #: One per fresh block.
    values: str


class Search:
    """One run of the search; `path` holds every measurement in order, `on_rung` is called as it grows."""

    def __init__(self, space: Space, objective: SampledDistance, on_rung: Callable[[list[Row]], None]) -> None:
        self.space, self.settings, self.objective, self.on_rung = space, space.settings, objective, on_rung
        self.path: list[Row] = []
        self._step = 0

    def run(self) -> list[Finalist]:
        """Search, and measure what won on fresh seeds; the first finalist is the best on these.

        A gain is always taken, but only one above its standard error is worth another local grid of the same level.
        Raises InputError where the settings' `images` do not suffice for the screening.
        """
        first = self.space.screening()
        least = self.settings.race(len(first), best=False) + self.settings.confirmation
        if self.settings.images is not None and self.settings.images < least:
            raise InputError(f"images is {self.settings.images}, screening and finalists alone take up to {least}")
        ranking = self._race("screening", first, None)
        for level in range(len(self.settings.ema_steps)):
            gained = True
            while gained:
                best = ranking[0]
                others = self.space.neighbours(best, level)
                if not self._affords(len(others)):
                    break
                ranking = self._race(f"level {level + 1}", [best, *others], best)
                change = self.objective.difference(ranking[0], best, self.settings.block)
                gained = change.value < -change.standard_error
        return self._confirm(ranking[: self.settings.finalists])

    def _affords(self, candidates: int) -> bool:
        """Whether a race of so many new ones keeps to the settings' `images`."""
        planned = self.objective.images + self.settings.race(candidates) + self.settings.confirmation
        return self.settings.images is None or planned <= self.settings.images

    def _race(self, stage: str, pool: list[Candidate], best: Candidate | None) -> list[Candidate]:
        """Successive halving of `pool`; all candidates, the winner first, the last ones to drop out next.

        `best` stays in the race whatever its value: it has been measured on all N images before.
        """
        self._step += 1
        block, out = self.settings.block, list[Candidate]()
        for size in self.settings.sizes:
            values = self._measure(pool, block[:size])
            ranking = sorted(pool, key=values.__getitem__)  # equal values in the order given
            better, last = ranking[: -(-len(pool) // 2)], size == len(block)
            going = ranking[:1] if last else [c for c in pool if c in better or c == best]
            self._record(stage, block[:size], values, going, going if last and going != [best] else [])
            out = [c for c in ranking if c not in going] + out
            pool = going
        return pool + out

    def _confirm(self, pool: list[Candidate]) -> list[Finalist]:
        """Candidates by their mean distance on the fresh blocks."""
        self._step += 1
        search, blocks = self._measure(pool, self.settings.block), list[dict[Candidate, float]]()
        for block in map(parse_seeds, self.settings.fresh):
            blocks.append(self._measure(pool, block))
            self._record("fresh seeds", block, blocks[-1], [], [])
        fresh = {c: [values[c] for values in blocks] for c in pool}
        finalists = [
            Finalist(c, search[c], float(np.mean(v)), min(v), max(v), ";".join(f"{value:.8g}" for value in v))
            for c, v in fresh.items()
        ]
        return sorted(finalists, key=lambda finalist: finalist.mean)

    def _measure(self, pool: list[Candidate], seeds: range) -> dict[Candidate, float]:
        return dict(zip(pool, self.objective.measure(pool, seeds), strict=True))

    def _record(
        self, stage: str, seeds: range, values: dict[Candidate, float], kept: list[Candidate], new: list[Candidate]
    ) -> None:
        block, images = f"{seeds[0]}-{seeds[-1]}", self.objective.images
        self.path += [
            Row(self._step, stage, c, block, len(seeds), v, c in kept, c in new, images) for c, v in values.items()
        ]
        self.on_rung(self.path)
