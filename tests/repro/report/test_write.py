"""The report of a study: tables and figures from its measures, whole and half run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import repro.study as studies
from metrics.files import InputError
from repro.report import gallery, report, summary
from repro.report.tables import read_csv
from repro.study import Published, schema
from repro.verdicts import measures, published
from tests.repro.fabricated import DIGESTS, NAMES
from tests.repro.report.conftest import HALF

ROOT = Path(__file__).parents[3]


def table_cells(html):
    """Texts of a table's body, row by row."""
    body = html[html.index("<tbody>") :]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in body.splitlines() if line.startswith("<tr")]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in rows]


def test_every_table_and_figure_of_the_default_study_is_written(default):
    folder = default.out / "report"
    for name in ("claims", "toy", "digits", "sensitivity"):
        for suffix in ("csv", "md", "tex", "html"):
            assert (folder / f"{name}.{suffix}").stat().st_size > 100
    drawn = ["digits-methods", "digits-samples", "sensitivity-guidance", "sensitivity-ema", "precision-recall-digits"]
    for name in drawn:
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width in (pytest.approx(200 * 3.4, abs=2), pytest.approx(200 * 7.0, abs=2))
    assert (folder / "toy-figure1.png").exists()
    assert (folder / "toy-figure2.png").exists()


def test_mean_and_spread_are_those_of_the_seed_blocks(default):
    found = read_csv(default.out / "report" / "digits.csv").set_index(["configuration", "metric"])
    raw = pd.read_csv(measures.result_file(default, "digits-cfg"))
    values = list(raw.loc[raw["metric"] == "fd_digits", "value"])
    row = found.loc[("digits-cfg", "fd_digits")]
    mean = sum(values) / 4
    assert row[["mean", "min", "max"]].tolist() == pytest.approx([mean, min(values), max(values)], rel=1e-12)
    assert row["spread"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 3) ** 0.5, rel=1e-9)
    assert row["blocks"] == 4
    assert row["num_images"] == 1024
    assert row["main_sha256"] == DIGESTS["main_sha256"]
    assert [float(v) for v in row["values"].split(";")] == pytest.approx(values, rel=1e-7)


def test_the_views_show_what_the_csv_holds(default):
    folder = default.out / "report"
    found = pd.read_csv(folder / "digits.csv").set_index(["configuration", "metric"])
    for row, key in zip(table_cells((folder / "digits.html").read_text()), default.generate, strict=True):
        expected = [f"{found.loc[(key, m), 'mean']:.3f} ± {found.loc[(key, m), 'spread']:.3f}" for m in NAMES]
        assert row[-5:] == expected
        markdown = (folder / "digits.md").read_text()
        assert all(text in markdown for text in expected)


def test_the_best_value_of_a_column_is_marked_and_true_samples_do_not_compete(default):
    folder = default.out / "report"
    markdown = [line for line in (folder / "digits.md").read_text().splitlines() if line.startswith("| autoguidance")]
    assert re.search(r"\*\*0\.4\d\d ± ", markdown[0])
    toy = (folder / "toy.md").read_text().splitlines()
    assert "**" not in next(line for line in toy if line.startswith("| true samples"))
    assert next(line for line in toy if line.startswith("| truncation")).count("**0.00") == 1
    assert "**-" not in (folder / "toy.md").read_text()  # no direction is better for the log-density


def test_dvc_metrics_are_few_and_curves_hold_every_measured_value(default):
    tree = json.loads((default.out / "metrics.json").read_text())
    assert sum(map(len, tree.values())) <= 28
    assert tree.keys() >= {*default.generate, "toy-autoguidance"}
    raw = pd.read_csv(measures.result_file(default, "digits-autoguidance"))
    for claim in default.claims:  # what the study is about comes first
        assert claim.metric in tree[claim.better]
    found = {name: raw.loc[raw["metric"] == name, "value"].mean() for name in tree["digits-autoguidance"]}
    assert tree["digits-autoguidance"] == pytest.approx(found)
    curves = pd.read_csv(default.out / "sensitivity.csv")
    assert list(curves.columns) == [name for name in measures.CURVE if name != "reason"]
    assert len(curves) == sum(len(sweep.values) for sweep in default.sweeps.values()) * len(NAMES)


