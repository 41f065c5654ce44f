"""What a study measured so far: rows of all its result folders, and their summary over seed blocks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from metrics.files import InputError
from metrics.names import named, space
from repro.missing import NOTE, read_missing
from repro.rows import (
    COLUMNS,
    MEASURES,
    REAL,
    REPLICATE_COLUMNS,
    REPLICATES,
    TRIALS,
    WHOLE,
    read_replicates,
    read_rows,
    settings,
)
from repro.study import Study
from repro.toy.metrics import NAMES as TOY_NAMES

STATISTICS = ["mean", "min", "max", "spread", "blocks", "num_images"]
SETTINGS = ["guidance", "weights", "interval", "main_ema", "guide_ema", "num_steps", "main", "guide"]
SETTINGS += ["rule", "main_degradations", "guide_degradations", "solver"]
DIGESTS = ["main_sha256", "guide_sha256", "detector", "detector_sha256", "reference_sha256"]
ORIGIN = [*DIGESTS, "device", "versions", "commit"]
FLOOR = 10.0  # halves of the real images' distance, beyond which a network that is not guided is broken
SHOWN = 28  # values of a study in `dvc metrics show`
CURVE = ["configuration", "method", "axis", "axis_value", "metric", *STATISTICS, "reason"]
SUMMARY = ["section", *CURVE[:-1], "values", *SETTINGS, *ORIGIN, "reason"]


def entries(study: Study) -> list[str]:
    """Ids of everything that the study measures."""
    return [*study.toy, *study.sampled, *study.sweeps]


def generated(study: Study) -> dict[str, list[str]]:
    """data id -> the configurations of images measured against it, in the study's order."""
    ids: dict[str, list[str]] = {}
    for key, item in study.sampled.items():
        ids.setdefault(item.data, []).append(key)
    return ids


def result_file(study: Study, entry: str) -> Path:
    """Where the stages leave what they measured of an entry."""
    return study.out / "results" / entry / MEASURES


def trials(study: Study) -> pd.DataFrame:
    """Rows of every trial of what the study tunes, each in the metric that is optimised; columns as in `Row`.

    Raises InputError for a file that is no table of measures.
    """
    paths = {study.out / "tuning" / key / TRIALS: study.tuning for key in study.tuned}
    paths |= {result_file(study, key).with_name(TRIALS): toy.tuning for key, toy in study.toy.items()}
    frames = [(read_rows(path), tuning.metric) for path, tuning in paths.items() if tuning and path.exists()]
    columns = pd.DataFrame(columns=COLUMNS)
    return pd.concat([columns, *(rows[rows["metric"] == metric] for rows, metric in frames)], ignore_index=True)


def read(study: Study) -> pd.DataFrame:
    """Rows of every result file of the study that is there, with a column `section` added: toy, generate or sweeps.

    Raises InputError for a file that is no table of measures.
    """
    parts = {"toy": study.toy, "generate": study.sampled, "sweeps": study.sweeps}
    sections = [(name, result_file(study, key)) for name, items in parts.items() for key in items]
    frames = [read_rows(path).assign(section=name) for name, path in sections if path.exists()]
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*COLUMNS, "section"])


def replicates(study: Study) -> pd.DataFrame:
    """Replicates of every configuration that left some, columns as in `repro.rows.Replicate`.

    Raises InputError for a file that is no table of replicates.
    """
    paths = [result_file(study, key).with_name(REPLICATES) for key in (*study.toy, *study.sampled)]
    frames = [read_replicates(path) for path in paths if path.exists()]
    empty = pd.DataFrame(columns=REPLICATE_COLUMNS)
    return pd.concat([empty, *[frame for frame in frames if len(frame)]], ignore_index=True)


def broken(study: Study, replicates: pd.DataFrame) -> dict[str, str]:
    """Configurations of which nothing can be claimed, and why: their main network is untrained or damaged.

    Without guidance it is farther from the data than `FLOOR` times one half of the real images from the other.
    """
    found: dict[str, str] = {}
    for key, item in study.generate.items():
        if item.guided.active.guide is not None:
            continue
        ours = replicates[replicates["configuration"] == key].set_index(["metric", "left_out"])["value"]
        for metric in dict.fromkeys(ours.index.get_level_values("metric")):
            if (metric, REAL) in ours.index and ours[metric, WHOLE] > FLOOR * ours[metric, REAL]:
                why = (
                    f"{key} is {ours[metric, WHOLE] / ours[metric, REAL]:.0f} times as far from the data as real images"
                )
                alike = (other for other, it in study.sampled.items() if it.guided.main == item.guided.main)
                found |= dict.fromkeys(alike, f"{why} in {named(metric).label}")
    return found


def refuse_gaps(study: Study) -> None:
    """Raise InputError where a result that the study names is not there, so that no report is shorter unnoticed."""
    absent = [key for key in entries(study) if not result_file(study, key).exists()]
    if absent:
        stages = {"toy": "toy", "generate": "evaluate", "tuned": "tune", "sweeps": "sweep"}
        stage = next(name for section, name in stages.items() if absent[0] in getattr(study, section))
        others = f" and {len(absent) - 1} others are" if absent[1:] else " is"
        raise InputError(
            f"{result_file(study, absent[0])}{others} not there; `dvc checkout`, `dvc pull` or "
            f"`dvc repro -s {stage}@{absent[0]}` brings it back, and --partial goes on without"
        )


