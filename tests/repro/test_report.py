"""The report: tables, figures and page from a results tree made here, whole and half run."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.datasets import load_digits

import repro.study as studies
from metrics.files import InputError
from repro.report import figures, views
from repro.report import table1 as comparison
from repro.report.gallery import curve_families, draw_figures, read_previews
from repro.report.tables import claims_view, configurations_view
from repro.report.write import BEGIN, END, publish, readme_block, report, summary
from repro.verdicts import claims, measures, published

sys.path.insert(0, str(Path(__file__).parent))
from browser import Browser, missing

ROOT = Path(__file__).parents[2]
DIGITS = {
    "unguided": (0.62, 0.76, 0.96, 0.80, 0.87),
    "cfg": (0.55, 0.86, 0.90, 0.99, 0.90),
    "interval": (0.53, 0.84, 0.93, 0.95, 0.91),
    "autoguidance": (0.48, 0.83, 0.94, 0.96, 0.92),
    "reduced training only": (0.50, 0.82, 0.94, 0.93, 0.91),
    "reduced capacity only": (0.58, 0.79, 0.95, 0.86, 0.89),
}
TOY = {
    "true": (0.010, 1.36, 1.45, 0.009, 0.001, 0.005),
    "unguided": (0.094, 0.22, 1.48, 0.018, 0.005, 0.022),
    "cfg": (0.157, -4.3, 0.93, 0.347, 0.302, 0.268),
    "autoguidance": (0.058, -0.7, 1.62, 0.112, 0.064, 0.033),
    "truncation": (0.0003, 2.53, 2.60, 0.299, 0.194, 0.204),
}
NAMES = ("fd_digits", "precision", "recall", "density", "coverage")
HALF = ("digits-unguided", "digits-autoguidance", "digits-sweep-cfg")
ORIGIN = {"device": "cpu (x86_64)", "versions": "python 3.11.9, torch 2.13.0, numpy 2.3.0", "commit": "0a1b2c3"}
DIGESTS = {
    "num_steps": 16,
    "main_sha256": "1" * 64,
    "guide_sha256": "2" * 64,
    "detector": "digits",
    "detector_sha256": "3" * 64,
    "reference_sha256": "4" * 64,
}


def fabricate(study, ids):
    """Results of `ids` as the stages would leave them, with the numbers of a trial run."""
    rng = np.random.default_rng(0)
    for key in ids:
        folder = measures.result_folder(study, key)
        folder.mkdir(parents=True)
        if key in study.toy:
            rows = toy_rows(rng)
            (folder / "figures").mkdir()
            for number in (1, 2):
                figure = Figure(figsize=(7, 2))
                figure.subplots().plot(rng.standard_normal((2000, 2)), ".")
                figure.savefig(folder / "figures" / f"toy-figure{number}.png")
        elif key in study.generate:
            rows = generate_rows(study, key, rng)
            preview(folder, rng)
        else:
            rows = sweep_rows(study, key, rng)
        pd.DataFrame(rows).to_csv(folder / "measures.csv", index=False)


def toy_rows(rng):
    for method, values in TOY.items():
        for seed in (0, 1, 2):
            ids = {"study": "default", "configuration": method, "method": method, "block": seed, "training_seed": 0}
            for name, value in zip(measures.TOY_METRICS, values, strict=True):
                noisy = value * (1 + 0.03 * rng.standard_normal())
                yield ids | {"num_images": 16384, "metric": name, "value": noisy, "guidance": 1.0} | ORIGIN


def generate_rows(study, key, rng):
    item = study.generate[key]
    guided = item.guidance != 1
    facts = {
        "main": Path(item.main).name,
        "guide": Path(item.guide).name if guided else "",
        "guidance": item.guidance,
        "interval": "" if item.interval is None else "{}-{}".format(*item.interval),
        "main_ema": 0.1,
        "guide_ema": 0.1 if guided else None,
    }
    for block in item.seeds:
        ids = {"study": "default", "configuration": key, "method": item.method, "block": block, "num_images": 1024}
        for name, value in zip(NAMES, DIGITS.get(item.method, DIGITS["cfg"]), strict=True):
            yield ids | {"metric": name, "value": value + 0.01 * rng.standard_normal()} | facts | DIGESTS | ORIGIN


def sweep_rows(study, key, rng):
    sweep = study.sweeps[key]
    for value in sweep.values:
        off = value - (1.5 if sweep.axis == "guidance" else 0.1)
        guided = DIGITS.get(sweep.method, DIGITS["cfg"]) if value != 1 else DIGITS["unguided"]
        ids = {"study": "default", "configuration": key, "method": sweep.method, "block": sweep.seeds[0]}
        curve = {"sweep": key, "axis": sweep.axis, "axis_value": value, "num_images": 512, "guidance": sweep.guidance}
        for name, at_best in zip(NAMES, guided, strict=True):
            bent = at_best + 0.08 * off * off * (1 if name == "fd_digits" else -1) + 0.01 * rng.standard_normal()
            yield ids | curve | {"metric": name, "value": bent} | DIGESTS | ORIGIN


def preview(folder, rng):
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images[:64].reshape(64, 8, 8), np.ones((2, 2))) * 15
    noisy = np.clip(images + 20 * rng.standard_normal(images.shape), 0, 255).astype(np.uint8)
    np.savez(folder / "preview.npz", images=noisy[..., None], labels=labels[:64], seeds=np.arange(64))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The default study, wholly run, its report written, and the processor seconds that took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "OUT", tmp_path_factory.mktemp("out"))
        study = studies.load(ROOT / "studies" / "default.yaml")
        fabricate(study, measures.planned(study))
        start = time.process_time()  # of all threads, whatever else the machine does
        report(study)
        yield study, time.process_time() - start


@pytest.fixture
def default(rendered):
    """The default study with its report."""
    return rendered[0]


@pytest.fixture
def half(tmp_path, monkeypatch):
    """The default study, half run."""
    monkeypatch.setattr(studies, "OUT", tmp_path / "out")
    study = studies.load(ROOT / "studies" / "default.yaml")
    fabricate(study, HALF)
    return study


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
    drawn = ["digits-methods", "digits-samples", "sensitivity-guidance", "sensitivity-ema", "precision-recall"]
    for name in drawn:
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width in (pytest.approx(200 * 3.4, abs=2), pytest.approx(200 * 7.0, abs=2))
    assert (folder / "toy-figure1.png").exists()
    assert (folder / "toy-figure2.png").exists()


def test_mean_and_spread_are_those_of_the_seed_blocks(default):
    found = measures.read_csv(default.out / "report" / "digits.csv").set_index(["configuration", "metric"])
    raw = pd.read_csv(measures.result_folder(default, "digits-cfg") / "measures.csv")
    values = list(raw.loc[raw["metric"] == "fd_digits", "value"])
    row = found.loc[("digits-cfg", "fd_digits")]
    mean = sum(values) / 3
    assert row[["mean", "min", "max"]].tolist() == pytest.approx([mean, min(values), max(values)], rel=1e-12)
    assert row["spread"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5, rel=1e-9)
    assert row["blocks"] == 3
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


def test_dvc_metrics_and_curves_hold_every_measured_value(default):
    tree = json.loads((default.out / "metrics.json").read_text())
    assert set(tree) == set(default.generate) | {f"toy-{method}" for method in TOY}
    assert set(tree["digits-cfg"]["recall"]) == {"mean", "min", "spread"}
    curves = pd.read_csv(default.out / "sensitivity.csv")
    assert list(curves.columns) == measures.CURVE
    assert len(curves) == sum(len(sweep.values) for sweep in default.sweeps.values()) * len(NAMES)


def test_claims_are_judged_block_against_block():
    verdict = claims.verdict
    low, near, high = ({"mean": m, "min": m - 1, "max": m + 1} for m in (5, 6, 9))
    assert verdict(low, high, better=-1) == "holds"
    assert verdict(high, low, better=-1) == "does not hold"
    assert verdict(high, low, better=1) == "holds"
    assert verdict(low, near, better=-1) == "within the spread"
    assert verdict(low, low, better=-1) == "does not hold"
    assert verdict(low, near, better=1, allowed=1.5) == "holds"
    assert verdict(low, near, better=1, allowed=0.5) == "does not hold"


def test_claims_compare_configurations_of_the_same_main_network(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "OUT", tmp_path)
    study = studies.load(ROOT / "studies" / "training-seeds.yaml")
    fabricate(study, study.generate)
    judged = claims.judge(study, measures.summarise(study, measures.read(study)))
    lowered = judged[judged["claim"] == "Autoguidance lowers FD_digits"]
    pairs = [(f"seeds-autoguidance-{i}", f"seeds-unguided-{i}") for i in (1, 2, 3)]
    assert list(zip(lowered["configuration"], lowered["against"], strict=True)) == pairs
    assert set(lowered["verdict"]) == {"holds"}
    assert "Autoguidance lowers FD_digits (seeds-autoguidance-2)" in [
        row[0].text for row in claims_view(judged[judged["verdict"] == "holds"]).rows
    ]


def test_a_half_run_study_says_what_is_missing(half):
    (half.out / "report").mkdir(parents=True)
    (half.out / "report" / "figure-of-a-former-run.png").write_bytes(b"")
    folder = report(half)
    assert not (folder / "figure-of-a-former-run.png").exists()
    rows = {row[0]: row for row in table_cells((folder / "digits.html").read_text())}
    assert rows["CFG"][-5:] == ["not run"] * 5
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", rows["autoguidance"][-5])
    assert {cell for row in table_cells((folder / "toy.html").read_text()) for cell in row[-6:]} == {"not run"}
    judged = pd.read_csv(folder / "claims.csv").set_index("claim")
    assert judged.loc["Autoguidance lowers FD_digits", "verdict"] == "holds"
    assert judged.loc["Autoguidance beats CFG in FD_digits", "verdict"] == "not run"
    page = (folder / "report.html").read_text()
    (missing,) = re.findall(r"Not run yet:</strong> (.*?)\.</p>", page)
    assert set(missing.split(", ")) == set(measures.planned(half)) - set(HALF)
    assert "digits-cfg" not in json.loads((half.out / "metrics.json").read_text())
    planned = {key: len(sweep.values) for key, sweep in half.sweeps.items()}
    done = planned.pop("digits-sweep-cfg")
    assert len(pd.read_csv(half.out / "sensitivity.csv")) == done * len(NAMES)
    missing = pd.read_csv(folder / "sensitivity.csv")["mean"].isna()
    assert missing.sum() == sum(planned.values()) * len(NAMES)


def test_missing_seed_blocks_are_named(half):
    path = measures.result_folder(half, "digits-unguided") / "measures.csv"
    found = pd.read_csv(path)
    found[found["block"] == "0-1023"].to_csv(path, index=False)
    summarised = measures.summarise(half, measures.read(half))
    view = configurations_view(summarised[summarised["section"] == "generate"])
    assert "digits-unguided: 1 of 3 seed blocks" in view.notes
    (row,) = [row for row in view.rows if row[0].text == "no guidance"]
    assert "±" not in row[-1].text


def test_published_values_come_first_in_the_report(half, monkeypatch):
    verdicts = pd.DataFrame(
        {
            "configuration": ["digits-autoguidance", "digits-cfg"],
            "metric": "fd_digits",
            "published": [0.5, 0.6],
            "difference": [-0.02, None],
            "verdict": ["reproduced", "not run"],
            "reason": [None, "not run"],
        }
    )
    monkeypatch.setattr(published, "judge", lambda *_: verdicts)
    folder = report(half)
    page = (folder / "report.html").read_text()
    assert "1 of 2</b>published values: reproduced" in page
    assert page.index('id="table-published"') < page.index('id="table-digits"')
    assert "Measured and published" in summary(half)
    found = pd.read_csv(folder / "published.csv").set_index("configuration")
    assert found.loc["digits-autoguidance", "published"] == 0.5


def test_an_empty_study_still_gives_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "OUT", tmp_path)
    study = studies.load(ROOT / "studies" / "default.yaml")
    folder = report(study)
    assert f"0 of {len(measures.planned(study))}" in (folder / "report.html").read_text()
    assert json.loads((study.out / "metrics.json").read_text()) == {}


def test_a_broken_result_file_is_named_and_the_old_report_stays(half):
    folder = half.out / "report"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("an earlier report")
    path = measures.result_folder(half, "digits-unguided") / "measures.csv"
    for content, message in (("", "not a CSV of"), ("a,b\n1,2\n", "no column"), ('"torn', "not a CSV of")):
        path.write_text(content)
        with pytest.raises(InputError, match=f"{re.escape(str(path))}: {message}"):
            report(half)
    assert (folder / "report.html").read_text() == "an earlier report"


def test_metrics_of_two_detectors_stay_apart(half):
    path = measures.result_folder(half, "digits-unguided") / "measures.csv"
    found = pd.read_csv(path)
    pd.concat([found, found.assign(detector="dinov2", value=0.5)]).to_csv(path, index=False)
    names = set(measures.summarise(half, measures.read(half))["metric"])
    assert {"precision_digits", "precision_dinov2"} <= names
    assert "precision" not in set(measures.read(half)["metric"])


def verdict_rows():
    """Two rows of the paper's table: one measured in both metrics, one in neither."""
    facts = {
        "section": "generate",
        "spread": 0.02,
        "blocks": 3,
        "num_images": 50000,
        "main_ema": 0.07,
        "guide_ema": 0.125,
    }
    measured = [
        facts | {"configuration": "imagenet512-s-fid", "metric": "fid", "mean": 2.58, "min": 2.55, "guidance": 1.0},
        facts | {"configuration": "imagenet512-s-fd", "metric": "fd_dinov2", "mean": 68.9, "min": 68.7},
        facts | {"configuration": "imagenet512-autog-fid", "metric": "fid", "mean": 1.37, "min": 1.35, "guidance": 2.1},
        facts | {"configuration": "imagenet512-autog-fd", "metric": "fd_dinov2", "reason": "not run"},
        facts | {"configuration": "imagenet512-autog-fd", "metric": "precision_inception", "mean": 0.7, "min": 0.7},
    ]
    unmeasured = {"mean": None, "min": None, "spread": None}
    measured[3] |= unmeasured
    verdicts = [
        ("imagenet512-s-fid", "fid", 2.56, -0.01, "reproduced", None),
        ("imagenet512-s-fd", "fd_dinov2", 68.64, 0.06, "reproduced", None),
        ("imagenet512-autog-fid", "fid", 1.34, 0.01, "reproduced", None),
        ("imagenet512-autog-fd", "fd_dinov2", 36.67, None, "not run", "not run"),
        ("rin", "fid", 1.23, None, "not possible from public files", "no public network"),
    ]
    columns = ["configuration", "metric", "published", "difference", "verdict", "reason"]
    return pd.DataFrame(measured).reindex(columns=measures.COLUMNS), pd.DataFrame(verdicts, columns=columns)


