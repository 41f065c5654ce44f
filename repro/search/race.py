"""Finding a guide: the snapshot, EMA lengths and weight that serve a main network best (arXiv:2406.02507 app. B.1).

The paper's pruned local grid search, with images spent where they decide. All candidates are measured on the same
seeds, so that their differences are far less noisy than their values. A local grid is a race: many candidates on few
images, the better half on twice as many, and so on; the distance falls with the number of images, so only values of
equal counts are compared. The seeds of a longer measurement contain those of a shorter one, whose images are not
sampled again. Gains within their standard error are not pursued. What remains at the end is measured once more on
seeds that played no part in the search.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metrics.files import InputError
from metrics.frechet import Estimate
from repro.study import parse_seeds

AXES = ("guidance", "main_ema", "guide_ema")  # continuous; the guide's run and snapshot are the others


@dataclass(frozen=True)
class SearchSettings:
    """How a guide is looked for."""

    seeds: str
    """Seed block of the search; its length is N, the number of images of a full measurement."""
    fresh: list[str]
    """Other blocks of N seeds, on which the winner and its best neighbours are measured again."""
    rungs: int = 3
    """A race runs on N / 2^(rungs - 1), ..., N / 2, N images; at each rung the better half goes on."""
    finalists: int = 4
    """The winner and its best neighbours, so many in all, are measured on the fresh blocks."""
    guidance: list[float] = field(default_factory=lambda: [1.0, 3.5])
    """Least and greatest weight."""
    guidance_steps: list[float] = field(default_factory=lambda: [0.4, 0.2, 0.1, 0.05])
    """Half-widths of the local grids along the weight, coarse to fine; the last one is the lattice."""
    ema: list[float] = field(default_factory=lambda: [0.010, 0.250])
    """Least and greatest EMA length, of main network and guide."""
    ema_steps: list[float] = field(default_factory=lambda: [0.04, 0.02, 0.01, 0.005])
    """The same along both EMA lengths, as many as `guidance_steps`."""
    first_guidance: list[float] = field(default_factory=lambda: [1.4, 1.8, 2.4])
    """Weights at which every snapshot is screened first."""
    first_ema: float = 0.10
    """EMA length of main network and guide in the screening."""
    guide_kimg: list[int] | None = None
    """Training lengths of guides, as in snapshot names; default: the run's whole, half, quarter, ..."""
    profile_error: float = 0.2
    """EMA lengths whose averaging profile the snapshots rebuild less well (relative L2 error) are left out; the
    published guides have up to 0.15, from four snapshots."""

    def __post_init__(self) -> None:
        for name in ("guidance", "ema"):
            ends = getattr(self, name)
            if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
                raise InputError(f"{name} is {ends}, expected [least, greatest]")
        for name in ("guidance_steps", "ema_steps"):
            steps = getattr(self, name)
            if not steps or min(steps) <= 0 or steps != sorted(set(steps), reverse=True):
                raise InputError(f"{name} is {steps}, expected falling steps above 0")
        if len(self.guidance_steps) != len(self.ema_steps):
            raise InputError(
                f"guidance_steps has {len(self.guidance_steps)} levels and ema_steps {len(self.ema_steps)}, "
                "expected as many"
            )
        if not self.first_guidance or not all(_inside(w, self.guidance) for w in self.first_guidance):
            raise InputError(f"first_guidance is {self.first_guidance}, expected weights within {self.guidance}")
        if not _inside(self.first_ema, self.ema):
            raise InputError(f"first_ema is {self.first_ema}, expected a length within {self.ema}")
        if self.rungs < 1 or self.finalists < 1 or not self.fresh:
            raise InputError("expected at least one rung, one finalist and one fresh block")
        blocks = [parse_seeds(block) for block in (self.seeds, *self.fresh)]
        if any(len(block) != len(blocks[0]) for block in blocks):
            raise InputError("seeds and fresh: blocks differ in length; distances of unequal counts are not comparable")
        if any(a.start < b.stop and b.start < a.stop for a, b in itertools.combinations(blocks, 2)):
            raise InputError("seeds and fresh: blocks overlap; fresh seeds must play no part in the search")
        if len(blocks[0]) % 2 ** (self.rungs - 1):
            raise InputError(f"seeds {self.seeds}: {len(blocks[0])} cannot be halved {self.rungs - 1} times")

    @property
    def ema_lattice(self) -> NDArray[np.float64]:
        """Every EMA length within the range, a finest step apart."""
        places = np.arange(_count(self.ema, self.ema_steps[-1]), dtype=np.float64)
        return (self.ema[0] + places * self.ema_steps[-1]).round(6)

    @property
    def sizes(self) -> list[int]:
        """Images per candidate at each rung."""
        full = len(parse_seeds(self.seeds))
        return [full >> k for k in reversed(range(self.rungs))]


