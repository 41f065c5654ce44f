"""References in the layouts of ADM and EDM, written as their publishers do, with real images in them."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from metrics import features
from metrics.evaluation import Extractor, evaluate
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.neighbours import neighbour_metrics

NAMES = ("inception", "inception-spatial")
COUNT = 8  # images on either side


@pytest.fixture(scope="module")
def extractor(inception_weights: Path) -> Extractor:
    return Extractor(NAMES, weights={"inception": inception_weights}, device="cpu", num_workers=0)


@pytest.fixture(scope="module")
def sides(extractor: Extractor) -> dict[str, dict[str, np.ndarray]]:
    """Photographs of CIFAR-10 and their features: real ones of the test set, and of the training set as fake ones."""
    with np.load(Path(__file__).parents[1] / "data" / "cifar10_anchor_256.npz") as data:
        images = {"real": data["valid"][:COUNT], "fake": data["train"][:COUNT]}
    tensors = {side: torch.from_numpy(pixels).permute(0, 3, 1, 2) for side, pixels in images.items()}
    features = {side: {name: extractor.detectors[name](x).numpy() for name in NAMES} for side, x in tensors.items()}
    return {side: {"images": images[side], **features[side]} for side in images}


@pytest.fixture
def places(tmp_path: Path, sides: dict[str, dict[str, np.ndarray]]) -> dict[str, Path]:
    """Samples as the ADM evaluator wants them, its reference of all real images with half of them, and EDM's."""
    moments = {}
    for name, behind in zip(NAMES, ("", "_s"), strict=True):
        activations = sides["real"][name]
        moments |= {f"mu{behind}": np.mean(activations, axis=0), f"sigma{behind}": np.cov(activations, rowvar=False)}
    np.savez(tmp_path / "samples.npz", arr_0=sides["fake"]["images"], arr_1=np.zeros(COUNT, np.int64))
    np.savez(tmp_path / "adm.npz", arr_0=sides["real"]["images"][: COUNT // 2], **moments)
    np.savez(tmp_path / "edm.npz", mu=moments["mu"], sigma=moments["sigma"])
    return {name: tmp_path / f"{name}.npz" for name in ("samples", "adm", "edm")}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance by its definition, with SciPy's square root of a matrix.

    Of few images the covariances A A^T and B B^T are singular, where `sqrtm` is not reliable, so the root is of the
    small matrix (A^T B)(A^T B)^T, whose trace is that of the root of their product.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    sigmas = [z - z.mean(axis=0) for z in (x, y)]
    inner = sigmas[0] @ sigmas[1].T / np.sqrt((len(x) - 1) * (len(y) - 1))
    root = scipy.linalg.sqrtm(inner @ inner.T + 1e-14 * np.eye(len(x)))
    traces = sum(np.square(z).sum() / (len(z) - 1) for z in sigmas)
    return float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + traces - 2 * np.trace(root).real)


def test_adm_s_batch_gives_fid_and_sfid_of_its_statistics_and_precision_of_its_images(
    places: dict[str, Path], sides: dict[str, dict[str, np.ndarray]], extractor: Extractor
) -> None:
    found = evaluate(places["samples"], places["adm"], metrics=("fd", "precision_recall"), extractor=extractor)
    values = {(m.metric, m.detector): m.value for m in found.measurements}
    for metric, name in (("fid", "inception"), ("sfid", "inception-spatial")):
        fake, real = sides["fake"][name], sides["real"][name]
        assert values[metric, name] == pytest.approx(distance(fake, real), rel=1e-4)
        expected = neighbour_metrics(real[: COUNT // 2], fake, 3, None)
        assert {key: values[key, name] for key in expected} == expected
    assert values["sfid", "inception-spatial"] != pytest.approx(values["fid", "inception"], rel=0.1)


def test_edm_s_file_gives_the_same_fid_and_no_sfid(
    places: dict[str, Path], sides: dict[str, dict[str, np.ndarray]], tmp_path: Path, extractor: Extractor
) -> None:
    fake = sides["fake"]["inception"]
    features.save({"inception": FeatureSet.of(fake, extractor.detectors["inception"].tags)}, tmp_path / "kept.npz")
    (found,) = evaluate(tmp_path / "kept.npz", places["edm"]).measurements
    assert found.value == pytest.approx(distance(fake, sides["real"]["inception"]), rel=1e-4)
    with pytest.raises(InputError, match=r"edm\.npz: has no statistics of detector 'inception-spatial', only of"):
        extractor.reference(places["edm"])


def test_a_batch_s_images_do_not_stand_in_for_statistics_that_it_lacks(places: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"adm\.npz: has no statistics of detector 'dinov2'"):
        evaluate(places["samples"], places["adm"], ("dinov2",), ("fd", "precision_recall"))
