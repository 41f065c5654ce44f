"""The 2D example from settings to table and figures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metrics.files import write_json
from repro.pipeline.evaluate import provenance, write_rows
from repro.toy.metrics import contour_level, measure
from repro.toy.mixture import Mixture, fractal
from repro.toy.sampling import Method, draw, methods
from repro.toy.settings import ToySettings
from repro.toy.training import train

TABLE = "measures.csv"
SETTINGS = "settings.json"  # written last: what is in the folder is complete and was made with these
FIGURES = "figures"
FIGURE_NAMES = ("toy-figure1", "toy-figure2")
ROLES = ("main", "guide", "unconditional")
REFERENCE_SEED = 2**31  # of the true points behind the contour; sampling seeds stay below (streams repeat at 2^32)


def run(settings: ToySettings, folder: Path, study: str = "toy") -> Path:
    """Train the networks, sample by every method, measure, draw; returns the table's path.

    Writes networks/*.safetensors, measures.csv (one row per method, sampling seed and measure), figures/*.png and *.svg
    and settings.json into `folder`. A complete folder of the same settings is left as it is, networks of the same
    settings are used again, and an interrupted training goes on from its checkpoint.
    """
    facts = json.loads(json.dumps(dataclasses.asdict(settings)))
    if _is_complete(folder, facts):
        return folder / TABLE
    (folder / SETTINGS).unlink(missing_ok=True)
    networks = {role: train(_network_path(folder, role), getattr(settings, role), settings.training) for role in ROLES}
    mixture = fractal(settings.main.classes)
    true = {seed: mixture.sample(settings.num_samples, _generator(seed)) for seed in settings.sampling_seeds}
    samples: dict[str, tuple[Method, Tensor]] = {}
    level = contour_level(mixture.log_density(mixture.sample(settings.num_true, _generator(REFERENCE_SEED))))
    found: list[dict[str, Any]] = []
    for seed in settings.sampling_seeds:
        other = mixture.sample(settings.num_samples, _generator(REFERENCE_SEED + 1 + seed))
        found += _rows(settings, study, seed, "true", 1.0, _measure(mixture, other, true[seed], level, settings))
        for method in methods(settings, networks):
            points = draw(method, settings, seed)
            samples.setdefault(method.name, (method, points))
            values = _measure(mixture, points, true[seed], level, settings)
            found += _rows(settings, study, seed, method.name, method.guidance, values)
    write_rows(folder / TABLE, found)
    if settings.figures:
        from repro.toy import figures

        true_points = true[settings.sampling_seeds[0]]
        guided = [samples[name][0] for name in ("cfg", "autoguidance")]
        drawn = (
            figures.draw_overview(fractal("AB"), level, true_points, samples),
            figures.draw_closeup(settings, mixture, networks["main"], guided),
        )
        for name, figure in zip(FIGURE_NAMES, drawn, strict=True):
            figures.save(figure, folder / FIGURES / name)
    write_json(folder / SETTINGS, facts)
    return folder / TABLE


def _measure(mixture: Mixture, points: Tensor, true: Tensor, level: float, settings: ToySettings) -> dict[str, float]:
    return measure(mixture, points, true, level, settings.num_directions)


def _is_complete(folder: Path, facts: dict[str, Any]) -> bool:
    record = folder / SETTINGS
    outputs = [folder / TABLE, *(_network_path(folder, role) for role in ROLES)]
    if facts["figures"]:
        outputs += [folder / FIGURES / f"{name}.{suffix}" for name in FIGURE_NAMES for suffix in ("png", "svg")]
    return record.exists() and json.loads(record.read_text()) == facts and all(path.exists() for path in outputs)


def _network_path(folder: Path, role: str) -> Path:
    return folder / "networks" / f"{role}.safetensors"


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rows(
    settings: ToySettings, study: str, seed: int, name: str, guidance: float, values: dict[str, float]
) -> list[dict[str, Any]]:
    """Rows of the result table, one per measure."""
    common = {
        "study": study,
        "configuration": name,
        "method": name,
        "block": seed,
        "training_seed": settings.training.seed,
        "num_images": settings.num_samples,
    }
    tail = {"guidance": guidance} | provenance(torch.device("cpu"))
    return [common | {"metric": metric, "value": value} | tail for metric, value in values.items()]
