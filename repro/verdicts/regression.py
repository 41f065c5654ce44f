"""Fresh results against committed ones, cell by cell: what the gate runs after `make repro`.

Another processor rounds differently, and training amplifies that into another network of the same quality. So a
cell may move by as much as three standard deviations of what is random about it: the seeds of the samples
(spread over blocks) and the seed of training (spread over the networks of the study `training-seeds`).
"""

import math
from pathlib import Path

import pandas as pd

from metrics.files import InputError
from repro.verdicts import measures

MEASURES = "measures.csv"
SIGMAS = 3.0
ID, VALUE = ["id", "configuration", "method", "metric", "axis_value"], "value"


def check(fresh: pd.DataFrame, committed: Path, training_seeds: Path) -> pd.DataFrame:
    """Compare measures (as `repro.measures.read` gives them) with the committed folder.

    Args:
        fresh: measures of the active study.
        committed: folder that `repro report --publish` filled.
        training_seeds: the same of the study that repeats the claims on other training seeds.

    Returns:
        One row per cell: expected, found, tolerance, agrees.

    Raises:
        InputError: a cell of the committed results is missing in the fresh ones, or the other way round.
    """
    expected, found = _cells(measures.read_csv(committed / MEASURES)), _cells(fresh)
    lost = expected.index.symmetric_difference(found.index)
    if len(lost):
        raise InputError(f"{committed}: cell {lost[0]} occurs in one of fresh and committed results only")
    training = training_spread(measures.read_csv(training_seeds / MEASURES))
    table = expected.add_suffix("_expected").join(found.add_suffix("_found")).reset_index()
    spread = table[["std_expected", "std_found"]].max(axis=1)
    largest = {metric: max(s for (m, _), s in training.items() if m == metric) for metric, _ in training}
    table["tolerance"] = [
        SIGMAS * math.hypot(sampling, training.get((metric, method), largest.get(metric, 0.0)))
        for sampling, metric, method in zip(spread, table["metric"], table["method"], strict=True)
    ]
    table["agrees"] = (table["mean_found"] - table["mean_expected"]).abs() <= table["tolerance"]
    columns = {"mean_expected": "expected", "mean_found": "found"}
    return table.rename(columns=columns)[[*ID, "expected", "found", "tolerance", "agrees"]]


def training_spread(repeats: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(metric, method) -> standard deviation over training seeds; a method's repeats differ in configuration.

    A method that was not repeated is given the largest of its metric.
    """
    per_seed = repeats.groupby(["metric", "method", "configuration"])[VALUE].mean()
    per_method = per_seed.groupby(["metric", "method"]).std().dropna().reset_index().to_dict("records")
    return {(str(row["metric"]), str(row["method"])): float(row[VALUE]) for row in per_method}


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over blocks of every cell and their standard deviation; a single block borrows its metric's largest."""
    axis = rows["axis_value"].map(str) if "axis_value" in rows else "-"
    cells = rows.assign(axis_value=axis).groupby(ID)[VALUE].agg(["mean", "std"])
    of_metric = cells.groupby("metric")["std"].transform("max").fillna(0.0)
    return cells.assign(std=cells["std"].fillna(of_metric))
