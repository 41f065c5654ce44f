"""The 2D example from settings to table and figures."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from metrics.files import explained, write_json
from repro.numerics import numerics
from repro.rows import (
    MEASURES,
    REPLICATES,
    TRIALS,
    WHOLE,
    Replicate,
    Row,
    provenance,
    read_rows,
    write_replicates,
    write_rows,
)
from repro.streams import parse_seeds
from repro.strict import facts
from repro.toy.metrics import contour_level, measure, measure_without
from repro.toy.mixture import Mixture, fractal
from repro.toy.sampling import Method, draw, methods
from repro.toy.settings import ROLES as ROLES
from repro.toy.settings import TRUE_SEED, ToySettings
from repro.toy.training import train
from repro.toy.tuning import best, tune
from repro.trials import Tuning

SETTINGS = "settings.json"  # written last: what is in the folder is complete and was made with these
FIGURES = ("figures/toy-figure1", "figures/toy-figure2")
BRIEF = ("outliers", "component_jsd", "sliced_wasserstein")
GROUPS = 4  # of every sampling seed's points, each left out once by the jackknife


def run(settings: ToySettings, folder: Path, study: str, key: str) -> Path:
    """Train the networks, sample by every method, measure, draw; returns the table's path.

    Writes networks/*.safetensors, trials.csv where something is tuned, measures.csv (one row per method, sampling seed
    and measure), replicates.csv (the same of all seeds together, with each of some groups of points left out),
    figures/*.png and *.svg and settings.json into `folder`. A complete folder of the same settings is left as it is,
    networks of the same settings are used again, and an interrupted training goes on from its checkpoint. `study` is
    the study's name and `key` the id in it; a method's configuration is called `KEY-METHOD`.
    """
    record, made = facts(settings) | numerics("toy"), folder / SETTINGS
    record |= {"replicates": numerics("replicates")}
    wanted = {role: getattr(settings, role) for role in ROLES}
    wanted |= {name: item.network for name, item in settings.tuned.items() if item.network}
    outputs = [folder / MEASURES, folder / REPLICATES, *(network_path(folder, name) for name in wanted)]
    outputs += [folder / TRIALS] if settings.tuned else []
    outputs += [folder / f"{name}.{suffix}" for name in FIGURES if settings.figures for suffix in ("png", "svg")]
    with explained(f"{made}: not the settings of an example", "remove it"):
        if made.exists() and json.loads(made.read_text()) == record and all(path.exists() for path in outputs):
            return folder / MEASURES
    made.unlink(missing_ok=True)
    networks = {
        name: train(network_path(folder, name), network, settings.training, settings.checkpoint_every)
        for name, network in wanted.items()
    }
    mixture, paper = fractal(settings.main.classes), methods(settings, networks)
    level = contour_level(mixture.log_density(mixture.sample(settings.num_true, _generator(TRUE_SEED))))
    common: dict[str, Any] = {"study": study, "num_images": settings.num_samples}
    common |= {"training_seed": settings.training.seed} | provenance(torch.device("cpu"))
    effort = settings.tuning
    tuned = tune(settings.tuned, effort, networks, _objective(settings, mixture, level, effort)) if effort else {}
    _write_trials(folder / TRIALS, settings, tuned, common, key)
    compared = [*paper, *(best(trials, effort.metric) for trials in tuned.values() if effort)]
    worse = {m.name: m.worse for m in compared}
    rows, panels, kept = list[Row](), dict[str, torch.Tensor](), dict[str, list[torch.Tensor]]()
    for seed in settings.sampling_seeds:
        true, fresh = (mixture.sample(settings.num_samples, _generator(s)) for s in (seed, TRUE_SEED + 1 + seed))
        samples = {"true": (1.0, fresh)} | {m.name: (m.guidance, draw(m, settings, seed)) for m in compared}
        panels = panels or {"Ground truth": true} | {m.title: samples[m.name][1] for m in paper}
        kept.setdefault("", []).append(true)
        for name, (weight, points) in samples.items():
            kept.setdefault(name, []).append(points)
            of = common | {"configuration": f"{key}-{name}", "method": name, "block": str(seed)}
            of |= {"guide_degradations": worse.get(name, "")}
            values = measure(mixture, points, true, level, settings.num_directions).items()
            rows += [Row(metric=metric, value=value, guidance=weight, **of) for metric, value in values]
    write_rows(folder / MEASURES, rows)
    write_replicates(folder / REPLICATES, _replicates(settings, mixture, level, kept, key))

    if settings.figures:
        from repro import drawing
        from repro.toy import figures

        closeup = figures.draw_closeup(settings, mixture, networks["main"], [m for m in paper if m.guide is not None])
        for name, figure in zip(FIGURES, (figures.draw_overview(level, panels), closeup), strict=True):
            drawing.save(figure, folder / name, figures.STYLE, dpi=250, lay_out_once=False)
    write_json(made, record)
    return folder / MEASURES


def _objective(settings: ToySettings, mixture: Mixture, level: float, tuning: Tuning) -> Callable[[Method], float]:
    """What tuning optimises, of samples of its seed."""
    (seed,) = parse_seeds(tuning.seeds)
    true = mixture.sample(settings.num_samples, _generator(seed))
    return lambda m: measure(mixture, draw(m, settings, seed), true, level, settings.num_directions)[tuning.metric]


def _write_trials(
    path: Path, settings: ToySettings, tuned: Mapping[str, list[tuple[Method, float]]], common: dict[str, Any], key: str
) -> None:
    """Every trial as a row, where something is tuned."""
    if settings.tuning:
        of = common | {"metric": settings.tuning.metric, "block": settings.tuning.seeds, "axis": "trial"}
        rows = [
            Row(
                **of,
                configuration=f"{key}-{m.name}",
                method=m.name,
                value=value,
                axis_value=place,
                guidance=m.guidance,
                guide_degradations=m.worse,
            )
            for trials in tuned.values()
            for place, (m, value) in enumerate(trials, 1)
        ]
        write_rows(path, rows)


def _replicates(
    settings: ToySettings, mixture: Mixture, level: float, kept: dict[str, list[torch.Tensor]], key: str
) -> Iterator[Replicate]:
    """Measures of every method's samples of all seeds together, and of all but a group; under "" are true points."""
    points = {name: torch.cat(parts) for name, parts in kept.items()}
    true = points.pop("")
    edges = [i * settings.num_samples // GROUPS for i in range(GROUPS + 1)]
    names, groups = [WHOLE], [slice(0, 0)]
    for number, seed in enumerate(settings.sampling_seeds):
        start = number * settings.num_samples
        names += [f"{seed}: {a}-{b - 1}" for a, b in itertools.pairwise(edges)]
        groups += [slice(start + a, start + b) for a, b in itertools.pairwise(edges)]
    for name, found in points.items():
        values = measure_without(mixture, found, true, level, settings.num_directions, groups)
        for label, group, value in zip(names, groups, values, strict=True):
            count = len(found) - (group.stop - group.start)
            yield from (Replicate(f"{key}-{name}", metric, label, count, x) for metric, x in value.items())


def brief(measures: Path) -> str:
    """The main measures of a table that `run` left, method by method, as text, and where its figures are."""
    found = read_rows(measures).pivot_table(index="method", columns="metric", values="value", sort=False)
    figures = "".join(f"\n{path}" for path in sorted(measures.parent.glob("figures/*.png")))
    return found[list(BRIEF)].to_string(float_format="{:.3f}".format) + figures


def network_path(folder: Path, role: str) -> Path:
    """Where `run` leaves a network of `ROLES`."""
    return folder / "networks" / f"{role}.safetensors"


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
