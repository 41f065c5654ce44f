"""What a study measured so far: rows of all its result folders, and their summary over seed blocks."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from metrics.files import InputError
from repro.pipeline.evaluate import FD_NAMES
from repro.snapshots import parse_name
from repro.study import Generate, Study

MEASURES = "measures.csv"
NEIGHBOUR_METRICS = {"precision_recall": ("precision", "recall"), "density_coverage": ("density", "coverage")}
TOY_METHODS = ("true", "unguided", "cfg", "autoguidance", "truncation")
TOY_METRICS = (
    "outliers",
    "log_density",
    "log_density_median",
    "component_jsd",
    "branch_jsd",
    "sliced_wasserstein",
)
METHOD_LABELS = {"true": "true samples", "unguided": "no guidance", "cfg": "CFG", "interval": "CFG + interval"}
SETTINGS = ["guidance", "interval", "main_ema", "guide_ema", "num_steps", "main", "guide"]
ORIGIN = ["main_sha256", "guide_sha256", "detector", "detector_sha256", "reference_sha256", "device", "versions"]
TEXTS = ["block", "interval", "commit", "reason", "values", *(name for name in ORIGIN if name.endswith("sha256"))]
SUMMARY = ["section", "id", "configuration", "method", "metric", "mean", "min", "max", "spread", "blocks", "num_images"]
COLUMNS = [*SUMMARY, "values", *SETTINGS, *ORIGIN, "commit", "reason"]
CURVE = ["sweep", "method", "axis", "axis_value", "metric", "mean", "min", "max", "blocks", "num_images"]


@dataclass(frozen=True)
class Metric:
    """How a metric is named and printed."""

    label: str
    tex: str
    """The label for LaTeX and matplotlib."""
    better: int
    """-1 lower, +1 higher, 0 neither: the best value is that of true samples."""
    decimals: int = 3

    @property
    def arrow(self) -> str:
        """Direction of improvement."""
        return {-1: " ↓", 0: "", 1: " ↑"}[self.better]


METRICS = {
    "fid": Metric("FID", "FID", -1, 2),
    "fd_dinov2": Metric("FD_DINOv2", r"FD$_\mathrm{DINOv2}$", -1, 2),
    "fd_digits": Metric("FD_digits", r"FD$_\mathrm{digits}$", -1),
    "precision": Metric("precision", "precision", 1),
    "recall": Metric("recall", "recall", 1),
    "density": Metric("density", "density", 1),
    "coverage": Metric("coverage", "coverage", 1),
    "outliers": Metric("outliers", "outliers", -1, 4),
    "log_density": Metric("log-density", "log-density", 0),
    "log_density_median": Metric("median log-density", "median log-density", 0),
    "component_jsd": Metric("component JSD", "component JSD", -1, 4),
    "branch_jsd": Metric("branch JSD", "branch JSD", -1, 4),
    "sliced_wasserstein": Metric("sliced Wasserstein", "sliced Wasserstein", -1, 4),
}


def metric(name: str) -> Metric:
    """Names and direction of a metric; one that is not in the list is printed as it is called."""
    return METRICS.get(name) or Metric(name.replace("_", " "), name.replace("_", " "), 0)


def method_label(method: object) -> str:
    """A method as readers know it."""
    return METHOD_LABELS.get(str(method), str(method))


def planned(study: Study) -> dict[str, str]:
    """Ids of everything the study measures -> section (toy, generate or sweeps), in the study's order."""
    sections = ("toy", "generate", "sweeps")
    return {key: section for section in sections for key in getattr(study, section)}


def result_folder(study: Study, key: str) -> Path:
    """Where the stages leave what they measured of `key`."""
    return study.out / "results" / key


