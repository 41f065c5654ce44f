"""Counted cost against the published parameter counts, Gflops and throughputs."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from repro.guidance import Guided
from repro.strict import build
from repro.study import Study, cost, files
from repro.study.cost import Stage
from repro.study.counting import behind, counted_gflops, published, shape_of, trained
from repro.study.rates import THROUGHPUT, VAE_GFLOPS, Rates, Record, Sampled, Task, seconds_per_image
from repro.training.recipes import RECIPES, Recipe
from tests.hostile import materials

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
    found = shape_of(RECIPES[f"edm2-img{resolution}-{size}"]).count()
    assert round(found.parameters / 1e6, 1) == mparams
    assert found.gflops == pytest.approx(gflops, rel=0.01)


def test_convolutions_and_matrix_products_are_counted_once_per_multiply_add() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(320, 7))
    by_hand = 8 * 8 * 3 * 5 * 9 + 320 * 7
    assert counted_gflops(layers, torch.zeros(1, 3, 8, 8)) == pytest.approx(by_hand / 1e9)


@pytest.mark.parametrize(
    ("main", "guides", "tflops"), [(S, [XS], 10.57), (XXL, [M], 47.4), (S, [], 7.70), (XS, [XS], 6.99)]
)
def test_sampling_costs_what_is_published(main: Recipe, guides: list[Recipe], tflops: float) -> None:
    guide = shape_of(guides[0]) if guides else None
    pair = Sampled(shape_of(main), guide, Guided("main", "guide", 2.0))
    assert (63 * pair.gflops + VAE_GFLOPS) / 1e3 == pytest.approx(tflops, rel=0.01)


@pytest.mark.parametrize(("interval", "guiding"), [((17, 23), 14), ((31, 31), 1), ((25, 31), 13), (None, 63)])
def test_a_guide_costs_nothing_outside_its_interval(interval: tuple[int, int] | None, guiding: int) -> None:
    """Every step has two evaluations, the last one of 32 one."""
    study = load("smoke512")
    guided = replace(study.generate["smoke512-autoguidance-fid"].guided, interval=interval)
    amounts = cost._sampling(study, guided, 10)
    found = {task.subject: count for task, count in amounts.items() if task.part == "sampling"}
    assert found["img512-s + img512-xs"] == 10 * guiding
    assert sum(found.values()) == 630


def test_without_images_those_of_an_extra_detector_are_sampled_once_more() -> None:
    study = load("default")
    item = study.generate["digits-unguided"]
    amounts = []
    for keeps in (True, False):
        shards = replace(study.shards, keep_images=keeps)
        stages = cost._configuration(replace(study, shards=shards), "digits-unguided", item)
        work = [(task.part, amount) for stage in stages for task, amount in stage.work.items()]
        amounts.append(sum(amount for part, amount in work if part == "sampling"))
    images = len(item.all_seeds())
    assert amounts == [19 * images, 19 * (images + 1024)]  # ten steps of Heun's method


def test_estimated_throughput_is_the_published_one() -> None:
    for tflops, vae, guided, rate in THROUGHPUT:
        networks = tflops - vae * 1.2609
        assert seconds_per_image(networks, bool(vae), bool(guided)) * rate == pytest.approx(1, abs=0.04)


def test_names_of_published_files_are_understood() -> None:
    assert published("raw-snapshots/x/edm2-img512-xs-uncond-0134217-0.050.pkl") == replace(XS, conditional=False)
    assert published("edm2-img64-xl-0671088-0.040.safetensors") == RECIPES["edm2-img64-xl"]
    assert published("digits-main-0000040-0.100.safetensors") is None
    assert published("model.json") is None
    assert shape_of(replace(XS, conditional=False)).count().parameters < shape_of(XS).count().parameters


@cache
def load(name: str) -> Study:
    return files.load(ROOT / "studies" / f"{name}.yaml")


@pytest.mark.parametrize("name", files.available())
def test_every_study_has_a_cost(name: str) -> None:
    study = load(name)
    found = cost.cost(study)
    stages, hours = found.stages["stage"].iloc[:-1], found.stages["gpu_hours"]
    assert set(stages) <= study.ids()
    kinds = {"generate": ("generate", "features"), "tuned": ("tune",), "sweeps": ("sweep",), "train": ("train",)}
    wanted = {f"{stage}@{key}" for kind, names in kinds.items() for key in getattr(study, kind) for stage in names}
    assert wanted <= set(stages)
    assert hours.iloc[-1] == pytest.approx(hours.iloc[:-1].sum())
    assert (found.stages.set_index("stage").loc[sorted(wanted), "gpu_hours"] > 0).all()
    assert found.parts["hours"].sum() >= hours.iloc[-1] > 0
    assert max(map(len, cost.show(study, found, Record(name), price=2.0).splitlines())) <= cost.WIDTH


def test_what_an_image_takes_is_that_of_its_parts() -> None:
    """By hand, of smoke512: 48 images of S and XS, through the VAE, PNG, and both detectors."""
    found = cost.cost(load("smoke512"))
    amounts = dict(zip(found.parts["part"] + " " + found.parts["subject"], found.parts["amount"], strict=True))
    image = "512 x 512 x 3"
    assert amounts == {
        "sampling img512-s + img512-xs": 48 * 63,
        f"vae {image}": 48,
        f"png {image}": 48,
        f"decoding {image}": 48,
        f"features inception, {image}": 48,
        f"features dinov2, {image}": 48,
    }
    hours = found.stages.set_index("stage")["gpu_hours"]
    seconds = seconds_per_image(63 * sum(shape_of(x).count().gflops for x in (S, XS)) / 1e3, True, True)
    assert hours["generate@smoke512-autoguidance-fid"] * 3600 == pytest.approx(48 * seconds)


def test_a_stage_takes_as_long_as_the_slower_of_gpu_and_cpu() -> None:
    vae, png = Task("vae", "a", (512, 3)), Task("png", "a", (512, 3))
    stage = Stage("generate@a", 100)
    stage.work.update({vae: 100, png: 100})
    for vae_rate, png_rate, seconds in ((10.0, 50.0, 10.0), (50.0, 10.0, 10.0), (5.0, 5.0, 20.0)):
        rates = Rates({("vae", "a"): vae_rate, ("png", "a"): png_rate})
        assert stage.hours(rates) * 3600 == pytest.approx(seconds)


def test_training_of_a_study_s_own_networks_counts() -> None:
    study = load("cifar10")
    found = cost.cost(study)
    stages = found.stages.set_index("stage")
    assert found.parts.query("part == 'training' and subject == 'cifar10-main'")["amount"].item() == 6_291_456
    main, small = (trained(study, study.train[f"cifar10-{key}-run"]) for key in ("main", "small"))
    assert main is not None
    assert small is not None
    assert (main.data_shape, main.label_dim) == ((32, 3), 10)
    assert main.count().gflops == pytest.approx(1.81, rel=0.02)  # the study's own comment
    assert small.count().parameters == pytest.approx(1.7e6, rel=0.02)
    hours = stages["gpu_hours"].filter(like="train@")
    ratio = 6_291_456 * main.count().gflops / (1_572_864 * small.count().gflops)
    assert hours["train@cifar10-main-run"] / hours["train@cifar10-small-run"] == pytest.approx(ratio)
    assert behind(study, "cifar10-guide/x") == small
    sampled = Task("sampling", "x", Sampled(main, None, study.generate["cifar10-unguided"].guided))
    xs = seconds_per_image(63 * shape_of(XS).count().gflops / 1e3, False, False) / 63  # of arithmetic as fast as this
    expected = xs * main.count().gflops / shape_of(XS).count().gflops
    assert 1 / Rates().of_task(sampled)[0] == pytest.approx(expected, rel=0.02)


def test_windows_are_evaluations_of_their_own() -> None:
    """A sliding window of half the size at half its size as stride: nine evaluations of a quarter of the pixels."""
    study, guide = load("smoke512"), {"guide_degradations": {"sliding_window": [32.0, 16.0]}}
    shape = behind(study, study.generate["smoke512-autoguidance-fid"].guided.main)
    assert shape is not None
    plain = Sampled(shape, shape, study.generate["smoke512-autoguidance-fid"].guided)
    windows = replace(plain, guided=replace(plain.guided, **guide))
    assert plain.gflops == pytest.approx(2 * shape.count().gflops)
    ratio = (windows.gflops - shape.count().gflops) / shape.count().gflops
    assert ratio == pytest.approx(9 / 4, rel=0.05)  # weight normalisation and attention do not scale with pixels
    assert windows.label == "img512-s + img512-s sliding_window 32/16"


def test_a_point_of_two_curves_is_sampled_once() -> None:
    raw = materials.study()
    curve = raw["sweeps"]["mini-sweep"]  # type: ignore[index]
    twice = build(Study, raw | {"sweeps": {"mini-sweep": curve, "mini-other": curve | {"values": [1.0, 2.0]}}})
    points = cost.cost(twice).parts.query("part == 'features'")["amount"].sum()
    assert points == 2 * 256 + 3 * 64  # both configurations, and weights 1, 1.5 and 2


def test_an_extra_detector_costs_its_images_alone() -> None:
    raw = materials.study()
    extra = {"detectors": ["digits", {"extra": "inception", "images": 128}]}
    tables = [cost.cost(build(Study, raw | {"evaluate": raw["evaluate"] | more})).parts for more in ({}, extra)]  # type: ignore[operator]
    looked = [found.query("part == 'features'").set_index("subject")["amount"].to_dict() for found in tables]
    assert looked[1] == looked[0] | {"inception, 16 x 16 x 1": 2 * 128}  # of 256 each, in blocks of 128


def test_ready_made_files_have_about_the_published_size() -> None:
    """Facts: 128 XS pickles are 29.8 GB (238 MB each, MiB and MB apart)."""
    table = cost.cost(load("imagenet512")).stages.set_index("stage")
    assert table.loc["networks@imagenet512-xs-raw", "download_gb"] == pytest.approx(29.8, rel=0.08)


def test_a_faster_gpu_takes_less_time() -> None:
    slow, fast = (cost.cost(load("imagenet64"), Rates(speed=speed)).parts for speed in (1.0, 2.5))
    beside = slow["part"].isin(cost.BESIDE)
    assert (slow["hours"] / fast["hours"])[~beside].tolist() == pytest.approx([2.5] * (~beside).sum())
    assert (slow["hours"] == fast["hours"])[beside].all()  # the CPU is no faster


def test_without_images_a_study_needs_little_disk() -> None:
    study = load("corruptions512")
    bare = replace(study, shards=replace(study.shards, keep_images=False))
    tables = [cost.cost(each) for each in (study, bare)]
    disk = [t.stages.set_index("stage")["disk_gb"].filter(regex="generate@|features@").sum() for t in tables]
    assert disk[0] == pytest.approx(1_050_000 * (420_000 + 12_288) / 1e9)
    assert disk[1] == pytest.approx(1_050_000 * 12_288 / 1e9)
    assert {"png", "decoding"} <= {*tables[0].parts["part"]}
    assert not {"png", "decoding"} & {*tables[1].parts["part"]}


def test_what_a_study_takes_is_said_without_counting_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cost, "shape_of")
    assert cost.brief(load("edm2")) == "images 5,400,000, files to fetch 51"  # 36 x 150,000
    said = cost.brief(load("default"))
    assert said == "images 21,504, training runs 3, 2D examples 1"  # 6 x 2,048 of tables, 18 x 512 of curves
