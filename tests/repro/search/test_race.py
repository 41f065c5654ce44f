"""The search on objectives with a known minimum."""

import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from metrics.files import InputError
from metrics.frechet import Estimate
from repro.search import SearchSettings
from repro.search.race import Search
from repro.search.space import Candidate, Space

WIDE = (0.01, 0.25)
SETTINGS = SearchSettings("0-255", ["256-511", "512-767"], guidance_steps=(0.4, 0.2, 0.1), ema_steps=(0.04, 0.02, 0.01))
TIMES = (5, 10, 20, 40)


class Recorded:
    """An objective given as a function of candidate and seeds, which counts images as the real one does."""

    def __init__(self, value: Callable[[Candidate, range], float], error: float = 0.0) -> None:
        self.value, self.error = value, error
        self.asked: dict[tuple[Candidate, int], int] = {}

    @property
    def images(self) -> int:
        return sum(self.asked.values())

    def measure(self, candidates: Sequence[Candidate], seeds: range) -> list[float]:
        for c in candidates:
            self.asked[c, seeds.start] = max(self.asked.get((c, seeds.start), 0), len(seeds))
        return [self.value(c, seeds) for c in candidates]

    def difference(self, a: Candidate, b: Candidate, seeds: range) -> Estimate:
        return Estimate(self.value(a, seeds) - self.value(b, seeds), self.error)


def bowl(c: Candidate) -> float:
    """A distance with its least value where the paper found one: early snapshot, guide's EMA longer than main's."""
    late = math.log2(c.kimg / 10)
    main = 0.0 if c.main_ema is None else 40 * (c.main_ema - 0.06) ** 2
    slant = 2 * ((c.main_ema or 0.06) - 0.06) * (c.guidance - 1.6)
    return (
        0.4 + 0.25 * (c.guidance - 1.6 - 0.2 * late) ** 2 + 0.03 * late**2 + main + 4 * (c.guide_ema - 0.1) ** 2 + slant
    )


def noisy(seed: int) -> Callable[[Candidate, range], float]:
    """`bowl` with the bias of few images and noise of which most is common to all candidates on equal seeds."""

    def value(c: Candidate, seeds: range) -> float:
        common = np.random.default_rng([seed, seeds.start]).normal(size=len(seeds)).mean()
        own = np.random.default_rng([seed, seeds.start, zlib.crc32(str(c).encode())]).normal(size=len(seeds)).mean()
        return bowl(c) + 60 / len(seeds) + 0.8 * common + 0.05 * own

    return value


def space(settings: SearchSettings = SETTINGS, runs: Sequence[str] = ("small",)) -> Space:
    return Space(settings, {run: dict.fromkeys(TIMES, WIDE) for run in runs}, WIDE)


def run(value: Callable[[Candidate, range], float], where: Space | None = None) -> tuple[Search, Recorded]:
    objective = Recorded(value)
    search = Search(where or space(), objective, lambda path: None)
    search.run()
    return search, objective


def grid(where: Space) -> list[Candidate]:
    """The exhaustive grid of the lattice, made without the code under test."""
    weights = [round(1 + 0.1 * k, 6) for k in range(26)]
    lengths = [round(0.01 * k, 6) for k in range(1, 26)]
    product = itertools.product(where.guides, TIMES, weights, lengths, lengths)
    return [Candidate(name, kimg, w, m, g) for name, kimg, w, m, g in product]


def test_the_search_ends_at_the_minimum_of_an_exhaustive_grid() -> None:
    everything = grid(space())
    assert space().size() == len(everything)
    search, objective = run(lambda c, seeds: bowl(c) + 60 / len(seeds))
    best = [row.candidate for row in search.path if row.accepted][-1]
    assert best == min(everything, key=bowl)
    assert objective.images <= len(everything) * 256 / 5


@pytest.mark.parametrize("seed", range(5))
def test_paired_noise_that_is_larger_than_the_differences_does_not_mislead(seed: int) -> None:
    value = noisy(seed)
    objective = Recorded(value, error=0.05 / 16)
    best = Search(space(), objective, lambda path: None).run()[0].candidate
    coarse = [c for c in grid(space()) if c.guidance in (1.2, 1.6, 2.0, 2.4) and {c.main_ema, c.guide_ema} <= COARSE]
    blocks = [value(best, range(start, start + 256)) for start in range(0, 256 * 40, 256)]
    assert np.std(blocks) > 5 * (bowl(best) - 0.4), "values of single blocks spread far more than what is found"
    assert bowl(best) - min(map(bowl, coarse)) <= 0.012
    assert objective.images <= len(coarse) * 256 / 5


COARSE = {0.02, 0.06, 0.1, 0.14}


@pytest.mark.parametrize("seed", range(3))
def test_a_search_keeps_to_its_images(seed: int) -> None:
    """It goes on as long as a race surely fits."""
    free = replace(SETTINGS, first_guidance=(1.5, 2.0), fresh=["256-511"], finalists=2)
    spent = []
    for images in (1728, 2944, None):
        settings = replace(free, images=images)
        objective = Recorded(noisy(seed))
        search = Search(space(settings), objective, lambda path: None)
        search.run()
        spent.append(objective.images)
        assert objective.images <= (images or math.inf)
    assert spent == sorted(set(spent))


def test_images_that_do_not_suffice_for_the_screening_are_refused() -> None:
    few = replace(SETTINGS, images=3000)
    with pytest.raises(InputError, match="images is 3000, screening and finalists alone take up to 4"):
        run(lambda c, seeds: bowl(c), space(few))


