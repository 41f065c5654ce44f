"""What would be lost: outputs that name inputs, each other, or what is not ours."""

import io
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from tests.hostile import child
from tests.hostile.conftest import Place
from tests.hostile.materials import COMMANDS, EXTRACTION

EVALUATE = ["evaluate", "images", "--ref", "statistics.npz", *EXTRACTION]


def with_output(name: str, option: str, path: str) -> tuple[str, list[str]]:
    program, arguments = COMMANDS[name]
    if option in arguments:
        i = arguments.index(option)
        arguments = arguments[:i] + arguments[i + 2 :]
    return program, [*arguments, option, path]


INPUTS = [
    ("features", "--out", "images/0.png"),
    ("features", "--out", "images"),
    ("reference", "--out", "images/1.png"),
    ("evaluate", "--json", "statistics.npz"),
    ("evaluate", "--json", "./images/../statistics.npz"),
    ("evaluate", "--csv", "images/0.png"),
    ("compare", "--json", "images.zip"),
    ("neighbours", "--out", "images/0.png"),
    ("neighbours", "--out", "images.zip"),
    ("convert", "--out", "images/0.png"),
    ("convert", "--out", "images"),
    ("reconstruct", "--out", "raw"),
    ("reconstruct", "--out", "raw/tiny-0000032-0.050.pkl"),
    ("generate", "--out", "main.safetensors"),
    ("image", "--out", "images/0.png"),
    ("image", "--out", "out/mini/networks"),
]


@pytest.mark.parametrize(("name", "option", "path"), INPUTS)
def test_an_output_that_is_an_input(place: Place, name: str, option: str, path: str) -> None:
    place.refuses(*with_output(name, option, path))


@pytest.mark.parametrize(("name", "option"), [("features", "--out"), ("evaluate", "--json"), ("convert", "--out")])
def test_an_output_that_is_an_input_by_another_name(place: Place, name: str, option: str) -> None:
    other = {"features": "images/0.png", "evaluate": "statistics.npz", "convert": "images/0.png"}[name]
    os.link(place / other, place / "hard.npz")
    (place / "soft.npz").symlink_to(other)
    place.refuses(*with_output(name, option, "hard.npz"))
    place.refuses(*with_output(name, option, "soft.npz"))


FOREIGN = [
    ("features", "--out"),
    ("reference", "--out"),
    ("evaluate", "--json"),
    ("evaluate", "--csv"),
    ("neighbours", "--out"),
]


def somebodys_npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, tags=np.arange(3), hashtags=np.arange(3))
    return stream.getvalue()


FOREIGN_CONTENT = [
    b"years of work",
    b"",
    b"PK\x03\x04 a zip of somebody's",
    b'{"my": "notes"}',
    b'{"results": [1, 2, 3]}',
    b"metric,detector,value\n",
    somebodys_npz(),
]


@pytest.mark.parametrize("content", FOREIGN_CONTENT)
@pytest.mark.parametrize(("name", "option"), FOREIGN)
def test_an_output_that_is_not_ours_stays(place: Place, name: str, option: str, content: bytes) -> None:
    (place / "thesis.zip").write_bytes(content)
    place.refuses(*with_output(name, option, "thesis.zip"), "thesis.zip", "--force")


def test_an_archive_that_is_there_stays(place: Place) -> None:
    (place / "thesis.zip").write_bytes(b"years of work")
    place.refuses(*with_output("convert", "--out", "thesis.zip"), "thesis.zip", "is there already")


@pytest.mark.parametrize("content", [*FOREIGN_CONTENT[:3], b"metric,detector,value\n", b"\xff\xfe\n1,2\n"])
def test_a_table_that_is_not_ours_is_not_added_to(place: Place, content: bytes) -> None:
    (place / "thesis.csv").write_bytes(content)
    place.refuses("metrics", [*EVALUATE, "--append", "--csv", "thesis.csv"], "thesis.csv")
    place.refuses("metrics", [*EVALUATE, "--append", "--force", "--csv", "thesis.csv"], "thesis.csv")
    place.refuses("metrics", [*EVALUATE, "--append", "--csv", "new.csv", "--json", "thesis.csv"], "thesis.csv")
    place.refuses("metrics", [*EVALUATE, "--append", "--csv", "images/0.png"], "images/0.png")


