"""Fresh results against committed ones."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from metrics.files import InputError, write_csv
from repro.rows import MEASURES, Row, read_rows, write_rows
from repro.verdicts.regression import check, training_spread


def row(configuration: str, value: float, **changes: Any) -> Row:
    facts = {"study": "s", "method": "m", "block": "0-9", "metric": "fd", "num_images": 10}
    return Row(**facts | {"configuration": configuration, "value": value} | changes)


def rows(value: float, spread: float = 0.01) -> pd.DataFrame:
    blocks = {"0-9": -spread, "10-19": 0.0, "20-29": spread}
    found = [row("a", value + shift, block=block) for block, shift in blocks.items()]
    return pd.DataFrame([*found, row("s", value, axis="guidance", axis_value=1.5)])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    committed, seeds = tmp_path / "committed", tmp_path / "seeds"
    for folder in (committed, seeds):
        folder.mkdir()
    write_csv(committed / MEASURES, rows(1.0))
    write_rows(seeds / MEASURES, [row(f"m-{i}", 1 + 0.1 * i) for i in range(3)])
    return committed, seeds


def test_a_difference_within_the_spread_agrees_and_a_larger_one_does_not(folders: tuple[Path, Path]) -> None:
    assert check(rows(1.25), *folders)["agrees"].all()
    assert not check(rows(1.4), *folders)["agrees"].any()


def test_the_spread_of_two_blocks_is_that_of_the_metric(folders: tuple[Path, Path]) -> None:
    def fresh(shift: float) -> pd.DataFrame:
        return pd.DataFrame([row(key, 1 + shift, block=block) for key in ("a", "b") for block in ("0-9", "10-19")])

    wide = fresh(0.0)
    wide.loc[wide["configuration"] == "a", "value"] = [0.8, 1.2]  # of b the two are equal by chance
    write_csv(folders[0] / MEASURES, wide)
    write_rows(folders[1] / MEASURES, [])
    assert check(fresh(0.5), *folders)["agrees"].all()
    assert not check(fresh(1.0), *folders)["agrees"].any()


def test_training_spread_is_the_standard_deviation_over_training_seeds(folders: tuple[Path, Path]) -> None:
    assert training_spread(read_rows(folders[1] / MEASURES)).to_dict() == {("fd", "m"): pytest.approx(0.1)}


def test_a_missing_cell_is_an_error(folders: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="occurs in one of"):
        check(rows(1.0).iloc[:-1], *folders)
