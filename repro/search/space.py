"""What a search can try: seeds, ranges and steps, candidates on a lattice, and which of them are neighbours."""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from metrics.files import InputError
from repro.strict import positive, within
from repro.study import parse_seeds

Interval = tuple[float, float]


@dataclass(frozen=True)
class SearchSettings:
    """How a guide is looked for."""

    #: Seed block of the search; its length is N, the number of images of a full measurement.
    seeds: str
    #: Other blocks of N seeds, on which the `finalists` are measured again.
    fresh: list[str]
    #: A race runs on N / 2^(rungs - 1), ..., N / 2, N images; at each rung the better half goes on.
    rungs: int = 3
    #: The winner and its best neighbours, so many in all.
    finalists: int = 4
    #: No race begins that could bring the images, those of the finalists included, above this; None: all that gain.
    images: int | None = None
    #: Least and greatest weight.
    guidance: Interval = (1.0, 3.5)
    #: Half-widths of the local grids along the weight, coarse to fine; the last one is the lattice.
    guidance_steps: tuple[float, ...] = (0.4, 0.2, 0.1, 0.05)
    #: Least and greatest EMA length, of main network and guide.
    ema: Interval = (0.010, 0.250)
    #: The same along both EMA lengths, as many as `guidance_steps`.
    ema_steps: tuple[float, ...] = (0.04, 0.02, 0.01, 0.005)
    #: Weights at which every snapshot is screened first.
    first_guidance: tuple[float, ...] = (1.4, 1.8, 2.4)
    #: EMA length of main network and guide in the screening.
    first_ema: float = 0.10
    #: Training lengths of guides, as in snapshot names; default: the run's whole, half, quarter, ...
    guide_kimg: list[int] | None = None
    #: Largest relative L2 error of a rebuilt averaging profile; the published guides have up to 0.15.
    profile_error: float = 0.2

    def __post_init__(self) -> None:
        positive(self, "rungs", "finalists", "images", "guidance_steps", "ema_steps")
        for name in ("fresh", "first_guidance", "guidance_steps", "ema_steps"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty, expected at least one")
        for name, most in (("guidance", 1000.0), ("ema", 0.3)):
            (least, greatest), steps = getattr(self, name), list(getattr(self, f"{name}_steps"))
            if not 0 < least <= greatest <= most:
                raise InputError(f"{name} is [{least}, {greatest}], expected 0 < least <= greatest <= {most:g}")
            within(self, least, greatest, f"first_{name}")
            if steps != sorted(set(steps), reverse=True):
                raise InputError(f"{name}_steps is {steps}, expected falling steps")
        if len(self.guidance_steps) != len(self.ema_steps):
            raise InputError(f"ema_steps has {len(self.ema_steps)} levels, expected as many as guidance_steps")
        blocks = [parse_seeds(block) for block in (self.seeds, *self.fresh)]
        if len(set(map(len, blocks))) > 1:
            raise InputError("seeds and fresh: blocks differ in length; distances of unequal counts are not comparable")
        if any(a.start < b.stop and b.start < a.stop for a, b in itertools.combinations(blocks, 2)):
            raise InputError("seeds and fresh: blocks overlap; fresh seeds must play no part in the search")
        if len(self.block) % 2 ** (self.rungs - 1):
            raise InputError(f"seeds {self.seeds}: {len(self.block)} cannot be halved {self.rungs - 1} times")

    @property
    def block(self) -> range:
        """The seeds of the search."""
        return parse_seeds(self.seeds)

    @property
    def sizes(self) -> list[int]:
        """Images per candidate at each rung."""
        return [len(self.block) >> k for k in reversed(range(self.rungs))]

    def race(self, candidates: int, best: bool = True) -> int:
        """Images at most of a race of so many new candidates, besides the best that was measured before."""
        images, before = 0, 0
        for size in self.sizes:
            images, before = images + candidates * (size - before), size
            candidates = -(-(candidates + best) // 2)
        return images

    @property
    def confirmation(self) -> int:
        """Images at most of the finalists: of the fresh blocks, and of the search's that all but the winner lack."""
        whole = len(self.block)
        return self.finalists * len(self.fresh) * whole + (self.finalists - 1) * (whole - self.sizes[0])


@dataclass(frozen=True)
class Candidate:
    """One setting of everything that is searched."""

    #: The guide's training run.
    guide: str
    #: Its training length, thousands of images as in snapshot names.
    kimg: int
    guidance: float
    #: None where the main network is one fixed file.
    main_ema: float | None
    guide_ema: float

    def __str__(self) -> str:
        main = "" if self.main_ema is None else f", main EMA {self.main_ema:.3f}"
        return f"w {self.guidance:g}, guide {self.guide} at {self.kimg} kimg, guide EMA {self.guide_ema:.3f}{main}"


@dataclass(frozen=True)
class Space:
    """What is searched: snapshots by run, and the lattice."""

    settings: SearchSettings
    #: Run -> training length -> least and greatest EMA length that its snapshots give.
    guides: dict[str, dict[int, Interval]]
    #: The same for the main network; None for a fixed one.
    main_ema: Interval | None

    def screening(self) -> list[Candidate]:
        """Every snapshot at the first weights and EMA length."""
        s = self.settings
        snapshots = [(run, kimg) for run, times in self.guides.items() for kimg in times]
        found = [Candidate(*snapshot, w, s.first_ema, s.first_ema) for snapshot in snapshots for w in s.first_guidance]
        return list(dict.fromkeys(map(self._settle, found)))

    def neighbours(self, centre: Candidate, level: int) -> list[Candidate]:
        """The local grid around `centre`: one step to either side along every axis."""
        s = self.settings
        steps = {"guidance": s.guidance_steps[level], "main_ema": s.ema_steps[level], "guide_ema": s.ema_steps[level]}
        at = vars(centre) | {"main_ema": centre.main_ema or 0.0}
        found = [replace(centre, **{axis: at[axis] + d}) for axis, step in steps.items() for d in (-step, step)]
        times = sorted(self.guides[centre.guide])
        found += [replace(centre, kimg=k) for k in times if abs(times.index(k) - times.index(centre.kimg)) == 1]
        found += [  # of its own run: the centre, left out below
            replace(centre, guide=run, kimg=min(kimgs, key=lambda kimg: abs(np.log(kimg / centre.kimg))))
            for run, kimgs in self.guides.items()
        ]
        return [candidate for candidate in dict.fromkeys(map(self._settle, found)) if candidate != centre]

    def size(self) -> int:
        """Candidates of the exhaustive grid on the finest lattice."""
        step = self.settings.ema_steps[-1]
        mains = 1 if self.main_ema is None else len(lattice(self.main_ema, step))
        guides = sum(len(lattice(ends, step)) for times in self.guides.values() for ends in times.values())
        return len(lattice(self.settings.guidance, self.settings.guidance_steps[-1])) * mains * guides

    def _settle(self, c: Candidate) -> Candidate:
        """The nearest point of the lattice that the ranges allow."""
        s = self.settings
        return replace(
            c,
            guidance=snap(c.guidance, s.guidance, s.guidance_steps[-1]),
            main_ema=None if self.main_ema is None else snap(c.main_ema or 0.0, self.main_ema, s.ema_steps[-1]),
            guide_ema=snap(c.guide_ema, self.guides[c.guide][c.kimg], s.ema_steps[-1]),
        )


def lattice(ends: Interval, step: float) -> np.ndarray:
    """Values a multiple of `step` above the interval's low end, up to its high end, float64."""
    return (ends[0] + np.arange(int((ends[1] - ends[0]) / step + 1e-6) + 1, dtype=np.float64) * step).round(6)


def snap(value: float, ends: Interval, step: float) -> float:
    """The value of the lattice that is nearest to `value`."""
    points = lattice(ends, step)
    return float(points[np.clip(round((value - ends[0]) / step), 0, len(points) - 1)])