def test_an_absent_result_is_no_shorter_report(default):
    path = measures.result_file(default, "digits-cfg")
    kept = path.rename(path.with_suffix(".kept"))
    with pytest.raises(InputError, match=r"digits-cfg/measures\.csv is not there.*evaluate@digits-cfg.*--partial"):
        report(default)
    with pytest.raises(InputError, match="is not there"):
        published.verify(default, print)
    kept.rename(path)


def test_a_half_run_study_says_what_is_missing(half):
    (half.out / "report").mkdir(parents=True)
    for name in ("figure-of-a-former-run.png", "notes-of-the-user.txt"):
        (half.out / "report" / name).touch()
    (half.out / "report" / "files.json").write_text('["figure-of-a-former-run.png"]')
    folder = report(half, partial=True)
    assert not (folder / "figure-of-a-former-run.png").exists()
    assert (folder / "notes-of-the-user.txt").exists()
    rows = {row[0]: row for row in table_cells((folder / "digits.html").read_text())}
    assert rows["CFG"][-5:] == ["not run"] * 5
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", rows["autoguidance"][-5])
    assert {cell for row in table_cells((folder / "toy.html").read_text()) for cell in row[-6:]} == {"not run"}
    judged = pd.read_csv(folder / "claims.csv").set_index("claim")
    assert judged.loc["Autoguidance lowers FD_digits", "verdict"] == "holds"
    assert judged.loc["Autoguidance beats CFG in FD_digits", "verdict"] == "not run"
    page = (folder / "report.html").read_text()
    (missing,) = re.findall(r"Not run yet:</strong> (.*?)\.</p>", page)
    assert set(missing.split(", ")) == set(measures.entries(half)) - set(HALF)
    assert "digits-cfg" not in json.loads((half.out / "metrics.json").read_text())
    planned = {key: len(sweep.values) for key, sweep in half.sweeps.items()}
    done = planned.pop("digits-sweep-cfg")
    assert len(pd.read_csv(half.out / "sensitivity.csv")) == done * len(NAMES)
    missing = pd.read_csv(folder / "sensitivity.csv")["mean"].isna()
    assert missing.sum() == sum(planned.values()) * len(NAMES)


def test_what_an_interrupted_report_leaves_goes_with_the_next_one(half, monkeypatch):
    def interrupted(study, folder, *_):
        (folder / "figure-of-this-run.png").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gallery, "draw_figures", interrupted)
        with pytest.raises(KeyboardInterrupt):
            report(half, partial=True)
    assert (half.out / "report" / "figure-of-this-run.png").exists()
    assert not (report(half, partial=True) / "figure-of-this-run.png").exists()


def test_published_values_come_first_in_the_report(half, monkeypatch):
    study = replace(half, published={"digits-autoguidance": Published("table1", "S", "fid", 0.5)})
    cells = pd.DataFrame(
        {
            "configuration": ["digits-autoguidance", "digits-cfg"],
            "metric": "fd_digits",
            "published": [0.5, 0.6],
            "difference": [-0.02, None],
            "verdict": ["reproduced", "not run"],
            "reason": [None, "not run"],
            "table": "table1",
            "row": ["S", "S+cfg"],
        }
    )
    monkeypatch.setattr(published, "judge", lambda *_: cells.reindex(columns=published.COLUMNS))
    folder = report(study, partial=True)
    page = (folder / "report.html").read_text()
    assert "1 of 2</b>published values: reproduced" in page
    assert page.index('id="table-table1"') < page.index('id="table-digits"')
    assert "Measured and published" in summary(study)
    found = pd.read_csv(folder / "table1.csv").set_index("configuration")
    assert found.loc["digits-autoguidance", "published"] == 0.5


def test_an_empty_study_still_gives_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "OUT", tmp_path)
    study = studies.load(ROOT / "studies" / "default.yaml")
    folder = report(study, partial=True)
    assert f"0 of {len(measures.entries(study))}" in (folder / "report.html").read_text()
    assert json.loads((study.out / "metrics.json").read_text()) == {}


def test_a_broken_result_file_is_named_and_the_old_report_stays(half):
    folder = half.out / "report"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("an earlier report")
    path = measures.result_file(half, "digits-unguided")
    for content, message in (("", "not a CSV of"), ("a,b\n1,2\n", "no column"), ('"torn', "not a CSV of")):
        path.write_text(content)
        with pytest.raises(InputError, match=f"{re.escape(str(path))}: {message}"):
            report(half, partial=True)
    assert (folder / "report.html").read_text() == "an earlier report"


def test_the_report_renders_within_twenty_seconds(rendered):
    assert rendered.seconds < 20
