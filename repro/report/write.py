"""The report of a study, written from its measures, shown as plain text, and published in results/ and the README."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

from metrics.files import InputError, write_csv, write_json, write_text
from metrics.names import space
from repro.report import gallery, page, tables, views
from repro.report.tables import Table
from repro.rows import MEASURES
from repro.study import Part, Study
from repro.verdicts import measures, published

RESULTS, README = Path("results"), Path("README.md")
LISTING = "files.json"  # in a folder: the names of what we wrote there
PUBLISHED = (".csv", ".md", ".png")
METRICS = "metrics.json"  # what DVC shows
SUMMARY = "summary.txt"  # what `make repro` ends with
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
README_FIGURES = ("toy-figure1", "digits-samples", "sensitivity-guidance")
CAPTIONS = {
    "published": "Least of the seed blocks (mean ± standard deviation), the published value, and the verdict. The "
    "paper optimises weight w and EMA lengths for FID and for FD_DINOv2 apart. The best value of each block is marked.",
    "claims": "Difference over all seeds, paired by seed, ± its standard error (jackknife over groups of seeds), with "
    "its own 95% interval. A claim is decided where p, corrected for the number of claims (Holm), is at most 0.05; for "
    "distances p is that of the difference at infinitely many images. A verdict speaks of these networks; only one "
    "over several training seeds, whose error is that of the mean of their differences, speaks of the method.",
    "order": "Mean over seed blocks for each training seed, and its place among the methods; the paper's values are of "
    "other data, so that the order alone compares.",
    "toy": "The paper's 2D example (class A), mean ± standard deviation over sampling seeds. Outliers: share of "
    "samples outside the contour that holds 99% of the true mass; JSD: Jensen-Shannon divergence of the assignment to "
    "components, or to branches.",
    "images": "Generated images against the reference, mean ± standard deviation over seed blocks; N: seed blocks × "
    "images in each. The best value of each column is marked.",
    "tuning": "Settings found for each method with the same number of trials, of the same images each, on seeds that "
    "nothing else is measured on; the CSV holds every trial.",
    "sensitivity": "Sensitivity to guidance weight and EMA lengths; the best value of each curve is marked.",
}


def report(study: Study, partial: bool = False) -> Path:
    """Write tables, figures and report.html of what is measured; returns the folder out/STUDY/report.

    Also writes out/STUDY/metrics.json and out/STUDY/sensitivity.csv, which DVC shows. With `partial` a study that is
    half run gives a report that says what is missing. Raises InputError for a broken result file, or an absent one.
    """
    if not partial:
        measures.refuse_gaps(study)
    folder = study.out / "report"
    found = measures.read(study)
    summary = measures.summarise(study, found)
    cells, tested = published.judge(study, found), published.all_claims(study, found, summary)
    previews = gallery.read_previews(study)
    curves, measured = measures.curves(summary), summary.drop(columns=["axis", "axis_value"])
    write_json(study.out / METRICS, measures.dvc_metrics(study, summary))
    write_csv(study.out / "sensitivity.csv", curves.dropna(subset=["mean"]).drop(columns="reason"))
    images = measured[measured["section"] == "generate"]
    rows = {
        **{name: tables.published_rows(cells, summary, name) for name in cells["table"].unique()},
        "claims": tested,
        **({"order": tables.order_rows(study.order, summary)} if study.order else {}),
        "toy": measured[measured["section"] == "toy"],
        **{table.name: _rows(images, ids, study, part) for table, ids, part in _generated_tables(study)},
        "tuning": measures.trials(study),
        "sensitivity": curves,
    }
    with _our_own(folder):
        for table in study_tables(study):
            if len(rows[table.name]) or not (table.judges or table.name == "tuning"):
                tables.write(table, rows[table.name], folder)
        drawn = gallery.draw_figures(study, folder, summary, previews)
        write_text(folder / "report.html", page.render(study, folder, written_tables(study, folder), drawn, previews))
        write_text(folder / SUMMARY, _summary(study, folder))
    return folder


@contextmanager
def _our_own(folder: Path) -> Iterator[set[str]]:
    """Around writing a folder: what we wrote there before goes, by the list that we leave there, and nothing else.

    Whatever happens, the list then has what is there besides the rest, whose names are yielded: those that are written
    all the same are to be taken from it.
    """
    for name in _listed(folder):
        (folder / name).unlink(missing_ok=True)
    others = {path.name for path in folder.iterdir()} - {LISTING} if folder.is_dir() else set[str]()
    try:
        yield others
    finally:
        if folder.is_dir():
            write_json(folder / LISTING, sorted({path.name for path in folder.iterdir()} - others - {LISTING}))


def _listed(folder: Path) -> list[str]:
    """The names of what we wrote into a folder."""
    with suppress(OSError, ValueError, TypeError):
        names = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        return [name for name in names if isinstance(name, str) and Path(name).name == name]
    return []


def study_tables(study: Study) -> list[Table]:
    """The tables that a study has, in the order of the report."""
    title, judges = "Measured and published", "published values"
    order = f"{CAPTIONS['order']} The paper's: {study.order.source}." if study.order else ""
    places = [item.table for item in study.published.values()] + [item.table for item in study.waived.values()]
    toy = Table("toy", "2D example", CAPTIONS["toy"], tables.configurations_view)
    tuning = Table("tuning", "Tuning", CAPTIONS["tuning"], tables.tuning_view)
    sensitivity = Table("sensitivity", "Sensitivity", CAPTIONS["sensitivity"], tables.sensitivity_view)
    return [
        *(Table(name, title, CAPTIONS["published"], tables.published_view, judges) for name in dict.fromkeys(places)),
        Table("claims", "Claims", CAPTIONS["claims"], tables.claims_view, judges="claims"),
        *([Table("order", "Order of methods", order, tables.order_view)] if study.order else []),
        *([toy] if study.toy else []),
        *(table for table, *_ in _generated_tables(study)),
        *([tuning] if study.tuned or any(toy.tuned for toy in study.toy.values()) else []),
        *([sensitivity] if study.sweeps else []),
    ]


def _generated_tables(study: Study) -> Iterator[tuple[Table, list[str], Part]]:
    """A table for every data set, and for each extra detector, which looks at other images; its configurations."""
    for data, ids in measures.generated(study).items():
        for part in study.evaluate.parts:
            name, title = data, f"Generated images: {data}"
            if part.folder:
                name, seen = f"{data}-{part.folder}", f"the first {part.images:,} of each by {space(part.folder).label}"
                title = f"{title}, {seen}"
            yield Table(name, title, CAPTIONS["images"], tables.configurations_view), ids, part


def _rows(images: pd.DataFrame, ids: list[str], study: Study, part: Part) -> pd.DataFrame:
    """Rows of some configurations: of what one extra detector measures, or of all that none of them does."""
    extras = {name for other in study.evaluate.parts[1:] for name in other.evaluate.names}
    ours = images["metric"].isin(part.evaluate.names if part.folder else {*images["metric"]} - extras)
    return images[images["configuration"].isin(ids) & ours]


def written_tables(study: Study, folder: Path) -> list[Table]:
    """Those of the study's tables that stand in `folder`."""
    return [table for table in study_tables(study) if (folder / f"{table.name}.csv").exists()]