def test_measured_and_published_stand_in_the_layout_of_the_papers_table():
    rows = comparison.join(*verdict_rows())
    view = comparison.view(rows)
    lines = [[cell.text for cell in row] for row in view.rows]
    assert [line[0] for line in lines] == ["imagenet512-s", "imagenet512-autog", "rin"]
    assert lines[0][1:5] == ["2.55 (2.58 ± 0.02)", "2.56", "-0.01", "reproduced"]
    assert lines[1][1:8] == ["1.35 (1.37 ± 0.02)", "1.34", "+0.01", "reproduced", "2.1", "0.07", "0.125"]
    assert lines[1][8:12] == ["–", "36.67", "–", "not run"]
    assert lines[2][1:5] == ["–", "1.23", "–", "not possible from public files"]
    assert [row[1].best for row in view.rows] == [False, True, False]
    assert "rin: no public network" in view.notes
    tex = views.to_latex(view, "table1", "x")
    assert tex.count("multicolumn{7}") == 2
    assert r"\cmidrule(lr){2-8} \cmidrule(lr){9-15}" in tex
    assert views.to_html(view).count('colspan="7"') == 2


def test_summary_prints_the_tables_and_where_the_figures_are(default):
    text = summary(default)
    for title in ("2D example", "Generated images: digits", "Sensitivity", "Claims of the paper"):
        assert title in text
    assert str(default.out / "report" / "sensitivity-guidance.png") in text
    assert max(map(len, text.splitlines())) < 170


