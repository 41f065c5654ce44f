"""What was measured, over seed blocks."""

from pathlib import Path

import pandas as pd
import pytest

import repro.study as studies
from metrics.files import InputError
from repro.report.tables import configurations_view
from repro.study import Study, schema
from repro.verdicts import measures
from tests.repro.fabricated import NAMES, fabricate

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The default study with two configurations measured."""
    monkeypatch.setattr(schema, "OUT", tmp_path)
    study = studies.load(ROOT / "studies" / "default.yaml")
    fabricate(study, ["toy", "digits-unguided", "digits-autoguidance"])
    return study


def test_missing_seed_blocks_are_named(half: Study) -> None:
    path = measures.result_file(half, "digits-unguided")
    found = pd.read_csv(path)
    found[found["block"] == "0-511"].to_csv(path, index=False)
    summarised = measures.summarise(half, measures.read(half))
    view = configurations_view(summarised[summarised["section"] == "generate"])
    assert "digits-unguided: 1 of 4 seed blocks" in view.notes
    (row,) = [row for row in view.rows if row[0].text == "no guidance"]
    assert "±" not in row[-1].text


def test_a_metrics_name_does_not_depend_on_other_rows(half: Study) -> None:
    path = measures.result_file(half, "digits-unguided")
    found = pd.read_csv(path)
    digits = found[found["detector"] == "digits"]
    other = digits.assign(detector="dinov2", metric=digits["metric"].str.replace("digits", "dinov2"), value=0.5)
    pd.concat([found, other]).to_csv(path, index=False)
    summary = measures.summarise(half, measures.read(half))
    ours = summary[summary["configuration"] == "digits-unguided"]
    names = half.evaluate.names
    assert list(ours["metric"]) == [*names, *(name.replace("digits", "dinov2") for name in NAMES)]
    other = summary[(summary["configuration"] == "digits-autoguidance") & (summary["metric"] == "recall_dinov2")]
    assert list(other["reason"]) == ["not measured"]
    assert set(measures.dvc_metrics(half, summary)["digits-unguided"]) <= set(names)


def test_every_planned_value_has_a_row(half: Study) -> None:
    summary = measures.summarise(half, measures.read(half))
    generated, places = len(half.evaluate.names), sum(len(sweep.values) for sweep in half.sweeps.values())
    assert len(summary) == 5 * 6 + len(half.generate) * generated + places * len(NAMES)
    assert list(summary.columns) == measures.SUMMARY
    cfg = summary[summary["configuration"] == "digits-cfg"]
    assert set(cfg["reason"]) == {"not run"}
    assert set(cfg["guidance"]) == {1.95}
    assert summary["mean"].notna().sum() == 5 * 6 + 2 * generated


def test_the_committed_results_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = studies.load(ROOT / "studies" / "default.yaml")
    found = measures.read_rows(ROOT / "results" / "default" / "measures.csv")
    summary = measures.summarise(study, found)
    assert set(found["configuration"]) == set(summary["configuration"])
    assert summary["mean"].notna().all()


def test_a_file_of_another_kind_is_named(half: Study) -> None:
    path = measures.result_file(half, "digits-unguided")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=f"{path}: no column"):
        measures.read(half)
