"""What images are measured against: published statistics of many formats, our own files, or features.

Our own npz of `metrics reference` and `metrics features` hold one or more detectors; EDM2's pickle is {num_images,
fid: {mu, sigma}, fd_dinov2: {mu, sigma}}; EDM's, ADM's and pytorch-fid's npz hold `mu` and `sigma` of Inception's
features. The foreign formats say nothing of weights, resize or arithmetic, so those tags cannot be checked.
"""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from metrics import features, files
from metrics.detectors.inception import InceptionV3
from metrics.features import FeatureSet
from metrics.files import PUBLISHED, Downloads, InputError, Source, explained, sha256_file
from metrics.files.reading import NUMPY_GLOBALS, load_pickle
from metrics.statistics import Statistics, from_arrays, to_arrays

EDM2_DETECTORS = {"fid": "inception", "fd_dinov2": "dinov2"}
#: Public reference files by name; the digest is recorded at the first download and enforced from then on.
REGISTRY = {name: f"{PUBLISHED}/dataset-refs/{name}.pkl" for name in ("img512", "img64")}


@dataclass(frozen=True)
class Reference:
    """One side of a measurement, by detector: statistics, or features from which these are computed when needed.

    `digest` is the sha256 of the file, or the content digest of the images.
    """

    source: str
    digest: str
    statistics: dict[str, Statistics] = field(default_factory=dict)
    features: Mapping[str, FeatureSet] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def check(self, detectors: Iterable[str]) -> Self:
        """Itself; raises InputError when one of the detectors is missing."""
        known = sorted({*self.statistics, *self.features})
        if missing := [name for name in detectors if name not in known]:
            found = f"{self.source}: has no statistics of detector '{missing[0]}', only of {known}"
            raise InputError(f"{found}; choose one of those or make it again with `metrics reference`")
        return self

    def require(self, detector: str) -> Statistics:
        """The statistics of one detector, of shared features in all processes; raises InputError as `check` does."""
        if detector not in self.statistics:
            self.statistics[detector] = self.check([detector]).features[detector].statistics()
        return self.statistics[detector]


def load(source: str | Path) -> Reference | None:
    """Read a reference file or registry name; None for images. Raises InputError when it is missing or broken."""
    path, name = Path(source), str(source)
    if not path.exists():
        if name not in REGISTRY:
            raise InputError(f"{name}: no such file, folder or registered reference ({', '.join(REGISTRY)})")
        folder, remedy = files.cache_root() / "references", f"give a path instead of {name}"
        published = Source(f"{name}.pkl", folder / f"{name}.pkl", urls=[REGISTRY[name]], remedy=remedy, check=read_edm2)
        (path,) = files.fetch([published], Downloads.cached(folder))
    if path.suffix == ".pkl":
        return Reference(name, sha256_file(path), read_edm2(path))
    if holds_features(path):
        return Reference(name, sha256_file(path), features=features.load(path))
    if any(key.rpartition("/")[2] in ("mu", "sigma") for key in _npz_keys(path)):
        return Reference(name, sha256_file(path), _read_npz(path))
    return None


def save(stats: Mapping[str, Statistics], path: str | Path) -> None:
    """Write a reference file with the statistics of each detector, atomically."""
    files.write_npz(path, {key: x for name, value in stats.items() for key, x in to_arrays(value, f"{name}/").items()})


def holds_features(path: Path) -> bool:
    """Whether a path is a file of features; raises InputError where it is a broken npz."""
    return any(key.endswith("/features") for key in _npz_keys(path))


def _npz_keys(path: Path) -> list[str]:
    if path.suffix != ".npz" or not path.is_file():
        return []
    with explained(f"{path}: not a sound npz file", "copy or download it again"), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _read_npz(path: Path) -> dict[str, Statistics]:
    arrays = files.load_npz(path)
    if prefixes := sorted(key.removesuffix("mu") for key in arrays if key.endswith("/mu")):
        return {prefix.removesuffix("/"): from_arrays(arrays, path, prefix) for prefix in prefixes}
    count = len(arrays["arr_0"]) if "arr_0" in arrays else 0
    stats = from_arrays(arrays, path) if "tags" in arrays else _foreign(arrays, path, "inception", count)
    if "tags" not in arrays and stats.dim != InceptionV3.dim:
        found = f"{path}: mu has shape {stats.mu.shape}, expected ({InceptionV3.dim},) of Inception"
        raise InputError(f"{found}; make a tagged reference of another detector with `metrics reference`")
    return {str(stats.tags.get("detector", "inception")): stats}


def read_edm2(path: Path) -> dict[str, Statistics]:
    content = load_pickle(path, NUMPY_GLOBALS)
    known = content if isinstance(content, dict) else {}
    found = {key: name for key, name in EDM2_DETECTORS.items() if isinstance(known.get(key), dict)}
    if not found:
        raise InputError(f"{path}: expected a dict with 'fid' or 'fd_dinov2', as published with EDM2")
    with explained(f"{path}: 'num_images' is not a number", "download the file again", (TypeError, ValueError)):
        count = int(known.get("num_images", 0))
    return {name: _foreign(known[key], f"{path}: {key}", name, count) for key, name in found.items()}


def _foreign(content: Mapping[str, Any], where: str | Path, detector: str, count: int) -> Statistics:
    """Statistics of a format without tags; `count` is 0 where the format does not say."""
    for key in ("mu", "sigma"):
        if not isinstance(content.get(key), np.ndarray) or content[key].dtype.kind != "f":
            raise InputError(f"{where}: '{key}' is missing or no array of floats; download or make the file again")
    mu, sigma = (np.array(content[key], dtype=np.float64, order="C") for key in ("mu", "sigma"))
    return Statistics(count, mu, sigma, {"detector": detector, "source": str(where)})