def test_summary_without_a_report_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "OUT", tmp_path)
    with pytest.raises(InputError, match="no report yet; run `dvc repro`"):
        summary(studies.load(ROOT / "studies" / "default.yaml"))


def latex(folder):
    parts = [r"\input{" + path.stem + "}" for path in sorted(folder.glob("*.tex"))]
    return "\n".join(
        [r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}", *parts, r"\end{document}"]
    )


def test_latex_tables_are_well_formed(default):
    for path in (default.out / "report").glob("*.tex"):
        text = path.read_text()
        assert text.isascii()
        for name in ("table", "tabular"):
            assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
        for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
            assert rule in text
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        width = len(re.search(r"\\begin{tabular}{(\w+)}", text)[1])
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 1
        assert all(len(re.findall(r"(?<!\\)&", line)) == width - 1 for line in lines)
        assert not re.search(r"(?<!\\)[_#%]", re.sub(r"\$[^$]*\$|\\label{.*}|%\n", "", text))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX engine (pdflatex) is installed")
def test_latex_tables_compile(default, tmp_path):
    for path in (default.out / "report").glob("*.tex"):
        shutil.copy(path, tmp_path)
    (tmp_path / "all-tables.tex").write_text(latex(default.out / "report"))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all-tables"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_text_is_escaped_for_latex():
    assert views.tex_escape("a_b 5% ± {x} #1 & \\") == r"a\_b 5\% $\pm$ \{x\} \#1 \& \textbackslash{}"


