"""What runs in the environment of the peers, see `benchmarks.peers`: `python -m benchmarks._peers OUT PIECE`.

A piece is `TOOL.START` (features of a folder of images on each side, each tool in its own way from a PNG on),
`identical.COUNT` (every tool's distances of our features) or `speed`; each is kept in the folder OUT when it is whole.
"""

import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import library as operators

from benchmarks.peers import SIDES, features
from metrics.detectors.inception import InceptionV3
from metrics.detectors.weights import build
from metrics.evaluation import Extractor
from metrics.files import atomic_write, write_json
from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance, unbiased_mmd2
from metrics.neighbours import neighbour_metrics
from metrics.statistics import from_features

Array = NDArray[np.float32]
BATCH = 16
WIDTHS = (64, 512)  # features of which Fréchet distances are taken: roots of 2,048 take the other tools minutes each
ROUNDS = 3

# torchvision's wheel for CUDA loads no operators beside a torch for CPUs, and then refuses to be imported. No peer uses
# these two, so they are declared, without anything behind them.
_operators = operators.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def ours(out: Path, images: Path) -> Array:
    weights = {"inception": out / "weights.pth"}
    return Extractor(weights=weights, batch_size=BATCH, num_workers=0).read(images).features["inception"].gather()


def torch_fidelity(out: Path, images: Path, dtype: str = "float32") -> Array:
    from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id_cached

    settings = {"cuda": False, "batch_size": BATCH, "cache": False, "samples_shuffle": False, "input1": str(images)}
    network = create_feature_extractor(
        "inception-v3-compat",
        ["2048"],
        feature_extractor_weights_path=str(out / "weights.pth"),
        feature_extractor_internal_dtype=dtype,
        **settings,
    )
    return extract_featuresdict_from_input_id_cached(1, network, **settings)["2048"].numpy()


def pytorch_fid(out: Path, images: Path) -> Array:
    from pytorch_fid.fid_score import get_activations
    from pytorch_fid.inception import InceptionV3 as Theirs

    network = Theirs([Theirs.BLOCK_INDEX_BY_DIM[2048]])  # finds the weights in torch's folder of downloads
    return get_activations(sorted(images.iterdir()), network, BATCH, 2048, "cpu", num_workers=0)


def clean_fid(out: Path, images: Path) -> Array:
    from cleanfid.features import feature_extractor
    from cleanfid.fid import get_folder_features

    cpu = torch.device("cpu")
    network = feature_extractor("pytorch_inception", cpu, use_dataparallel=False)
    return get_folder_features(str(images), network, num_workers=0, batch_size=BATCH, device=cpu, mode="clean")


FEATURES: dict[str, Callable[[Path, Path], Array]] = {
    "ours": ours,
    "torch-fidelity": torch_fidelity,
    "pytorch-fid": pytorch_fid,
    "clean-fid, clean": clean_fid,
}


def widths(distance: Callable[[Array, Array], float], fake: Array, real: Array) -> dict[str, float]:
    """A Fréchet distance of the first few and of more of the features."""
    return {
        f"FID, first {n}": float(distance(*(np.ascontiguousarray(side[:, :n]) for side in (fake, real))))
        for n in WIDTHS
    }


def plainly(real: Array, fake: Array) -> dict[str, dict[str, float]]:
    """Our values of features, by tool and metric as below."""
    k = 3
    neighbours = neighbour_metrics(real, fake, k, k)
    subsets = len(real) // 2
    whole = unbiased_mmd2(torch.from_numpy(fake).double(), torch.from_numpy(real).double())
    return {
        **widths(lambda *sides: frechet_distance(*map(from_features, sides)), fake, real),
        f"KID, 100 subsets of {subsets}": kernel_distance(real, fake, 100, subsets)[0],
        "KID, all images": whole,
        **{f"{name}, k {k}": value for name, value in neighbours.items()},
    }


def by_torch_fidelity(real: Array, fake: Array, double: bool = False) -> dict[str, float]:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = (torch.from_numpy(side.astype(np.float64) if double else side) for side in (fake, real))

    def fid(*sides: Array) -> float:
        statistics = [fid_features_to_statistics(torch.from_numpy(side)) for side in sides]
        return fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]

    def kid(subsets: int, size: int) -> float:
        found = kid_features_to_metric(x, y, kid_subsets=subsets, kid_subset_size=size, verbose=False)
        return found["kernel_inception_distance_mean"]

    subsets, prc = len(real) // 2, prc_features_to_metric(x, y, prc_neighborhood=3, verbose=False)
    return {
        **widths(fid, x.numpy(), y.numpy()),
        f"KID, 100 subsets of {subsets}": kid(100, subsets),
        "KID, all images": kid(1, len(real)),
        "precision, k 3": prc["precision"],
        "recall, k 3": prc["recall"],
    }


