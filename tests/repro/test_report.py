"""The report: tables, figures and page from a results tree made here, whole and half run."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

import repro.study as studies
from metrics.files import InputError
from repro import measures, tables
from repro.report import BEGIN, END, publish, readme_block, report, split_readme, summary

ROOT = Path(__file__).parents[2]
DIGITS = {
    "unguided": (0.62, 0.76, 0.96, 0.80, 0.87),
    "cfg": (0.55, 0.86, 0.90, 0.99, 0.90),
    "interval": (0.53, 0.84, 0.93, 0.95, 0.91),
    "autoguidance": (0.48, 0.83, 0.94, 0.96, 0.92),
    "reduced training only": (0.50, 0.82, 0.94, 0.93, 0.91),
    "reduced capacity only": (0.58, 0.79, 0.95, 0.86, 0.89),
}
TOY = {
    "true": (0.012, -0.31, 0.004, 0.013),
    "unguided": (0.123, -1.2, 0.011, 0.021),
    "cfg": (0.159, -1.4, 0.326, 0.296),
    "autoguidance": (0.084, -0.6, 0.073, 0.084),
    "truncation": (0.001, 0.9, 0.191, 0.272),
}
NAMES = ("fd_digits", "precision", "recall", "density", "coverage")
ORIGIN = {"device": "cpu (x86_64)", "versions": "python 3.11.9, torch 2.13.0, numpy 2.3.0", "commit": "0a1b2c3"}
DIGESTS = {
    "num_steps": 16,
    "main_sha256": "1" * 64,
    "guide_sha256": "2" * 64,
    "detector": "digits",
    "detector_sha256": "3" * 64,
    "reference_sha256": "4" * 64,
}


def fabricate(study, ids):
    """Results of `ids` as the stages would leave them, with the numbers of a trial run."""
    rng = np.random.default_rng(0)
    for key in ids:
        folder = measures.result_folder(study, key)
        folder.mkdir(parents=True)
        if key in study.toy:
            rows = toy_rows(rng)
            (folder / "figures").mkdir()
            for number in (1, 2):
                figure = Figure(figsize=(7, 2))
                figure.subplots().plot(rng.standard_normal((2000, 2)), ".")
                figure.savefig(folder / "figures" / f"toy-figure{number}.png")
        elif key in study.generate:
            rows = generate_rows(study, key, rng)
            preview(folder, rng)
        else:
            rows = sweep_rows(study, key, rng)
        pd.DataFrame(rows).to_csv(folder / "measures.csv", index=False)


def toy_rows(rng):
    for method, values in TOY.items():
        for seed in (0, 1, 2):
            ids = {"study": "default", "configuration": method, "method": method, "block": seed, "training_seed": 0}
            for name, value in zip(measures.TOY_METRICS, values, strict=True):
                noisy = value * (1 + 0.03 * rng.standard_normal())
                yield ids | {"num_images": 16384, "metric": name, "value": noisy, "guidance": 1.0} | ORIGIN


def generate_rows(study, key, rng):
    item = study.generate[key]
    guided = item.guidance != 1
    facts = {
        "main": Path(item.main).name,
        "guide": Path(item.guide).name if guided else "",
        "guidance": item.guidance,
        "interval": "" if item.interval is None else "{}-{}".format(*item.interval),
        "main_ema": 0.1,
        "guide_ema": 0.1 if guided else None,
    }
    for block in item.seeds:
        ids = {"study": "default", "configuration": key, "method": item.method, "block": block, "num_images": 1024}
        for name, value in zip(NAMES, DIGITS[item.method], strict=True):
            yield ids | {"metric": name, "value": value + 0.01 * rng.standard_normal()} | facts | DIGESTS | ORIGIN


def sweep_rows(study, key, rng):
    sweep = study.sweeps[key]
    for value in sweep.values:
        off = value - (1.5 if sweep.axis == "guidance" else 0.1)
        guided = DIGITS[sweep.method] if value != 1 else DIGITS["unguided"]
        ids = {"study": "default", "configuration": key, "method": sweep.method, "block": sweep.seeds}
        curve = {"sweep": key, "axis": sweep.axis, "axis_value": value, "num_images": 512, "guidance": sweep.guidance}
        for name, at_best in zip(NAMES, guided, strict=True):
            bent = at_best + 0.08 * off * off * (1 if name == "fd_digits" else -1) + 0.01 * rng.standard_normal()
            yield ids | curve | {"metric": name, "value": bent} | DIGESTS | ORIGIN


def preview(folder, rng):
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images[:64].reshape(64, 8, 8), np.ones((2, 2))) * 15
    noisy = np.clip(images + 20 * rng.standard_normal(images.shape), 0, 255).astype(np.uint8)
    np.savez(folder / "preview.npz", images=noisy[..., None], labels=labels[:64], seeds=np.arange(64))


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The default study, wholly run, and its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "OUT", tmp_path_factory.mktemp("out"))
        study = studies.load(ROOT / "studies" / "default.yaml")
        fabricate(study, measures.planned(study))
        report(study)
        yield study


@pytest.fixture
def half(tmp_path, monkeypatch):
    """The default study, half run."""
    monkeypatch.setattr(studies, "OUT", tmp_path / "out")
    study = studies.load(ROOT / "studies" / "default.yaml")
    fabricate(study, ["digits-unguided", "digits-autoguidance", "digits-sweep-cfg"])
    return study
