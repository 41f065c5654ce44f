"""Methods beside the paper's in the 2D example, tuned at equal effort."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from metrics.files import InputError
from repro.rows import TRIALS, read_replicates, read_rows
from repro.strict import build
from repro.toy.pipeline import network_path, run
from repro.toy.settings import ToySettings, ToyTuned
from repro.trials import Tuning
from tests.repro.toy.test_pipeline import TINY

PLAIN = dataclasses.replace(TINY, figures=False)

TUNED = {
    "capacity": {"network": {"classes": "A", "width": 8, "iterations": 12}, "over": {"guidance": [1.1, 5]}},
    "noise": {"guide_degradations": {"input_noise": 0.1}, "over": {"guidance": [1.1, 5], "input_noise": [0.02, 0.5]}},
}
TUNING = {"seeds": "77", "trials": 3, "metric": "sliced_wasserstein"}


def settings(**changes: Any) -> ToySettings:
    given = {"tuned": TUNED, "tuning": TUNING} | changes
    tuned = build(dict[str, ToyTuned], given["tuned"])
    return dataclasses.replace(PLAIN, tuned=tuned, tuning=build(Tuning | None, given["tuning"]))


def test_each_is_measured_as_its_best_trial(tmp_path: Path) -> None:
    measures = run(settings(), tmp_path, "s", "toy")
    trials, rows = read_rows(tmp_path / TRIALS), read_rows(measures)
    assert trials.groupby("method").size().to_dict() == {"capacity": 3, "noise": 3}
    assert (trials["metric"] == "sliced_wasserstein").all()
    assert (trials["block"] == "77").all()
    for method, tried in trials.groupby("method"):
        best = tried.loc[tried["value"].idxmin()]
        ours = rows[rows["method"] == method]
        assert set(ours["guidance"]) == {best["guidance"]}
        assert set(ours["guide_degradations"].fillna("")) == {best["guide_degradations"]} or method == "capacity"
        assert ours["configuration"].eq(f"toy-{method}").all()
    assert network_path(tmp_path, "capacity").exists()
    assert not network_path(tmp_path, "noise").exists()
    assert set(read_replicates(tmp_path / "replicates.csv")["configuration"]) >= {"toy-capacity", "toy-noise"}


def test_what_is_tuned_changes_nothing_of_the_papers_methods(tmp_path: Path) -> None:
    with_, without = (read_rows(run(s, tmp_path / name, "s", "toy")) for name, s in (("a", settings()), ("b", PLAIN)))
    kept = with_[with_["method"].isin(PLAIN.methods)].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, without)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tuning": None}, "missing key tuning"),
        ({"tuning": TUNING | {"seeds": "0"}}, "none of sampling_seeds"),
        ({"tuning": TUNING | {"seeds": "70-75"}}, "expected one seed"),
        ({"tuning": TUNING | {"metric": "precision"}}, "not measured here"),
        ({"tuned": {"cfg": TUNED["capacity"]}}, "is a method of the paper's"),
        ({"tuned": {"guide": TUNED["capacity"]}}, "tuned.guide: is a method of the paper's or a network's"),
        ({"tuned": {"x": {"over": {"guidance": [1.5, 2]}}}}, "expected a network"),
        ({"tuned": {"x": {"guide_degradations": {"dropout": 0.1}, "over": {"dropout": [0.1, 0.2]}}}}, "not for points"),
    ],
)
def test_what_cannot_be_tuned_is_refused(changes: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        settings(**changes)
