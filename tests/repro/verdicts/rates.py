"""How often verdicts are wrong, on features whose distances are known: `python -m tests.repro.verdicts.rates`.

Two methods give Gaussian features in 64 dimensions, correlated as those of one seed are. They are as far from the
reference as each other, in the same way or in different ways (a shifted mean, another covariance: their distances have
another bias at few images), or one is farther. Writes results/verdicts/rates.csv, which verdicts' rules rest on.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metrics.files import write_csv
from metrics.frechet import block_moments, leave_one_out
from metrics.statistics import Statistics
from repro.pipeline.measuring import GROUPS
from repro.rows import WHOLE
from repro.study import Claim
from repro.verdicts import claims

DIM, DISTANCE, CORRELATION = 64, 1.0, 0.8
COUNTS = (256, 512, 1024, 2048, 4096)
RESULTS = Path("results/verdicts/rates.csv")
Features = NDArray[np.float64]


def shifted(distance: float) -> Callable[[Features], Features]:
    """Unit normal features whose mean is off: at `distance` from the unit normal."""
    return lambda z: z + np.sqrt(distance / DIM)


def narrowed(distance: float) -> Callable[[Features], Features]:
    """Features of half the dimensions too narrow: at `distance`, the sum over dimensions of (1 - deviation)^2."""
    scale = np.ones(DIM)
    scale[: DIM // 2] = 1 - np.sqrt(distance / (DIM // 2))
    return lambda z: z * scale


CASES = {
    "equal, alike": (shifted(DISTANCE), shifted(DISTANCE)),
    "equal, of other kinds": (shifted(DISTANCE), narrowed(DISTANCE)),
    "a tenth nearer": (shifted(0.9 * DISTANCE), shifted(DISTANCE)),
    "a tenth nearer, of other kinds": (shifted(0.9 * DISTANCE), narrowed(DISTANCE)),
}


def verdict(case: str, count: int, rng: np.random.Generator) -> str:
    """On "the first is nearer", of `count` images each in two seed blocks."""
    z = rng.standard_normal((count, DIM))
    other = CORRELATION * z + np.sqrt(1 - CORRELATION**2) * rng.standard_normal(z.shape)
    ours, theirs = CASES[case]
    reference = Statistics(10**6, np.zeros(DIM), np.eye(DIM), {})
    rows, replicates = [], []
    for key, x in (("ours", ours(z)), ("theirs", theirs(other))):
        found = leave_one_out(block_moments(x, GROUPS), reference)
        made = {"configuration": key, "metric": "fd_digits"}
        rows += [made | {"block": str(i), "num_images": count // 2, "value": found[0][0]} for i in range(2)]
        for left_out, pair in zip([WHOLE, *map(str, range(GROUPS))], found, strict=True):
            both = zip(("fd_digits", "fd_digits_infinity"), pair, strict=True)
            of = {"configuration": key, "left_out": left_out, "num_images": count}
            replicates += [of | {"metric": name, "value": value} for name, value in both]
    claim = [Claim("ours", "theirs", "fd_digits")]
    return claims.judge(claim, pd.DataFrame(rows), pd.DataFrame(replicates))[0].verdict


def rates(repeats: int, counts: Iterable[int] = COUNTS, cases: Iterable[str] = CASES, seed: int = 0) -> pd.DataFrame:
    """Share of each verdict by case and number of images; the rule about few images is not applied."""
    table = []
    for case in cases:
        for count in counts:
            rng = np.random.default_rng([seed, count, len(case)])
            found = [verdict(case, count, rng) for _ in range(repeats)]
            shares = {name: found.count(name) / repeats for name in (claims.HOLDS, claims.FAILS, claims.UNDECIDED)}
            table.append({"case": case, "images": count, "repeats": repeats} | shares)
            print(table[-1], flush=True)
    return pd.DataFrame(table)


def _case(case: str) -> pd.DataFrame:
    claims.LEAST = min(COUNTS)
    return rates(200, cases=[case])


if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        write_csv(RESULTS, pd.concat(pool.map(_case, CASES)))
