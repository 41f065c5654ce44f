"""The report of a study: tables, figures, metrics.json, sensitivity.csv and report.html from its measures."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from metrics.files import InputError, atomic_write, load_npz, write_json, write_text
from repro import claims, figures, measures, page, tables, views
from repro.measures import method_label
from repro.page import Figure, Preview
from repro.snapshots import parse_name
from repro.study import Study
from repro.tables import Table

RESULTS = Path("results")
README = Path("README.md")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
README_FIGURES = ("toy-figure1", "digits-samples", "sensitivity-guidance")
CLAIMS_CAPTION = (
    "A claim holds when every seed block of the one method beats every block of the other; it is within the spread "
    "when only the means do."
)
HEADLINE_METHODS = ("unguided", "cfg", "autoguidance")


def report(study: Study) -> Path:
    """Write tables, figures and report.html of what is measured so far; returns the folder out/STUDY/report.

    Also writes out/STUDY/metrics.json and out/STUDY/sensitivity.csv, which DVC shows. A study that is half run
    gives a report that says what is missing.

    Raises:
        InputError: a result file is broken.
    """
    folder = study.out / "report"
    found = measures.read(study)
    summary, curves = measures.summarise(study, found), measures.curves(found)
    previews = read_previews(study)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(study.out / "metrics.json", measures.dvc_metrics(summary))
    with atomic_write(study.out / "sensitivity.csv") as temporary:
        curves.to_csv(temporary, index=False)
    for table in study_tables(study):
        tables.write(table, _table_rows(study, table, summary, curves), folder)
    drawn = draw_figures(study, folder, summary, curves, previews)
    write_text(folder / "report.html", page.render(study, folder, study_tables(study), drawn, previews))
    return folder


def study_tables(study: Study) -> list[Table]:
    """The tables that a study has, in the order of the report."""
    found = [Table("claims", "Claims of the paper", CLAIMS_CAPTION, tables.claims_view)]
    if study.toy:
        found.append(
            Table(
                "toy",
                "2D example",
                "The paper's 2D example (class A), mean ± standard deviation over sampling seeds. Outliers: share of "
                "samples outside the contour that holds 99% of the true mass; JSD: Jensen-Shannon divergence of "
                "component assignment.",
                tables.configurations_view,
            )
        )
    for data in dict.fromkeys(item.data for item in study.generate.values()):
        found.append(
            Table(
                data,
                f"Generated images: {data}",
                "Generated images against the reference, mean ± standard deviation over seed blocks; "
                "N: seed blocks × images in each. The best value of each column is marked.",
                tables.configurations_view,
            )
        )
    if study.sweeps:
        found.append(
            Table(
                "sensitivity",
                "Sensitivity",
                "Sensitivity to guidance weight and EMA lengths; the best value of each curve is marked.",
                tables.sensitivity_view,
            )
        )
    return found


def _table_rows(study: Study, table: Table, summary: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    if table.name == "claims":
        return claims.judge(study, summary)
    if table.name == "toy":
        return summary[summary["section"] == "toy"]
    if table.name == "sensitivity":
        return measures.planned_curves(study, curves)
    ids = [key for key, item in study.generate.items() if item.data == table.name]
    return summary[summary["id"].isin(ids) & (summary["section"] == "generate")]


def read_previews(study: Study) -> dict[str, list[Preview]]:
    """data id -> previews of its configurations that show the same seeds, in the study's order."""
    found: dict[str, list[Preview]] = {}
    for key, item in study.generate.items():
        path = measures.result_folder(study, key) / "preview.npz"
        if not path.exists():
            continue
        stored = load_npz(path)
        if not {"images", "labels", "seeds"} <= stored.keys():
            raise InputError(f"{path}: expected images, labels and seeds, found {', '.join(stored)}; delete it")
        preview = Preview(key, item.method, stored["images"], stored["labels"], stored["seeds"])
        others = found.setdefault(item.data, [])
        if not others or np.array_equal(others[0].seeds, preview.seeds):
            others.append(preview)
    return found


