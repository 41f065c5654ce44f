"""Counted cost against the published parameter counts, Gflops and throughputs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from repro.study import cost, files
from repro.study.cost import THROUGHPUT, count_published, published, seconds_per_image, tflops_per_image
from repro.training.recipes import RECIPES, Recipe

ROOT = Path(__file__).resolve().parents[3]
# EDM2 table 6: (resolution, size) -> Mparams, Gflops per evaluation
PUBLISHED = {
    (512, "xs"): (124.7, 45.5),
    (512, "s"): (280.2, 102.2),
    (512, "m"): (497.8, 180.8),
    (512, "l"): (777.5, 282.2),
    (512, "xl"): (1119.3, 405.9),
    (512, "xxl"): (1523.2, 552.1),
    (64, "s"): (280.2, 101.9),
    (64, "m"): (497.8, 180.8),
    (64, "l"): (777.5, 282.1),
    (64, "xl"): (1119.3, 405.9),
}
S, XS, M, XXL = (RECIPES[f"edm2-img512-{size}"] for size in ("s", "xs", "m", "xxl"))


@pytest.mark.parametrize(("resolution", "size"), PUBLISHED)
def test_architectures_have_the_published_size(resolution: int, size: str) -> None:
    mparams, gflops = PUBLISHED[(resolution, size)]
    found = count_published(RECIPES[f"edm2-img{resolution}-{size}"])
    assert round(found.parameters / 1e6, 1) == mparams
    assert found.gflops == pytest.approx(gflops, rel=0.01)


def test_convolutions_and_matrix_products_are_counted_once_per_multiply_add() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(320, 7))
    by_hand = 8 * 8 * 3 * 5 * 9 + 320 * 7
    assert cost.counted_gflops(layers, torch.zeros(1, 3, 8, 8)) == pytest.approx(by_hand / 1e9)


@pytest.mark.parametrize(("main", "guide", "tflops"), [(S, XS, 10.57), (XXL, M, 47.4), (S, None, 7.70), (XS, XS, 6.99)])
def test_sampling_costs_what_is_published(main: Recipe, guide: Recipe | None, tflops: float) -> None:
    assert tflops_per_image(main, guide) == pytest.approx(tflops, rel=0.01)


def test_a_guide_costs_nothing_outside_its_interval() -> None:
    whole, none = tflops_per_image(S, XS), tflops_per_image(S)
    part = tflops_per_image(S, XS, guided_steps=7)
    assert part - none == pytest.approx(14 / 63 * (whole - none))


def test_estimated_throughput_is_the_published_one() -> None:
    for tflops, guided, rate in THROUGHPUT:
        assert seconds_per_image(tflops, bool(guided)) * rate == pytest.approx(1, abs=0.04)


def test_names_of_published_files_are_understood() -> None:
    assert published("raw-snapshots/x/edm2-img512-xs-uncond-0134217-0.050.pkl") == replace(XS, conditional=False)
    assert published("edm2-img64-xl-0671088-0.040.safetensors") == RECIPES["edm2-img64-xl"]
    assert published("digits-main-0000040-0.100.safetensors") is None
    assert published("model.json") is None
    assert count_published(replace(XS, conditional=False)).parameters < count_published(XS).parameters


@pytest.mark.parametrize("name", files.available())
def test_every_study_has_a_cost(name: str) -> None:
    study = files.load(ROOT / "studies" / f"{name}.yaml")
    table = cost.cost(study)
    stages = table["stage"].iloc[:-1]
    assert set(stages) <= study.ids()
    wanted = {f"generate@{key}" for key in study.generate} | {f"sweep@{key}" for key in study.sweeps}
    assert wanted <= set(stages)
    assert table["gpu_hours"].iloc[-1] == pytest.approx(table["gpu_hours"].iloc[:-1].sum())
    if name.startswith("imagenet"):
        assert table["gpu_hours"].iloc[:-1].notna().sum() == len(study.generate)


def test_ready_made_files_have_about_the_published_size() -> None:
    """Facts: 128 XS pickles are 29.8 GB (238 MB each, MiB and MB apart)."""
    study = files.load(ROOT / "studies" / "imagenet512.yaml")
    table = cost.cost(study).set_index("stage")
    assert table.loc["networks@imagenet512-xs-raw", "download_gb"] == pytest.approx(29.8, rel=0.08)


def test_a_faster_gpu_takes_less_time() -> None:
    study = files.load(ROOT / "studies" / "imagenet64.yaml")
    slow, fast = (cost.cost(study, speed)["gpu_hours"].iloc[-1] for speed in (1.0, 2.5))
    assert slow / fast == pytest.approx(2.5)


def test_without_images_a_study_needs_little_disk() -> None:
    study = files.load(ROOT / "studies" / "corruptions512.yaml")
    bare = replace(study, shards=replace(study.shards, keep_images=False))
    disk = [cost.cost(each).set_index("stage")["disk_gb"].filter(like="generate@").sum() for each in (study, bare)]
    assert disk[0] == pytest.approx(1_050_000 * (420_000 + 12_288) / 1e9)
    assert disk[1] == pytest.approx(1_050_000 * 12_288 / 1e9)