def test_figures_print_at_seven_points_or_more_with_labelled_axes(default, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda draw, stem, data=None: drawn.append((stem.name, draw)))
    found = measures.read(default)
    draw_figures(
        default,
        default.out / "report",
        measures.summarise(default, found),
        measures.curves(found),
        read_previews(default),
    )
    assert len(drawn) == 5
    with matplotlib.rc_context(figures.STYLE):
        for name, draw in drawn:
            check_figure(name, draw())


def test_guides_of_one_method_part_into_the_papers_figures_3a_and_3b(default):
    base = dataclasses.replace(default.sweeps["digits-sweep-autoguidance"], guide="xs-0134217-0.125.safetensors")
    guides = {"t16": base.guide, "t32": "xs-0067108-0.125.safetensors", "xxs": "xxs-0134217-0.125.safetensors"}
    sweeps = {key: dataclasses.replace(base, guide=guide) for key, guide in guides.items()}
    sweeps["cfg"] = dataclasses.replace(base, method="cfg")
    families = {f.name: f.labels for f in curve_families(dataclasses.replace(default, sweeps=sweeps), list(sweeps))}
    assert families == {
        "sensitivity-guidance": {"t16": "autoguidance", "cfg": "cfg"},
        "sensitivity-training": {"t16": "134.2 M images", "t32": "67.11 M images"},
        "sensitivity-capacity": {"t16": "xs", "xxs": "xxs"},
    }


