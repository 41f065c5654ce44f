"""Which figures a study has, and the drawing of each from what is measured so far."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from metrics.files import InputError, load_npz, write_csv
from metrics.names import qualified
from repro.drawing import WEIGHT_LABEL, save
from repro.report import figures
from repro.report.page import Figure, Preview
from repro.report.tables import method_label
from repro.study import Study
from repro.verdicts import measures

HEADLINE_METHODS = ("unguided", "cfg", "autoguidance")
EMA_LABEL = r"EMA length $\sigma_{\mathrm{rel}}$"
ROLES = {"main_ema": "main network", "guide_ema": "guide"}
CURVES = {  # figures of sweeps: title, caption, axis
    "guidance": ("Sensitivity to the guidance weight", "Paper: figure 7.", WEIGHT_LABEL),
    "training": ("Guidance weight and training of the guide", "Paper: figure 3a.", WEIGHT_LABEL),
    "capacity": ("Guidance weight and capacity of the guide", "Paper: figure 3b.", WEIGHT_LABEL),
    "corruptions": ("Guidance weight and corruptions", "Corruption of main / guide. Paper: section 4.", WEIGHT_LABEL),
    "ema": ("Sensitivity to EMA lengths", "One varies, the other stays. Paper: figure 3c.", EMA_LABEL),
}
POINT = ("configuration", "method", "metric")  # which value a row of a figure's CSV is
#: What a figure is, its drawing, and the numbers it shows.
Drawn = tuple[Figure, Drawing, pd.DataFrame | None]


def read_previews(study: Study) -> dict[str, list[Preview]]:
    """data id -> previews of its configurations that show the same seeds, in the study's order."""
    found: dict[str, list[Preview]] = {}
    for key, item in study.sampled.items():
        path = study.out / "results" / key / "preview.npz"
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


def draw_figures(study: Study, folder: Path, summary: pd.DataFrame, previews: dict[str, list[Preview]]) -> list[Figure]:
    """Draw everything there is data for, into `folder`: each as .png and .svg, and its numbers as .csv."""
    shown = list(_copy_toy(study, folder))
    for figure, drawing, numbers in _draw(study, summary[summary["mean"].notna()], previews):
        save(drawing, folder / figure.name)
        if numbers is not None:
            write_csv(folder / f"{figure.name}.csv", numbers)
        shown.append(figure)
    return shown


def _copy_toy(study: Study, folder: Path) -> Iterator[Figure]:
    """The toy draws its figures where its networks and samples are; the report shows them."""
    for key in study.toy:
        for path in sorted((measures.result_file(study, key).parent / "figures").glob("*.png")):
            name = path.stem if path.stem.startswith(key) else f"{key}-{path.stem}"
            for suffix in (".png", ".svg"):
                shutil.copyfile(path.with_suffix(suffix), folder / f"{name}{suffix}")
            title = f"2D example, the paper's figure {path.stem[-1]}"
            yield Figure(name, title, "Drawn from the networks trained here.", own_style=False)


def _draw(study: Study, measured: pd.DataFrame, previews: dict[str, list[Preview]]) -> Iterator[Drawn]:
    for data, ids in measures.generated(study).items():
        chosen = [preview for preview in previews.get(data, []) if preview.method in HEADLINE_METHODS]
        yield from _draw_data(study, data, measured[measured["configuration"].isin(ids)], chosen)
    yield from _draw_curves(study, measures.curves(measured).drop(columns="reason"))


def _draw_data(study: Study, data: str, rows: pd.DataFrame, chosen: list[Preview]) -> Iterator[Drawn]:
    """What was measured of the images of one kind of data, and the `chosen` samples."""
    metrics = list(dict.fromkeys(rows["metric"]))
    if metrics:
        shown = Figure(f"{data}-methods", f"Methods: {data}", "Mean (point), least and largest seed block (bar).")
        yield shown, figures.draw_methods(rows, metrics[:4]), rows[[*POINT, "mean", "min", "max"]]
    pair = rows[rows["metric"].isin(["fid", "fd_dinov2"])][[*POINT, "min"]]
    if pair["metric"].nunique() == 2:
        shown = Figure(f"{data}-scatter", "FID against FD_DINOv2", "Least of the seed blocks.")
        yield shown, figures.draw_scatter(pair, "fid", "fd_dinov2"), pair
    for detector in study.evaluate.all_detectors:
        axes = [qualified(value, detector) for value in ("recall", "precision")]
        both = rows[rows["metric"].isin(axes)][[*POINT, "mean"]]
        if both["metric"].nunique() == 2 and both["configuration"].nunique() > 2:
            shown = Figure(
                f"{data}-precision-recall-{detector}", "Precision against recall", "Mean of the seed blocks."
            )
            yield shown, figures.draw_scatter(both, axes[0], axes[1], "mean", "linear"), both
    images: dict[str, NDArray[np.uint8]] = {}
    for preview in chosen:
        images.setdefault(preview.method, preview.images)  # the first of each method
    if chosen:
        first = chosen[0]
        labels = first.labels if len(first.labels) else first.seeds  # unconditional: a row per seed
        shown = Figure(f"{data}-samples", f"Samples: {data}", "The same seeds under every method.")
        yield shown, figures.draw_samples(images, labels, first.seeds), None


def _draw_curves(study: Study, curves: pd.DataFrame) -> Iterator[Drawn]:
    for (figure, only), family in curve_families(study).items():
        title, caption, xlabel = CURVES[figure]
        metrics = [only] if only else curves["metric"]
        points = curves[curves["configuration"].isin(family) & curves["metric"].isin(metrics)]
        if points.empty:
            continue
        count = int(points["num_images"].max())
        single = f"One seed block of {count} images each: the spread is unknown, other seeds may rank otherwise."
        bands = single if points["blocks"].max() == 1 else "Bands: least to largest seed block."
        labels = {key: label for key, label in family.items() if key in set(points["configuration"])}
        shown = Figure("-".join(filter(None, ["sensitivity", figure, only])), title, f"{caption} {bands}")
        yield shown, figures.draw_curves(points, labels, xlabel), points
        for detector in study.evaluate.plain if shown.name == "sensitivity-guidance" else []:
            axes = [qualified(value, detector) for value in ("recall", "precision")]
            pair = points[points["metric"].isin(axes)]
            if pair["metric"].nunique() == 2:
                name = f"precision-recall-{detector}"
                shown = Figure(name, "Precision against recall", "Along the guidance weight, printed at the points.")
                yield shown, figures.draw_tradeoff(pair, labels, *axes), pair


def curve_families(study: Study) -> dict[tuple[str, str], dict[str, str]]:
    """(key of CURVES, the only metric that is shown, or nothing) -> sweep -> name in the legend.

    Each is one figure of the study's sweeps; that of the methods shows each metric with the curves optimised for it.
    """
    families: dict[tuple[str, str], dict[str, str]] = {}
    for figure in CURVES:
        sweeps = {key: sweep for key, sweep in study.sweeps.items() if figure in sweep.shown}
        several = len({sweep.method for sweep in sweeps.values()}) > 1
        for key, sweep in sweeps.items():
            only = sweep.optimised_for if figure == "guidance" else None
            labels = families.setdefault((figure, only or ""), {})
            role = ROLES.get(sweep.axis, "") + (f", {method_label(sweep.method)}" if several else "")
            label = sweep.shown[figure] or (role if figure == "ema" else sweep.method)
            labels[key] = f"{label} ({key})" if label in labels.values() else label
    return families