def why_missing(study: Study, entry: str, place: float | str = "") -> str:
    """Why there is nothing of an entry, or of a place on its curve or in the features of an extra detector; empty where
    nothing is missing for good."""
    found = read_missing(result_file(study, entry).with_name(NOTE))
    return found.get(place if isinstance(place, str) else f"{place:g}", "")


def summarise(study: Study, found: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration or place on a curve and metric, over its seed blocks; planned ones without a value too.

    Columns: `SUMMARY`. `spread` is the standard deviation over blocks (n - 1), empty for a single block; `reason` says
    why a value is missing or rests on less than was planned.
    """
    rows = []
    for entry, blocks, place in _planned(study):
        section = found[found["section"] == place["section"]]
        ours = section[section["configuration"] == place["configuration"]]
        if "axis" in place:
            ours = ours[ours["axis_value"] == place["axis_value"]]
        measured, whole = result_file(study, entry).exists(), why_missing(study, entry, place.get("axis_value", ""))
        for name in dict.fromkeys([*blocks, *section["metric"]]):
            group, planned = ours[ours["metric"] == name], blocks.get(name, (1, ""))
            why = whole or (planned[1] and why_missing(study, entry, planned[1]))
            absent = f"not possible: {why}" if why else "not measured" if measured else "not run"
            rows.append(
                {**place, "metric": name, **(_statistics(group, planned[0]) if len(group) else {"reason": absent})}
            )
    return pd.DataFrame(rows, columns=SUMMARY)


def _planned(study: Study) -> Iterator[tuple[str, dict[str, tuple[int, str]], dict[str, Any]]]:
    """Of every configuration and place on a curve before it is measured, in the study's order: id, metric -> number of
    seed blocks and the extra detector, if it is one's, and what a summary says of it."""
    parts = study.evaluate.parts
    for key, toy in study.toy.items():
        for method in toy.methods:
            row = {"section": "toy", "configuration": f"{key}-{method}", "method": method}
            yield key, dict.fromkeys(TOY_NAMES, (len(toy.sampling_seeds), "")), row
    for key, item in study.sampled.items():
        row = {"section": "generate", "configuration": key, "method": item.method}
        blocks = {name: (len(part.blocks(item)), part.folder) for part in parts for name in part.evaluate.names}
        yield key, blocks, row | settings(study.spelt_out(item.guided))
    for key, sweep in study.sweeps.items():
        row = {"section": "sweeps", "configuration": key, "method": sweep.method, "axis": sweep.axis}
        blocks = dict.fromkeys(parts[0].evaluate.names, (len(sweep.seeds), ""))
        for value in sweep.values:
            yield key, blocks, row | {"axis_value": value} | settings(study.spelt_out(sweep.at(value)))


def _statistics(group: pd.DataFrame, planned: int) -> dict[str, Any]:
    """What the rows of one metric come to, of so many seed blocks as were `planned`."""
    values = group["value"].to_numpy(float)
    return {
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "spread": float(values.std(ddof=1)) if len(values) > 1 else None,
        "blocks": len(values),
        "num_images": group["num_images"].iloc[0],
        "values": ";".join(f"{value:.8g}" for value in values),
        **{column: _joined(group[column]) for column in [*SETTINGS, *ORIGIN]},
        "reason": "" if len(values) >= planned else f"{len(values)} of {planned} seed blocks",
    }


def _joined(column: pd.Series) -> object:
    """The one value of a column; several are joined."""
    values = column.dropna().unique()
    return values[0] if len(values) == 1 else "; ".join(map(str, values)) or None


def curves(summary: pd.DataFrame) -> pd.DataFrame:
    """Sensitivity curves, of the rows that `summarise` gives; columns `CURVE`."""
    return summary.loc[summary["section"] == "sweeps", CURVE]


def dvc_metrics(study: Study, summary: pd.DataFrame) -> dict[str, dict[str, float]]:
    """configuration -> metric -> mean over seed blocks: what `dvc metrics` and `dvc exp` show, at most `SHOWN` values.

    First what the study's claims and published values are about, then the first detector's distance of the rest.
    """
    cells = [(key, claim.metric) for claim in study.claims for pair in claim.pairs for key in pair]
    cells += [(key, item.metric) for key, item in study.published.items()]
    cells += [(key, space(name).distance) for name in study.evaluate.plain[:1] for key in study.sampled]
    rows = summary[(summary["section"] != "sweeps") & summary["mean"].notna()]
    means = rows.set_index(["configuration", "metric"])["mean"]
    found: dict[str, dict[str, float]] = {}
    for key, name in [cell for cell in dict.fromkeys(cells) if cell in means.index][:SHOWN]:
        found.setdefault(key, {})[name] = float(means[key, name])
    return found
