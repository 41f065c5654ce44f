"""A rehearsed study is the real one but for addresses, numbers of images and blocks, and detectors."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import tests.rehearsal.standin  # noqa: F401, the plugin
from repro.strict import build
from repro.study import Study, parse_seeds
from tests.rehearsal.__main__ import STUDIES
from tests.rehearsal.overlay import forbidden, overlay

ROOT = Path(__file__).parents[2]
BASE = "http://127.0.0.1:1"


def raw(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "studies" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", STUDIES)
def test_only_what_may_differ_does(name: str) -> None:
    study, rehearsed = raw(name), overlay(raw(name), BASE)
    assert forbidden(study, rehearsed) == []
    assert build(Study, rehearsed).sources == [BASE]
    for section in ("generate", "tuned", "sweeps"):
        for key, item in study.get(section, {}).items():
            seeds = rehearsed[section][key].pop("seeds")
            assert 1 <= len(seeds) <= len(item.pop("seeds"))
            assert sum(len(parse_seeds(block)) for block in seeds) <= 32
    if "tuned" in study:
        for raws in (study, rehearsed):
            raws["tuning"].pop("metric")
            raws["tuned"]["bad512-window"].pop("guide_degradations")
        assert len(parse_seeds(rehearsed["tuning"].pop("seeds"))) < len(parse_seeds(study["tuning"].pop("seeds")))
    for where in study.keys() - {"evaluate", "data"}:
        assert rehearsed[where] == study[where]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sampler.num_steps", 4),
        ("sampler.batch_size", 8),
        ("evaluate.metrics", []),
        ("generate.imagenet64-s-autoguidance-fid.guidance", 1.0),
        ("generate.imagenet64-s-autoguidance-fid.main", "imagenet64-xs/x.safetensors"),
        ("networks.imagenet64-s-raw.raw.until_Mi", 32),
        ("reconstruct.imagenet64-s-full.ema_stds", [0.05]),
        ("data.imagenet64-reference.settings.statistics", "mine.pkl"),
        ("published.imagenet64-s-autoguidance-fid.value", 1.5),
        ("study", "another"),
        ("extra", 1),
    ],
)
def test_any_other_change_is_found(path: str, value: Any) -> None:
    study, rehearsed = raw("imagenet64"), overlay(raw("imagenet64"), BASE)
    *folders, key = path.split(".")
    place = rehearsed
    for folder in folders:
        place = place[folder]
    place[key] = value
    assert forbidden(study, rehearsed) == [path]


def test_what_is_left_out_is_found() -> None:
    study, rehearsed = raw("imagenet64"), overlay(raw("imagenet64"), BASE)
    del rehearsed["generate"]["imagenet64-s-unguided-fd"]
    del rehearsed["waived"]
    assert forbidden(study, rehearsed) == ["generate.imagenet64-s-unguided-fd", "waived"]
