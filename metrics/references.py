"""What images are measured against: published statistics of many formats, our own files, or features.

Our own npz of `metrics reference` and `metrics features` hold one or more detectors; EDM2's pickle is {num_images,
fid: {mu, sigma}, fd_dinov2: {mu, sigma}}; EDM's, ADM's and pytorch-fid's npz hold `mu` and `sigma` of Inception's
features, ADM's also `mu_s` and `sigma_s` of the sFID's, and in `arr_0` some of the images. The foreign formats say
nothing of weights, resize or arithmetic, so those tags cannot be checked.
"""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from metrics import features, files
from metrics.catalogue import REFERENCES
from metrics.detectors.inception import InceptionSpatial, InceptionV3
from metrics.features import FeatureSet
from metrics.files import Downloads, InputError, Source, explained, nearest, sha256_file
from metrics.files.reading import NUMPY_GLOBALS, load_pickle
from metrics.images import DATASETS
from metrics.sizes import TAG
from metrics.statistics import Statistics, from_arrays, to_arrays

EDM2_DETECTORS = {"fid": "inception", "fd_dinov2": "dinov2"}
#: In the npz of EDM, ADM and pytorch-fid: what stands behind `mu` and `sigma` -> the detector.
NPZ_DETECTORS = {"": InceptionV3, "_s": InceptionSpatial}


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
    #: Beside statistics: a file with some of the images, which serve where statistics are not enough.
    images: Path | None = None
    #: What is compared with besides, by role: `train`, the training set, which is this one if not named, and `test`.
    beside: Mapping[str, "Reference"] = field(default_factory=dict)

    def compared(self, detector: str) -> dict[str, FeatureSet]:
        """Features of the sets of `beside` by role, as far as there are any; of some images only they do not count."""
        whole = {} if self.images is not None else {"train": self}
        sides = {**whole, **self.beside}
        return {role: side.features[detector] for role, side in sides.items() if detector in side.features}

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
    """Read a reference file, or a published one by its name; None for images.

    Raises InputError when it is missing or broken.
    """
    path, name = Path(source), str(source)
    if not path.exists():
        if name in DATASETS:
            return None
        if name not in REFERENCES:
            known = nearest(name, [*REFERENCES, *DATASETS])
            raise InputError(f"{name}: no such file, folder, published reference or built-in data set{known}")
        return _load_published(name)
    if path.suffix == ".pkl":
        return Reference(name, sha256_file(path), read_edm2(path))
    keys = _npz_keys(path)
    if holds_features(path):
        return load_features(source)
    if any(key.rpartition("/")[2] in ("mu", "sigma") for key in keys):
        return Reference(name, sha256_file(path), _read_npz(path), images=path if "arr_0" in keys else None)
    return None


def load_features(source: str | Path) -> Reference:
    """Read a file of features; raises InputError as `features.read` does."""
    with ThreadPoolExecutor(1) as pool:  # the file's digest, beside that of its content, which takes as long
        digest = pool.submit(sha256_file, source)
        found = features.load(source)
        return Reference(str(source), digest.result(), features=found)


def _load_published(name: str) -> Reference:
    known, folder = REFERENCES[name], files.cache_root() / "references"
    path = folder / f"{name}{known.suffix}"
    check = read_edm2 if known.suffix == ".pkl" else _read_npz
    remedy = f"give a path instead of {name}"
    files.fetch([Source(path.name, path, known.sha256, [known.url], remedy, check)], Downloads.cached(folder))
    found = load(path)
    assert found is not None  # it was checked
    size = {TAG: f"{known.resolution}x{known.resolution}"}
    statistics = {
        x: replace(s, num_images=s.num_images or known.num_images, tags={**s.tags, **size})
        for x, s in found.statistics.items()
    }
    return replace(found, source=name, statistics=statistics)


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
    arrays = files.load_npz(path, leave_out=("arr_0", "arr_1"))  # images and classes
    if prefixes := sorted(key.removesuffix("mu") for key in arrays if key.endswith("/mu")):
        return {prefix.removesuffix("/"): from_arrays(arrays, path, prefix) for prefix in prefixes}
    if "tags" in arrays:
        stats = from_arrays(arrays, path)
        return {str(stats.tags.get("detector", "inception")): stats}
    return {
        kind.detector: _of_inception(arrays, path, behind, kind)
        for behind, kind in NPZ_DETECTORS.items()
        if not behind or f"mu{behind}" in arrays
    }


def _of_inception(arrays: Mapping[str, Any], path: Path, behind: str, kind: type[InceptionV3]) -> Statistics:
    stats = _foreign(arrays, path, kind.detector, 0, behind)  # arr_0 holds only some of the images that they are of
    if stats.dim != kind.dim:
        found = f"{path}: mu{behind} has shape {stats.mu.shape}, expected ({kind.dim},) of {kind.detector}"
        raise InputError(f"{found}; make a tagged reference of another detector with `metrics reference`")
    return stats


def read_edm2(path: Path) -> dict[str, Statistics]:
    content = load_pickle(path, NUMPY_GLOBALS)
    known = content if isinstance(content, dict) else {}
    found = {key: name for key, name in EDM2_DETECTORS.items() if isinstance(known.get(key), dict)}
    if not found:
        raise InputError(f"{path}: expected a dict with 'fid' or 'fd_dinov2', as published with EDM2")
    with explained(f"{path}: 'num_images' is not a number", "download the file again", (TypeError, ValueError)):
        count = int(known.get("num_images", 0))
    return {name: _foreign(known[key], f"{path}: {key}", name, count) for key, name in found.items()}


def _foreign(content: Mapping[str, Any], where: str | Path, detector: str, count: int, behind: str = "") -> Statistics:
    """Statistics of a format without tags; `count` is 0 where the format does not say; `behind`: see NPZ_DETECTORS."""
    keys = [f"{name}{behind}" for name in ("mu", "sigma")]
    for key in keys:
        if not isinstance(content.get(key), np.ndarray) or content[key].dtype.kind != "f":
            raise InputError(f"{where}: '{key}' is missing or no array of floats; download or make the file again")
    mu, sigma = (np.array(content[key], dtype=np.float64, order="C") for key in keys)
    return Statistics(count, mu, sigma, {"detector": detector, "source": str(where)})