def _inside(value: float, ends: Sequence[float]) -> bool:
    return ends[0] <= value <= ends[1]


@dataclass(frozen=True)
class Candidate:
    """One setting of everything that is searched."""

    guide: str
    """The guide's training run."""
    kimg: int
    """Its training length, thousands of images as in snapshot names."""
    guidance: float
    main_ema: float | None
    """None where the main network is one fixed file."""
    guide_ema: float

    def __str__(self) -> str:
        main = "" if self.main_ema is None else f", main EMA {self.main_ema:.3f}"
        return f"w {self.guidance:g}, guide {self.guide} at {self.kimg} kimg, guide EMA {self.guide_ema:.3f}{main}"


class Objective(Protocol):
    """What a search minimises."""

    @property
    def images(self) -> int:
        """Different images, in all, behind the values asked for so far."""

    def measure(self, candidates: Sequence[Candidate], seeds: range) -> list[float]:
        """The distance of each candidate, on the images of `seeds`."""

    def difference(self, a: Candidate, b: Candidate, seeds: range) -> Estimate:
        """Distance of `a` less that of `b` on the same seeds, both measured before, with its standard error."""


Interval = tuple[float, float]


@dataclass(frozen=True)
class Space:
    """What is searched: snapshots by run, and the lattice of weights and EMA lengths."""

    settings: SearchSettings
    guides: Mapping[str, Mapping[int, Interval]]
    """Run -> training length -> least and greatest EMA length that its snapshots give."""
    main_ema: Interval | None
    """The same for the main network; None for a fixed one."""

    def screening(self) -> list[Candidate]:
        """Every snapshot at the first weights and EMA length."""
        s = self.settings
        return [
            self._settle(Candidate(run, kimg, w, None if self.main_ema is None else s.first_ema, s.first_ema))
            for run, times in self.guides.items()
            for kimg in times
            for w in s.first_guidance
        ]

    def neighbours(self, centre: Candidate, level: int) -> list[Candidate]:
        """The local grid around `centre`: one step to either side along every axis."""
        s = self.settings
        steps = {"guidance": s.guidance_steps[level], "main_ema": s.ema_steps[level], "guide_ema": s.ema_steps[level]}
        found = [
            _moved(centre, axis, sign * steps[axis])
            for axis in AXES
            if getattr(centre, axis) is not None
            for sign in (-1, 1)
        ]
        times = sorted(self.guides[centre.guide])
        place = times.index(centre.kimg)
        found += [replace(centre, kimg=times[i]) for i in (place - 1, place + 1) if 0 <= i < len(times)]
        for run in self.guides:
            nearest = min(self.guides[run], key=lambda kimg: abs(np.log(kimg / centre.kimg)))
            found.append(replace(centre, guide=run, kimg=nearest))  # its own run: the centre, left out below
        settled = dict.fromkeys(self._settle(candidate) for candidate in found)
        return [candidate for candidate in settled if candidate != centre]

    def size(self) -> int:
        """Candidates of the exhaustive grid on the finest lattice."""
        s = self.settings
        weights = _count(s.guidance, s.guidance_steps[-1])
        mains = 1 if self.main_ema is None else _count(self.main_ema, s.ema_steps[-1])
        guides = sum(_count(ends, s.ema_steps[-1]) for times in self.guides.values() for ends in times.values())
        return weights * mains * guides

    def _settle(self, c: Candidate) -> Candidate:
        """The nearest point of the lattice that the ranges allow."""
        s = self.settings
        main_ema = None if c.main_ema is None or self.main_ema is None else self.main_ema
        return replace(
            c,
            guidance=_snap(c.guidance, (s.guidance[0], s.guidance[1]), s.guidance_steps[-1]),
            main_ema=None if main_ema is None else _snap(c.main_ema or 0.0, main_ema, s.ema_steps[-1]),
            guide_ema=_snap(c.guide_ema, self.guides[c.guide][c.kimg], s.ema_steps[-1]),
        )


def _moved(centre: Candidate, axis: str, change: float) -> Candidate:
    values: dict[str, Any] = {axis: getattr(centre, axis) + change}
    return replace(centre, **values)