def draw_figures(
    study: Study,
    folder: Path,
    summary: pd.DataFrame,
    curves: pd.DataFrame,
    previews: dict[str, list[Preview]],
) -> list[Figure]:
    """Draw everything there is data for, into `folder`."""
    drawn = [_copy_toy(path, key, folder) for key in study.toy for path in _toy_figures(study, key)]
    measured = summary[(summary["section"] == "generate") & summary["mean"].notna()]
    for data in dict.fromkeys(item.data for item in study.generate.values()):
        ids = [key for key, item in study.generate.items() if item.data == data]
        rows = measured[measured["id"].isin(ids)]
        names = list(dict.fromkeys(rows["metric"]))[:4]
        if len(rows):
            title = f"Methods: {data}"
            caption = "Mean (point), least and largest seed block (bar)."
            drawn.append(Figure(f"{data}-methods", title, caption))
            data_rows = rows[["configuration", "method", "metric", "mean", "min", "max"]]
            figures.save(partial(figures.draw_methods, rows, names), folder / drawn[-1].name, data_rows)
        if {"fid", "fd_dinov2"} <= set(rows["metric"]):
            drawn.append(Figure(f"{data}-scatter", "FID against FD_DINOv2", "Least of the seed blocks."))
            pair = rows[rows["metric"].isin(["fid", "fd_dinov2"])][["configuration", "method", "metric", "min"]]
            figures.save(partial(figures.draw_scatter, pair, "fid", "fd_dinov2"), folder / drawn[-1].name, pair)
        drawn += _draw_samples(data, previews.get(data, []), folder)
    return drawn + _draw_curves(study, folder, curves)


def _toy_figures(study: Study, key: str) -> list[Path]:
    return sorted((measures.result_folder(study, key) / "figures").glob("*.png"))


def _copy_toy(path: Path, key: str, folder: Path) -> Figure:
    """The toy draws its figures where its networks and samples are; the report shows them."""
    name = path.stem if path.stem.startswith(key) else f"{key}-{path.stem}"
    for suffix in (".png", ".svg"):
        if path.with_suffix(suffix).exists():
            shutil.copyfile(path.with_suffix(suffix), folder / f"{name}{suffix}")
    number = path.stem[-1] if path.stem[-1].isdigit() else ""
    return Figure(
        name,
        f"2D example, the paper's figure {number}".rstrip(),
        "Drawn from the networks trained here.",
        own_style=False,
    )


def _draw_samples(data: str, previews: list[Preview], folder: Path) -> list[Figure]:
    chosen = [p for p in previews if p.method in HEADLINE_METHODS]
    if not chosen:
        return []
    images, seeds = {p.method: p.images for p in chosen}, chosen[0].seeds
    labels = chosen[0].labels if len(chosen[0].labels) else seeds  # unconditional: a row per seed
    draw = partial(figures.draw_samples, images, labels, seeds)
    name = f"{data}-samples"
    figures.save(draw, folder / name)
    return [Figure(name, f"Samples: {data}", "The same seeds under every method.")]


def _draw_curves(study: Study, folder: Path, curves: pd.DataFrame) -> list[Figure]:
    drawn = []
    for family in curve_families(study, list(dict.fromkeys(curves["sweep"]))):
        points = curves[curves["sweep"].isin(family.labels)]
        bands = "Bands: least to largest seed block." if points["blocks"].max() > 1 else "One seed block."
        drawn.append(Figure(family.name, family.title, f"{family.caption} {bands}"))
        draw = partial(figures.draw_curves, points, family.labels, family.xlabel)
        figures.save(draw, folder / family.name, points)
        if family.name == "sensitivity-guidance" and {"precision", "recall"} <= set(points["metric"]):
            pair = points[points["metric"].isin(["precision", "recall"])]
            caption = "Along the guidance weight, printed at the points."
            drawn.append(Figure("precision-recall", "Precision against recall", caption))
            draw = partial(figures.draw_tradeoff, pair, family.labels, "recall", "precision")
            figures.save(draw, folder / drawn[-1].name, pair)
    return drawn


@dataclass(frozen=True)
class CurveFamily:
    """Curves that belong into one figure."""

    name: str
    title: str
    caption: str
    xlabel: str
    labels: dict[str, str]
    """Sweep -> name in the legend."""


