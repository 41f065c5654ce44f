"""Results of the default study as its stages would leave them, with the numbers of a trial run."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from metrics.measure import value_names
from repro.rows import REPLICATES, WHOLE, Replicate, Row, settings, write_replicates, write_rows
from repro.study import Study
from repro.toy.metrics import NAMES as TOY_NAMES
from repro.verdicts import measures

DIGITS = {
    "unguided": (0.62, 0.76, 0.96, 0.80, 0.87),
    "cfg": (0.55, 0.86, 0.90, 0.99, 0.90),
    "interval": (0.53, 0.84, 0.93, 0.95, 0.91),
    "autoguidance": (0.48, 0.83, 0.94, 0.96, 0.92),
    "reduced training only": (0.50, 0.82, 0.94, 0.93, 0.91),
    "reduced capacity only": (0.58, 0.79, 0.95, 0.86, 0.89),
}
TOY = {
    "true": (0.010, 1.36, 1.45, 0.009, 0.001, 0.005),
    "unguided": (0.094, 0.22, 1.48, 0.018, 0.005, 0.022),
    "cfg": (0.157, -4.3, 0.93, 0.347, 0.302, 0.268),
    "autoguidance": (0.058, -0.7, 1.62, 0.112, 0.064, 0.033),
    "truncation": (0.0003, 2.53, 2.60, 0.299, 0.194, 0.204),
}
NAMES = ("fd_digits", "precision_digits", "recall_digits", "density_digits", "coverage_digits")
ORIGIN: dict[str, Any] = {
    "device": "cpu (x86_64)",
    "versions": "python 3.11.9, torch 2.13.0, numpy 2.3.0",
    "commit": "0a1b2c3",
}
DIGESTS: dict[str, Any] = {
    "num_steps": 16,
    "main_sha256": "1" * 64,
    "guide_sha256": "2" * 64,
    "detector": "digits",
    "detector_sha256": "3" * 64,
    "reference_sha256": "4" * 64,
}


def fabricate(study: Study, entries: Iterable[str]) -> None:
    """Measures of `entries`, figures of the toy among them, and previews of generated images."""
    rng = np.random.default_rng(0)
    for key in entries:
        path = measures.result_file(study, key)
        path.parent.mkdir(parents=True)
        if key in study.toy:
            rows = toy_rows(study, key, rng)
            (path.parent / "figures").mkdir()
            for number in (1, 2):
                figure = Figure(figsize=(7, 2))
                figure.subplots().plot(rng.standard_normal((2000, 2)), ".")
                for suffix in ("png", "svg"):
                    figure.savefig(path.parent / "figures" / f"toy-figure{number}.{suffix}")
        elif key in study.sampled:
            rows = generate_rows(study, key, rng)
            preview(study, key, rng)
        else:
            rows = sweep_rows(study, key, rng)
        rows = list(rows)
        write_rows(path, rows)
        if key not in study.sweeps:
            write_replicates(path.with_name(REPLICATES), replicates(pd.DataFrame([vars(row) for row in rows]), rng))


def replicates(found: pd.DataFrame, rng: np.random.Generator) -> Iterator[Replicate]:
    """Of rows of measures, as they would be of a standard error of about 1% of the value, or of 0.01."""
    for (key, metric), of in found.groupby(["configuration", "metric"]):
        mean, count = float(of["value"].mean()), int(of["num_images"].sum())
        yield Replicate(str(key), str(metric), WHOLE, count, mean)
        for group in range(16):
            noise = 0.0025 * max(0.01, 0.01 * abs(mean)) / 0.01 * rng.standard_normal()
            yield Replicate(str(key), str(metric), f"{group}", count * 15 // 16, mean + noise)


def toy_rows(study: Study, key: str, rng: np.random.Generator) -> Iterator[Row]:
    for method, values in TOY.items():
        for seed in (0, 1, 2):
            ids: dict[str, Any] = {"configuration": f"{key}-{method}", "method": method, "block": str(seed)}
            for name, value in zip(TOY_NAMES, values, strict=True):
                noisy = value * (1 + 0.03 * rng.standard_normal())
                yield Row(study.study, **ids, metric=name, value=noisy, num_images=16384, training_seed=0, **ORIGIN)


def generate_rows(study: Study, key: str, rng: np.random.Generator) -> Iterator[Row]:
    item, evaluate = study.sampled[key], study.evaluate
    for part, detector in ((each, name) for each in evaluate.parts for name in each.evaluate.plain):
        facts = settings(item.guided) | DIGESTS | ORIGIN | {"detector": detector}
        for block in part.blocks(item):
            names = value_names(evaluate.metrics, detector)
            for name, value in zip(names, DIGITS.get(item.method, DIGITS["cfg"]), strict=True):
                noisy = value + 0.01 * rng.standard_normal()
                yield Row(study.study, key, item.method, block, name, noisy, 1024, **facts)


def sweep_rows(study: Study, key: str, rng: np.random.Generator) -> Iterator[Row]:
    sweep = study.sweeps[key]
    for value in sweep.values:
        off = value - (1.5 if sweep.axis == "guidance" else 0.1)
        guided = DIGITS.get(sweep.method, DIGITS["cfg"]) if value != 1 else DIGITS["unguided"]
        facts = settings(sweep.at(value)) | DIGESTS | ORIGIN
        for name, at_best in zip(NAMES, guided, strict=True):
            bent = at_best + 0.08 * off * off * (1 if name == "fd_digits" else -1) + 0.01 * rng.standard_normal()
            ids = (study.study, key, sweep.method, sweep.seeds[0], name, bent, 512)
            yield Row(*ids, axis=sweep.axis, axis_value=value, **facts)


def preview(study: Study, key: str, rng: np.random.Generator) -> None:
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images[:64].reshape(64, 8, 8), np.ones((2, 2))) * 15
    noisy = np.clip(images + 20 * rng.standard_normal(images.shape), 0, 255).astype(np.uint8)
    np.savez(
        measures.result_file(study, key).with_name("preview.npz"),
        images=noisy[..., None],
        labels=labels[:64],
        seeds=np.arange(64),
    )
