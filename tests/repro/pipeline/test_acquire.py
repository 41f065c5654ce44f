"""What a study takes from outside, from a server at hand."""

import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metrics.files import Downloads, InputError, read_lock, transfers
from repro import snapshots
from repro.data.digits import Digits
from repro.missing import read_missing
from repro.pipeline import acquire
from repro.pipeline.acquire import everything, fetch_networks, networks
from repro.sampling.pairs import Sharding, Solver
from repro.study import Evaluate, Networks, Study
from tests.rehearsal.server import Server

NAME = "raw-snapshots/tiny/tiny-0000032-0.050.pkl"


@pytest.fixture
def server(golden: Path) -> Iterator[Server]:
    files = sorted((golden / "raw-snapshots").glob("*.pkl"))
    found = Server({f"/raw-snapshots/tiny/{path.name}": path.read_bytes() for path in files})
    yield found
    found.close()


@pytest.fixture
def downloads(server: Server, tmp_path: Path) -> Downloads:
    return Downloads(bases=(server.base,), lock=tmp_path / "fetch.lock")


def bare(base: str, **sections: Any) -> Study:
    """A study of networks alone."""
    empty = {
        key: {} for key in ("toy", "data", "images", "train", "models", "reconstruct", "generate", "tuned", "sweeps")
    }
    made = {"study": "x", "sampler": Solver(), "shards": Sharding(), "evaluate": Evaluate(), "networks": {}}
    return Study(**empty | made | sections, sources=[base])


