"""Settings found at equal effort: the trials of DIRECT, and the stage that samples with what they found."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from metrics.files import InputError
from repro.missing import note_missing
from repro.pipeline import stages
from repro.rows import read_rows
from repro.sampling import shards
from repro.search.tuning import run_tune, search
from repro.strict import build
from repro.study import Study, Tuned
from repro.verdicts import measures
from tests.repro.pipeline.test_stages import GUIDE, MAIN, prepare, raw

TUNED = {"method": "tuned", "data": "digits", "main": MAIN, "guide": GUIDE, "seeds": ["0-7", "8-15"]}
ENTRIES = {
    "weight": TUNED | {"over": {"guidance": [1.1, 5]}},
    "strength": TUNED
    | {"over": {"guidance": [1.1, 5], "dropout": [0.01, 0.9]}, "guide_degradations": {"dropout": 0.1}},
}
TUNING = {"seeds": "1000-1007", "trials": 4, "metric": "fd_digits"}


def study(golden: Path, tuned: dict[str, Any] | None = None, **changes: Any) -> Study:
    return build(Study, raw(golden, "first") | {"tuned": tuned or ENTRIES, "tuning": TUNING} | changes)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Path:
    """A folder in which both entries are tuned."""
    folder = prepare(tmp_path_factory.mktemp("tuning"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for key in ENTRIES:
            run_tune(study(golden), key)
    return folder


@pytest.fixture
def here(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tuned, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dim", [1, 2])
def test_the_search_comes_near_the_least_value_of_smooth_functions(dim: int) -> None:
    best = np.array([0.31, 0.72])[:dim]
    tried = search(lambda x: float(((np.array(x) - best) ** 2).sum()), tuple, dim, trials=9 * 3 ** (dim - 1))
    nearest, _ = min(tried, key=lambda trial: trial[1])
    assert np.abs(np.array(nearest) - best).max() < 1 / 18


def test_every_setting_is_tried_once_and_no_more_than_there_is_effort_for() -> None:
    asked: list[int] = []

    def value(x: int) -> float:
        asked.append(x)
        return abs(x - 3)

    assert len(search(value, lambda place: round(place[0] * 100), 1, trials=7)) == 7 == len(set(asked)) == len(asked)
    few = search(value, lambda place: round(place[0] * 4), 1, trials=50)
    assert sorted(x for x, _ in few) == [0, 1, 2, 3, 4]


def test_settings_grow_in_proportion_to_what_they_do() -> None:
    item = build(Tuned, ENTRIES["strength"])
    ends = [item.at([u, u]) for u in (0.0, 0.5, 1.0)]
    assert [e.guidance for e in ends] == [1.1, float(f"{1 + math.sqrt(0.1 * 4):.3g}"), 5.0]
    assert [e.guide_degradations["dropout"] for e in ends] == [0.01, float(f"{math.sqrt(0.01 * 0.9):.3g}"), 0.9]
    whole = build(Tuned, TUNED | {"over": {"quantised": [2, 6]}, "guide_degradations": {"quantised": 4}})
    assert [whole.at([u]).guide_degradations["quantised"] for u in (0.0, 0.5, 1.0)] == [2, 3, 6]
    layers = {"blurred_attention": {"strength": 1.0, "layers": ["enc.8x8_block0"]}}
    chosen = build(Tuned, TUNED | {"over": {"blurred_attention": [1, 4]}, "guide_degradations": layers}).at([1.0])
    assert chosen.guide_degradations == {"blurred_attention": {"strength": 4.0, "layers": ["enc.8x8_block0"]}}


def test_a_tuned_configuration_is_that_of_its_best_trial(
    here: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = study(golden)
    found = measures.trials(asked)
    effort = found.groupby("configuration")[["axis_value", "block", "num_images"]].nunique()
    assert (effort == [TUNING["trials"], 1, 1]).all(axis=None)
    assert set(found["num_images"]) == {8}
    assert (
        found.groupby("configuration")[["guidance", "guide_degradations"]]
        .apply(lambda x: len(x.drop_duplicates()))
        .eq(4)
        .all()
    )
    for key in ENTRIES:
        trials = found[found["configuration"] == key]
        best = trials.loc[trials["value"].idxmin()]
        rows = read_rows(measures.result_file(asked, key))
        assert set(rows["block"]) == {"0-7", "8-15"}
        assert set(rows["guidance"]) == {best["guidance"]}
        assert rows["guide_degradations"].fillna("").eq("" if key == "weight" else best["guide_degradations"]).all()
    # An ordinary configuration of those settings gives the same values.
    best = found[found["configuration"] == "weight"].sort_values("value").iloc[0]
    fixed = {k: v for k, v in TUNED.items()} | {"guidance": float(best["guidance"])}
    plain = study(golden, generate=raw(golden, "first")["generate"] | {"plain": fixed})
    for stage in (stages.run_generate, stages.run_features, stages.run_evaluate):
        stage(plain, "plain")
    keys = ["block", "metric", "value", "guidance", "guide_sha256", "solver"]
    ours, theirs = (read_rows(measures.result_file(plain, key))[keys] for key in ("weight", "plain"))
    pd.testing.assert_frame_equal(ours, theirs)

    def never(*_: Any) -> Sequence[Any]:
        raise AssertionError("sampled again")

    monkeypatch.setattr(shards, "sample_images", never)
    for key in ENTRIES:
        run_tune(asked, key)
    pd.testing.assert_frame_equal(measures.trials(asked), found)
    # Nor where the images are gone and what was measured of them stands.
    before = read_rows(measures.result_file(asked, "weight"))
    for path in (asked.out / "samples" / "weight").glob("*.zip"):
        path.unlink()
    measures.result_file(asked, "weight").unlink()
    run_tune(asked, "weight")
    again = read_rows(measures.result_file(asked, "weight"))
    pd.testing.assert_frame_equal(again.drop(columns="commit"), before.drop(columns="commit"))


def test_without_its_guide_a_tuned_configuration_is_not_possible_and_nothing_of_it_stays(
    here: Path, golden: Path
) -> None:
    asked = study(golden, {"weight": ENTRIES["weight"]})
    guide = asked.out / "networks" / GUIDE
    kept, found = guide.read_bytes(), measures.trials(asked)
    guide.unlink()
    note_missing(guide, {"": "guide.pkl gave 404 on 2026-01-01"})
    run_tune(asked, "weight")
    assert measures.why_missing(asked, "weight") == "guide.pkl gave 404 on 2026-01-01"
    assert read_rows(measures.result_file(asked, "weight")).empty
    assert measures.trials(asked).empty
    guide.write_bytes(kept)
    run_tune(asked, "weight")
    pd.testing.assert_frame_equal(measures.trials(asked), found)
    assert not measures.why_missing(asked, "weight")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tuning": None}, "missing key tuning"),
        ({"tuning": TUNING | {"seeds": "8-20"}}, "reports some of 8-20"),
        ({"tuning": TUNING | {"metric": "fid"}}, "'fid' is not measured"),
        ({"tuning": TUNING | {"metric": "fd_digit"}}, "did you mean 'fd_digits'"),
        ({"tuning": TUNING | {"trials": 0}}, "trials"),
        ({"tuned": {"x": TUNED | {"over": {}}}}, "over is empty"),
        ({"tuned": {"x": TUNED | {"over": {"guidance": [1.0, 3]}}}}, "over.guidance is [1, 3], expected 1 < least"),
        ({"tuned": {"x": TUNED | {"over": {"guidance": [3, 2]}}}}, "least < greatest"),
        ({"tuned": {"x": TUNED | {"over": {"guidance": [2, 3], "dropout": [0.1, 0.2]}}}}, "'dropout' is no setting"),
        ({"tuned": {"x": ENTRIES["strength"] | {"over": {"dropout": [0.1, 1.5]}}}}, "strength 1.5, expected"),
        ({"tuned": {"x": TUNED | {"over": {"guidance": [1.5, 2]}, "guide": MAIN}}}, "as its own guide"),
        ({"tuned": {"unguided": ENTRIES["weight"]}}, "the id occurs in generate too"),
    ],
)
def test_tuning_that_cannot_be_is_refused_when_the_study_is_read(golden: Path, changes: Any, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        study(golden, **changes)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_report_shows_what_was_found(here: Path, golden: Path) -> None:
    from repro import report

    asked = study(golden, {"weight": ENTRIES["weight"]})
    folder = report.report(asked, partial=True)
    table = (folder / "tuning.md").read_text()
    best = measures.trials(asked).sort_values("value").iloc[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert ["tuned", f"{best['guidance']:g}", "FD_digits ↓", f"{best['value']:.3f}", "4", "8", "1000-1007"] in lines
    assert "tuned" in (folder / "digits.md").read_text()
