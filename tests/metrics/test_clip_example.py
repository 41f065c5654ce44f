"""docs/clip.md: its example on a small network of random weights with the released names."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.__main__ import main
from metrics.files import InputError

DOCUMENT = Path(__file__).parents[2] / "docs" / "clip.md"
(CODE,) = re.findall(r"```python\n(# my_clip\.py\n.*?)```", DOCUMENT.read_text(), re.S)
WIDTH, DEPTH, PATCH, GRID, OUT = 128, 2, 4, 3, 24


class Block(nn.Module):
    """A residual attention block, of PyTorch's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y / (1 + torch.exp(-1.702 * y)))


class Encoder(nn.Module):
    """CLIP's image encoder as released, with the names of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(GRID**2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block() for _ in range(DEPTH))})
        self.proj = nn.Parameter(torch.randn(WIDTH, OUT) / WIDTH**0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images, size=(GRID * PATCH,) * 2, mode="bicubic", align_corners=False, antialias=True) / 255
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=x.dtype).view(3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=x.dtype).view(3, 1, 1)
        x = self.conv1((x - mean) / std)
        tokens = [self.class_embedding.repeat(len(x), 1), *(x[:, :, i, j] for i in range(GRID) for j in range(GRID))]
        x = self.ln_pre(torch.stack(tokens, dim=1) + self.positional_embedding)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x)[:, 0] @ self.proj


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("plugin") / "my_clip.py"
    path.write_text(CODE)
    spec = importlib.util.spec_from_file_location("my_clip", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().double().eval()


@pytest.fixture(scope="module")
def weights(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "clip.pth"
    text = {"token_embedding.weight": torch.zeros(3, 3)}
    torch.save({f"visual.{key}": value.float() for key, value in encoder.state_dict().items()} | text, path)
    return path


def photographs(count: int) -> np.ndarray:
    with np.load(Path(__file__).parents[1] / "data" / "cifar10_anchor_256.npz") as data:
        return data["train"][:count]


class Released(nn.Module):
    """The image encoder under the name that it has in the released archives."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.visual = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)


@pytest.mark.filterwarnings("ignore")  # of tracing, by which the released archives were made
@pytest.mark.parametrize("form", ["state dict", "TorchScript"])
def test_features_are_those_of_pytorch_s_own_modules(
    plugin: Any, encoder: Encoder, weights: Path, tmp_path: Path, form: str
) -> None:
    images = torch.from_numpy(photographs(5)).permute(0, 3, 1, 2)
    if form == "TorchScript":
        weights = tmp_path / "clip.pt"
        torch.jit.trace(Released(encoder), images.double(), check_trace=False).save(str(weights))
    detector = plugin.CLIP(weights)
    found = detector(images)
    with torch.no_grad():
        expected = encoder(images.double())
    assert found.dtype == torch.float32
    assert (found.shape, detector.dim) == ((5, OUT), OUT)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_clip_fd_has_its_name_on_the_command_line(plugin: Any, weights: Path, tmp_path: Path) -> None:
    images = photographs(60)
    for name, part in (("fake", images[:30]), ("real", images[30:])):
        np.savez(tmp_path / f"{name}.npz", arr_0=part)
    out = tmp_path / "out.json"
    sides = ["evaluate", str(tmp_path / "fake.npz"), "--ref", str(tmp_path / "real.npz"), "--json", str(out)]
    how = ["--detectors", "clip", "--weights", f"clip={weights}", "--no-cache", "--workers", "0", "--device", "cpu"]
    assert main([*sides, *how, "--metrics", "clip_fd"]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert result["metric"] == "clip_fd"
    assert result["value"] > 0


def test_weights_that_are_missing_or_of_something_else_are_refused(plugin: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name them with --weights clip="):
        plugin.CLIP()
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: holds no vision transformer of CLIP"):
        plugin.CLIP(tmp_path / "other.pth")