def _snap(value: float, ends: Interval, step: float) -> float:
    """The nearest multiple of `step` above the range's low end, within the range."""
    last = _count(ends, step) - 1
    place = min(max(round((value - ends[0]) / step), 0), last)
    return round(ends[0] + place * step, 6)


def _count(ends: Sequence[float], step: float) -> int:
    return int((ends[1] - ends[0]) / step + 1e-6) + 1


def better_half(values: Sequence[float]) -> list[int]:
    """Places of the lower half of `values`, rounded up, lowest first; equal values in the order given."""
    return sorted(range(len(values)), key=lambda i: (values[i], i))[: -(-len(values) // 2)]


@dataclass(frozen=True)
class Row:
    """One measurement of the search path."""

    step: int
    """Number of the race."""
    stage: str
    """`screening`, `level 1`, ..., or `fresh seeds`."""
    candidate: Candidate
    seeds: str
    num_images: int
    value: float
    kept: bool
    """Whether the candidate went on to the next rung, or won the last."""
    accepted: bool
    """Whether it became the best setting so far with this measurement."""
    images: int
    """Different images generated so far, all candidates together."""


@dataclass(frozen=True)
class Finalist:
    """A setting with its distance on the search's seeds and on each fresh block."""

    candidate: Candidate
    search: float
    fresh: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.fresh))


class Search:
    """One run of the search; `path` holds every measurement in order, `on_rung` is called as it grows."""

    def __init__(self, space: Space, objective: Objective, on_rung: Callable[[list[Row]], None]) -> None:
        self.space, self.settings, self.objective = space, space.settings, objective
        self.path: list[Row] = []
        self.on_rung = on_rung
        self._step = 0

    def run(self) -> list[Finalist]:
        """Search, and measure what won on fresh seeds; the first finalist is the best on these.

        A gain is always taken, but only one above its standard error is worth another local grid of the same level.
        """
        ranking = self._race("screening", self.space.screening(), None)
        for level in range(len(self.settings.ema_steps)):
            gained = True
            while gained:
                best = ranking[0]
                ranking = self._race(f"level {level + 1}", [best, *self.space.neighbours(best, level)], best)
                gained = ranking[0] != best and self._is_clear(ranking[0], best)
        return self._confirm(ranking[: self.settings.finalists])

    def _is_clear(self, new: Candidate, old: Candidate) -> bool:
        gain = self.objective.difference(new, old, parse_seeds(self.settings.seeds))
        return gain.value < -gain.standard_error

    def _race(self, stage: str, pool: list[Candidate], best: Candidate | None) -> list[Candidate]:
        """Successive halving of `pool`; all candidates, the winner first, the last ones to drop out next.

        `best` stays in the race whatever its value: it has been measured on all N images before.
        """
        self._step += 1
        block = parse_seeds(self.settings.seeds)
        out: list[Candidate] = []
        for size in self.settings.sizes:
            values = self.objective.measure(pool, block[:size])
            order = better_half(values)
            last = size == len(block)
            going = order[:1] if last else [i for i in range(len(pool)) if i in order or pool[i] == best]
            new = {order[0]} if last and pool[order[0]] != best else set()
            self._record(stage, pool, block[:size], values, set(going), new)
            dropped = sorted((values[i], i) for i in range(len(pool)) if i not in going)
            out = [pool[i] for _, i in dropped] + out
            pool = [pool[i] for i in going]
        return pool + out

    def _confirm(self, finalists: list[Candidate]) -> list[Finalist]:
        """Finalists by their mean distance on the fresh blocks."""
        self._step += 1
        search = self.objective.measure(finalists, parse_seeds(self.settings.seeds))
        columns = []
        for block in self.settings.fresh:
            columns.append(self.objective.measure(finalists, parse_seeds(block)))
            self._record("fresh seeds", finalists, parse_seeds(block), columns[-1], set(), set())
        found = [
            Finalist(candidate, value, fresh)
            for candidate, value, fresh in zip(finalists, search, zip(*columns, strict=True), strict=True)
        ]
        return sorted(found, key=lambda finalist: finalist.mean)

    def _record(
        self, stage: str, pool: list[Candidate], seeds: range, values: list[float], kept: set[int], new: set[int]
    ) -> None:
        block = f"{seeds[0]}-{seeds[-1]}"
        rows = [
            Row(self._step, stage, c, block, len(seeds), value, i in kept, i in new, self.objective.images)
            for i, (c, value) in enumerate(zip(pool, values, strict=True))
        ]
        self.path += rows
        self.on_rung(self.path)
