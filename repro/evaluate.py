"""Image shards -> features -> rows of measured values; what the stages `evaluate` and `sweep` share."""

import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metrics import detectors, neighbours
from metrics import statistics as stats
from metrics.detectors import Detector
from metrics.files import InputError, atomic_write, sha256_file
from metrics.frechet import frechet_distance
from repro.generate import Pair, read_shard, sample_images
from repro.snapshots import parse_name
from repro.study import Evaluate

STAND_INS = {"stand-in-inception": "fid_meaningless", "stand-in-dinov2": "fd_dinov2_meaningless"}
"""Detectors of rehearsals (`repro.standin`), and the name that says in every table what their numbers are worth."""
FD_NAMES = {"inception": "fid", "dinov2": "fd_dinov2", "digits": "fd_digits", **STAND_INS}


class Reference:
    """A data set's reference statistics and features, as the stage `data` left them in `folder`."""

    def __init__(self, folder: Path, settings: Evaluate, device: torch.device) -> None:
        self.settings = settings
        self.detectors: dict[str, Detector] = {}
        self.statistics: dict[str, stats.Statistics] = {}
        self.features: dict[str, NDArray[np.float32]] = {}
        self.sha256: dict[str, str] = {}
        wants_features = set(settings.metrics) - {"fd"}
        for name in settings.detectors:
            weights = folder / f"{name}.safetensors"
            self.detectors[name] = detectors.load(
                name, weights=weights if weights.exists() else None, device=str(device)
            )
            self.statistics[name] = stats.load(folder / f"{name}.npz")
            self.sha256[name] = sha256_file(folder / f"{name}.npz")
            if wants_features:
                self.features[name] = np.load(folder / f"{name}-features.npy", mmap_mode="r")[: settings.num_real]

    def measure(self, name: str, features: NDArray[np.float32]) -> dict[str, float]:
        """Every requested metric of one set of features, [N, D] float32."""
        generated = stats.from_features(features, self.detectors[name].tags)
        stats.check_tags(generated.tags, self.statistics[name].tags)
        values: dict[str, float] = {}
        for metric in self.settings.metrics:
            if metric == "fd":
                values[FD_NAMES[name]] = frechet_distance(generated, self.statistics[name])
            elif metric == "precision_recall":
                values |= neighbours.precision_recall(self.features[name], features)
            elif metric == "density_coverage":
                values |= neighbours.density_coverage(self.features[name], features)
            else:
                raise InputError(f"unknown metric '{metric}': expected fd, precision_recall or density_coverage")
        return values


def shard_features(
    paths: Sequence[Path], seeds: range, reference: Reference
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Manifest of the first shard, and features of those images in the shards whose seed is among `seeds`."""
    manifests, parts = [], []
    for path in paths:
        manifest, images = read_shard(path)
        keep = [i for i, seed in enumerate(manifest["seeds"]) if seed in seeds]
        manifests.append(manifest)
        parts.append(extract(images[keep], reference.detectors))
    return manifests[0], _concatenate(parts)


def sample_features(
    pair: Pair, seeds: Sequence[int], reference: Reference, description: str = ""
) -> dict[str, NDArray[np.float32]]:
    """Features of freshly sampled images that are not kept."""
    parts = []
    with tqdm(total=len(seeds), unit="img", desc=description, disable=None) as bar:
        for members, images, _ in sample_images(pair, seeds):
            parts.append(extract(images, reference.detectors))
            bar.update(len(members))
    return _concatenate(parts)


def _concatenate(parts: list[dict[str, NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def extract(images: NDArray[np.uint8], used: dict[str, Detector]) -> dict[str, NDArray[np.float32]]:
    """Features [N, D] of uint8 images [N, H, W, C] under every detector."""
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return {name: detector(batch).cpu().numpy() for name, detector in used.items()}


def rows(
    manifest: dict[str, Any],
    common: dict[str, Any],
    features: dict[str, NDArray[np.float32]],
    reference: Reference,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One row per measured value, with everything it depends on; `manifest` tells how the images were made."""
    c = manifest["configuration"]
    guided = c["guidance"] != 1
    facts = common | {
        "num_images": len(next(iter(features.values()))),
        "main": Path(c["main"]).name,
        "guide": Path(c["guide"]).name if guided else "",
        "guidance": c["guidance"],
        "interval": "" if c["interval"] is None else "{}-{}".format(*c["interval"]),
        "main_ema": _ema(c["main"]),
        "guide_ema": _ema(c["guide"]) if guided else None,
        "num_steps": c["sampler"]["num_steps"],
        "main_sha256": manifest["main_sha256"],
        "guide_sha256": manifest["guide_sha256"] or "",
    }
    found = []
    for name, array in features.items():
        for metric, value in reference.measure(name, array).items():
            measured = {
                "metric": metric,
                "value": value,
                "detector": name,
                "detector_sha256": reference.detectors[name].tags.get("weights_sha256", ""),
                "reference_sha256": reference.sha256[name],
            }
            found.append(facts | measured | provenance(device))
    return found


def _ema(network: str | None) -> float | None:
    name = None if network is None else parse_name(Path(network).name)
    return None if name is None else name.ema_std


def provenance(device: torch.device) -> dict[str, str]:
    """Device, versions and commit of this run."""
    hardware = platform.processor() or platform.machine()
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return {"device": f"{device.type} ({hardware})", "versions": versions, "commit": commit()}


def commit() -> str:
    """Short hash of the checked-out commit, `+` appended where files differ from it; empty outside git."""
    try:
        dirty = _git("status", "--porcelain", "--untracked-files=no", "--", "repro", "metrics")
        return _git("rev-parse", "--short", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def write_rows(path: Path, found: Iterable[dict[str, Any]]) -> None:
    """Rows as CSV, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        pd.DataFrame(list(found)).to_csv(temporary, index=False)
