"""Things that are no files of the expected kind, under every option and argument that names one."""

import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile.conftest import Place
from tests.hostile.materials import COMMANDS, EXTRACTION, GUIDE, png

#: Name -> puts such a thing at a path.
THINGS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a pipe": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a folder": lambda path: path.mkdir(),
    "a full folder": lambda path: (path.mkdir(), (path / "x").write_text("x")),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an empty file": lambda path: path.touch(),
    "a byte": lambda path: path.write_bytes(b"\x80"),
    "text": lambda path: path.write_text("words\n" * 50),
    "text that is not UTF-8": lambda path: path.write_bytes(b"\xff\xfew\x00o\x00"),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "a page": lambda path: path.write_text("<!DOCTYPE html><html><body>Log in to the network</body></html>"),
    "an image": lambda path: path.write_bytes(png(8, 8)),
    "JSON": lambda path: path.write_text('{"labels": [["a.png", 1]]}'),
    "a number": lambda path: path.write_text("17"),
    "an empty zip": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
}
#: Where a path goes: program and arguments, {} for it.
PLACES = {
    "images": ("metrics", ["evaluate", "{}", "--ref", "statistics.npz", *EXTRACTION]),
    "images of a reference": ("metrics", ["reference", "{}", "--out", "new.npz", *EXTRACTION]),
    "reference": ("metrics", ["evaluate", "images", "--ref", "{}", *EXTRACTION]),
    "second set": ("metrics", ["compare", "images", "{}", "--ref", "statistics.npz", *EXTRACTION]),
    "training images": ("metrics", ["neighbours", "images", "--train", "{}", "--out", "new.html", *EXTRACTION]),
    "a further set": (
        "metrics",
        ["evaluate", "images", "--ref", "features.npz", "--metrics", "fd,authpct", "--train", "{}", *EXTRACTION],
    ),
    "weights": ("metrics", ["evaluate", "images", "--ref", "features.npz", "--weights", "{}"]),
    "weights of dinov2": (
        "metrics",
        ["features", "images", "--out", "new.npz", "--detectors", "dinov2", "--weights", "dinov2={}", "--no-cache"],
    ),
    "main network": ("repro", ["generate", "--main", "{}", "--out", "look"]),
    "guide": ("repro", ["generate", "--main", "main.pkl", "--guide", "{}", "--guidance", "2", "--out", "look"]),
    "snapshot": ("repro", ["reconstruct", "{}", "--ema", "0.1", "--out", "made"]),
    "images to convert": (
        "repro",
        ["data", "convert", "{}", "--out", "new.zip", "--resolution", "8", "--workers", "0"],
    ),
    "archive to check": ("repro", ["data", "check", "{}"]),
    "archive to encode": ("repro", ["data", "encode", "{}", "--out", "new.zip", "--vae", "vae"]),
    "decoder": ("repro", ["data", "encode", "set.zip", "--out", "new.zip", "--vae", "./{}"]),
    "training data": ("repro", ["train", "--preset", "edm2-img64-xs", "--data", "{}", "--out", "run"]),
    "settings": ("repro", [*GUIDE, "--settings", "{}"]),
    "committed results": ("repro", ["check", "{}"]),
    "results with claims": ("repro", ["verdicts", "{}"]),
}
SUFFIXES = {
    "images": ("", ".zip", ".tar", ".npz", ".tar.gz", ".png"),
    "reference": (".npz", ".pkl", ""),
    "main network": (".pkl", ".safetensors"),
    "guide": (".pkl", ".safetensors"),
    "snapshot": (".pkl", ".safetensors"),
    "weights": (".pth", ".safetensors", ".pkl"),
    "weights of dinov2": (".pth", ".safetensors"),
    "training data": (".zip", ""),
    "settings": (".yaml",),
}


def cases() -> Iterator[tuple[str, str, str]]:
    """Every place with a third of the things, chosen by a fixed seed."""
    rng = random.Random(0)
    for place in PLACES:
        for thing in rng.sample(sorted(THINGS), 6):
            yield place, thing, rng.choice(SUFFIXES.get(place, ("",)))


@pytest.mark.parametrize(("where", "thing", "suffix"), list(cases()))
def test_a_thing_that_is_no_such_file(place: Place, where: str, thing: str, suffix: str) -> None:
    program, arguments = PLACES[where]
    name = f"0thing{suffix}" if where != "snapshot" else f"tiny-0000032-0.050{suffix}"
    THINGS[thing](place / name)
    place.refuses(program, [text.format(name) for text in arguments])


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines", b"-dash", b"a" * 250, b"\x1b[31mred", "é\u202e".encode()])
@pytest.mark.parametrize("where", ["images", "main network", "reference", "images to convert"])
def test_a_name_that_is_hard_to_say(place: Place, where: str, name: bytes) -> None:
    """Sound images under such a name are measured, what is broken is named on one line."""
    program, arguments = PLACES[where]
    path = os.fsencode(place.folder) + b"/./" + name
    if where in ("images", "images to convert"):
        os.rename(place / "images", path)
        os.rename(path + b"/0.png", path + b"/" + name[:100] + b".png")
    else:
        Path(os.fsdecode(path)).write_bytes(b"\x80\x04noise")
    shown = f"./{os.fsdecode(name)}"
    outcome = place.run(program, [text.format(shown) for text in arguments])
    assert (outcome.code == 0) == (where in ("images", "images to convert"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_lacks_everything(place: Place, name: str, tmp_path: Path) -> None:
    """In an empty folder a command refuses, unless it needs nothing."""
    (tmp_path / "empty").mkdir()
    program, arguments = COMMANDS[name]
    outcome = Place(tmp_path / "empty").run(program, arguments)
    assert (outcome.code == 0) == (name in ("preset", "train", "clean", "list"))
