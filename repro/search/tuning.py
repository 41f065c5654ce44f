"""The stage `tune`: settings that are found at equal effort (`repro.trials`), and images that are made with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from metrics import distributed
from metrics.names import named
from repro.guidance import Guided
from repro.pipeline import acquire, pulled
from repro.pipeline.points import Points
from repro.pipeline.stages import STAGES, stage, study_pair
from repro.rows import TRIALS, gather_rows, read_rows
from repro.sampling.shards import IMAGES
from repro.study import Generate, Study, Tuned
from repro.trials import search


@stage("tuned", "tuning", "tune")
def run_tune(study: Study, key: str, item: Tuned, folder: Path) -> None:
    """Find the settings of a configuration, then sample and measure it with them, as the stages of others do.

    Leaves every trial in trials.csv, a row per value. Trials that stand are not made again.
    """
    guided = item.at([0.0] * len(item.over))  # guided, whichever settings: all have the same networks
    if not acquire.not_possible(study, guided):
        guided = _tune(study, key, item, folder)
    elif distributed.rank() == 0:
        (folder / TRIALS).unlink(missing_ok=True)
    entry = Generate(item.method, item.data, item.seeds, guided)
    others = {other: it for other, it in study.tuned.items() if other != key}
    whole = replace(study, generate=study.generate | {key: entry}, tuned=others)
    if not _is_sampled(whole, key, entry):
        STAGES["generate"](whole, key)
        STAGES["features"](whole, key)
    if distributed.rank() == 0:
        STAGES["evaluate"](whole, key)


def _is_sampled(study: Study, key: str, item: Generate) -> bool:
    """Whether images with these settings were there, of which the features are left; no stage would miss them."""
    if acquire.not_possible(study, item.guided) or any((study.out / "samples" / key).glob(f"*{IMAGES.suffix}")):
        return False
    return pulled.has_features(study, key, study_pair(study, item.guided, distributed.device()))


def _tune(study: Study, key: str, item: Tuned, folder: Path) -> Guided:
    """The best settings of the trials; equal on all ranks, since all read the same values."""
    assert study.tuning is not None
    effort, better = study.tuning, named(study.tuning.metric).better
    points, parts = Points(study, item.data, folder / "points"), list[tuple[dict[str, Any], Path]]()
    common = {"study": study.study, "configuration": key, "method": item.method, "axis": "trial"}

    def loss(guided: Guided) -> float:
        columns = common | {"block": effort.seeds, "axis_value": len(parts) + 1}
        pair = study_pair(study, guided, distributed.device())
        part = points.measure(pair, effort.seeds, columns, f"{key} trial {len(parts) + 1} of {effort.trials}")
        parts.append((columns, part))
        distributed.barrier()  # until it is written
        rows = read_rows(part)
        return -better * float(rows.loc[rows["metric"] == effort.metric, "value"].iloc[0])

    tried = search(loss, item.at, len(item.over), effort.trials)
    if distributed.rank() == 0:
        gather_rows(parts, folder / TRIALS)
    best, value = min(tried, key=lambda trial: trial[1])
    distributed.print0(f"{key}: {effort.metric} {-better * value:.4g} at {_brief(item, best)}, of {len(tried)} trials")
    return best


def _brief(item: Tuned, guided: Guided) -> str:
    values = {"guidance": guided.guidance} | guided.guide_degradations
    return ", ".join(f"{name} {values[name]}" for name in item.over)