@pytest.mark.parametrize(("name", "option"), FOREIGN)
def test_its_own_result_is_replaced(place: Place, name: str, option: str) -> None:
    """Its own without being asked, and with --force what is not."""
    program, arguments = with_output(name, option, "result")
    assert place.run(program, arguments).code == 0
    os.utime(place / "result", ns=(0, 0))
    assert child.run(program, arguments, place.folder).code == 0
    assert (place / "result").stat().st_mtime_ns > 0
    (place / "result").write_bytes(b"years of work")
    assert child.run(program, [*arguments, "--force"], place.folder).code == 0
    assert (place / "result").read_bytes() != b"years of work"


@pytest.mark.parametrize(("name", "option"), FOREIGN)
def test_force_does_not_reach_an_input(place: Place, name: str, option: str) -> None:
    program, arguments = with_output(name, option, "images/0.png")
    place.refuses(program, [*arguments, "--force"], "images/0.png")


@pytest.mark.parametrize(("name", "option"), FOREIGN)
def test_links_and_pipes_are_not_replaced(place: Place, name: str, option: str) -> None:
    (place / "elsewhere").write_text("years of work")
    (place / "link").symlink_to("elsewhere")
    (place / "nowhere").symlink_to("gone")
    os.mkfifo(place / "pipe")
    for path in ("link", "nowhere", "pipe"):
        program, arguments = with_output(name, option, path)
        place.refuses(program, arguments, path)
        place.refuses(program, [*arguments, "--force"], path)


@pytest.fixture
def null(place: Place) -> Path:
    """A null device of its own: the machine's would be lost to all where this fails."""
    path = place / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        path.symlink_to("/dev/null")  # which only root could replace
    return path


@pytest.mark.parametrize(("name", "option"), [("evaluate", "--json"), ("evaluate", "--csv"), ("compare", "--json")])
def test_a_text_goes_to_a_device_or_the_screen(place: Place, null: Path, name: str, option: str) -> None:
    assert place.run(*with_output(name, option, "null")).code == 0
    assert null.is_char_device()
    outcome = place.run(*with_output(name, option, "-"))
    assert outcome.code == 0
    assert "autoguidance-repro" in outcome.out
    assert not (place / "-").exists()


def test_a_text_goes_to_a_pipe(place: Place) -> None:
    os.mkfifo(place / "pipe")
    with open(os.open(place / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as reader:
        assert place.run(*with_output("evaluate", "--json", "pipe")).code == 0
        assert json.loads(reader.read())["results"]
    assert (place / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["features", "reference"])
def test_an_array_goes_to_a_file_only(place: Place, null: Path, name: str) -> None:
    for path in ("null", "-"):
        place.refuses(*with_output(name, "--out", path), path)


def test_two_outputs_of_one_name(place: Place) -> None:
    place.refuses("metrics", [*EVALUATE, "--json", "same", "--csv", "same"], "same")
    place.refuses("metrics", [*EVALUATE, "--json", "same", "--csv", "./same"], "same")


@pytest.mark.parametrize("option", ["name=../../escaped", "name=/tmp/escaped", "name=a/b", "name=..", "name="])
def test_a_training_run_stays_in_its_folder(place: Place, option: str) -> None:
    arguments = ["train", "--preset", "edm2-img64-xs", "--data", "set.zip", "--out", "run", "--set", option]
    place.refuses("repro", arguments, "name")
    assert not (place.folder.parent / "escaped").exists()


def test_nothing_measured_is_no_success(place: Place) -> None:
    place.refuses("metrics", [*EVALUATE[:-6], "--detectors", ",", "--no-cache"])
    place.refuses("metrics", [*EVALUATE, "--metrics", ","])
