"""What images are measured against: published statistics of many formats, our own files, or features.

Formats, told apart by their content:
  our own npz of `metrics reference` (statistics) and `metrics features` (features), for one or more detectors;
  EDM2's pickle {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}}, read by the restricted unpickler;
  EDM's, ADM's and pytorch-fid's npz with `mu` and `sigma` of Inception's 2,048 features.
The foreign formats say nothing of weights, resize or arithmetic, so those tags cannot be checked.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metrics import features, statistics
from metrics.features import FeatureSet
from metrics.files import NUMPY_GLOBALS, InputError, atomic_write, downloads, load_npz, load_pickle, sha256_file
from metrics.statistics import Statistics

EDM2_DETECTORS = {"fid": "inception", "fd_dinov2": "dinov2"}
INCEPTION_DIM = 2048


@dataclass(frozen=True)
class Published:
    """A public reference file; `sha256` None is recorded at the first download and enforced from then on."""

    url: str
    sha256: str | None = None


REGISTRY = {
    name: Published(f"https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/{name}.pkl") for name in ("img512", "img64")
}


@dataclass(frozen=True)
class Reference:
    """Statistics per detector and, where the reference is images or features, the features themselves.

    `digest` is the sha256 of the file, or the content digest of the images.
    """

    source: str
    digest: str
    statistics: Mapping[str, Statistics]
    features: Mapping[str, FeatureSet] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @classmethod
    def of(cls, source: str, digest: str, sets: Mapping[str, FeatureSet], warnings: Sequence[str] = ()) -> "Reference":
        """A reference whose features are at hand."""
        tagged = {name: x.with_source(source) for name, x in sets.items()}
        return cls(source, digest, {name: x.statistics() for name, x in tagged.items()}, tagged, warnings)

    def require(self, detector: str) -> Statistics:
        """The statistics of one detector; raises InputError when the reference lacks it."""
        if detector not in self.statistics:
            raise InputError(
                f"{self.source}: has no statistics of detector '{detector}', only of {sorted(self.statistics)}; "
                "choose one of those or make a reference with `metrics reference`"
            )
        return self.statistics[detector]


def load(source: str | Path) -> Reference | None:
    """Read a reference file or registry name; None when `source` holds images instead.

    Raises InputError when it is missing or broken.
    """
    path = Path(source)
    if not path.exists():
        if str(source) not in REGISTRY:
            raise InputError(f"{source}: no such file, folder or registered reference ({', '.join(REGISTRY)})")
        path = fetch(str(source))
    if path.suffix == ".pkl":
        return Reference(str(source), sha256_file(path), _read_edm2(path))
    keys = npz_keys(path)
    if any(key.endswith("/features") for key in keys):
        return Reference.of(str(source), sha256_file(path), features.load(path))
    if any(key in ("mu", "sigma") or key.endswith(("/mu", "/sigma")) for key in keys):
        return Reference(str(source), sha256_file(path), _read_npz(path))
    return None


def save(stats: Mapping[str, Statistics], path: str | Path) -> None:
    """Write a reference file with the statistics of each detector, atomically."""
    arrays = {key: x for name, value in stats.items() for key, x in statistics.to_arrays(value, f"{name}/").items()}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def npz_keys(path: Path) -> list[str]:
    """Names of the arrays in an npz, without reading them; empty for anything else."""
    if path.suffix != ".npz" or not path.is_file():
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        raise InputError(f"{path}: not a sound npz file; copy or download it again") from None


def _read_npz(path: Path) -> dict[str, Statistics]:
    arrays = load_npz(path)
    prefixes = sorted({key.removesuffix("mu") for key in arrays if key.endswith("/mu")})
    if prefixes:
        return {prefix.removesuffix("/"): statistics.from_arrays(arrays, path, prefix) for prefix in prefixes}
    if "tags" in arrays:
        stats = statistics.from_arrays(arrays, path)
        return {str(stats.tags.get("detector", "inception")): stats}
    count = len(arrays["arr_0"]) if "arr_0" in arrays else 0
    return {"inception": _foreign(arrays, path, "inception", count, INCEPTION_DIM)}


def _read_edm2(path: Path) -> dict[str, Statistics]:
    content = load_pickle(path, NUMPY_GLOBALS)
    if not isinstance(content, dict) or not any(isinstance(content.get(key), dict) for key in EDM2_DETECTORS):
        raise InputError(f"{path}: expected a dict with 'fid' or 'fd_dinov2', as published with EDM2")
    try:
        count = int(content.get("num_images", 0))
    except (TypeError, ValueError):
        raise InputError(f"{path}: 'num_images' is not a number; download the file again") from None
    return {
        detector: _foreign(content[key], f"{path}: {key}", detector, count)
        for key, detector in EDM2_DETECTORS.items()
        if isinstance(content.get(key), dict)
    }


def _foreign(
    content: Mapping[str, object], where: str | Path, detector: str, count: int, dim: int | None = None
) -> Statistics:
    """Statistics of a format without tags; `count` is 0 where the format does not say."""
    arrays = []
    for key in ("mu", "sigma"):
        array = content.get(key)
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise InputError(f"{where}: '{key}' is missing or no array of floats; download or make the file again")
        arrays.append(np.array(array, dtype=np.float64, order="C"))
    mu, sigma = arrays
    if dim is not None and mu.shape != (dim,):
        raise InputError(
            f"{where}: mu has shape {mu.shape}, expected ({dim},) of Inception; "
            "make a tagged reference of another detector with `metrics reference`"
        )
    return Statistics(count, mu, sigma, {"detector": detector, "source": str(where)})


def fetch(name: str) -> Path:
    """Path of a registered reference file, downloaded at first use."""
    published, folder = REGISTRY[name], downloads.cache_root() / "references"
    remedy = f"download it elsewhere and give its path instead of {name}"
    return downloads.fetch(f"{name}.pkl", (published.url,), folder, published.sha256, remedy)
