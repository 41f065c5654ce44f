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
from typing import Any

import numpy as np
import pytest

from metrics.files import InputError
from repro import snapshots
from repro.pipeline import transfer
from repro.pipeline.fetch import Options, Source, fetch, fetch_networks
from tests.rehearsal.server import Server

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 12345)
CHUNK = transfer.CHUNK  # a broken connection costs the piece under way
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server({"/data.bin": CONTENT})
    yield found
    found.close()


@pytest.fixture
def options(server: Server, tmp_path: Path) -> Options:
    return Options(bases=(server.base,), lock=tmp_path / "fetch.lock", backoff=0)


def changed(options: Options, **values: Any) -> Options:
    return Options(**{**vars(options), **values})


def left(folder: Path) -> list[str]:
    """What lies in a folder besides locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_several_files_arrive_whole_with_their_digests_recorded(
    server: Server, options: Options, tmp_path: Path
) -> None:
    server.files |= {f"/sub/{i}.bin": bytes([i]) * (100_000 * i) for i in range(7)}
    sources = [Source(f"sub/{i}.bin", tmp_path / "a" / f"{i}.bin") for i in range(7)]

    paths = fetch(sources, options)

    assert [path.read_bytes() for path in paths] == [server.files[f"/sub/{i}.bin"] for i in range(7)]
    recorded = json.loads(options.lock.read_text())
    assert recorded["sub/3.bin"] == hashlib.sha256(paths[3].read_bytes()).hexdigest()
    assert left(tmp_path / "a") == [f"{i}.bin" for i in range(7)]
    before = len(server.requests)
    assert fetch(sources, options) == paths
    assert len(server.requests) == before


def test_connection_dropped_mid_file_is_resumed_where_it_broke(
    server: Server, options: Options, tmp_path: Path
) -> None:
    server.faults["/data.bin"] = [("drop", 2_000_000), ("drop", 3_000_000)]
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], options)
    assert path.read_bytes() == CONTENT
    assert server.gets("/data.bin") == [
        None,
        f"bytes={2_000_000 // CHUNK * CHUNK}-",
        f"bytes={3_000_000 // CHUNK * CHUNK}-",
    ]


def test_later_run_resumes_what_an_earlier_one_left(server: Server, options: Options, tmp_path: Path) -> None:
    server.faults["/data.bin"] = [("drop", 2_000_000), *[500] * transfer.ATTEMPTS]
    source = Source("data.bin", tmp_path / "data.bin")
    with pytest.raises(InputError, match="500 Internal Server Error, 5 times"):
        fetch([source], options)
    assert not source.path.exists()

    fetch([source], options)

    assert source.path.read_bytes() == CONTENT
    assert server.gets("/data.bin")[-1] == f"bytes={2_000_000 // CHUNK * CHUNK}-"
    assert left(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("pinned", [SHA256, None], ids=["pinned", "first use"])
def test_part_that_was_altered_is_fetched_anew(
    pinned: str | None, server: Server, options: Options, tmp_path: Path
) -> None:
    server.faults["/data.bin"] = [("drop", 2_000_000), *[503] * transfer.ATTEMPTS]
    source = Source("data.bin", tmp_path / "data.bin", pinned)
    with pytest.raises(InputError, match="503"):
        fetch([source], options)
    part = tmp_path / "data.bin.part"
    part.write_bytes(b"\0" * 1000 + part.read_bytes()[1000:])

    fetch([source], options)

    assert source.path.read_bytes() == CONTENT
    assert server.gets("/data.bin")[-1] is None


def test_file_that_changed_on_the_server_is_never_mixed_with_the_old(
    server: Server, options: Options, tmp_path: Path
) -> None:
    server.faults["/data.bin"] = [("drop", 2_000_000), *[503] * transfer.ATTEMPTS]
    source = Source("data.bin", tmp_path / "data.bin")
    with pytest.raises(InputError, match="503"):
        fetch([source], options)
    server.files["/data.bin"] = CONTENT[::-1]
    server.tags["/data.bin"] += 1

    fetch([source], options)

    assert source.path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lacking", ["ranges", "validators"])
def test_server_without_ranges_or_versions_is_asked_again_from_the_start(
    lacking: str, server: Server, options: Options, tmp_path: Path
) -> None:
    setattr(server, lacking, False)
    server.faults["/data.bin"] = [("drop", 2_000_000)]
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], options)
    assert path.read_bytes() == CONTENT


def test_busy_server_is_asked_again(server: Server, options: Options, tmp_path: Path) -> None:
    server.faults["/data.bin"] = [503, 503, 429]
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], options)
    assert path.read_bytes() == CONTENT
    assert len(server.gets("/data.bin")) == 4


def test_missing_file_is_named_with_the_status_after_the_others_have_come(
    server: Server, options: Options, tmp_path: Path
) -> None:
    sources = [Source("none.bin", tmp_path / "none.bin"), Source("data.bin", tmp_path / "data.bin")]
    with pytest.raises(InputError, match=rf"none\.bin: {server.base}/none\.bin: 404 Not Found; .*{tmp_path}/none\.bin"):
        fetch(sources, options)
    assert sources[1].path.read_bytes() == CONTENT
    assert not sources[0].path.exists()
    assert len(server.gets("/none.bin")) == 1


def test_wrong_digest_is_refused_and_leaves_nothing(server: Server, options: Options, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"sha256 is {SHA256}, expected {'0' * 64}"):
        fetch([Source("data.bin", tmp_path / "data.bin", "0" * 64)], options)
    assert left(tmp_path) == []


def test_digest_recorded_at_first_use_is_enforced_from_then_on(
    server: Server, options: Options, tmp_path: Path
) -> None:
    fetch([Source("data.bin", tmp_path / "first.bin")], options)
    server.files["/data.bin"] = b"another"
    with pytest.raises(InputError, match=f"expected {SHA256}"):
        fetch([Source("data.bin", tmp_path / "second.bin")], options)
    assert not (tmp_path / "second.bin").exists()


def test_file_that_was_altered_in_place_is_refused_and_left(server: Server, options: Options, tmp_path: Path) -> None:
    source = Source("data.bin", tmp_path / "data.bin")
    fetch([source], options)
    source.path.write_bytes(b"altered")
    with pytest.raises(InputError, match=f"expected {SHA256}; delete it"):
        fetch([source], options)
    assert source.path.read_bytes() == b"altered"


def test_pinned_digest_that_contradicts_the_lock_is_refused(server: Server, options: Options, tmp_path: Path) -> None:
    fetch([Source("data.bin", tmp_path / "data.bin")], options)
    with pytest.raises(InputError, match=f"{'1' * 64} is pinned"):
        fetch([Source("data.bin", tmp_path / "data.bin", "1" * 64)], options)


def test_mirror_is_used_where_the_first_address_fails_or_lies(server: Server, options: Options, tmp_path: Path) -> None:
    server.files |= {"/mirror/a.bin": CONTENT, "/mirror/b.bin": CONTENT, "/b.bin": b"a lie"}
    mirrored = changed(options, bases=(server.base, f"{server.base}/mirror"))
    fetch([Source("a.bin", tmp_path / "a.bin"), Source("b.bin", tmp_path / "b.bin", SHA256)], mirrored)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes() == CONTENT
    assert list(json.loads(options.lock.read_text())) == ["a.bin", "b.bin"]


def test_every_mirror_is_held_to_the_recorded_digest(server: Server, options: Options, tmp_path: Path) -> None:
    fetch([Source("data.bin", tmp_path / "first.bin")], options)
    server.files["/mirror/data.bin"] = b"a lie"
    with pytest.raises(InputError, match="sha256"):
        fetch([Source("data.bin", tmp_path / "second.bin")], changed(options, bases=(f"{server.base}/mirror",)))
    assert not (tmp_path / "second.bin").exists()


def test_folder_serves_as_base(options: Options, tmp_path: Path) -> None:
    (tmp_path / "mirror of mine").mkdir()
    (tmp_path / "mirror of mine" / "x.bin").write_bytes(CONTENT)
    local = changed(options, bases=((tmp_path / "mirror of mine").as_uri(),))
    (path,) = fetch([Source("x.bin", tmp_path / "x.bin", SHA256)], local)
    assert path.read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"y\.bin: No such file"):
        fetch([Source("y.bin", tmp_path / "y.bin")], local)


def test_offline_uses_what_is_there_and_says_what_is_missing(server: Server, options: Options, tmp_path: Path) -> None:
    there, missing = Source("data.bin", tmp_path / "data.bin"), Source("b.bin", tmp_path / "b.bin")
    there.path.write_bytes(CONTENT)
    offline = changed(options, offline=True)
    assert fetch([there], offline) == [there.path]
    with pytest.raises(
        InputError, match=f"offline, and 1 files are missing; put {server.base}/b.bin at {missing.path}"
    ):
        fetch([there, missing], offline)
    assert server.requests == []


def test_too_little_disk_is_said_before_anything_is_fetched(server: Server, options: Options, tmp_path: Path) -> None:
    server.files["/b.bin"] = CONTENT
    sources = [Source("data.bin", tmp_path / "data.bin"), Source("b.bin", tmp_path / "b.bin")]
    with pytest.raises(InputError, match=r"downloads need 6\.0 MiB in .*, which has 5\.0 MiB free"):
        fetch(sources, changed(options, free_space=lambda _: 5 * 2**20))
    assert server.requests == []


def test_disk_that_fills_up_on_the_way_is_an_error_and_the_rest_comes_later(
    server: Server, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source("data.bin", tmp_path / "data.bin")

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() >= 2 * CHUNK:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(transfer, "open", lambda path, mode="r": Full(path, mode), raising=False)
    with pytest.raises(InputError, match=r"data\.bin: no space left on the disk"):
        fetch([source], options)
    monkeypatch.undo()
    assert not source.path.exists()
    fetch([source], options)
    assert source.path.read_bytes() == CONTENT
    assert server.gets("/data.bin")[-1] == f"bytes={2 * CHUNK}-"


def test_file_of_unknown_length_needs_a_known_digest(server: Server, options: Options, tmp_path: Path) -> None:
    server.announce = False
    with pytest.raises(InputError, match="does not say how long"):
        fetch([Source("data.bin", tmp_path / "data.bin")], options)
    (path,) = fetch([Source("data.bin", tmp_path / "data.bin", SHA256)], options)
    assert path.read_bytes() == CONTENT


def test_absurd_length_is_refused(
    server: Server, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="more than any published file"):
        fetch([Source("data.bin", tmp_path / "data.bin")], options)


def test_damaged_lock_file_is_named_and_left(server: Server, options: Options, tmp_path: Path) -> None:
    options.lock.write_text("{")
    with pytest.raises(InputError, match=r"fetch\.lock: not readable as JSON"):
        fetch([Source("data.bin", tmp_path / "data.bin")], options)
    assert options.lock.read_text() == "{"


KILLED = """
import sys
from pathlib import Path
from repro import transfer
from repro.fetch import Options, Source, fetch
transfer.CHECKPOINT = 2**19
transfer.CHUNK = 2**18
base, folder = sys.argv[1], Path(sys.argv[2])
fetch([Source("data.bin", folder / "data.bin")], Options(bases=(base,), lock=folder / "fetch.lock"))
"""


def test_killed_run_is_resumed_from_its_last_note(server: Server, options: Options, tmp_path: Path) -> None:
    server.faults["/data.bin"] = [("slow", len(CONTENT))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.base, str(tmp_path)], env=environment)
    note = tmp_path / "data.bin.part.json"
    while not note.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    noted = json.loads(note.read_text())["length"]

    (path,) = fetch([Source("data.bin", tmp_path / "data.bin")], options)

    assert path.read_bytes() == CONTENT
    assert noted >= 2**19
    assert server.gets("/data.bin")[-1] == f"bytes={noted}-"


def test_two_runs_at_once_end_with_one_right_file(server: Server, options: Options, tmp_path: Path) -> None:
    server.faults["/data.bin"] = [("slow", len(CONTENT))]
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fetch([Source("data.bin", tmp_path / "data.bin")], options)
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


def test_networks_are_converted_as_they_come_and_not_fetched_twice(
    server: Server, options: Options, tmp_path: Path
) -> None:
    names = [f"raw-snapshots/tiny/{path.name}" for path in sorted((GOLDEN / "raw-snapshots").glob("*.pkl"))[:3]]
    server.files |= {f"/{name}": (GOLDEN / "raw-snapshots" / Path(name).name).read_bytes() for name in names}

    paths = fetch_networks(names, tmp_path / "networks", options)

    assert left(tmp_path / "networks") == [Path(name).with_suffix(".safetensors").name for name in names]
    loaded = snapshots.load(paths[0])
    assert (loaded.metadata["nimg"], loaded.metadata["ema_std"]) == (32768, 0.05)
    assert loaded.metadata["source_sha256"] == hashlib.sha256(server.files[f"/{names[0]}"]).hexdigest()
    before = len(server.requests)
    assert fetch_networks(names, tmp_path / "networks", changed(options, offline=True)) == paths
    assert len(server.requests) == before


def test_network_from_another_source_is_refused(server: Server, options: Options, tmp_path: Path) -> None:
    name = "raw-snapshots/tiny/tiny-0000032-0.050.pkl"
    server.files[f"/{name}"] = (GOLDEN / "raw-snapshots" / "tiny-0000032-0.050.pkl").read_bytes()
    fetch_networks([name], tmp_path, options, keep_originals=True)
    assert (tmp_path / "tiny-0000032-0.050.pkl").exists()
    snapshots.convert(GOLDEN / "guide.pkl", tmp_path / "tiny-0000032-0.050.safetensors")
    with pytest.raises(InputError, match=r"tiny-0000032-0\.050\.safetensors: made from a file with sha256"):
        fetch_networks([name], tmp_path, options)
