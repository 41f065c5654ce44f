"""The same claims in several results, of other seeds or networks: verdicts side by side, and which of them flip."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from metrics.files import InputError, explained
from metrics.names import named
from repro.verdicts.claims import COLUMNS, FAILS, HOLDS, UNDECIDED

CLAIMS = "claims.csv"
#: What becomes of a claim that is judged at least twice; one of which some say that it holds and others not flips.
SAME, SOMETIMES, FLIPS = "same", "undecided in some", "flips"


def side_by_side(folders: Sequence[Path]) -> pd.DataFrame:
    """A row per claim and metric: claim, metric, the verdict of each of `folders`, and in `outcome` how they agree.

    Folders are those of reports, with their `claims.csv`. Where one judges a claim several times (training seeds) it
    has as many columns, with numbers. Raises InputError for a folder without claims.
    """
    rows = pd.concat([_read(each).assign(folder=str(each)) for each in dict.fromkeys(folders)], ignore_index=True)
    number = rows.groupby(["folder", "claim", "metric"]).cumcount()
    several = number.groupby(rows["folder"]).transform("max") > 0
    rows["judge"] = rows["folder"].where(~several, rows["folder"] + " " + (number + 1).astype(str))
    rows["text"] = [_text(row) for row in rows.to_dict("records")]
    keys = ["claim", "metric"]
    table = rows.pivot(index=keys, columns="judge", values="text")[list(rows["judge"].unique())]
    table["outcome"] = rows.groupby(keys)["verdict"].agg(_outcome)
    return table.reindex(pd.MultiIndex.from_frame(rows[keys].drop_duplicates())).fillna("").reset_index()


def counted(outcomes: Iterable[str]) -> str:
    """One sentence on how many claims were judged more than once, and what became of them."""
    counts = pd.Series(list(outcomes), dtype=str).value_counts()
    same, sometimes, flips = (int(counts.get(name, 0)) for name in (SAME, SOMETIMES, FLIPS))
    return (
        f"{same + sometimes + flips} claims judged more than once: the same everywhere {same}, undecided in some "
        f"{sometimes}, flipped {flips}"
    )


def _outcome(verdicts: "pd.Series[str]") -> str:
    judged = [verdict for verdict in verdicts if verdict in (HOLDS, FAILS, UNDECIDED)]
    if len(judged) < 2:
        return ""
    return FLIPS if {HOLDS, FAILS} <= {*judged} else SAME if len({*judged}) == 1 else SOMETIMES


def _text(row: Mapping[Hashable, Any]) -> str:
    """The verdict with its difference."""
    if pd.isna(row["difference"]):
        return str(row["verdict"])
    form = f".{named(str(row['metric'])).decimals}f"
    error = "" if pd.isna(row["standard_error"]) else f" ± {row['standard_error']:{form}}"
    return f"{row['verdict']} ({row['difference']:{form}}{error})"


def _read(folder: Path) -> pd.DataFrame:
    path = folder / CLAIMS
    with explained(f"{path}: not a CSV of claims", "expected the folder of a report", (OSError, ValueError)):
        found = pd.read_csv(path, dtype={"claim": str, "metric": str, "verdict": str})
        if missing := [name for name in COLUMNS if name not in found]:
            raise InputError(f"{path}: no column '{missing[0]}', expected a CSV of claims as a report writes it")
        numbers = ["difference", "standard_error"]
        return found.astype(dict.fromkeys(numbers, float)).dropna(subset=["claim", "metric", "verdict"])