def curve_families(study: Study, measured: list[str]) -> list[CurveFamily]:
    """Figures of the measured sweeps: methods over the weight (paper's figure 7), guides that differ from the first
    one of their method in training (3a) or capacity (3b), and EMA lengths (3c)."""
    sweeps = {key: study.sweeps[key] for key in measured}
    first: dict[str, str] = {}
    training: dict[str, str] = {}
    capacity: dict[str, str] = {}
    for key, sweep in sweeps.items():
        if sweep.axis != "guidance":
            continue
        origin = first.setdefault(sweep.method, key)
        guide, base = parse_name(sweep.guide), parse_name(sweeps[origin].guide)
        if key != origin and guide and base:
            family = training if guide.run == base.run else capacity
            label = (lambda n: f"{n.kimg / 1000:.4g} M images") if family is training else (lambda n: n.run)
            family.setdefault(origin, label(base))
            family[key] = label(guide)
    lengths = {k: s for k, s in sweeps.items() if s.axis != "guidance"}
    roles = {"main_ema": "main network", "guide_ema": "guide"}
    several = len({s.method for s in lengths.values()}) > 1
    ema = {k: roles[s.axis] + (f", {method_label(s.method)}" if several else "") for k, s in lengths.items()}
    weight, ema_label = figures.WEIGHT_LABEL, figures.EMA_LABEL
    families = [
        CurveFamily("sensitivity-guidance", "Sensitivity to the guidance weight", "Paper: figure 7.", weight,
                    {key: method for method, key in first.items()}),
        CurveFamily("sensitivity-training", "Guidance weight and training of the guide", "Paper: figure 3a.", weight,
                    training),
        CurveFamily("sensitivity-capacity", "Guidance weight and capacity of the guide", "Paper: figure 3b.", weight,
                    capacity),
        CurveFamily("sensitivity-ema", "Sensitivity to EMA lengths", "One varies, the other stays. Paper: figure 3c.",
                    ema_label, ema),
    ]  # fmt: skip
    return [family for family in families if family.labels]


def summary(study: Study) -> str:
    """Tables of the last `report` as plain text, and where its figures are.

    Raises:
        InputError: there is no report yet.
    """
    folder = study.out / "report"
    if not (folder / "report.html").exists():
        raise InputError(f"{folder}: no report yet; run `dvc repro` or `python -m repro report`")
    parts = []
    for table in study_tables(study):
        parts.append(f"{table.title}\n\n{views.to_text(tables.read_view(table, folder))}")
    paths = [str(path) for path in sorted(folder.glob("*.png"))]
    parts.append("\n".join(["Figures", *(f"  {path}" for path in paths), f"Report: {folder / 'report.html'}"]))
    return "\n\n".join(parts)


def publish(study: Study, results: Path = RESULTS, readme: Path = README) -> Path:
    """Copy the report's CSVs, Markdown tables and PNGs to RESULTS/STUDY; the default study's also into the README.

    Raises:
        InputError: there is no report yet, or the README has no place for it.
    """
    folder, target = study.out / "report", results / study.study
    summary(study)  # checks that the report is there
    before, after = split_readme(readme) if study.study == "default" else ("", "")
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".csv", ".md", ".png"):
            shutil.copyfile(path, target / path.name)
    if study.study == "default":
        write_text(readme, f"{before}{BEGIN}\n{readme_block(study, target, target)}\n{END}{after}")
    return target


def split_readme(readme: Path) -> tuple[str, str]:
    """What stands before and after the results in the README."""
    text = readme.read_text() if readme.exists() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise InputError(f"{readme}: expected one line {BEGIN} and after it one line {END}")
    return text.split(BEGIN)[0], text.split(END)[1]


def readme_block(study: Study, folder: Path, shown_as: Path) -> str:
    """Tables and figures of the results published in `folder`, as a README shows them that calls it `shown_as`."""
    shown = [table for table in study_tables(study) if table.name != "sensitivity"]
    parts = []
    for table in shown:
        view = tables.read_view(table, folder)
        parts.append(f"**{table.title}.** {table.caption}\n\n{views.to_markdown(view)}")
    pictures = [f"{name}.png" for name in README_FIGURES if (folder / f"{name}.png").exists()]
    parts += [f"![{Path(name).stem}]({(shown_as / name).as_posix()})" for name in pictures]
    made = pd.concat([pd.read_csv(folder / f"{table.name}.csv", dtype=str) for table in shown])
    device, versions, commit = (", ".join(made[name].dropna().unique()) for name in ("device", "versions", "commit"))
    parts.append(
        f"Made on {device} with {versions}, commit {commit}; more in [{shown_as.name}]({shown_as.as_posix()})."
    )
    return "\n\n".join(part.strip() for part in parts)
