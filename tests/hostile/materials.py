"""A folder with one sound input of every kind, and commands that work on it in a moment."""

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from metrics import features, references
from metrics.features import FeatureSet
from metrics.files import write_csv
from repro import snapshots
from repro.data import archives
from repro.rows import MEASURES, Row, write_rows
from repro.verdicts.claims import HOLDS, Verdict, table
from repro.verdicts.repeats import CLAIMS
from tests.hostile.plugin import Colour

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
COUNT = 6

#: Networks of the small study, by the file that they are of.
NETWORKS = {
    "main": "mini-main/mini-main-0000002-0.100.safetensors",
    "guide": "mini-guide/mini-guide-0000001-0.150.safetensors",
}
EXTRACTION = ["--plugin", "tests.hostile.plugin", "--detectors", "tint", "--no-cache", "--workers", "0"]
#: A search, without its settings.
GUIDE = ["guide", "--main", "mini-main-run", "--guide", "mini-guide-run", "--data", "mini-digits"]
#: Name -> program and arguments of a command that ends well, without what it writes.
COMMANDS = {
    "evaluate": ("metrics", ["evaluate", "images", "--ref", "statistics.npz", *EXTRACTION]),
    "compare": (
        "metrics",
        ["compare", "images", "images.zip", "--ref", "statistics.npz", "--error-blocks", "2", *EXTRACTION],
    ),
    "several": ("metrics", ["evaluate", "images", "images.zip", "images.tar", "--ref", "statistics.npz", *EXTRACTION]),
    "list": ("metrics", ["list"]),
    "reference": ("metrics", ["reference", "images", "--out", "new.npz", *EXTRACTION]),
    "features": ("metrics", ["features", "images", "--out", "new.npz", *EXTRACTION]),
    "neighbours": ("metrics", ["neighbours", "images", "--train", "images.zip", "--out", "new.html", *EXTRACTION]),
    "generate": (
        "repro",
        [
            "generate",
            "--main",
            "main.safetensors",
            "--guide",
            "guide.pkl",
            "--guidance",
            "1.5",
            "--seeds",
            "0-1",
            "--steps",
            "2",
            "--batch-size",
            "2",
            "--other-guide",
            "uncond.pkl=0.5",
            "--device",
            "cpu",
            "--out",
            "look",
        ],
    ),
    "reconstruct": (
        "repro",
        [
            "reconstruct",
            *(f"raw/tiny-0000032-{std}.pkl" for std in ("0.050", "0.100")),
            "--ema",
            "0.07",
            "--out",
            "made",
        ],
    ),
    "image": ("repro", ["image", "mini-auto", "--seed", "7", "--out", "one.png"]),
    "schedule": (
        "repro",
        ["schedule", "--network", "guide.pkl", "--steps", "3", "--seeds", "0-1", "--grid", "3", "--out", "found.yaml"],
    ),
    "convert": ("repro", ["data", "convert", "images", "--out", "new.zip", "--resolution", "8", "--workers", "0"]),
    "data check": ("repro", ["data", "check", "set.zip"]),
    "train": ("repro", ["train", "--preset", "edm2-img64-xs", "--data", "set.zip", "--out", "run", "--dry-run"]),
    "study show": ("repro", ["study", "show", "mini"]),
    "study new": ("repro", ["study", "new", "fresh", "--from", "mini"]),
    "study use": ("repro", ["study", "use", "mini"]),
    "cost": ("repro", ["cost", "mini"]),
    "preflight": ("repro", ["preflight", "mini", "--offline", "--only", "devices"]),
    "fetch": ("repro", ["fetch", "mini", "--offline"]),
    "preset": ("repro", ["preset", "show", "edm2-img64-xs"]),
    "report": ("repro", ["report", "--partial"]),
    "clean": ("repro", ["clean", "aside"]),
    "verify": ("repro", ["verify", "--partial"]),
    "check": ("repro", ["check", "committed", "--training-seeds", "committed"]),
    "verdicts": ("repro", ["verdicts", "committed"]),
}


