"""Which figures a study has, and the drawing of each from what is measured so far."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from metrics.files import InputError, load_npz
from repro.report import figures
from repro.report.page import Figure, Preview
from repro.snapshots import Name, parse_name
from repro.study import Study, Sweep
from repro.verdicts import measures
from repro.verdicts.curves import METRIC_OF
from repro.verdicts.measures import method_label

HEADLINE_METHODS = ("unguided", "cfg", "autoguidance")


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
    images = {p.method: p.images for p in reversed(chosen)}  # the first of each method
    images, seeds = {p.method: images[p.method] for p in chosen}, chosen[0].seeds
    labels = chosen[0].labels if len(chosen[0].labels) else seeds  # unconditional: a row per seed
    draw = partial(figures.draw_samples, images, labels, seeds)
    name = f"{data}-samples"
    figures.save(draw, folder / name)
    return [Figure(name, f"Samples: {data}", "The same seeds under every method.")]


def _draw_curves(study: Study, folder: Path, curves: pd.DataFrame) -> list[Figure]:
    drawn = []
    for family in curve_families(study, list(dict.fromkeys(curves["sweep"]))):
        points = curves[curves["sweep"].isin(family.labels)]
        if family.metric:
            points = points[points["metric"] == family.metric]
        if points.empty:
            continue
        bands = "Bands: least to largest seed block."
        if points["blocks"].max() == 1:
            count = int(points["num_images"].max())
            bands = f"One seed block of {count} images each: the spread is unknown, other seeds may rank otherwise."
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
    metric: str = ""
    """The only one that is shown; empty: all."""


def curve_families(study: Study, measured: list[str]) -> list[CurveFamily]:
    """Figures of the measured sweeps: methods over the weight (paper's figure 7), each metric with the curves whose
    settings were optimised for it; guides that differ from the first one of the same main network in training (3a) or
    capacity (3b); corruptions (section 4); EMA lengths (3c)."""
    sweeps = {key: study.sweeps[key] for key in measured}
    weights = {k: s for k, s in sweeps.items() if s.axis == "guidance"}
    training: dict[str, str] = {}
    capacity: dict[str, str] = {}
    others: set[str] = set()
    for key, sweep in weights.items():
        origin = next(k for k, s in weights.items() if (s.method, s.main) == (sweep.method, sweep.main))
        guide, base = _guide(study, sweep), _guide(study, weights[origin])
        if key != origin and guide and base and guide != base:
            family = training if guide.run == base.run else capacity
            label = (lambda n: f"{n.kimg / 1000:.4g} M images") if family is training else (lambda n: n.run)
            family.setdefault(origin, label(base))
            family[key] = label(guide)
            others.add(key)
    methods: dict[str, dict[str, str]] = {}  # metric that the settings were optimised for, or "" -> sweep -> method
    for key, sweep in weights.items():
        if key not in others and not sweep.guide_corruption:
            methods.setdefault(METRIC_OF.get(key.rpartition("-")[2], ""), {}).setdefault(key, sweep.method)
    corrupted = {
        k: f"{_defects(s.main_corruption)} / {_defects(s.guide_corruption)}"
        for k, s in weights.items()
        if s.guide_corruption
    }
    lengths = {k: s for k, s in sweeps.items() if s.axis != "guidance"}
    roles = {"main_ema": "main network", "guide_ema": "guide"}
    several = len({s.method for s in lengths.values()}) > 1
    ema = {k: roles[s.axis] + (f", {method_label(s.method)}" if several else "") for k, s in lengths.items()}
    weight, ema_label = figures.WEIGHT_LABEL, figures.EMA_LABEL
    families = [
        *(
            CurveFamily("-".join(filter(None, ["sensitivity-guidance", metric])), "Sensitivity to the guidance weight",
                        "Paper: figure 7.", weight, labels, metric)
            for metric, labels in methods.items()
        ),
        CurveFamily("sensitivity-training", "Guidance weight and training of the guide", "Paper: figure 3a.", weight,
                    training),
        CurveFamily("sensitivity-capacity", "Guidance weight and capacity of the guide", "Paper: figure 3b.", weight,
                    capacity),
        CurveFamily("sensitivity-corruptions", "Guidance weight and corruptions",
                    "Corruption of main / guide. Paper: section 4.", weight, corrupted),
        CurveFamily("sensitivity-ema", "Sensitivity to EMA lengths", "One varies, the other stays. Paper: figure 3c.",
                    ema_label, ema),
    ]  # fmt: skip
    return [family for family in families if family.labels]


def _guide(study: Study, sweep: Sweep) -> Name | None:
    """Training run and time of a curve's guide; post-hoc EMA keeps the names of its sources."""
    name = parse_name(sweep.guide)
    if name is None or sweep.guide_set not in study.reconstruct:
        return name
    source = study.networks[study.reconstruct[sweep.guide_set].source]
    run = source.raw.run if source.raw else (source.train or {}).get("name")
    return name if run is None or name.run != sweep.guide_set else name._replace(run=str(run))


def _defects(corruption: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.0%}" for name, value in corruption.items())
