"""Reference files of every format, written here as their publishers write them."""

import json
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from metrics import features, references, statistics
from metrics.catalogue import REFERENCES
from metrics.features import FeatureSet
from metrics.files import InputError, reading
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
    spatial, images = np.diag(np.arange(2023.0)), np.zeros((7, 4, 4, 3), np.uint8)
    extra = {"arr_0": images, "mu_s": np.arange(2023.0), "sigma_s": spatial} if style == "adm" else {}
    np.savez(tmp_path / "r.npz", mu=mu, sigma=sigma.astype(np.float32 if style == "edm" else np.float64), **extra)
    found = references.load(tmp_path / "r.npz")
    assert found is not None
    stats = found.statistics["inception"]
    np.testing.assert_array_equal(stats.mu, mu)
    assert stats.num_images == 0  # unknown: ADM's images are only some of those that the statistics are of
    assert found.images == (tmp_path / "r.npz" if style == "adm" else None)
    assert set(found.statistics) == {"inception", *(["inception-spatial"] if style == "adm" else [])}
    if style == "adm":
        np.testing.assert_array_equal(found.require("inception-spatial").sigma, spatial)
    assert set(stats.tags) == {"detector", "source"}
    statistics.check_tags({"detector": "inception", "resize": "tf1"}, stats.tags)


def test_npz_of_another_width_is_refused_with_the_remedy(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", mu=np.zeros(768), sigma=np.eye(768))
    with pytest.raises(InputError, match=r"\(768,\).*metrics reference"):
        references.load(tmp_path / "r.npz")
    mu, sigma = moments()
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
    with pytest.raises(InputError, match=r"mu_s has shape \(2048,\), expected \(2023,\) of inception-spatial"):
        references.load(tmp_path / "s.npz")
    np.savez(tmp_path / "t.npz", mu=mu, sigma=sigma, mu_s=mu)
    with pytest.raises(InputError, match=r"t\.npz: 'sigma_s' is missing"):
        references.load(tmp_path / "t.npz")


def test_images_beside_statistics_are_not_read_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mu, sigma = moments()
    np.savez(tmp_path / "r.npz", mu=mu, sigma=sigma, arr_0=np.zeros((9, 64, 64, 3), np.uint8))
    read, whole = [], reading.read_npy
    monkeypatch.setattr(reading, "read_npy", lambda a, e, path: read.append(e.filename) or whole(a, e, path))
    references.load(tmp_path / "r.npz")
    assert sorted(read) == ["mu.npy", "sigma.npy"]


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
    with pytest.raises(InputError, match=r"nowhere\.npz: no such file.*cifar10-train.*img512"):
        references.load("nowhere.npz")
    with pytest.raises(InputError, match=r"did you mean 'adm-imagenet256'"):
        references.load("adm-imagnet256")


def test_published_references_are_where_their_publishers_say() -> None:
    edm, adm = "https://nvlabs-fi-cdn.nvidia.com", "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
    assert {name: (known.url, known.num_images, known.resolution) for name, known in REFERENCES.items()} == {
        "img512": (f"{edm}/edm2/dataset-refs/img512.pkl", 1281167, 512),
        "img64": (f"{edm}/edm2/dataset-refs/img64.pkl", 1281167, 64),
        "cifar10-32x32": (f"{edm}/edm/fid-refs/cifar10-32x32.npz", 50000, 32),
        "ffhq-64x64": (f"{edm}/edm/fid-refs/ffhq-64x64.npz", 70000, 64),
        "afhqv2-64x64": (f"{edm}/edm/fid-refs/afhqv2-64x64.npz", 15803, 64),
        "imagenet-64x64": (f"{edm}/edm/fid-refs/imagenet-64x64.npz", 1281167, 64),
        "adm-imagenet64": (f"{adm}/ref_batches/imagenet/64/VIRTUAL_imagenet64_labeled.npz", 1281167, 64),
        "adm-imagenet128": (f"{adm}/ref_batches/imagenet/128/VIRTUAL_imagenet128_labeled.npz", 1281167, 128),
        "adm-imagenet256": (f"{adm}/ref_batches/imagenet/256/VIRTUAL_imagenet256_labeled.npz", 1281167, 256),
        "adm-imagenet512": (f"{adm}/ref_batches/imagenet/512/VIRTUAL_imagenet512.npz", 1281167, 512),
        "adm-bedroom": (f"{adm}/ref_batches/lsun/bedroom/VIRTUAL_lsun_bedroom256.npz", 3033042, 256),
        "adm-cat": (f"{adm}/ref_batches/lsun/cat/VIRTUAL_lsun_cat256.npz", 1657266, 256),
        "adm-horse": (f"{adm}/ref_batches/lsun/horse/VIRTUAL_lsun_horse256.npz", 2000340, 256),
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of what lies in tmp_path / "published"."""
    (tmp_path / "published").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "published"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize("name", ["adm-imagenet64", "cifar10-32x32"])
def test_a_published_npz_is_fetched_by_name_with_its_number_of_images_and_its_digest_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, name: str
) -> None:
    mu, sigma = moments()
    extra = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023), "arr_0": np.zeros((7, 4, 4, 3), np.uint8)}
    np.savez(tmp_path / "published" / "batch.npz", mu=mu, sigma=sigma, **(extra if name.startswith("adm") else {}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("REPRO_ALLOW_HTTP", "1")
    monkeypatch.setitem(REFERENCES, name, replace(REFERENCES[name], url=f"{server}/batch.npz"))
    found = references.load(name)
    assert found is not None
    assert {x: s.num_images for x, s in found.statistics.items()} == dict.fromkeys(
        REFERENCES[name].detectors, REFERENCES[name].num_images
    )
    side = REFERENCES[name].resolution
    assert {s.tags["image_size"] for s in found.statistics.values()} == {f"{side}x{side}"}
    assert (found.images is not None) == REFERENCES[name].has_images
    assert found.source == name
    lock = json.loads((tmp_path / "cache/autoguidance-repro/references/fetch.lock").read_text())
    assert lock == {f"{name}.npz": found.digest}


def test_a_page_in_a_reference_s_place_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    (tmp_path / "published" / "batch.npz").write_text("<html>please log in</html>")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("REPRO_ALLOW_HTTP", "1")
    known = REFERENCES["ffhq-64x64"]
    monkeypatch.setitem(REFERENCES, "ffhq-64x64", replace(known, url=f"{server}/batch.npz"))
    with pytest.raises(InputError, match="ffhq-64x64"):
        references.load("ffhq-64x64")
    assert not list((tmp_path / "cache").rglob("ffhq*.npz"))


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
    monkeypatch.setitem(REFERENCES, "img64", replace(REFERENCES["img64"], url=(tmp_path / "img64.pkl").as_uri()))
    with pytest.raises(InputError, match=r"cannot fetch img64\.pkl.*give a path instead of img64"):
        references.load("img64")
