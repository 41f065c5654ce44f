"""The same claims in several results."""

from pathlib import Path

import pandas as pd
import pytest

from metrics.files import InputError, write_csv
from repro.verdicts.claims import FAILS, HOLDS, NOT_RUN, UNDECIDED, Verdict, table
from repro.verdicts.repeats import CLAIMS, FLIPS, SAME, SOMETIMES, counted, side_by_side


def results(folder: Path, *verdicts: tuple[str, str]) -> Path:
    rows = [
        Verdict(claim, "fid", f"{claim}-{i}", difference=-1.25, standard_error=0.5, verdict=verdict)
        for i, (claim, verdict) in enumerate(verdicts)
    ]
    folder.mkdir()
    write_csv(folder / CLAIMS, table(rows))
    return folder


def test_outcomes_side_by_side(tmp_path: Path) -> None:
    first = results(tmp_path / "a", ("A", HOLDS), ("B", HOLDS), ("C", HOLDS), ("D", HOLDS), ("E", HOLDS))
    second = results(tmp_path / "b", ("A", HOLDS), ("B", UNDECIDED), ("C", FAILS), ("D", NOT_RUN), ("F", FAILS))
    found = side_by_side([first, second]).set_index("claim")
    assert list(found["outcome"]) == [SAME, SOMETIMES, FLIPS, "", "", ""]
    assert list(found.index) == ["A", "B", "C", "D", "E", "F"]  # as the results have them
    assert found.loc["B", str(second)] == "undecided (-1.25 ± 0.50)"
    assert found.loc["F", str(first)] == ""
    said = "3 claims judged more than once: the same everywhere 1, undecided in some 1, flipped 1"
    assert counted(found["outcome"]) == said


def test_training_seeds_of_one_result_are_columns(tmp_path: Path) -> None:
    first = results(tmp_path / "a", ("A", HOLDS), ("B", HOLDS))
    second = results(tmp_path / "b", ("A", HOLDS), ("A", FAILS), ("A", HOLDS), ("B", HOLDS))
    found = side_by_side([first, second, first])
    assert list(found.columns) == ["claim", "metric", str(first), *(f"{second} {i}" for i in (1, 2, 3)), "outcome"]
    assert list(found["outcome"]) == [FLIPS, SAME]


def test_what_are_no_claims_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"claims\.csv: not a CSV of claims .*; expected the folder of a report"):
        side_by_side([tmp_path])
    pd.DataFrame({"claim": ["A"], "metric": ["fid"], "verdict": [HOLDS]}).to_csv(tmp_path / CLAIMS)
    with pytest.raises(InputError, match=r"claims\.csv: no column '"):
        side_by_side([tmp_path])
