"""The authors' samples, through the pipeline: networks over HTTP, fetched, converted, sampled, into PNGs of shards."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro.encoders import StabilityVAEEncoder
from repro.pipeline import stages
from repro.sampling.pairs import Pair, load_pair
from repro.sampling.shards import read_shard
from repro.strict import build
from repro.study import Study
from tests.rehearsal import fixtures
from tests.rehearsal.server import Server

CASES = ["unguided", "autoguidance", "cfg", "interval", "churn", "sigma-range"]
NETWORKS = ["main", "guide", "uncond", "latent", "latent-guide"]
SAMPLER = ("num_steps", "S_churn", "S_min", "S_max", "S_noise", "sigma_min", "sigma_max", "rho")


def file_name(network: str) -> str:
    return f"golden-{network}-0000098-0.100"


@pytest.fixture(scope="module")
def server(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves the golden networks and a small VAE."""
    names = {name: f"/posthoc-reconstructions/{file_name(name)}.pkl" for name in NETWORKS}
    files = {path: (golden / f"{name}.pkl").read_bytes() for name, path in names.items()}
    found = Server(files)
    yield found
    found.close()


def golden_study(golden: Path, case: str, server: Server) -> tuple[Study, np.ndarray]:
    """A study of one configuration, with the settings and seeds of a golden file; and that file's latents."""
    entry = json.loads((golden / "manifest.json").read_text())[f"sampler-{case}"]
    main, guide = (
        f"golden/{file_name(name)}.safetensors"
        for name in (entry["networks"][0], entry["networks"][1] or entry["networks"][0])
    )
    seeds = entry["seeds"]
    raw: dict[str, Any] = {
        "study": f"golden-{case}",
        "toy": {},
        "data": {"none": {"kind": "digits", "settings": {}}},
        "images": {},
        "train": {},
        "models": {},
        "networks": {
            "golden": {
                "fetch": [f"posthoc-reconstructions/{Path(name).stem}.pkl" for name in dict.fromkeys((main, guide))]
            }
        },
        "reconstruct": {},
        "sampler": {"batch_size": 4} | {key: entry[key] for key in SAMPLER if key in entry},
        "shards": {},
        "evaluate": {},
        "generate": {
            "configuration": {
                "method": case,
                "main": main,
                "guide": guide,
                "guidance": entry.get("guidance", 1.0),
                "interval": entry.get("interval"),
                "data": "none",
                "seeds": [f"{seeds[0]}-{seeds[-1]}"],
            }
        },
        "sweeps": {},
        "sources": [server.base],
        "hub": [server.base + fixtures.HUB],
    }
    return build(Study, raw), np.load(golden / f"sampler-{case}.npz")["latents"]


def pngs(study: Study, monkeypatch: pytest.MonkeyPatch, folder: Path) -> np.ndarray:
    """Fetch and sample by the pipeline's stages in `folder`; images [N, C, H, W] as integers."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    stages.run_networks(study, "golden")
    stages.run_generate(study, "configuration")
    (shard,) = (study.out / "samples" / "configuration").glob("*.zip")
    return read_shard(shard)[1].transpose(0, 3, 1, 2).astype(int)


@pytest.mark.parametrize("case", CASES)
def test_pngs_are_the_authors_images(
    golden: Path, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    study, latents = golden_study(golden, case, server)
    found = pngs(study, monkeypatch, tmp_path)
    expected = np.clip(latents * 127.5 + 128, 0, 255).astype(np.uint8).astype(int)
    with np.load(golden / f"sampler-{case}.npz") as file:
        if "images" in file:  # the interval's were not kept
            np.testing.assert_array_equal(file["images"], expected)
    assert np.abs(found - expected).max() <= 1


def test_latents_are_decoded_by_the_vae_of_the_hub(
    golden: Path, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    server.files |= fixtures.vae(tmp_path / "vae")
    study, latents = golden_study(golden, "latent", server)
    found = pngs(study, monkeypatch, tmp_path)
    expected = StabilityVAEEncoder(str(tmp_path / "vae")).decode(torch.from_numpy(latents)).numpy().astype(int)
    assert found.shape == (3, 3, 128, 128)
    assert expected.std() > 10
    assert np.abs(found - expected).max() <= 1


class WithoutLabels:
    """The bug of the authors' first release: a conditional guide that never sees the labels."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.label_dim = 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return torch.as_tensor(self.network(x, sigma))


def test_a_guide_that_gets_no_labels_would_show_in_the_pngs(
    golden: Path, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def faulty(*arguments: Any) -> Pair:
        pair = load_pair(*arguments)
        guide: Any = WithoutLabels(pair.guide)
        return replace(pair, guide=guide)

    monkeypatch.setattr(stages, "load_pair", faulty)
    study, latents = golden_study(golden, "autoguidance", server)
    found = pngs(study, monkeypatch, tmp_path)
    expected = np.clip(latents * 127.5 + 128, 0, 255)
    assert (np.abs(found - expected) > 10).mean() > 0.1  # of pixels that are mostly black or white