def test_curves_of_the_imagenet_studies_part_into_the_papers_figures():
    families = {}
    for name in ("sensitivity512", "corruptions512"):
        study = studies.load(ROOT / "studies" / f"{name}.yaml")
        families |= {f.name: f for f in curve_families(study, list(study.sweeps))}
    labels = {name: list(family.labels.values()) for name, family in families.items()}
    methods = ["autoguidance", "cfg", "interval"]
    assert labels == {
        "sensitivity-guidance-fid": methods,
        "sensitivity-guidance-fd_dinov2": methods,
        "sensitivity-training": ["134.2 M images", "67.11 M images", "268.4 M images"],
        "sensitivity-capacity": ["edm2-img512-xs", "edm2-img512-s"],
        "sensitivity-corruptions": [
            "dropout 5% / dropout 10%",
            "input noise 10% / input noise 20%",
            "dropout 5% / input noise 20%",
            "input noise 10% / dropout 10%",
        ],
        "sensitivity-ema": ["main network", "guide"],
    }
    assert families["sensitivity-guidance-fid"].metric == "fid"


def test_fid_and_fd_dinov2_of_a_configuration_make_a_point():
    rows = [("a", "cfg", "fid", 2.2), ("a", "cfg", "fd_dinov2", 52.0), ("b", "autoguidance", "fid", 1.3)]
    rows += [("b", "autoguidance", "fd_dinov2", 36.0), ("c", "cfg", "fid", 9.0)]
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.draw_scatter(
            pd.DataFrame(rows, columns=["configuration", "method", "metric", "min"]), "fid", "fd_dinov2"
        )
        check_figure("scatter", figure)
    points = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]
    assert points == [([2.2], [52.0]), ([1.3], [36.0])]


