"""A study in small with two training runs, for searches over real networks."""

import itertools
from pathlib import Path

import pytest
import torch
import yaml

from repro import snapshots
from repro import study as studies
from repro.encoders import RGBEncoder
from repro.networks import Precond
from repro.pipeline import stages
from repro.snapshots import Snapshot

RUNS = {"main": 16, "small": 8}  # widths
STUDY = {
    "study": "mini",
    "toy": {},
    "data": {
        "mini-digits": {"kind": "digits", "settings": {}, "reference": {"num_images": 256, "classifier_steps": 3}},
        "mini-unmade": {"kind": "digits", "settings": {}},
    },
    "images": {},
    "train": {},
    "networks": {f"{name}-run": {"fetch": [f"{name}.pkl"]} for name in RUNS},
    "models": {},
    "reconstruct": {},
    "sampler": {"num_steps": 2, "batch_size": 8},
    "shards": {"size": 16},
    "evaluate": {"detectors": ["digits"]},
    "generate": {
        "mini-reported": {
            "method": "unguided",
            "main": "main-run/m",
            "guide": "main-run/m",
            "data": "mini-digits",
            "seeds": ["8000-8007"],
        }
    },
    "sweeps": {},
}
SETTINGS = {
    "seeds": "0-31",
    "fresh": ["32-63", "64-95"],
    "rungs": 2,
    "finalists": 2,
    "guidance_steps": [0.5],
    "ema_steps": [0.05],
    "first_guidance": [1.5],
    "first_ema": 0.1,
    "guide_kimg": [1, 2],
    "ema": [0.05, 0.10],
}


def write_runs(folder: Path) -> None:
    """Two untrained runs with snapshots at 1,024 to 4,096 images; their weights drift from one to the next."""
    for number, (name, channels) in enumerate(RUNS.items()):
        torch.manual_seed(number)
        network = Precond(
            16, 1, 10, model_channels=channels, channel_mult=[1], num_blocks=1, attn_resolutions=[], channels_per_head=8
        )
        network.unet.out_gain.data.fill_(0.5)
        for nimg, std in itertools.product(range(1024, 4097, 1024), (0.05, 0.10)):
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(0.05 * torch.randn_like(p))
            path = folder / f"{name}-run" / snapshots.format_name(name, nimg // 1000, std)
            snapshots.save(Snapshot(network, RGBEncoder(), {"nimg": nimg, "ema_std": std}), path)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an active study whose reference and training runs are at hand, and search settings."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "params.yaml").write_text(yaml.safe_dump(STUDY))
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = studies.load()
        stages.run_data(study, "mini-digits")
        stages.run_reference(study, "mini-digits")
        write_runs(study.out / "networks")
    return folder