def study() -> dict[str, object]:
    """A small study, which is read but not run."""
    main, guide = NETWORKS["main"], NETWORKS["guide"]
    network = {
        "model_channels": 8,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
        "channels_per_head": 8,
    }

    def training(name: str) -> dict[str, object]:
        counts = dict(batch_size=64, total_nimg=2048, ref_batches=20, snapshot_nimg=1024, log_nimg=1024)
        return {"data": "mini-digits", "config": {"name": name, "network": network, "rampup_Mimg": 0.001, **counts}}

    sampled = {"method": "autoguidance", "data": "mini-digits", "main": main, "guide": guide, "guidance": 1.5}
    curve = {"main_set": "mini-main", "guide_set": "mini-guide", "axis": "guidance", "values": [1.0, 1.5]}
    return {
        "study": "mini",
        "toy": {"mini-toy": {}},
        "data": {"mini-digits": {"kind": "digits", "settings": {"shift": 0.1}, "reference": {"num_images": 512}}},
        "images": {},
        "train": {"mini-main-run": training("mini-main"), "mini-guide-run": training("mini-guide")},
        "networks": {},
        "models": {"mini-own": {"code": "mymodels:load", "arguments": {"scale": 1}, "path": "main.pkl"}},
        "reconstruct": {
            "mini-main": {"source": "mini-main-run", "kimg": 2, "ema_stds": [0.1]},
            "mini-guide": {"source": "mini-guide-run", "kimg": 1, "ema_stds": [0.15]},
        },
        "blends": {
            "mini-both": {"guide": guide, "other": main, "share": 0.5, "other_degradations": {"input_noise": 0.1}}
        },
        "sampler": {"num_steps": 4, "batch_size": 32, "rho": 7.0},
        "shards": {"size": 64},
        "evaluate": {"detectors": ["digits"], "metrics": ["fd", "precision_recall"], "num_real": 256, "k": 3},
        "generate": {
            "mini-auto": {**sampled, "seeds": ["0-127", "128-255"]},
            "mini-interval": {**sampled, "seeds": ["0-127", "128-255"], "interval": [1, 2]},
        },
        "sweeps": {"mini-sweep": {**sampled, **curve, "seeds": ["1000-1063"]}},
        "claims": [{"better": "mini-auto", "than": "mini-interval", "metric": "fd_digits", "by": 0.1}],
    }


def make(folder: Path) -> Path:
    """Fill an empty folder."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    images = folder / "images"
    images.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{i}.png")
    Image.fromarray(pixels[0]).save(folder / "one.jpg")
    labels = json.dumps({"labels": [[f"{i}.png", i % 3] for i in range(COUNT)]})
    with zipfile.ZipFile(folder / "images.zip", "w") as archive, tarfile.open(folder / "images.tar", "w") as tape:
        archive.writestr("dataset.json", labels)
        for path in sorted(images.iterdir()):
            archive.write(path, path.name)
            tape.add(path, path.name)
    np.savez(folder / "images.npz", arr_0=pixels)
    found = rng.normal(size=(64, 3)).astype(np.float32)
    sets = {"tint": FeatureSet.of(found, Colour.tags)}
    features.save(sets, folder / "features.npz")
    references.save({"tint": sets["tint"].statistics()}, folder / "statistics.npz")
    with open(folder / "statistics.pkl", "wb") as file:
        pickle.dump({"tint": {"mu": np.zeros(3), "sigma": np.eye(3), "num_images": 9}}, file)
    for name in ("main", "guide", "uncond"):
        shutil.copy(GOLDEN / f"{name}.pkl", folder)
    snapshots.save(snapshots.load(folder / "main.pkl"), folder / "main.safetensors")
    for name, file in NETWORKS.items():
        (folder / "out/mini/networks" / file).parent.mkdir(parents=True)
        snapshots.save(snapshots.load(folder / f"{name}.pkl"), folder / "out/mini/networks" / file)
    shutil.copytree(GOLDEN / "raw-snapshots", folder / "raw")
    archives.convert(folder / "images.zip", folder / "set.zip", 8, False, 0)
    text = yaml.safe_dump(study(), sort_keys=False)
    (folder / "studies").mkdir()
    for path in (folder / "params.yaml", folder / "studies" / "mini.yaml"):
        path.write_text(text)
    (folder / "search.yaml").write_text("seeds: 0-63\nfresh: [64-127]\n")
    written = []
    for key in ("mini-auto", "mini-interval"):
        blocks = [("0-127", 1.0), ("128-255", 1.2)]
        rows = [Row("mini", key, "autoguidance", block, "fd_digits", value, 128) for block, value in blocks]
        (folder / "out/mini/results" / key).mkdir(parents=True)
        write_rows(folder / "out/mini/results" / key / MEASURES, rows)
        written += rows
    (folder / "committed").mkdir()
    write_rows(folder / "committed" / MEASURES, written)
    judged = Verdict("A is nearer", "fd_digits", "mini-auto", difference=-0.1, standard_error=0.01, verdict=HOLDS)
    write_csv(folder / "committed" / CLAIMS, table([judged, judged]))
    return folder


def png(width: int, height: int) -> bytes:
    """A grey PNG."""
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "png")
    return stream.getvalue()
