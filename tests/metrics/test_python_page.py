"""Every example of docs/python.md runs, in ten lines or fewer."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from metrics.detectors import DETECTORS
from metrics.results import Results
from repro.encoders import RGBEncoder
from repro.networks import Precond
from repro.snapshots import Snapshot, save

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TAGS = {"detector": "inception", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}


class Corner:
    """Four features of an image, in the place of Inception, which takes seconds to load."""

    name, dim, tags = "inception", 4, TAGS

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (
            images[:, :, :2, 0].float().mean(dim=2).repeat(1, 2)[:, :4] / 256 + images[:, :1, 1, :4].float()[:, 0] / 512
        )


def test_every_example_runs_in_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DETECTORS, "inception", lambda **_: Corner())
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    np.savez("real.npz", arr_0=rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    Path("samples").mkdir()
    for i, image in enumerate(pixels):
        PIL.Image.fromarray(image).save(f"samples/{i:02d}.png")
    network = Precond(8, 3, 0, model_channels=16, channel_mult=[1], num_blocks=1)
    save(Snapshot(network, RGBEncoder(), {}), Path("A.safetensors"))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def sample(_: object) -> Iterator[torch.Tensor]:
        yield from images.split(8)

    known: dict[str, Any] = {
        "images": images,
        "generate": lambda seed: images[seed : seed + 8],
        "model": None,
        "train": lambda model: None,
        "sample": sample,
        "fake": rng.standard_normal((40, 5)),
        "real_features": rng.standard_normal((50, 5)),
    }
    results = []
    for example in EXAMPLES:
        assert len([line for line in example.splitlines() if line.strip()]) <= 10, example
        exec(compile(example, "docs/python.md", "exec"), known)
        results.append(known.get("results"))
    assert len(EXAMPLES) == 6
    assert all(isinstance(found, Results) for found in results)
    assert {*known["values"]} == {"fid", *(f"{x}_inception" for x in ("precision", "recall", "density", "coverage"))}
    assert known["fd"] > 0