def check_figure(name, figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    assert min(t.get_fontsize() for t in texts) >= 7
    assert figure.get_figwidth() in (3.4, 7.0)
    for ax in figure.axes:
        if ax.get_visible() and ax.lines:
            assert ax.get_xlabel()
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert not any(box.overlaps(ax.get_window_extent(renderer)) for ax in figure.axes), name


def test_the_report_renders_within_twenty_seconds(rendered):
    assert rendered[1] < 20


def test_publishing_copies_the_views_and_fills_the_readme(default, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nformer table\n{END}\n\nTail.\n")
    target = publish(default, tmp_path / "results", readme)
    assert target == tmp_path / "results" / "default"
    assert {path.suffix for path in target.iterdir()} == {".csv", ".md", ".png"}
    assert (target / "digits.csv").read_bytes() == (default.out / "report" / "digits.csv").read_bytes()
    text = readme.read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nTail.\n")
    assert "former table" not in text
    assert f"| autoguidance | {default.generate['digits-autoguidance'].guidance:g} |" in text
    assert "digits-samples.png" in text
    assert ORIGIN["device"] in text
    publish(default, tmp_path / "results", readme)
    assert readme.read_text() == text


@pytest.mark.parametrize("text", ["no markers", f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_a_place_for_results_is_left_alone(default, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputError, match="expected one line"):
        publish(default, tmp_path / "results", readme)
    assert readme.read_text() == text


def test_the_committed_readme_is_in_step_with_the_committed_results():
    folder = ROOT / "results" / "default"
    if not (folder / "digits.csv").exists():
        pytest.skip("no results are published yet")
    study = studies.load(ROOT / "studies" / "default.yaml")
    text = (ROOT / "README.md").read_text()
    block = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert block == readme_block(study, folder, Path("results/default"))


@pytest.fixture(scope="module")
def page(rendered):
    """The report opened in a browser."""
    default = rendered[0]
    if missing():
        pytest.skip(f"no browser: {' and '.join(missing())} not installed")
    with Browser() as browser:
        browser.emulate(1280)
        browser.open((default.out / "report" / "report.html").as_uri())
        yield browser


def test_the_page_asks_for_nothing_and_logs_no_errors(page, default):
    address = (default.out / "report" / "report.html").as_uri()
    page.open(address)
    assert [a for a in page.requests() if a != address] == []
    assert page.console() == []


def test_a_click_on_a_heading_sorts_the_table_both_ways(page):
    column = """
        const table = document.querySelector("#table-digits ~ .wide table");
        const heads = [...table.tHead.rows[0].cells], at = heads.findIndex(h => h.textContent.startsWith("FD_digits"));
        if (arguments[0]) heads[at].querySelector("button").click();
        return [heads[at].getAttribute("aria-sort"), ...[...table.tBodies[0].rows].map(r => r.cells[at].dataset.value)];
    """
    before = page.run(column, False)
    up, down = page.run(column, True), page.run(column, True)
    values = [float(value) for value in before[1:]]
    assert before[0] is None
    assert values != sorted(values)
    assert up[0] == "ascending"
    assert [float(v) for v in up[1:]] == sorted(values)
    assert down[0] == "descending"
    assert [float(v) for v in down[1:]] == sorted(values, reverse=True)


def test_samples_flip_between_methods_at_the_same_seeds(page):
    state = """
        const flip = document.querySelector("#flip-digits");
        if (arguments[0] !== null) [...flip.querySelectorAll("[role=tab]")][arguments[0]].click();
        return [...flip.querySelectorAll("[role=tabpanel]")].filter(p => p.getClientRects().length).map(p =>
            [p.id, p.querySelector("img").naturalWidth, Math.round(p.getBoundingClientRect().top + scrollY)]);
    """
    (first,) = page.run(state, None)
    (other,) = page.run(state, 3)
    assert first[0] == "panel-digits-unguided"
    assert other[0] == "panel-digits-autoguidance"
    assert first[1] == other[1] == 8 * 17
    assert first[2] == other[2]  # nothing jumps
    key = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
    page.run("document.querySelectorAll('#flip-digits [role=tab]')[3].focus();" + key)
    assert page.run(state, None)[0][0] == "panel-digits-reduced-training"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_the_screen_in_light_and_dark(page, width, dark):
    page.emulate(width, dark)
    try:
        assert page.run("return document.documentElement.scrollWidth") <= width
        ink = page.run("return getComputedStyle(document.body).color")
        assert (max(map(int, re.findall(r"\d+", ink))) > 128) == dark
        picture = Image.open(io.BytesIO(page.screenshot())).convert("L")
        assert (np.asarray(picture).mean() < 128) == dark
    finally:
        page.emulate(1280)


def test_a_reader_without_scripts_sees_every_table(default):
    text = (default.out / "report" / "report.html").read_text()
    assert text.count("<tbody>") >= 4
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