def test_networks_are_converted_as_they_come_and_not_fetched_twice(
    server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    names = [path.removeprefix("/") for path in list(server.files)[:3]]
    folder = tmp_path / "networks"

    paths = fetch_networks(names, folder, downloads)

    assert paths == [folder / Path(name).with_suffix(".safetensors").name for name in names]
    assert sorted(path for path in folder.iterdir() if path.suffix != ".lock") == paths
    loaded = snapshots.load(paths[0])
    assert (loaded.metadata["nimg"], loaded.metadata["ema_std"]) == (32768, 0.05)
    assert loaded.metadata["source_sha256"] == hashlib.sha256(server.files[f"/{names[0]}"]).hexdigest()
    before = len(server.requests)
    assert fetch_networks(names, folder, replace(downloads, offline=True)) == paths
    assert len(server.requests) == before


def test_what_a_run_left_that_was_killed_after_a_conversion_goes(downloads: Downloads, tmp_path: Path) -> None:
    (path,) = fetch_networks([NAME], tmp_path / "networks", downloads)
    before = sorted(path.parent.iterdir())
    for suffix in (".pkl", ".pkl.holder", ".pkl.part", ".pkl.part.json"):
        path.with_name(f"{path.stem}{suffix}").touch()
    assert fetch_networks([NAME], path.parent, downloads) == [path]
    assert sorted(path.parent.iterdir()) == before


def test_network_from_another_source_is_refused(golden: Path, downloads: Downloads, tmp_path: Path) -> None:
    (path,) = fetch_networks([NAME], tmp_path, downloads)
    snapshots.save(snapshots.load(golden / "guide.pkl"), path)
    with pytest.raises(InputError, match=r"tiny-0000032-0\.050\.safetensors: made from a file with sha256"):
        fetch_networks([NAME], tmp_path, downloads)


def test_network_that_another_study_has_is_linked_unless_it_has_another_source(
    golden: Path, server: Server, downloads: Downloads, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (theirs,) = fetch_networks([NAME], out / "theirs" / "networks" / "tiny", downloads)
    assert read_lock(downloads.lock).keys() == {NAME}
    (mine,) = fetch_networks([NAME], out / "mine" / "networks" / "tiny", downloads, out)
    assert mine.samefile(theirs)
    assert len(server.gets(f"/{NAME}")) == 1
    for path in (theirs, mine):
        path.unlink()
    snapshots.save(snapshots.load(golden / "guide.pkl"), theirs)
    fetch_networks([NAME], mine.parent, downloads, out)
    assert len(server.gets(f"/{NAME}")) == 2


def test_fetching_ahead_leaves_nothing_to_download_and_what_is_no_longer_named_goes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [path.removeprefix("/") for path in list(server.files)[:2]]
    both, first = Networks(fetch=names), Networks(fetch=names[:1])
    study = bare(server.base, networks={"tiny": both})
    folder = study.out / "networks" / "tiny"
    assert everything(study) == ([folder], [], [])
    before = len(server.requests)
    monkeypatch.setenv("REPRO_OFFLINE", "1")
    assert len(networks(study, both, folder, acquire.downloads(study))) == 2
    assert networks(study, first, folder, acquire.downloads(study)) == list(folder.glob("*.safetensors"))
    assert len(server.requests) == before


@pytest.mark.parametrize("status", [404, 410])
def test_a_network_that_no_address_has_is_noted_and_asked_for_again_only_on_retry(
    server: Server, downloads: Downloads, tmp_path: Path, status: int
) -> None:
    gone, there = (path.removeprefix("/") for path in list(server.files)[:2])
    server.faults[f"/{gone}"] = [status] * 2
    note, path = fetch_networks([gone, there], tmp_path, downloads)
    assert read_missing(path) == {}
    assert read_missing(note) == {"": f"{server.base}/{gone} gave {status} on {time.strftime('%Y-%m-%d')}"}
    with pytest.raises(InputError, match=rf"is not there, since .* gave {status} on .*fetch --retry"):
        snapshots.load(note)
    fetch_networks([gone, there], tmp_path, downloads)
    assert len(server.gets(f"/{gone}")) == 1
    fetch_networks([gone, there], tmp_path, downloads, retry=True)  # it is still not there
    assert read_missing(note)
    fetch_networks([gone, there], tmp_path, downloads, retry=True)
    assert not read_missing(note)
    assert snapshots.load(note).network


def test_optional_networks_that_cannot_be_had_for_whatever_reason_are_an_outcome(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of others it is an error, which stops the study; what did come is there, and a second attempt finds the rest."""
    monkeypatch.chdir(tmp_path)
    refused, there = (path.removeprefix("/") for path in list(server.files)[:2])
    server.faults[f"/{refused}"] = [403] * 2
    study = bare(server.base)
    folder, settings = study.out / "networks" / "tiny", acquire.downloads(study)
    with pytest.raises(InputError, match="403"):
        networks(study, Networks(fetch=[refused, there]), folder, settings)
    item = Networks(fetch=[refused, there], optional=True)
    note, path = networks(study, item, folder, settings)
    assert re.search(rf"403 Forbidden.* on {time.strftime('%Y-%m-%d')}", read_missing(note)[""])
    assert snapshots.load(path).network
    assert networks(study, item, folder, settings, retry=True) == [note, path]
    assert not read_missing(note)


def test_optional_networks_do_not_stop_a_study_without_a_network_connection(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study, item = bare(server.base), Networks(fetch=[NAME], optional=True)
    folder = study.out / "networks" / "tiny"
    with pytest.raises(InputError, match="offline, and 1 files are missing"):  # asked with --offline what is missing
        networks(study, item, folder, acquire.downloads(study, offline=True))
    monkeypatch.setenv("REPRO_OFFLINE", "1")
    (note,) = networks(study, item, folder, acquire.downloads(study))
    assert read_missing(note)[""].startswith("offline, and 1 files are missing")


@pytest.mark.parametrize("faults", [[403], [503] * 9, [404, 403]])
def test_other_failures_are_no_outcome(
    server: Server, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[int]
) -> None:
    """A mirror that fails may have the file, whatever another one says."""
    monkeypatch.setattr(transfers, "BACKOFF", 0.0)
    server.faults[f"/{NAME}"] = list(faults)
    with pytest.raises(InputError, match=r"cannot fetch tiny-0000032-0\.050\.pkl"):
        fetch_networks([NAME], tmp_path / "new", replace(downloads, bases=[server.base] * (2 if 404 in faults else 1)))
    assert not [*(tmp_path / "new").glob("*.safetensors")]


def test_fetching_ahead_goes_through_everything_and_says_what_failed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gone, refused, there, broken = (path.removeprefix("/") for path in list(server.files)[:4])
    server.faults |= {f"/{gone}": [404], f"/{refused}": [403], f"/{broken}": [("bytes", b"no pickle")]}
    sets = {"first": Networks(fetch=[gone, refused, broken]), "second": Networks(fetch=[there])}
    folders, absent, failures = everything(bare(server.base, networks=sets))
    assert len(list(folders[1].glob("*.safetensors"))) == 1
    assert len(absent) == 1
    assert f"/{gone} gave 404 on" in absent[0]
    assert len(failures) == 2
    assert any("403" in failure for failure in failures)


@dataclass(frozen=True)
class Picky(Digits):
    """A kind of data that expects its folder, as the one in docs/extending.md does."""

    def prepare(self, folder: Path, downloads: Downloads) -> str:
        (folder / "images").mkdir(exist_ok=True)
        return super().prepare(folder, downloads)


@pytest.mark.parametrize("made", [Picky(), Digits()])
def test_a_kind_of_data_finds_its_folder_and_an_empty_one_does_not_stay(
    made: Digits, downloads: Downloads, tmp_path: Path
) -> None:
    data: Any = SimpleNamespace(made=made)
    acquire.prepare(data, tmp_path / "data" / "x", downloads)
    assert (tmp_path / "data" / "x").exists() == isinstance(made, Picky)


def test_only_files_named_as_ours_are_cleared_away(tmp_path: Path) -> None:
    theirs = ["notes.safetensors", "photos.zip", "1-2.zip", "net-0000040.safetensors"]
    ours = ["net-0000040-0.100.safetensors", "000000-000511.zip", "1000000-1000511.zip"]
    for name in (*theirs, *ours, "000512-001023.zip"):
        (tmp_path / name).touch()
    for suffix in (".safetensors", ".zip"):
        acquire.clear(tmp_path, suffix, [tmp_path / "000512-001023.zip"])
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, "000512-001023.zip"}