def test_a_second_run_that_is_better_is_found() -> None:
    def value(c: Candidate, seeds: range) -> float:
        return bowl(c) - (0.1 if c.guide == "main" and c.kimg == 5 else 0)

    search, _ = run(value, space(runs=("small", "main")))
    assert next((r.candidate.guide, r.candidate.kimg) for r in reversed(search.path) if r.accepted) == ("main", 5)


@pytest.mark.parametrize(
    ("values", "kept"),
    [([3.0, 1.0, 2.0], [False, True, True]), ([1.0, 1.0, 1.0, 0.0], [True, False, False, True]), ([5.0], [True])],
)
def test_the_better_half_is_rounded_up_and_ties_go_to_the_first(values: list[float], kept: list[bool]) -> None:
    weights = (1.2, 1.4, 1.6, 1.8)[: len(values)]
    settings = replace(SETTINGS, seeds="0-7", fresh=["8-15"], first_guidance=weights)
    where = Space(settings, {"small": {10: (0.1, 0.1)}}, (0.1, 0.1))
    search, _ = run(lambda c, seeds: dict(zip(weights, values, strict=True)).get(c.guidance, 10.0), where)
    assert [row.kept for row in search.path[: len(values)]] == kept


def test_a_race_halves_on_few_images_first_and_decides_on_all() -> None:
    """Four weights of one snapshot; the values by hand, those of few images misleading about the last two."""
    settings = replace(SETTINGS, seeds="0-7", fresh=["8-15"], first_guidance=(1.2, 1.4, 1.6, 1.8), finalists=2)
    table = {
        2: {1.2: 9.0, 1.4: 8.0, 1.6: 7.0, 1.8: 6.0},
        4: {1.6: 5.0, 1.8: 4.0},
        8: {1.8: 3.0},
    }
    where = Space(settings, {"small": {10: (0.1, 0.1)}}, (0.1, 0.1))
    search, _ = run(lambda c, seeds: table.get(len(seeds), {}).get(c.guidance, 10.0), where)
    first = [row for row in search.path if row.step == 1]
    seen = [(row.num_images, row.candidate.guidance, row.value, row.kept, row.accepted) for row in first]
    assert seen == [
        (2, 1.2, 9.0, False, False),
        (2, 1.4, 8.0, False, False),
        (2, 1.6, 7.0, True, False),
        (2, 1.8, 6.0, True, False),
        (4, 1.6, 5.0, False, False),
        (4, 1.8, 4.0, True, False),
        (8, 1.8, 3.0, True, True),
    ]
    assert [row.images for row in first] == [8, 8, 8, 8, 12, 12, 16]


def test_the_best_so_far_stays_in_a_race_that_it_loses_on_few_images() -> None:
    """At weight 1.6 few images look bad, all of them good: nothing replaces it."""

    def value(c: Candidate, seeds: range) -> float:
        here = c == Candidate("small", 10, 1.6, 0.1, 0.1)
        return 0.0 if here and len(seeds) == 8 else 9.0 if here else 1.0

    settings = replace(SETTINGS, seeds="0-7", fresh=["8-15"], first_guidance=(1.6,), first_ema=0.1)
    where = Space(settings, {"small": {10: WIDE}}, WIDE)
    search, _ = run(value, where)
    assert [row.candidate.guidance for row in search.path if row.accepted] == [1.6]
    assert {row.stage for row in search.path} == {"screening", "level 1", "level 2", "level 3", "fresh seeds"}


def test_gains_within_their_standard_error_are_taken_but_not_pursued() -> None:
    """Along a slope of 0.1 per 0.4 of weight: pursued to the range's end, or one step per level."""

    def slope(c: Candidate, seeds: range) -> float:
        return 10 - 0.25 * c.guidance

    settings = replace(SETTINGS, first_guidance=(1.4,), guidance_steps=(0.4, 0.2, 0.1))
    where = Space(settings, {"small": {10: (0.1, 0.1)}}, None)
    weights = []
    for error in (0.02, 0.2):
        search = Search(where, Recorded(slope, error), lambda path: None)
        search.run()
        weights.append([row.candidate.guidance for row in search.path if row.accepted])
    assert weights[0] == [1.4, 1.8, 2.2, 2.6, 3.0, 3.4, 3.5]
    assert weights[1] == [1.4, 1.8, 2.0, 2.1]


def test_only_values_of_equal_seeds_are_compared() -> None:
    search, _ = run(noisy(0))
    for _, rows in itertools.groupby(search.path, key=lambda row: (row.step, row.num_images, row.seeds)):
        values = {row.candidate: row for row in rows}
        kept = [row.value for row in values.values() if row.kept]
        assert all(row.seeds.startswith("0-") or row.stage == "fresh seeds" for row in values.values())
        assert not kept or min(row.value for row in values.values()) in kept


def test_the_winner_is_the_best_on_fresh_seeds_and_not_on_those_of_the_search() -> None:
    lucky = Candidate("small", 10, 1.6, 0.06, 0.1)

    def value(c: Candidate, seeds: range) -> float:
        return bowl(c) - 1 if c == lucky and seeds.start == 0 else bowl(c) + (1 if c == lucky else 0)

    finalists = Search(space(), Recorded(value), lambda path: None).run()
    assert len(finalists) == SETTINGS.finalists
    assert finalists[-1].candidate == lucky
    assert finalists[-1].search == min(f.search for f in finalists)
    assert [f.mean for f in finalists] == sorted(f.mean for f in finalists)
    assert all(f.values.count(";") == 1 and f.min <= f.mean <= f.max for f in finalists)
