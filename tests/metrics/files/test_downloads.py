"""Downloads through faults: whatever the server, the disk or an earlier run does, a right file or a clear error."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from metrics.files import Downloads, InputError, Source, cache_root, fetch, transfers
from tests.rehearsal.server import Server

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 12345)
CHUNK = transfers.CHUNK  # a broken connection costs the piece under way
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server({"/data.bin": CONTENT})
    yield found
    found.close()


@pytest.fixture
def downloads(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Downloads:
    monkeypatch.setattr(transfers, "BACKOFF", 0)
    return Downloads(bases=(server.base,), lock=tmp_path / "fetch.lock")


def changed(downloads: Downloads, **values: Any) -> Downloads:
    return Downloads(**{**vars(downloads), **values})


def left(folder: Path) -> list[str]:
    """What lies in a folder besides locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_several_files_arrive_whole_with_their_digests_recorded(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    server.files |= {f"/sub/{i}.bin": bytes([i]) * (100_000 * i) for i in range(7)}
    sources = [Source(f"sub/{i}.bin", tmp_path / "a" / f"{i}.bin") for i in range(7)]

    paths = fetch(sources, downloads)

    assert [path.read_bytes() for path in paths] == [server.files[f"/sub/{i}.bin"] for i in range(7)]
    recorded = json.loads(downloads.lock.read_text())
    assert recorded["sub/3.bin"] == hashlib.sha256(paths[3].read_bytes()).hexdigest()
    assert left(tmp_path / "a") == [f"{i}.bin" for i in range(7)]
    before = len(server.requests)
    assert fetch(sources, downloads) == paths
    assert len(server.requests) == before


def test_connection_dropped_mid_file_is_resumed_where_it_broke(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    server.faults["/data.bin"] = [("drop", 2_000_000), ("drop", 3_000_000)]
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
    assert path.read_bytes() == CONTENT
    assert server.gets("/data.bin") == [
        None,
        "bytes=2000000-",
        "bytes=3000000-",
    ]


def test_later_run_resumes_what_an_earlier_one_left(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    server.faults["/data.bin"] = [("drop", 2_000_000), *[500] * transfers.ATTEMPTS]
    source = Source("data.bin", tmp_path / "data.bin")
    with pytest.raises(InputError, match="500 Internal Server Error, 5 times"):
        fetch([source], downloads)
    assert not source.path.exists()

    fetch([source], downloads)

    assert source.path.read_bytes() == CONTENT
    assert server.gets("/data.bin")[-1] == "bytes=2000000-"
    assert left(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("pinned", [SHA256, None], ids=["pinned", "first use"])
def test_part_that_was_altered_is_fetched_anew(
    pinned: str | None, server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    server.faults["/data.bin"] = [("drop", 2_000_000), *[503] * transfers.ATTEMPTS]
    source = Source("data.bin", tmp_path / "data.bin", pinned)
    with pytest.raises(InputError, match="503"):
        fetch([source], downloads)
    part = tmp_path / "data.bin.part"
    part.write_bytes(b"\0" * 1000 + part.read_bytes()[1000:])

    fetch([source], downloads)

    assert source.path.read_bytes() == CONTENT
    assert server.gets("/data.bin")[-1] is None


def test_file_that_changed_on_the_server_is_never_mixed_with_the_old(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    server.faults["/data.bin"] = [("drop", 2_000_000), *[503] * transfers.ATTEMPTS]
    source = Source("data.bin", tmp_path / "data.bin")
    with pytest.raises(InputError, match="503"):
        fetch([source], downloads)
    server.files["/data.bin"] = CONTENT[::-1]
    server.tags["/data.bin"] += 1

    fetch([source], downloads)

    assert source.path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lacking", ["ranges", "validators"])
def test_server_without_ranges_or_versions_is_asked_again_from_the_start(
    lacking: str, server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    setattr(server, lacking, False)
    server.faults["/data.bin"] = [("drop", 2_000_000)]
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
    assert path.read_bytes() == CONTENT


def test_busy_server_is_asked_again(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    server.faults["/data.bin"] = [503, 503, 429]
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
    assert path.read_bytes() == CONTENT
    assert len(server.gets("/data.bin")) == 4


def test_file_at_hand_needs_no_place_to_write(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(CONTENT)
    assert fetch([Source("data.bin", tmp_path / "data.bin", SHA256)], downloads) == [tmp_path / "data.bin"]
    assert list(tmp_path.iterdir()) == [tmp_path / "data.bin"]  # no lock either
    assert server.requests == []


def test_missing_file_is_named_with_the_status_after_the_others_have_come(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    sources = [Source("none.bin", tmp_path / "none.bin"), Source("data.bin", tmp_path / "data.bin")]
    with pytest.raises(InputError, match=rf"none\.bin: {server.base}/none\.bin: 404 Not Found; .*{tmp_path}/none\.bin"):
        fetch(sources, downloads)
    assert sources[1].path.read_bytes() == CONTENT
    assert not sources[0].path.exists()
    assert len(server.gets("/none.bin")) == 1


def test_a_web_page_in_place_of_a_file_is_known_for_what_it_is(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    server.files["/data.bin"] = b"\n<!-- hotel --><!DOCTYPE html><html>Please log in</html>"
    with pytest.raises(InputError, match=r"data\.bin: sent a web page instead of the file.*it is removed"):
        fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
    assert left(tmp_path) == []
    server.files["/data.bin"] = b"<!---->" * 600  # no page, and nothing that takes long to see
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
    assert path.read_bytes() == server.files["/data.bin"]


def test_a_digest_is_recorded_only_of_what_is_what_it_should_be(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    def check(path: Path) -> None:
        if path.read_bytes() != CONTENT:
            raise InputError(f"{path}: other content")

    sources = [Source("data.bin", tmp_path / "data.bin", check=check)]
    server.faults["/data.bin"] = [("bytes", b"x" * len(CONTENT))]
    with pytest.raises(InputError, match=r"data\.bin is not what it should be, and is removed: .*other content"):
        fetch(sources, downloads)
    assert left(tmp_path) == []
    fetch(sources, downloads)
    assert json.loads(downloads.lock.read_text()) == {"data.bin": SHA256}
    downloads.lock.unlink()
    (tmp_path / "data.bin").write_bytes(b"what the user put there")
    with pytest.raises(InputError, match="other content"):
        fetch(sources, downloads)
    assert left(tmp_path) == ["data.bin"]


def test_plain_http_needs_a_digest_or_leave(
    server: Server, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "LOOPBACK", ())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source = Source("data.bin", tmp_path / "data.bin")
    with pytest.raises(InputError, match=r"plain http, and no digest is known; use https, or .*--allow-http"):
        fetch([source], downloads)
    assert left(tmp_path) == []
    fetch([source], changed(downloads, allow_http=True))
    (tmp_path / "data.bin").unlink()
    fetch([source], downloads)  # the digest is known now


def test_a_server_that_hardly_sends_is_given_up(
    server: Server, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "WINDOW", 0.02)
    monkeypatch.setattr(transfers, "LEAST_RATE", 2**40)
    server.faults["/data.bin"] = [("slow", len(CONTENT))] * 20
    monkeypatch.setattr(transfers, "CHUNK", 2**40)  # no piece counts as progress
    with pytest.raises(InputError, match=rf"sends less than {2**40} bytes a second, 5 times"):
        fetch([Source("data.bin", tmp_path / "data.bin")], downloads)


def test_a_file_may_not_take_for_ever(
    server: Server, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "MAX_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"has sent .* bytes in 0 hours"):
        fetch([Source("data.bin", tmp_path / "data.bin")], downloads)


def test_wrong_digest_is_refused_and_leaves_nothing(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"sha256 is {SHA256}, expected {'0' * 64}"):
        fetch([Source("data.bin", tmp_path / "data.bin", "0" * 64)], downloads)
    assert left(tmp_path) == []


def test_digest_recorded_at_first_use_is_enforced_from_then_on(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    fetch([Source("data.bin", tmp_path / "first.bin")], downloads)
    server.files["/data.bin"] = b"another"
    with pytest.raises(InputError, match=f"expected {SHA256}"):
        fetch([Source("data.bin", tmp_path / "second.bin")], downloads)
    assert not (tmp_path / "second.bin").exists()


def test_file_that_was_altered_in_place_is_refused_and_left(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    source = Source("data.bin", tmp_path / "data.bin")
    fetch([source], downloads)
    source.path.write_bytes(b"altered")
    with pytest.raises(InputError, match=f"expected {SHA256}, as recorded in {downloads.lock}, line 2 .*; delete it"):
        fetch([source], downloads)
    assert source.path.read_bytes() == b"altered"


def test_pinned_digest_that_contradicts_the_lock_is_refused(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
    with pytest.raises(InputError, match=f"{'1' * 64} is pinned"):
        fetch([Source("data.bin", tmp_path / "data.bin", "1" * 64)], downloads)


def test_mirror_is_used_where_the_first_address_fails_or_lies(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    server.files |= {"/mirror/a.bin": CONTENT, "/mirror/b.bin": CONTENT, "/b.bin": b"a lie"}
    mirrored = changed(downloads, bases=(server.base, f"{server.base}/mirror"))
    fetch([Source("a.bin", tmp_path / "a.bin"), Source("b.bin", tmp_path / "b.bin", SHA256)], mirrored)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes() == CONTENT
    assert list(json.loads(downloads.lock.read_text())) == ["a.bin"]  # b.bin is pinned


def test_source_may_name_its_own_addresses(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    urls = [f"{server.base}/gone", f"{server.base}/data.bin"]
    (path,) = fetch([Source("x", tmp_path / "x", urls=urls)], changed(downloads, bases=()))
    assert path.read_bytes() == CONTENT
    assert json.loads(downloads.lock.read_text()) == {"x": SHA256}
    with pytest.raises(InputError, match="no base address is set"):
        fetch([Source("y", tmp_path / "y")], changed(downloads, bases=()))


def test_every_mirror_is_held_to_the_recorded_digest(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    fetch([Source("data.bin", tmp_path / "first.bin")], downloads)
    server.files["/mirror/data.bin"] = b"a lie"
    with pytest.raises(InputError, match="sha256"):
        fetch([Source("data.bin", tmp_path / "second.bin")], changed(downloads, bases=(f"{server.base}/mirror",)))
    assert not (tmp_path / "second.bin").exists()


def test_folder_serves_as_base(downloads: Downloads, tmp_path: Path) -> None:
    (tmp_path / "mirror of mine").mkdir()
    (tmp_path / "mirror of mine" / "x.bin").write_bytes(CONTENT)
    local = changed(downloads, bases=((tmp_path / "mirror of mine").as_uri(),))
    (path,) = fetch([Source("x.bin", tmp_path / "x.bin", SHA256)], local)
    assert path.read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"y\.bin: No such file"):
        fetch([Source("y.bin", tmp_path / "y.bin")], local)


def test_offline_uses_what_is_there_and_says_what_is_missing(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    there, missing = Source("data.bin", tmp_path / "data.bin"), Source("b.bin", tmp_path / "b.bin", remedy="do without")
    there.path.write_bytes(CONTENT)
    offline = changed(downloads, offline=True)
    assert fetch([there], offline) == [there.path]
    said = f"offline, and 1 files are missing; put {server.base}/b.bin at {missing.path}, or do without"
    with pytest.raises(InputError, match=said):
        fetch([there, missing], offline)
    assert server.requests == []


def test_too_little_disk_is_said_before_anything_is_fetched(
    server: Server, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * 2**20))
    server.files["/b.bin"] = CONTENT
    sources = [Source("data.bin", tmp_path / "data.bin"), Source("b.bin", tmp_path / "b.bin")]
    with pytest.raises(InputError, match=r"downloads need 6\.0 MiB in .*, which has 5\.0 MiB free"):
        fetch(sources, downloads)
    assert server.requests == []


def test_disk_that_fills_up_on_the_way_is_an_error_and_the_rest_comes_later(
    server: Server, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source("data.bin", tmp_path / "data.bin")

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() >= 2 * CHUNK:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(transfers, "open", lambda path, mode="r": Full(path, mode), raising=False)
    with pytest.raises(InputError, match=r"data\.bin: no space left on the disk"):
        fetch([source], downloads)
    monkeypatch.undo()
    assert not source.path.exists()
    fetch([source], downloads)
    assert source.path.read_bytes() == CONTENT
    assert int(str(server.gets("/data.bin")[-1]).removeprefix("bytes=").removesuffix("-")) >= 2 * CHUNK


def test_file_of_unknown_length_needs_a_known_digest(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    server.announce = False
    with pytest.raises(InputError, match="does not say how long"):
        fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin", SHA256)], downloads)
    assert path.read_bytes() == CONTENT


def test_absurd_length_is_refused(
    server: Server, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="more than any published file"):
        fetch([Source("data.bin", tmp_path / "data.bin")], downloads)


def test_damaged_lock_file_is_named_and_left(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    downloads.lock.write_text("{")
    with pytest.raises(InputError, match=r"fetch\.lock: not readable as JSON"):
        fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
    assert downloads.lock.read_text() == "{"


KILLED = """
import sys
from pathlib import Path
from metrics.files import Downloads, Source, fetch, transfers
transfers.CHECKPOINT = 2**19
transfers.CHUNK = 2**18
base, folder = sys.argv[1], Path(sys.argv[2])
fetch([Source("data.bin", folder / "data.bin")], Downloads(bases=(base,), lock=folder / "fetch.lock"))
"""


def test_killed_run_is_resumed_from_its_last_note(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    server.faults["/data.bin"] = [("slow", len(CONTENT))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.base, str(tmp_path)], env=environment)
    note = tmp_path / "data.bin.part.json"
    while not note.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    noted = json.loads(note.read_text())["length"]

    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], downloads)

    assert path.read_bytes() == CONTENT
    assert noted >= 2**19
    assert server.gets("/data.bin")[-1] == f"bytes={noted}-"


def test_two_runs_at_once_end_with_one_right_file(server: Server, downloads: Downloads, tmp_path: Path) -> None:
    server.faults["/data.bin"] = [("slow", len(CONTENT))]
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fetch([Source("data.bin", tmp_path / "data.bin")], downloads)
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert len(server.gets("/data.bin")) == 1


def test_cache_keeps_a_record_of_its_own_under_its_old_name_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = cache_root() / "things"
    assert folder == tmp_path / "autoguidance-repro" / "things"
    folder.mkdir(parents=True)
    (folder / "digests.json").write_text(json.dumps({"x": "0" * 64}))
    source = Source("x", folder / "x", urls=[f"{server.base}/data.bin"])
    with pytest.raises(InputError, match=f"sha256 is {SHA256}, expected {'0' * 64}"):
        fetch([source], Downloads.cached(folder))
    (folder / "fetch.lock").unlink()
    fetch([source], Downloads.cached(folder))
    assert json.loads((folder / "fetch.lock").read_text()) == {"x": SHA256}
    monkeypatch.setenv("REPRO_OFFLINE", "1")
    assert Downloads.cached(folder).offline
    assert not Downloads.cached(folder, offline=False).offline
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"
