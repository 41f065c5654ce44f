"""The report of a study: tables, figures, metrics.json, sensitivity.csv and report.html from its measures."""

import shutil
from pathlib import Path

import pandas as pd

from metrics.files import InputError, atomic_write, write_json, write_text
from repro.report import page, tables, views
from repro.report import table1 as comparison
from repro.report.gallery import draw_figures, read_previews
from repro.report.tables import Table
from repro.study import Study
from repro.verdicts import measures, published

RESULTS = Path("results")
README = Path("README.md")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
README_FIGURES = ("toy-figure1", "digits-samples", "sensitivity-guidance")
CLAIMS_CAPTION = (
    "A claim holds when every seed block of the one method beats every block of the other; it is within the spread "
    "when only the means do."
)


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
        rows = _table_rows(study, table, found, summary, curves)
        if rows is not None:
            tables.write(table, rows, folder)
    drawn = draw_figures(study, folder, summary, curves, previews)
    write_text(folder / "report.html", page.render(study, folder, written_tables(study, folder), drawn, previews))
    return folder


def study_tables(study: Study) -> list[Table]:
    """The tables that a study has, in the order of the report."""
    name = comparison.NAMES.get(study.study, "published")
    found = [Table(name, "Measured and published", comparison.CAPTION, comparison.view, judges="published values")]
    found.append(Table("claims", "Claims of the paper", CLAIMS_CAPTION, tables.claims_view, judges="claims"))
    if study.toy:
        found.append(
            Table(
                "toy",
                "2D example",
                "The paper's 2D example (class A), mean ± standard deviation over sampling seeds. Outliers: share of "
                "samples outside the contour that holds 99% of the true mass; JSD: Jensen-Shannon divergence of "
                "the assignment to components, or to branches.",
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


def written_tables(study: Study, folder: Path) -> list[Table]:
    """Those of the study's tables that stand in `folder`."""
    return [table for table in study_tables(study) if (folder / f"{table.name}.csv").exists()]


def _table_rows(
    study: Study, table: Table, found: pd.DataFrame, summary: pd.DataFrame, curves: pd.DataFrame
) -> pd.DataFrame | None:
    """What the CSV of a table holds; None where nothing is published or claimed."""
    if table.view is comparison.view:
        cells = published.judge(study, found)
        return None if cells.empty else comparison.join(summary, cells)
    if table.name == "claims":
        tested = published.all_claims(study, found)
        return None if tested.empty else tested
    if table.name == "toy":
        return summary[summary["section"] == "toy"]
    if table.name == "sensitivity":
        return measures.planned_curves(study, curves)
    ids = [key for key, item in study.generate.items() if item.data == table.name]
    return summary[summary["id"].isin(ids) & (summary["section"] == "generate")]


def summary(study: Study) -> str:
    """Tables of the last `report` as plain text, and where its figures are.

    Raises:
        InputError: there is no report yet.
    """
    folder = study.out / "report"
    if not (folder / "report.html").exists():
        raise InputError(f"{folder}: no report yet; run `dvc repro` or `python -m repro report`")
    parts = []
    for table in written_tables(study, folder):
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
    with atomic_write(target / measures.MEASURES) as temporary:
        measures.read(study).to_csv(temporary, index=False)
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
    shown = [table for table in written_tables(study, folder) if table.name != "sensitivity"]
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
