"""docs/extending.md: each of its examples, outside the packages, through a miniature study to a row of its table."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.hostile import child

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden"
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S))
STAGES = (("data", "seen"), ("reference", "seen"), ("networks", "nets"))
STAGES += tuple((stage, "one") for stage in ("generate", "features", "evaluate"))


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
    for stage, key in STAGES:
        child.finish("repro", ["stage", stage, key], folder)
    return pd.read_csv(folder / "out/extended/results/one/measures.csv").set_index("metric")


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
    done = child.run("repro", ["--plugin", "twice", "study", "list"], tmp_path)
    assert done.code == 2
    assert done.err.strip() == "repro: error: guidance rule 'linear' is registered already; choose another name"