def by_pytorch_fid(real: Array, fake: Array) -> dict[str, float]:
    from pytorch_fid.fid_score import calculate_frechet_distance

    def fid(*sides: Array) -> float:
        (m, s), (n, t) = [(np.mean(side, axis=0), np.cov(side, rowvar=False)) for side in sides]
        return float(calculate_frechet_distance(m, s, n, t))

    x, y = fake.astype(np.float64), real.astype(np.float64)  # as get_activations hands them over
    return widths(fid, x, y)


def by_clean_fid(real: Array, fake: Array) -> dict[str, float]:
    from cleanfid.fid import fid_from_feats, kernel_distance

    return {
        **widths(fid_from_feats, fake, real),
        "KID, all images": kernel_distance(real, fake, num_subsets=1, max_subset_size=len(real)),
    }


def by_prdc(real: Array, fake: Array) -> dict[str, float]:
    from prdc import compute_prdc

    return {f"{name}, k 3": float(value) for name, value in compute_prdc(real, fake, 3).items()}


def by_torchmetrics(real: Array, fake: Array) -> dict[str, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    def value(metric: Any, *sides: Array) -> Any:
        for side, is_real in zip(sides, (False, True), strict=True):
            metric.update(torch.from_numpy(side).double(), real=is_real)
        return metric.compute()

    def identity(width: int) -> torch.nn.Module:
        module = torch.nn.Identity()
        module.num_features = width
        return module

    kid = KernelInceptionDistance(feature=identity(fake.shape[1]), subsets=1, subset_size=len(real))
    return {
        **widths(lambda *x: value(FrechetInceptionDistance(feature=identity(x[0].shape[1])), *x), fake, real),
        "KID, all images": float(value(kid, fake, real)[0]),
    }


def by_piq(real: Array, fake: Array) -> dict[str, float]:
    from piq import FID, KID
    from piq.pr import PR

    x, y = torch.from_numpy(fake), torch.from_numpy(real)
    precision, recall = PR(nearest_k=3)(y, x)
    return {
        **widths(lambda *sides: FID()(*map(torch.from_numpy, sides)), fake, real),
        "KID, all images": float(KID()(x, y)),
        "precision, k 3": float(precision),
        "recall, k 3": float(recall),
    }


DISTANCES: dict[str, Callable[[Array, Array], dict[str, float]]] = {
    "ours": plainly,  # type: ignore[dict-item]
    "torch-fidelity": by_torch_fidelity,
    "torch-fidelity, given float64": lambda real, fake: by_torch_fidelity(real, fake, double=True),
    "pytorch-fid": by_pytorch_fid,
    "clean-fid": by_clean_fid,
    "prdc": by_prdc,
    "torchmetrics": by_torchmetrics,
    "piq": by_piq,
}


def identical(out: Path, count: int) -> dict[str, Any]:
    real, fake = (features(out, "ours", side, count) for side in ("real", "fake"))
    found: dict[str, Any] = {}
    for tool, measure in DISTANCES.items():
        began = time.perf_counter()
        found[tool] = measure(real, fake)
        print(f"{tool}: {time.perf_counter() - began:.0f} s", flush=True)
    return found


def speed(out: Path) -> dict[str, float]:
    """Images per second of both networks, the best of rounds in turns, on the same decoded images."""
    from torch_fidelity.utils import create_feature_extractor

    own = build(InceptionV3, "inception", out / "weights.pth")
    path = str(out / "weights.pth")
    other = create_feature_extractor("inception-v3-compat", ["2048"], False, feature_extractor_weights_path=path)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: own(images), "torch-fidelity": lambda: other(images)[0]}
    best: dict[str, float] = {}
    with torch.inference_mode():
        a, b = (run() for run in runs.values())
        for _ in range(ROUNDS):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                best[name] = max(best.get(name, 0), BATCH / (time.perf_counter() - began))
    return best | {"difference": float((a - b).norm() / b.norm()), "threads": torch.get_num_threads()}


def main(out: Path, piece: str) -> None:
    kind, _, rest = piece.partition(".")
    if kind in ("identical", "speed"):
        found = identical(out, int(rest)) if kind == "identical" else speed(out)
        packages = ("torch", "torchvision", "numpy", "scipy", "torch-fidelity", "clean-fid", "pytorch-fid", "prdc")
        versions = {name: version(name) for name in (*packages, "torchmetrics", "piq", "scikit-learn")}
        write_json(out / f"{piece}.json", {"found": found, "versions": versions})
        return
    tool, start = piece.rsplit(".", 1)
    for side in SIDES:
        found = np.asarray(FEATURES[tool](out, out / side / start), np.float32)
        with atomic_write(out / f"{tool}.{side}.{start}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
