"""Reference files of every format, written here as their publishers write them."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from metrics import features, references, statistics
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.statistics import from_features


def moments(dim: int = 2048, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(dim), np.diag(rng.uniform(0.5, 2, dim))


def test_edm2_pickles_hold_both_detectors(tmp_path: Path) -> None:
    (mu, sigma), (mu_d, sigma_d) = moments(64), moments(32, 1)
    content = {
        "num_images": 1_281_167,
        "fid": {"mu": mu, "sigma": sigma},
        "fd_dinov2": {"mu": mu_d, "sigma": sigma_d},
    }
    (tmp_path / "img.pkl").write_bytes(pickle.dumps(content))
    found = references.load(tmp_path / "img.pkl")
    assert found is not None
    assert set(found.statistics) == {"inception", "dinov2"}
    assert found.statistics["inception"].num_images == 1_281_167
    np.testing.assert_array_equal(found.statistics["dinov2"].sigma, sigma_d)
    assert found.statistics["inception"].tags == {"detector": "inception", "source": f"{tmp_path / 'img.pkl'}: fid"}


def test_edm2_pickles_naming_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(InputError, match=r"os\.system"):
        references.load(tmp_path / "x.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"fid": 3}, {"fid": {"mu": [1.0], "sigma": None}}, {"num_images": "many"}])
def test_other_pickles_are_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"x\.pkl"):
        references.load(tmp_path / "x.pkl")


@pytest.mark.parametrize("style", ["edm", "adm", "pytorch-fid"])
def test_npz_with_mu_and_sigma_is_inception_of_unknown_settings(tmp_path: Path, style: str) -> None:
    mu, sigma = moments()
    extra = {"arr_0": np.zeros((7, 4, 4, 3), np.uint8), "mu_s": mu, "sigma_s": sigma} if style == "adm" else {}
    np.savez(tmp_path / "r.npz", mu=mu, sigma=sigma.astype(np.float32 if style == "edm" else np.float64), **extra)
    found = references.load(tmp_path / "r.npz")
    assert found is not None
    stats = found.statistics["inception"]
    np.testing.assert_array_equal(stats.mu, mu)
    assert stats.num_images == (7 if style == "adm" else 0)
    assert set(stats.tags) == {"detector", "source"}
    statistics.check_tags({"detector": "inception", "resize": "tf1"}, stats.tags)


def test_npz_of_another_width_is_refused_with_the_remedy(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", mu=np.zeros(768), sigma=np.eye(768))
    with pytest.raises(InputError, match=r"\(768,\).*metrics reference"):
        references.load(tmp_path / "r.npz")


def test_own_files_hold_several_detectors_and_their_tags(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stats = {
        name: from_features(rng.standard_normal((9, dim)), {"detector": name}) for name, dim in (("a", 3), ("b", 4))
    }
    references.save(stats, tmp_path / "r.npz")
    found = references.load(tmp_path / "r.npz")
    assert found is not None
    for name, value in stats.items():
        np.testing.assert_array_equal(found.require(name).sigma, value.sigma)
        assert found.require(name).tags["detector"] == name
    with pytest.raises(InputError, match=r"no statistics of detector 'c', only of \['a', 'b'\]"):
        found.require("c")


def test_a_single_statistics_file_is_a_reference(tmp_path: Path) -> None:
    stats = from_features(np.random.default_rng(0).standard_normal((9, 3)), {"detector": "dinov2"})
    statistics.save(stats, tmp_path / "s.npz")
    found = references.load(tmp_path / "s.npz")
    assert found is not None
    assert list(found.statistics) == ["dinov2"]


def test_a_feature_file_gives_statistics_and_features(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    features.save({"a": FeatureSet.of(x, {"detector": "a"})}, tmp_path / "f.npz")
    found = references.load(tmp_path / "f.npz")
    assert found is not None
    np.testing.assert_array_equal(found.features["a"].gather(), x)
    np.testing.assert_allclose(found.require("a").sigma, np.cov(x, rowvar=False), atol=1e-12)


def test_images_are_no_reference_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    assert references.load(tmp_path / "images.npz") is None
    assert references.load(tmp_path) is None


def test_missing_reference_lists_the_registered_names() -> None:
    with pytest.raises(InputError, match=r"no such file.*img512"):
        references.load("nowhere.npz")


def test_registered_addresses_are_the_published_ones() -> None:
    assert references.REGISTRY["img512"] == "https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl"


def test_registered_names_are_downloaded_once_and_their_digest_is_enforced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mu, sigma = moments(8)
    content = pickle.dumps({"num_images": 9, "fid": {"mu": mu, "sigma": sigma}})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "autoguidance-repro" / "references" / "img64.pkl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    found = references.load("img64")
    assert found is not None
    np.testing.assert_array_equal(found.require("inception").mu, mu)
    kept.write_bytes(content + b"tampered")
    with pytest.raises(InputError, match=r"img64\.pkl: sha256"):
        references.load("img64")


def test_a_name_out_of_reach_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(references.REGISTRY, "img64", (tmp_path / "img64.pkl").as_uri())
    with pytest.raises(InputError, match=r"cannot fetch img64\.pkl.*give a path instead of img64"):
        references.load("img64")
