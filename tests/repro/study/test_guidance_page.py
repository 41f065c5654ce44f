"""docs/guidance.md names everything that a study can say of guidance, and its example is one that a study takes."""

import re
from dataclasses import replace
from pathlib import Path

import yaml

from repro.degradations import DEGRADATIONS
from repro.guidance import RAMPS, RULES
from repro.strict import build
from repro.study.schema import Blended, Generate

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "guidance.md").read_text()


def test_its_example_is_one() -> None:
    example = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])
    ((name, found),) = build(dict[str, Generate], example["generate"]).items()
    assert name == "mine-blurred"
    assert found.guided.guide == found.guided.main
    assert (found.guided.rule, found.guided.ramp) == ("apg", "cosine")
    assert found.guided.active == found.guided


def test_it_has_every_name() -> None:
    degradations, rules = (re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) for part in PAGE.split("## Rules"))
    assert degradations == [n for n, kind in DEGRADATIONS.items() if kind.apply.__module__ == "repro.degradations"]
    assert rules == [name for name, rule in RULES.items() if rule.__module__ == "repro.guidance"]
    assert all(f"`{ramp}`" in PAGE for ramp in RAMPS)


def test_its_blend_is_one_of_two_guides() -> None:
    """w_c = alpha (w - 1) + 1 and w_u = (1 - alpha)(w - 1) + 1 (arXiv:2406.02507 appendix B.2)."""
    example = yaml.safe_load(PAGE.split("```yaml\n")[2].split("```")[0])
    (blend,) = build(dict[str, Blended], example["blends"]).values()
    ((key, found),) = build(dict[str, Generate], example["generate"]).items()
    assert found.guided.guide == f"{next(iter(example['blends']))}/blend.json"
    guided = replace(found.guided, guide=blend.guide, other_guides=[blend.as_other])
    assert (key, guided.weights) == ("mine-both-guided", [1.5, 1.5])
