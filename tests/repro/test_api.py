"""Sampling from Python gives the images of `repro generate`, and needs ten lines."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repro
from metrics.files import InputError
from repro import __main__ as command_line
from repro.networks import Denoiser
from repro.sampling import batches
from repro.sampling.pairs import Solver
from repro.sampling.shards import read_shard

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def main(golden: Path) -> Denoiser:
    return repro.load(golden / "main.pkl", device="cpu")


@pytest.fixture(scope="module")
def guide(golden: Path) -> Denoiser:
    return repro.load(golden / "guide.pkl", device="cpu")


def test_images_are_those_of_the_command(golden: Path, main: Denoiser, guide: Denoiser, tmp_path: Path) -> None:
    names = ["--main", str(golden / "main.pkl"), "--guide", str(golden / "guide.pkl"), "--guidance", "2"]
    options = ["--seeds", "3-9", "--steps", "3", "--interval", "1-2", "--out", str(tmp_path)]
    assert command_line.command_line.run(command_line.cli, "repro", ["generate", *names, *options]) == 0
    (shard,) = tmp_path.glob("*.zip")
    found = repro.sample(main, guide, guidance=2.0, seeds=range(3, 10), steps=3, interval=(1, 2), show=False)
    assert np.array_equal(found, read_shard(shard)[1])
    assert (found.shape, found.dtype) == ((7, 16, 16, 3), np.uint8)


def test_seeds_keep_their_order_and_their_images(main: Denoiser) -> None:
    options: dict[str, Any] = {"solver": Solver(num_steps=2, batch_size=4), "show": False}
    several = repro.sample(main, seeds=[5, 1, 9], **options)
    assert np.array_equal(several[1], repro.sample(main, seeds=[1], **options)[0])
    labelled = repro.sample(main, seeds=[5, 1, 9], labels=[2, 7, 2], **options)
    assert np.array_equal(labelled[2], repro.sample(main, seeds=[9], labels=2, **options)[0])
    assert not np.array_equal(labelled, several)


def test_classes_of_single_seeds_cost_no_batch_of_their_own(main: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = batches.sample_batch, []
    monkeypatch.setattr(batches, "sample_batch", lambda *given: asked.append(given) or real(*given))
    options: dict[str, Any] = {"solver": Solver(num_steps=2, batch_size=4), "show": False}
    found = repro.sample(main, seeds=range(8), labels=[0, 1, 2, 3, 0, 1, 2, 3], **options)
    assert len(asked) == 2
    for label in range(4):
        alone = repro.sample(main, seeds=[label, label + 4], labels=label, **options)
        assert np.array_equal(found[[label, label + 4]], alone)


def test_a_solver_settles_the_precision_of_the_decoder(main: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main.encoder, "tf32", True, raising=False)
    repro.sample(main, seeds=[0], solver=Solver(num_steps=2, batch_size=2, vae_tf32=False), show=False)
    assert main.encoder.tf32 is False


def test_a_degradation_makes_the_guide_of_the_main_network(main: Denoiser) -> None:
    options: dict[str, Any] = {"steps": 3, "seeds": range(2), "show": False}
    plain, worse = (
        repro.sample(main, degradation={"blurred_attention": 1.0}, guidance=w, rule="apg", **options) for w in (1, 3)
    )
    assert np.array_equal(plain, repro.sample(main, **options))
    assert not np.array_equal(plain, worse)
    with pytest.raises(InputError, match="are the same network"):
        repro.sample(main, main, guidance=3.0, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 2.0}, "guidance 2.0 needs a guide"),
        ({"seeds": []}, "0 seeds"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"labels": [1]}, "a label for each"),
        ({"labels": 10}, "class 10, the network has 10 classes"),
        ({"labels": -1}, "class -1, the network has 10 classes"),
        ({"rule": "agp"}, "did you mean 'apg'"),
        ({"labels": [3, 10], "seeds": [0, 1]}, "class 10, the network has 10 classes"),
        ({"degradation": {"blur": 1.0}, "guidance": 2.0}, "degradation 'blur' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_refused(main: Denoiser, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        repro.sample(main, steps=2, show=False, **settings)


def test_the_readme_s_ten_lines_run(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\nimport repro\n(.*?)```", README, re.DOTALL)
    assert len(lines.splitlines()) <= 10
    for name, file in (("A.safetensors", "main.pkl"), ("B.safetensors", "guide.pkl")):
        lines = lines.replace(name, str(golden / file))
    lines = lines.replace("range(64)", "range(4), steps=2").replace("labels=3", "labels=3, steps=2, seeds=range(4)")
    monkeypatch.chdir(tmp_path)
    exec("import repro\n" + lines, {})
    assert (tmp_path / "look.png").stat().st_size > 100


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = repro.smaple
