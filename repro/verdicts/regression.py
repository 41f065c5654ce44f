"""Fresh results against committed ones, cell by cell: what the gate runs after `make repro`.

Another processor rounds differently, and training amplifies that into another network of the same quality. So a cell
may move by three standard deviations of what is random about it: the seeds of the samples (spread over blocks) and the
seed of training (spread over the networks of the study `training-seeds`).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from metrics.files import InputError
from repro.rows import MEASURES, read_rows

SIGMAS = 3.0
FEW = 3  # blocks; the spread of fewer says next to nothing
ID = ["configuration", "method", "metric", "axis_value"]


def check(fresh: pd.DataFrame, committed: Path, training_seeds: Path) -> pd.DataFrame:
    """One row per cell of `fresh` measures (as `measures.read` gives them): expected, found, tolerance, agrees.

    `committed` is a folder that `repro report --publish` filled, `training_seeds` that of the study that repeats the
    claims on other training seeds. Raises InputError for a cell that only one of fresh and committed results have.
    """
    expected, found = _cells(read_rows(committed / MEASURES), "expected"), _cells(fresh, "found")
    lost = expected.index.symmetric_difference(found.index)
    if len(lost):
        raise InputError(f"{committed}: cell {lost[0]} occurs in one of fresh and committed results only")
    training = training_spread(read_rows(training_seeds / MEASURES))
    table = expected.join(found).reset_index().join(training, on=["metric", "method"])
    sampled = table[["std_expected", "std_found"]].max(axis=1)
    trained = table["training"].fillna(table["metric"].map(training.groupby("metric").max())).fillna(0.0)
    table["tolerance"] = SIGMAS * np.hypot(sampled, trained)
    table["agrees"] = (table["found"] - table["expected"]).abs() <= table["tolerance"]
    return table[[*ID, "expected", "found", "tolerance", "agrees"]]


def training_spread(repeats: pd.DataFrame) -> "pd.Series[float]":
    """Standard deviation over training seeds by metric and method, whose repeats differ in configuration.

    `check` gives a method that was not repeated the largest of its metric.
    """
    per_seed = repeats.groupby(["metric", "method", "configuration"])["value"].mean()
    return per_seed.groupby(["metric", "method"]).std().dropna().rename("training")


def _cells(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Columns `name`, mean over blocks of every cell, and `std_name`, of fewer than `FEW` its metric's largest."""
    rows = rows.assign(axis_value=rows["axis_value"].astype(float).map(str))  # no number equals NaN
    cells = rows.groupby(ID)["value"].agg(["mean", "std", "count"])
    of_metric = cells.groupby("metric")["std"].transform("max").fillna(0.0)
    return pd.DataFrame({name: cells["mean"], f"std_{name}": cells["std"].where(cells["count"] >= FEW, of_metric)})
