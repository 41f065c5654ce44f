"""DINOv2 against the golden features of an independent implementation, both resize modes."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from metrics import detectors
from metrics.detectors.dinov2 import DINOv2, resize_pil
from metrics.files import InputError
from metrics.files.tensors import load_state_dict

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
RESIZES = ("torch", "pil")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return load_state_dict(GOLDEN / "dinov2-tiny.pth")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "dinov2-tiny.npz") as file:
        return dict(file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [0, 1])
def test_features_agree_with_an_independent_implementation(
    state: dict[str, Tensor], golden: dict[str, np.ndarray], resize: str, size: int, dtype: torch.dtype
) -> None:
    network = DINOv2(state, num_heads=2, resize=resize, dtype=dtype)
    features = network(torch.from_numpy(golden[f"images{size}"]))
    expected = golden[f"features_{resize}{size}"]
    assert features.dtype == dtype
    assert network.dim == expected.shape[1] == 32
    np.testing.assert_allclose(features.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("resize", RESIZES)
def test_features_do_not_depend_on_the_batch(
    state: dict[str, Tensor], golden: dict[str, np.ndarray], resize: str
) -> None:
    network, images = DINOv2(state, 2, resize), torch.from_numpy(golden["images0"])
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


def test_resize_modes_differ_and_say_so(state: dict[str, Tensor], golden: dict[str, np.ndarray]) -> None:
    images = torch.from_numpy(golden["images1"])
    one, other = (DINOv2(state, 2, resize) for resize in RESIZES)
    assert float((one(images) - other(images)).abs().max()) > 1e-3
    assert {**one.tags, "resize": "pil"} == other.tags
    assert one.tags["resize"] == "torch"


def test_pil_mode_is_pils_bicubic() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 300, 3), dtype=np.uint8)
    expected = np.asarray(PIL.Image.fromarray(image).resize((224, 224), PIL.Image.Resampling.BICUBIC))
    found = resize_pil(torch.from_numpy(image).permute(2, 0, 1)[None], 224)
    np.testing.assert_array_equal(found[0].permute(1, 2, 0).numpy(), expected)


def released_shapes(width: int, depth: int) -> dict[str, Tensor]:
    """A state dict of the released names and shapes, zeros that share one number's memory."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(1).expand(shape)

    state = {
        "cls_token": zeros(1, 1, width),
        "pos_embed": zeros(1, 1370, width),
        "mask_token": zeros(1, width),
        "patch_embed.proj.weight": zeros(width, 3, 14, 14),
        "patch_embed.proj.bias": zeros(width),
        "norm.weight": zeros(width),
        "norm.bias": zeros(width),
    }
    for i in range(depth):
        for key in ("norm1", "norm2"):
            state |= {f"blocks.{i}.{key}.weight": zeros(width), f"blocks.{i}.{key}.bias": zeros(width)}
        state |= {f"blocks.{i}.ls1.gamma": zeros(width), f"blocks.{i}.ls2.gamma": zeros(width)}
        for key, out, inside in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            state[f"blocks.{i}.{key}.weight"] = zeros(out * width, inside * width)
            state[f"blocks.{i}.{key}.bias"] = zeros(out * width)
    return state


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16)])
def test_small_base_and_large_are_told_by_their_width(width: int, heads: int) -> None:
    network = DINOv2(released_shapes(width, 1))
    assert (network.dim, network.num_heads) == (width, heads)
    assert network(torch.zeros(1, 3, 20, 20, dtype=torch.uint8)).shape == (1, width)


def test_registered_names_take_a_weights_file_and_options(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    images = torch.from_numpy(golden["images0"])
    path = GOLDEN / "dinov2-tiny.pth"
    for name in ("dinov2", "dinov2-b", "dinov2-s", "dinov2-pil"):
        assert name in detectors.DETECTORS
    network = detectors.load("dinov2", path, num_heads=2, resize="pil")
    assert network.tags["detector"] == "dinov2"
    np.testing.assert_allclose(network(images).numpy(), golden["features_pil0"], atol=1e-5)
    beside = detectors.load("dinov2-pil", path, num_heads=2)  # the same under a name of its own
    assert torch.equal(beside(images), network(images))
    assert (beside.tags["detector"], beside.tags["resize"]) == ("dinov2-pil", "pil")


def changed(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    return {key: value for key, value in (state | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"cls_token": None}, {}, "these are no dinov2 weights"),
        ({"norm.bias": None}, {}, "lack 'norm.bias'"),
        ({"blocks.1.mlp.fc1.weight": None}, {}, "lack 'blocks.1.mlp.fc1.weight'"),
        ({"register_tokens": torch.zeros(1, 4, 32)}, {}, "unknown 'register_tokens'.*without registers"),
        ({"norm.bias": torch.zeros(31)}, {}, r"\[31\], expected \[32\]"),
        ({"blocks.99999999999.norm1.weight": torch.zeros(32)}, {}, r"'blocks\.\d+"),
        ({f"blocks.{'9' * 5000}.norm1.weight": torch.zeros(32)}, {}, r"'blocks\.\d+"),
        ({"norm.bias": torch.full((32,), torch.nan)}, {}, "NaN"),
        ({}, {"num_heads": 5}, "5 heads do not divide"),
        ({}, {}, "0 heads do not divide.*give num_heads"),
        ({}, {"num_heads": 2, "resize": "bilinear"}, "expected one of torch, pil"),
    ],
)
def test_weights_and_options_that_do_not_fit_are_refused(
    state: dict[str, Tensor], changes: dict[str, Tensor | None], options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        DINOv2(changed(state, **changes), **options)


def test_unknown_detectors_and_devices_are_refused() -> None:
    with pytest.raises(InputError, match="detector 'dinov3' is unknown; did you mean 'dinov2'"):
        detectors.load("dinov3")
    with pytest.raises(InputError, match="device 'warp' is not here"):
        detectors.load("dinov2", device="warp")
    with pytest.raises(InputError, match="device 'meta' holds no numbers"):
        detectors.load("dinov2", device="meta")
