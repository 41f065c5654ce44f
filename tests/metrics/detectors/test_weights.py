"""Where weights come from: order of places, digests pinned and recorded, downloads."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metrics.detectors import weights
from metrics.detectors.weights import Weights, digest, ensure, find, locate
from metrics.files import InputError
from tests.rehearsal.server import Server

_stream = io.BytesIO()
torch.save({"weight": torch.arange(1000.0)}, _stream)
CONTENT = _stream.getvalue()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server({"/file.pth": CONTENT})
    yield found
    found.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, no folder named by the environment, no package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for variable in ("AUTOGUIDANCE_WEIGHTS", "REPRO_WEIGHTS", "REPRO_OFFLINE", "REPRO_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(weights, "PACKAGES", {})
    return weights.cache_folder()


def offer(monkeypatch: pytest.MonkeyPatch, *urls: str, sha256: str | None = None) -> None:
    monkeypatch.setitem(weights.WEIGHTS, "test", (Weights("file.pth", urls, sha256), Weights("other.pth")))


def test_a_download_is_kept_and_its_digest_recorded(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, f"{server.base}/file.pth")
    assert locate("test") is None
    path = find("test")
    assert path == cache / "file.pth" == locate("test")
    assert path.read_bytes() == CONTENT
    assert json.loads((cache / "fetch.lock").read_text()) == {"file.pth": SHA256}
    assert find("test") == path
    assert len(server.requests) == 1
    assert sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock")) == ["file.pth"]


def test_mirrors_are_tried_in_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{server.base}/gone", f"{server.base}/file.pth", sha256=SHA256)
    assert find("test").read_bytes() == CONTENT


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_kept_file_that_changed_is_refused(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, sha256: str | None
) -> None:
    offer(monkeypatch, f"{server.base}/file.pth", sha256=sha256)
    path = find("test")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(
        InputError,
        match=rf"{path}: sha256 .*{SHA256}{'' if sha256 else ', as recorded in .*fetch.lock, line 2 .*'}; delete",
    ):
        find("test")


@pytest.mark.parametrize("variable", ["REPRO_WEIGHTS", "AUTOGUIDANCE_WEIGHTS"])
def test_a_folder_named_by_the_environment_comes_first_and_is_checked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    offer(monkeypatch, sha256=SHA256)
    offline = tmp_path / "offline"
    for folder in (offline, cache):
        folder.mkdir(parents=True)
        (folder / "file.pth").write_bytes(CONTENT)
    assert find("test").parent == cache
    monkeypatch.setenv(variable, str(offline))
    assert find("test").parent == offline
    (offline / "file.pth").write_bytes(b"other")
    with pytest.raises(InputError, match=f"expected {SHA256}"):
        find("test")
    assert sorted(path.name for path in offline.iterdir()) == ["file.pth"]


def test_a_given_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, sha256=SHA256)
    mine = tmp_path / "mine.pth"
    with pytest.raises(InputError, match=r"mine\.pth: no weights of 'test' there; expected file\.pth or other\.pth"):
        find("test", mine)
    mine.write_bytes(b"mine")
    assert find("test", mine) == mine
    with pytest.raises(InputError, match="no weights of 'test'"):
        find("test", tmp_path)
    (tmp_path / "other.pth").write_bytes(b"other")
    assert find("test", tmp_path) == tmp_path / "other.pth"


def test_an_installed_package_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "weights_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "other.pth").write_bytes(b"other")
    offer(monkeypatch)
    monkeypatch.setattr(weights, "PACKAGES", {"test": "weights_package"})
    assert locate("test") is None
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert locate("test") == package / "other.pth"


def test_offline_weights_are_used_where_they_are_and_else_it_is_said_where_they_go(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.base}/file.pth"
    offer(monkeypatch, url, sha256=SHA256)
    missing = rf"offline.*put {url} at {cache}/file\.pth, or name a folder that has it in REPRO_WEIGHTS"
    with pytest.raises(InputError, match=missing):
        ensure("test", offline=True)
    monkeypatch.setenv("REPRO_OFFLINE", "1")
    with pytest.raises(InputError, match=missing):
        find("test")
    ensure("test", offline=False)
    assert len(server.requests) == 1
    ensure("test", offline=True)
    ensure("a detector that brings its own", offline=True)
    assert find("test") == cache / "file.pth"
    assert len(server.requests) == 1


def test_published_addresses_and_digests() -> None:
    inception, dinov2 = weights.WEIGHTS["inception"][0], weights.WEIGHTS["dinov2"][0]
    assert inception.sha256 is not None
    assert inception.sha256.startswith("6726825d")
    assert dinov2.urls == ("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",)


def test_the_digest_of_tensors_sees_names_types_shapes_and_values_but_not_their_order() -> None:
    x, y = torch.arange(6.0), torch.ones(2, dtype=torch.float16)
    base = digest({"x": x, "y": y})
    assert digest({"y": y, "x": x.clone()}) == base
    others = [
        {"x": x, "z": y},
        {"x": x.reshape(2, 3), "y": y},
        {"x": x, "y": y.bfloat16()},
        {"x": x + 1e-6, "y": y},
        {"x": x},
    ]
    assert base not in [digest(other) for other in others]
    assert digest({"x": torch.arange(6.0).reshape(2, 3).T}) == digest({"x": x.reshape(2, 3).T.contiguous()})
