"""The rates of false verdicts that the rules rest on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from repro.verdicts import claims
from repro.verdicts.paired import LEVEL
from tests.repro.verdicts import rates

COMMITTED = Path(__file__).resolve().parents[3] / rates.RESULTS


def allowed(repeats: int) -> float:
    """Rate that chance hardly exceeds where the true one is the stated one."""
    return LEVEL + 3 * float(np.sqrt(LEVEL * (1 - LEVEL) / repeats))


def test_false_verdicts_are_as_rare_as_stated_where_verdicts_are_given() -> None:
    """In the committed table, whichever way two sets are as far from the data as each other."""
    table = pd.read_csv(COMMITTED)
    assert set(table["images"]) == set(rates.COUNTS)
    given = table[table["images"] >= claims.LEAST]
    null = given[given["case"].str.startswith("equal")]
    assert (null[claims.HOLDS] + null[claims.FAILS] <= null["repeats"].map(allowed)).all()
    nearer = given[given["case"].str.startswith("a tenth nearer")]
    assert (nearer[claims.FAILS] <= nearer["repeats"].map(allowed)).all()
    most = nearer[nearer["images"] == max(rates.COUNTS)]
    assert (most[claims.HOLDS] > 0.5).all()


def test_the_committed_rates_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small run of one case, within chance."""
    monkeypatch.setattr(claims, "LEAST", min(rates.COUNTS))
    table = pd.read_csv(COMMITTED).set_index(["case", "images"])
    again = rates.rates(40, [1024], ["a tenth nearer"], seed=1).iloc[0]
    expected = table.loc[("a tenth nearer", 1024), claims.UNDECIDED]
    spread = np.sqrt(max(expected * (1 - expected), 0.01) / 40)
    assert abs(again[claims.UNDECIDED] - expected) <= 4 * spread
