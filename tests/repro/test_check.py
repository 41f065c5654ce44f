"""Fresh results against committed ones."""

from pathlib import Path

import pandas as pd
import pytest

from metrics.files import InputError
from repro.verdicts.regression import check, training_spread


def rows(value: float, spread: float = 0.01) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"id": "a", "configuration": "a", "method": "m", "metric": "fd", "block": block, "value": value + shift}
            for block, shift in (("0-9", -spread), ("10-19", 0.0), ("20-29", spread))
        ]
        + [{"id": "s", "configuration": "s", "method": "m", "metric": "fd", "value": value, "axis_value": 1.5}]
    )


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    committed, seeds = tmp_path / "committed", tmp_path / "seeds"
    for folder in (committed, seeds):
        folder.mkdir()
    rows(1.0).to_csv(committed / "measures.csv", index=False)
    repeats = [{"metric": "fd", "method": "m", "configuration": f"m-{i}", "value": 1 + 0.1 * i} for i in range(3)]
    pd.DataFrame(repeats).to_csv(seeds / "measures.csv", index=False)
    return committed, seeds


def test_a_difference_within_the_spread_agrees_and_a_larger_one_does_not(folders: tuple[Path, Path]) -> None:
    assert check(rows(1.25), *folders)["agrees"].all()
    assert not check(rows(1.4), *folders)["agrees"].any()


def test_training_spread_is_the_standard_deviation_over_training_seeds(folders: tuple[Path, Path]) -> None:
    assert training_spread(pd.read_csv(folders[1] / "measures.csv")) == {("fd", "m"): pytest.approx(0.1)}


def test_a_missing_cell_is_an_error(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="occurs in one of"):
        check(rows(1.0).iloc[:-1], *folders)
