"""Several guides in a study: spelt out, refused where they cannot be, counted, loaded, and shown in rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metrics.files import InputError
from repro import study as studies
from repro.guidance import Guided, OtherGuide
from repro.pipeline import pulled
from repro.pipeline.stages import run_blends, run_networks, study_pair
from repro.rows import settings
from repro.sampling.batches import sample_images
from repro.sampling.pairs import Configuration, load_pair
from repro.strict import build
from repro.study import Study, cost, rates

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
MAIN, GUIDE, UNCOND = (f"nets/{name}.safetensors" for name in ("main", "guide", "uncond"))


def raw(golden: Path, **generate: Any) -> dict[str, Any]:
    """A study of golden networks, one of whose guides is two."""
    return {
        **{name: {} for name in ("toy", "images", "train", "models", "reconstruct", "tuned", "sweeps")},
        "study": "blended",
        "data": {"seen": {"kind": "digits", "settings": {}}},
        "networks": {"nets": {"fetch": ["main.pkl", "guide.pkl", "uncond.pkl"]}},
        "blends": {
            "both": {"guide": GUIDE, "other": UNCOND, "share": 0.25},
            "three": {"guide": MAIN, "other": "both/blend.json", "share": 0.5, "other_degradations": {"dropout": 0.1}},
        },
        "sampler": {"num_steps": 3, "batch_size": 4},
        "shards": {"size": 8},
        "evaluate": {"detectors": ["digits"]},
        "generate": {
            "one": {"method": "x", "main": MAIN, "guide": "both/blend.json", "guidance": 3.0, "data": "seen"}
            | {"seeds": ["0-7"], **generate}
        },
        "sources": [f"file://{golden}"],
    }


def study(golden: Path, **generate: Any) -> Study:
    return build(Study, raw(golden, **generate))


def test_a_blend_stands_for_its_guides_and_their_parts(golden: Path) -> None:
    """w_i = 1 + share_i (w - 1): of 2 the other has a quarter (arXiv:2406.02507 appendix B.2)."""
    of = study(golden)
    guided = of.spelt_out(of.generate["one"].guided)
    assert guided == Guided(MAIN, GUIDE, 3.0, other_guides=[OtherGuide(UNCOND, 0.25)])
    assert (guided.shares, guided.weights) == ([0.75, 0.25], [2.5, 1.5])
    assert of.spelt_out(replace(guided, guide=UNCOND, other_guides=[])).weights == [3.0]
    nested = of.spelt_out(Guided("main", "three/blend.json", 2.0))
    others = [OtherGuide(GUIDE, 0.375, {"dropout": 0.1}), OtherGuide(UNCOND, 0.125)]
    assert nested == Guided("main", MAIN, 2.0, other_guides=others)
    assert nested.weights == [1.5, 1.375, 1.125]


def test_rows_say_which_guides_and_how_much_of_each(golden: Path) -> None:
    of = study(golden, guide_degradations={"dropout": 0.2})
    found = settings(of.spelt_out(of.generate["one"].guided))
    assert (found["guidance"], found["weights"], found["guide_ema"]) == (3.0, "2.5 + 1.5", None)
    assert found["guide"] == "guide.safetensors + uncond.safetensors"
    assert found["guide_degradations"] == "dropout=0.2 + -"
    plain = settings(Guided("a/edm2-img512-s-2147483-0.130.pkl", "b/edm2-img512-xs-0134217-0.125.pkl", 2.0))
    assert (plain["weights"], plain["main_ema"], plain["guide_ema"]) == ("", 0.13, 0.125)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("blends", "both", "other"),
            "nest/uncond.safetensors",
            "blends.both.other: 'nest' is not defined; did you mean",
        ),
        (("blends", "both", "guide"), "three/blend.json", "blends.both.guide: 'three' is not defined"),
        (("blends", "both", "other"), "three/blend.json", "blends.both.other: 'three' is not defined"),
        (("blends", "both", "share"), float("inf"), "share is inf, expected a finite number"),
        (("blends", "both", "other_degradations"), {"blur": 1}, "blends.both: degradation 'blur' is unknown"),
        (("blends", "nets"), {"guide": GUIDE, "other": UNCOND, "share": 1}, "blends.nets: the id occurs in networks"),
        (("generate", "one", "main"), "three/blend.json", "generate.one.main: 'three' is not defined"),
        (("generate", "one", "rule"), "apg", "generate.one: rule 'apg' takes one guide, found 2"),
        (("generate", "one", "main"), UNCOND, "generate.one: guidance 3.0 with the main network as its own guide"),
        (
            ("generate", "one", "other_guides"),
            [{"guide": UNCOND, "share": 0.5}],
            "generate.one: other_guides: in a study they are an entry of blends",
        ),
        (("models", "mine"), {"code": "a:b"}, "missing key models.mine.path"),
    ],
)
def test_blends_that_cannot_be_are_refused(golden: Path, place: tuple[str, ...], value: Any, message: str) -> None:
    whole = yaml.safe_load(yaml.safe_dump(raw(golden)))
    holder = whole
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        build(Study, whole)


def test_it_is_sampled_as_equation_6_and_known_to_dvc(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As several guides of the sampler's own; noted in a file that changes with either network."""
    monkeypatch.chdir(tmp_path)
    of = study(golden)
    run_networks(of, "nets")
    run_blends(of, "both")
    run_blends(of, "three")
    notes = [Path(f"out/blended/networks/{key}/blend.json").read_text() for key in ("both", "three")]
    assert len(set(notes)) == 2
    pair = study_pair(of, of.generate["one"].guided, CPU)
    assert pair.guide_sha256 is not None
    assert pair.guide_sha256.count("+") == 1
    ((_, images, _),) = sample_images(pair, range(4))
    place = "out/blended/networks/"
    named = Guided(place + MAIN, place + GUIDE, 3.0, other_guides=[OtherGuide(place + UNCOND, 0.25)])
    again = load_pair(Configuration(named, of.sampler), CPU)
    assert again.digest == pair.digest
    other = replace(named, other_guides=[OtherGuide(place + UNCOND, 0.5)])
    assert load_pair(Configuration(other, of.sampler), CPU).digest != pair.digest
    assert images.std() > 1
    folder = tmp_path / "empty"
    folder.mkdir()
    pulled.refuse_fetching(of, "nets", folder)  # nothing is measured yet


