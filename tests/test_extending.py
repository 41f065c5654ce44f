"""docs/extending.md: each of its examples, outside the packages, through a miniature study to a row of its table."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden"
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S))
RUN = """
from repro import study
from repro.pipeline.stages import STAGES
active = study.load()
for stage, key in (("data", "seen"), ("reference", "seen"), ("networks", "nets"), ("generate", "one"),
                   ("features", "one"), ("evaluate", "one")):
    STAGES[stage](active, key)
"""


def miniature() -> dict[str, Any]:
    """A guided configuration of golden networks, measured against digits, in seconds."""
    networks = {"main": "nets/main.safetensors", "guide": "nets/guide.safetensors"}
    digits = {"kind": "digits", "settings": {}, "reference": {"num_images": 64, "classifier_steps": 2}}
    return {
        "study": "extended",
        "toy": {},
        "data": {"seen": digits},
        "images": {},
        "train": {},
        "networks": {"nets": {"fetch": ["main.pkl", "guide.pkl"]}},
        "models": {},
        "reconstruct": {},
        "sampler": {"num_steps": 2, "batch_size": 4},
        "shards": {"size": 8},
        "evaluate": {"detectors": ["digits"], "metrics": ["fd"]},
        "generate": {"one": {"method": "ours", **networks, "guidance": 2.0, "data": "seen", "seeds": ["0-7"]}},
        "sweeps": {},
        "sources": [f"file://{GOLDEN}"],
    }


def run(study: dict[str, Any], folder: Path, *plugins: str) -> pd.DataFrame:
    """Rows of the miniature study with the examples `plugins` as modules beside it."""
    folder.mkdir()
    for name in plugins:
        (folder / f"{name}.py").write_text(EXAMPLES[name])
    (folder / "params.yaml").write_text(yaml.safe_dump(study | {"plugins": list(plugins)}))
    done = subprocess.run([sys.executable, "-c", RUN], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(folder / "out/extended/results/one/measures.csv").set_index("metric")


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return run(miniature(), tmp_path_factory.mktemp("plain") / "study")


def test_the_document_has_an_example_of_each() -> None:
    assert set(EXAMPLES) == {"my_rule", "my_degradation", "my_metric", "my_detector", "my_data"}


@pytest.mark.parametrize(
    ("plugin", "changes"),
    [
        ("my_rule", {"rule": "clipped"}),
        ("my_degradation", {"guide_degradations": {"misjudged_noise": 0.5}}),
    ],
)
def test_another_guidance_gives_other_images(
    plain: pd.DataFrame, tmp_path: Path, plugin: str, changes: dict[str, Any]
) -> None:
    study = miniature()
    study["generate"]["one"] |= changes
    rows = run(study, tmp_path / "study", plugin)
    assert rows.loc["fd_digits", "value"] != plain.loc["fd_digits", "value"]
    assert rows.loc["fd_digits", "num_images"] == 8


def test_a_metric_of_one_s_own_has_its_row(plain: pd.DataFrame, tmp_path: Path) -> None:
    study = miniature()
    study["evaluate"]["metrics"] = ["fd", "mean_distance"]
    study["claims"] = [{"better": "one", "than": "one", "metric": "mean_distance_digits"}]
    rows = run(study, tmp_path / "study", "my_metric")
    assert rows.loc["mean_distance_digits", "value"] > 0
    assert rows.loc["fd_digits", "value"] == plain.loc["fd_digits", "value"]


def test_a_detector_of_one_s_own_has_its_row(plain: pd.DataFrame, tmp_path: Path) -> None:
    study = miniature()
    study["evaluate"]["detectors"] = ["digits", "thumbnails"]
    rows = run(study, tmp_path / "study", "my_detector")
    assert rows.loc["fd_thumbnails", "value"] > 0
    assert rows.loc["fd_digits", "value"] == plain.loc["fd_digits", "value"]


def test_data_of_one_s_own_are_measured_against(plain: pd.DataFrame, tmp_path: Path) -> None:
    study = miniature()
    study["data"] = {"seen": {"kind": "stripes", "settings": {"width": 2}}}
    study["evaluate"]["detectors"] = ["thumbnails"]
    rows = run(study, tmp_path / "study", "my_detector", "my_data")
    assert rows.loc["fd_thumbnails", "value"] > 0


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(EXAMPLES["my_rule"].replace('"clipped"', '"linear"'))
    command = [sys.executable, "-m", "repro", "--plugin", "twice", "study", "list"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "repro: error: guidance rule 'linear' is registered already; choose another name"
