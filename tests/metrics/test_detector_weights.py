"""Where weights come from: order of places, digests pinned and recorded, interrupted downloads from a local server."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metrics.detectors import weights
from metrics.detectors.weights import Weights, digest, find, locate
from metrics.files import InputError, downloads

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every address below /file; notes the ranges asked for; can break off once."""

    ranges: list[str | None]
    break_at: int | None = None
    content = CONTENT


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if not self.path.startswith("/file"):
            self.send_error(404)
            return
        etag = f'"{hashlib.md5(self.server.content).hexdigest()}"'
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.headers.get("If-Range") == etag else 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        stop, self.server.break_at = self.server.break_at, None
        self.wfile.write(body[:stop])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.ranges = []
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def address(server: Server, path: str = "file.pth") -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, no folder named by the environment, no package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setattr(weights, "PACKAGES", {})
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return weights.cache_folder()


def offer(monkeypatch: pytest.MonkeyPatch, *urls: str, sha256: str | None = None) -> None:
    monkeypatch.setitem(weights.WEIGHTS, "test", (Weights("file.pth", urls, sha256), Weights("other.pth")))


def test_a_download_is_kept_and_its_digest_recorded(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, address(server))
    assert locate("test") is None
    path = find("test")
    assert path == cache / "file.pth" == locate("test")
    assert path.read_bytes() == CONTENT
    assert json.loads((cache / downloads.LOCK).read_text()) == {"file.pth": SHA256}
    assert find("test") == path
    assert len(server.ranges) == 1
    assert sorted(p.name for p in cache.iterdir()) == [downloads.LOCK, "file.pth"]


def test_an_interrupted_download_goes_on_where_it_stopped(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, address(server), sha256=SHA256)
    server.break_at = 700_000
    with pytest.raises(InputError, match=r"file\.pth cannot be downloaded.*AUTOGUIDANCE_WEIGHTS"):
        find("test")
    assert not (cache / "file.pth").exists()
    kept = (cache / "file.pth.part").stat().st_size
    assert kept > 0
    assert find("test").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={kept}-"]


def test_a_file_that_changed_in_between_is_begun_anew(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, address(server))
    server.break_at = 700_000
    with pytest.raises(InputError):
        find("test")
    server.content = CONTENT[::-1]
    assert find("test").read_bytes() == CONTENT[::-1]


def test_mirrors_are_tried_in_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, address(server, "gone"), address(server), sha256=SHA256)
    assert find("test").read_bytes() == CONTENT


def test_another_digest_than_pinned_is_refused(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, address(server), sha256="0" * 64)
    with pytest.raises(InputError, match=r"file\.pth.*does not match"):
        find("test")
    assert not (cache / "file.pth").exists()


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_kept_file_that_changed_is_refused(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, sha256: str | None
) -> None:
    offer(monkeypatch, address(server), sha256=sha256)
    path = find("test")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=rf"{path}: sha256 .*{'pinned' if sha256 else 'recorded'}.*{SHA256}"):
        find("test")


def test_a_folder_named_by_the_environment_comes_first_and_is_checked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, sha256=SHA256)
    offline = tmp_path / "offline"
    for folder in (offline, cache):
        folder.mkdir(parents=True)
        (folder / "file.pth").write_bytes(CONTENT)
    assert find("test").parent == cache
    monkeypatch.setenv(weights.VARIABLE, str(offline))
    assert find("test").parent == offline
    (offline / "file.pth").write_bytes(b"other")
    with pytest.raises(InputError, match="pinned"):
        find("test")


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
    (tmp_path / "weights_package").mkdir()
    (tmp_path / "weights_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "weights_package" / "other.pth").write_bytes(b"other")
    offer(monkeypatch)
    monkeypatch.setattr(weights, "PACKAGES", {"test": "weights_package"})
    assert locate("test") is None
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("test") == tmp_path / "weights_package" / "other.pth"


def test_an_unreadable_lock_file_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch)
    cache.mkdir(parents=True)
    (cache / "file.pth").write_bytes(CONTENT)
    (cache / downloads.LOCK).write_text("{")
    with pytest.raises(InputError, match=r"digests\.json: not JSON"):
        find("test")


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