def read(study: Study) -> pd.DataFrame:
    """Rows of every result folder of the study that is there, with columns `section` and `id` added.

    A toy row's configuration becomes `ID-METHOD`, a name that is unique in the study. Metrics that two detectors
    share (precision of Inception and of DINOv2 features) get the detector's name appended.

    Raises:
        InputError: a file is not a table of measures.
    """
    frames = []
    for key, section in planned(study).items():
        path = result_folder(study, key) / MEASURES
        if path.exists():
            frames.append(_read_one(path).assign(section=section, id=key))
    if not frames:
        return pd.DataFrame(columns=["section", "id", "configuration", "method", "block", "metric", "value"])
    found = pd.concat(frames, ignore_index=True)
    toy = found["section"] == "toy"
    found.loc[toy, "configuration"] = found["id"] + "-" + found["method"]
    if "detector" in found:
        detectors = found.groupby("metric")["detector"].transform("nunique")
        shared = detectors > 1
        found.loc[shared, "metric"] = found["metric"] + "_" + found["detector"]
    return found


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV of this project; digests, commits and the like stay text even where they look like numbers."""
    return pd.read_csv(path, dtype={name: str for name in TEXTS})


def _read_one(path: Path) -> pd.DataFrame:
    try:
        found = read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as err:
        raise InputError(f"{path}: not a CSV of measures ({err}); delete it and run `dvc repro`") from err
    missing = {"configuration", "method", "block", "metric", "value", "num_images"} - set(found.columns)
    if missing:
        raise InputError(f"{path}: no column '{min(missing)}'; delete it and run `dvc repro`")
    return found


def summarise(study: Study, measures: pd.DataFrame) -> pd.DataFrame:
    """One row per toy or generated configuration and metric over its seed blocks, planned ones without a value too.

    Columns: `COLUMNS`. `spread` is the standard deviation over blocks (n - 1), empty for a single block;
    `reason` says why a value is missing or rests on less than was planned.
    """
    rows: list[dict[str, object]] = []
    if not measures.empty:
        measured = measures[measures["section"] != "sweeps"]
        for _, group in measured.groupby(["id", "configuration", "metric"], sort=False):
            rows.append(_summary_row(study, group))
    known = {(row["configuration"], row["metric"]) for row in rows}
    extra = list(dict.fromkeys(measures.loc[measures["section"] == "generate", "metric"]))
    rows += [row for row in _planned_rows(study, extra) if (row["configuration"], row["metric"]) not in known]
    found = pd.DataFrame(rows).reindex(columns=COLUMNS)
    order = {key: i for i, key in enumerate(planned(study))}
    methods = {name: i for i, name in enumerate(TOY_METHODS)}
    rank = found["id"].map(order), found["method"].map(lambda m: methods.get(m, len(methods)))
    by_id = found.assign(_id=rank[0], _method=rank[1].where(found["section"] == "toy", 0))
    return by_id.sort_values(["_id", "_method"], kind="stable")[COLUMNS].reset_index(drop=True)


def _summary_row(study: Study, group: pd.DataFrame) -> dict[str, object]:
    first = group.iloc[0]
    values = group["value"].to_numpy(float)
    row: dict[str, object] = {name: first[name] for name in ("section", "id", "configuration", "method", "metric")}
    row |= _statistics(values) | {"num_images": first["num_images"]}
    row["values"] = ";".join(f"{value:.8g}" for value in values)
    row |= {name: _joined(group, name) for name in [*SETTINGS, *ORIGIN, "commit"]}
    if first["section"] == "generate":
        wanted = len(study.generate[str(first["id"])].seeds)
        row["reason"] = "" if len(values) >= wanted else f"{len(values)} of {wanted} seed blocks"
    return row


def _statistics(values: np.ndarray) -> dict[str, object]:
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    statistics = {"mean": values.mean(), "min": values.min(), "max": values.max()}
    return {name: float(value) for name, value in statistics.items()} | {"spread": spread, "blocks": len(values)}


def _joined(group: pd.DataFrame, name: str) -> object:
    """The one value of a column; several are joined, and an absent column is empty."""
    if name not in group:
        return None
    values = group[name].dropna().unique()
    return values[0] if len(values) == 1 else "; ".join(map(str, values)) or None


def _planned_rows(study: Study, extra: Iterable[str]) -> list[dict[str, object]]:
    """Every configuration and metric of the study, without values."""
    rows: list[dict[str, object]] = []
    for key in study.toy:
        for method in TOY_METHODS:
            for name in TOY_METRICS:
                ids = {"section": "toy", "id": key, "configuration": f"{key}-{method}", "method": method}
                rows.append({**ids, "metric": name, "reason": _reason(study, key)})
    for key, item in study.generate.items():
        for name in dict.fromkeys([*image_metrics(study), *extra]):
            ids = {"section": "generate", "id": key, "configuration": key, "method": item.method}
            rows.append(ids | _settings(item) | {"metric": name, "reason": _reason(study, key)})
    return rows


def image_metrics(study: Study) -> list[str]:
    """Metrics that the study asks for on generated images, named as in `read`."""
    names = [FD_NAMES[name] for name in study.evaluate.detectors] if "fd" in study.evaluate.metrics else []
    several = len(study.evaluate.detectors) > 1
    for family in study.evaluate.metrics:
        for name in NEIGHBOUR_METRICS.get(family, ()):
            names += [f"{name}_{d}" for d in study.evaluate.detectors] if several else [name]
    return names


def _settings(item: Generate) -> dict[str, object]:
    interval = None if item.interval is None else "{}-{}".format(*item.interval)
    settings: dict[str, object] = {"guidance": item.guidance, "interval": interval, "main": Path(item.main).name}
    for role, path in {"main_ema": item.main, "guide_ema": item.guide if item.guidance != 1 else ""}.items():
        name = parse_name(Path(path).name)
        settings[role] = None if name is None else name.ema_std
    return settings


def _reason(study: Study, key: str) -> str:
    path = result_folder(study, key) / MEASURES
    return "not measured" if path.exists() else "not run"


def curves(measures: pd.DataFrame) -> pd.DataFrame:
    """Sensitivity curves: one row per sweep, axis value and metric; columns `CURVE`."""
    swept = measures[measures["section"] == "sweeps"]
    rows = []
    if not swept.empty:
        for keys, group in swept.groupby(["sweep", "method", "axis", "axis_value", "metric"], sort=False):
            facts = dict(zip(CURVE, keys, strict=False)) | _statistics(group["value"].to_numpy(float))
            rows.append(facts | {"num_images": group["num_images"].iloc[0]})
    return pd.DataFrame(rows).reindex(columns=CURVE)


def planned_curves(study: Study, found: pd.DataFrame) -> pd.DataFrame:
    """`found` (from `curves`) with a row, a reason and no value for every planned point that is missing."""
    known = set(zip(found["sweep"], found["axis_value"], strict=True))
    metrics = list(dict.fromkeys([*image_metrics(study), *found["metric"]]))
    rows = [
        {"sweep": key, "method": sweep.method, "axis": sweep.axis, "axis_value": value, "metric": name}
        | {"reason": _reason(study, key)}
        for key, sweep in study.sweeps.items()
        for value in sweep.values
        if (key, value) not in known
        for name in metrics
    ]
    missing = pd.DataFrame(rows).reindex(columns=[*CURVE, "reason"])
    whole = pd.concat([found.assign(reason=""), missing]) if len(found) else missing
    order = {key: i for i, key in enumerate(study.sweeps)}
    return whole.sort_values(["sweep", "axis_value"], key=lambda c: c.map(order) if c.name == "sweep" else c)


def dvc_metrics(summary: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """configuration -> metric -> mean, min and spread of what was measured (spread only for several blocks)."""
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for row in summary.dropna(subset=["mean"]).to_dict("records"):
        cell = {name: float(row[name]) for name in ("mean", "min", "spread") if pd.notna(row[name])}
        tree.setdefault(str(row["configuration"]), {})[str(row["metric"])] = cell
    return tree