def summary(study: Study) -> str:
    """Tables of the last `report` as plain text, and where its figures are. Raises InputError without a report."""
    return (_written(study) / SUMMARY).read_text(encoding="utf-8")


def _summary(study: Study, folder: Path) -> str:
    parts = [
        f"{table.title}\n\n{views.to_text(tables.read_view(table, folder))}" for table in written_tables(study, folder)
    ]
    pictures = "".join(f"  {path}\n" for path in sorted(folder.glob("*.png")))
    return "\n\n".join([*parts, f"Figures\n{pictures}Report: {folder / 'report.html'}\n"])


def _written(study: Study) -> Path:
    folder = study.out / "report"
    if not (folder / SUMMARY).exists():
        raise InputError(f"{folder}: no report yet; run `dvc repro` or `python -m repro report`")
    return folder


def publish(study: Study, results: Path = RESULTS, readme: Path = README) -> Path:
    """Copy the report's CSVs, Markdown tables and PNGs to RESULTS/STUDY; the default study's also into the README.

    Raises InputError where there is no report yet, or the README has no place for it.
    """
    folder, target = _written(study), results / study.study
    before, after = split_readme(readme) if study.study == "default" else ("", "")
    names = [name for name in _listed(folder) if Path(name).suffix in PUBLISHED]
    with _our_own(target) as others:
        target.mkdir(parents=True, exist_ok=True)
        others -= {*names, MEASURES, METRICS}
        for name in names:
            shutil.copyfile(folder / name, target / name)
        write_csv(target / MEASURES, measures.read(study))
        shutil.copyfile(study.out / METRICS, target / METRICS)
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
    parts = [
        f"**{table.title}.** {table.caption}\n\n{views.to_markdown(tables.read_view(table, folder))}" for table in shown
    ]
    pictures = [name for name in README_FIGURES if (folder / f"{name}.png").exists()]
    parts += [f"![{name}]({(shown_as / f'{name}.png').as_posix()})" for name in pictures]
    made = page.provenance([folder / f"{table.name}.csv" for table in shown])["facts"]
    device, versions, commit = (", ".join(values) for values in made.values())
    more = f"more in [{shown_as.name}]({shown_as.as_posix()})"
    parts.append(f"Made on {device} with {versions}, commit {commit}; {more}.")
    return "\n\n".join(map(str.strip, parts))