def test_cost_counts_every_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 Gflop of the unconditional network, 10 of any other."""
    monkeypatch.setattr(rates, "_gflops", lambda shape, worse: 10.0 if shape.label_dim else 1.0)
    whole = yaml.safe_load((ROOT / "studies" / "edm2.yaml").read_text())
    preset = "edm2-img512-s-autog-fid"
    uncond = "edm2-512-xs-uncond/edm2-img512-xs-uncond-2147483-0.025.safetensors"
    whole["networks"]["edm2-512-xs-uncond"]["fetch"].append(f"posthoc-reconstructions/{Path(uncond).stem}.pkl")
    whole["networks"] = {key: whole["networks"][key] for key in ("edm2-512-s", "edm2-512-xs", "edm2-512-xs-uncond")}
    whole["generate"] = {preset: whole["generate"][preset]}
    whole["blends"] = {"edm2-both": {"guide": whole["generate"][preset]["guide"], "other": uncond, "share": 0.5}}
    whole["blends"]["edm2-both"]["other_degradations"] = {"dropout": 0.1}
    whole["generate"]["edm2-blend"] = whole["generate"][preset] | {"guide": "edm2-both/blend.json"}
    whole["published"] = {}
    tasks = [task for task in cost.work(cost.stages(build(Study, whole))) if task.part == "sampling"]
    assert [task.what.gflops for task in tasks] == [20.0, 21.0]
    assert tasks[1].subject == "img512-s + img512-xs + img512-xs-uncond dropout"
    assert len({task.subject for task in tasks}) == 2


def test_dvc_yaml_has_a_stage_for_every_section_of_networks() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert stages["stages"]["blends"]["foreach"] == "${blends}"
    assert stages["vars"] == [{"blends": {}}, {"tuned": {}}]  # a study need not have any
    assert not studies.load(ROOT / "params.yaml").blends
