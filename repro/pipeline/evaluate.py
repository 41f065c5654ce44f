"""Image shards -> features -> rows of measured values; what the stages `evaluate` and `sweep` share.

Features are kept per shard, so that work that was interrupted goes on there: beside the images, or instead of them.
"""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from metrics import detectors, distributed, neighbours
from metrics import statistics as stats
from metrics.detectors import Detector
from metrics.files import InputError, atomic_write, load_npz, sha256_file
from metrics.frechet import frechet_distance
from repro.sampling.shards import Format, Pair, check_digest, manifest_facts, read_manifest, read_shard, sample_images
from repro.snapshots import parse_name
from repro.study import Evaluate

STAND_INS = {"stand-in-inception": "fid_meaningless", "stand-in-dinov2": "fd_dinov2_meaningless"}
"""Detectors of rehearsals (`repro.standin`), and the name that says in every table what their numbers are worth."""
FD_NAMES = {"inception": "fid", "dinov2": "fd_dinov2", "digits": "fd_digits", **STAND_INS}
FEATURES = ".npz"
EXTRACT_BATCH = 100


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

    def digest(self, pair: Pair, seeds: str) -> str:
        """sha256 of everything that decides what is measured of `seeds` of `pair`."""
        settings = [list(self.settings.metrics), self.settings.num_real, self.sha256, _tags(self)]
        return hashlib.sha256(json.dumps([pair.digest, seeds, settings], sort_keys=True).encode()).hexdigest()

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


def extract_shards(shards: Sequence[Path], folder: Path, reference: Reference, description: str = "") -> list[Path]:
    """Features of image shards, a file for each in `folder`; what stands there is kept if it was made from the same
    images by the same detectors. Under torchrun the ranks share the shards."""
    targets = [folder / f"{shard.stem}{FEATURES}" for shard in shards]
    mine = list(zip(shards, targets, strict=True))[distributed.rank() :: distributed.world_size()]
    for shard, target in tqdm(mine, desc=description, unit="shard", disable=None if distributed.rank() == 0 else True):
        manifest = read_manifest(shard)
        if manifest is None:
            raise InputError(f"{shard}: not a sound shard; remove it and generate again")
        origin = {"images": manifest["images_sha256"], "detectors": _tags(reference)}
        standing = _read_texts(target)
        if standing is None or standing[1] != origin:
            _, images = read_shard(shard)
            _write_features(target, manifest, extract(images, reference.detectors), origin)
    distributed.barrier()
    return targets


def feature_format(reference: Reference) -> Format:
    """Shards that hold features instead of images; extraction overlaps with the sampling of the next batch."""
    origin = {"images": None, "detectors": _tags(reference)}

    def is_whole(path: Path, seeds: list[int], pair: Pair) -> bool:
        standing = _read_texts(path)
        if standing is None or standing[1] != origin:
            return False
        check_digest(path, standing[0], pair)
        return bool(standing[0]["seeds"] == seeds)

    def write(pair: Pair, seeds: list[int], path: Path, pool: Executor, bar: Any) -> None:
        parts: list[Future[dict[str, NDArray[np.float32]]]] = []
        labels: list[int] = []
        for members, images, classes in sample_images(pair, seeds):
            parts.append(pool.submit(extract, images, reference.detectors))
            labels += classes
            bar.update(len(members))
        manifest = manifest_facts(pair) | {"seeds": seeds, "labels": labels}
        _write_features(path, manifest, _concatenate([part.result() for part in parts]), origin)

    dims = sum(detector.dim for detector in reference.detectors.values())
    return Format(FEATURES, is_whole, write, bytes_per_image=4 * dims)


def _tags(reference: Reference) -> dict[str, Any]:
    """What tells features apart, in JSON's types."""
    found = {name: dict(detector.tags) for name, detector in reference.detectors.items()}
    return dict(json.loads(json.dumps(found)))


def _write_features(
    path: Path, manifest: dict[str, Any], features: dict[str, NDArray[np.float32]], origin: dict[str, Any]
) -> None:
    """A shard of features, with its manifest and what the features were made from."""
    arrays: dict[str, Any] = {f"features_{name}": array for name, array in features.items()}
    arrays |= {"manifest": json.dumps(manifest, sort_keys=True), "origin": json.dumps(origin)}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _read_texts(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Manifest and origin of a shard of features; None where there is no sound one (checksums are in the format)."""
    try:
        found = load_npz(path)
        return json.loads(str(found["manifest"])), json.loads(str(found["origin"]))
    except (OSError, KeyError, ValueError):
        return None  # missing, torn or altered: made again


def feature_manifest(path: Path) -> dict[str, Any] | None:
    """What a shard of features says of its making; None where it is torn."""
    standing = _read_texts(path)
    return None if standing is None else standing[0]


def block_features(paths: Sequence[Path], seeds: range) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Manifest of the first of the feature shards `paths`, and the features of `seeds` in all of them."""
    manifests, parts = [], []
    for path in paths:
        found = load_npz(path)
        manifests.append(json.loads(str(found["manifest"])))
        keep = [i for i, seed in enumerate(manifests[-1]["seeds"]) if seed in seeds]
        names = [name for name in found if name.startswith("features_")]
        parts.append({name.removeprefix("features_"): found[name][keep] for name in names})
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
    """Features [N, D] of uint8 images [N, H, W, C] under every detector, in batches that fit a small GPU."""
    batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(EXTRACT_BATCH)
    return {
        name: np.concatenate([detector(batch).cpu().numpy() for batch in batches]) for name, detector in used.items()
    }


def rows(
    manifest: dict[str, Any],
    features: dict[str, NDArray[np.float32]],
    reference: Reference,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One row per measured value, with everything it depends on; `manifest` tells how the images were made."""
    c = manifest["configuration"]
    guided = c["guidance"] != 1
    facts = {
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
