"""Small files that would become large: refused by what they say, before it is taken."""

import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.hostile.conftest import Place
from tests.hostile.materials import EXTRACTION, png

GENERATE = ["--seeds", "0-1", "--steps", "2", "--batch-size", "2", "--out", "look"]
NETWORK = ("repro", ["generate", "--main", "{}", *GENERATE])
REFERENCE = ("metrics", ["evaluate", "images", "--ref", "{}", *EXTRACTION])
IMAGES = ("metrics", ["evaluate", "{}", "--ref", "statistics.npz", *EXTRACTION])
TRAINING = ("repro", ["data", "check", "{}"])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claimed_png(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(chunks) or chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def doubling(levels: int, item: bytes = b"B" + struct.pack("<I", 1000) + bytes(1000)) -> bytes:
    """A pickle of tuples of tuples: small, until something walks, prints, hashes or copies it."""
    return b"\x80\x03" + item + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(levels)) + b"."


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return b"\x80\x03" + opening * depth + closing * depth + b"."


def global_(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def array_pickle(shape: tuple[int, ...], data: bytes) -> bytes:
    """An array as NumPy pickles it, of any stated shape."""
    sound = pickle.dumps({"tint": {"mu": np.zeros(3)}}, protocol=2)
    assert b"numpy" in sound
    state = pickle.dumps((1, shape, None, False, data), protocol=2)
    return sound[:-1] + b"0" + state[2:]


PICKLES = {
    "a claimed length": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "a claimed frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "a long number": b"\x80\x04\x8b" + struct.pack("<I", 4_000_000) + bytes(4_000_000) + b".",
    "a long decimal number": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a high memo": b"\x80\x03Nr" + struct.pack("<I", 2**31) + b".",
    "a high text memo": b"Np" + b"9" * 12 + b"\n.",
    "a million marks": b"\x80\x03" + b"(" * 1_000_000 + b"N.",
    "a million lists": nested(b"]", b"a", 300_000),
    "a million tuples": nested(b"(", b"t", 300_000),
    "deep dicts": b"\x80\x03" + b"}X\x01\x00\x00\x00a" * 100_000 + b"N" + b"s" * 100_000 + b".",
    "doubled tuples": doubling(60),
    "doubled tuples as a key": b"\x80\x03}" + doubling(60, b")")[2:-1] + b"Ns.",
    "an array again and again": b"\x80\x03(B"
    + struct.pack("<I", 2**20)
    + bytes(2**20)
    + b"q\x00"
    + b"h\x00" * 1000
    + b"t.",
    "doubled strings in a name": doubling(40, b"X" + struct.pack("<I", 100) + b"x" * 100),
    "two million values": b"\x80\x03](" + b"K\x01" * 2_000_000 + b"e.",
    "a memo of everything": b"\x80\x04](" + b"]\x94" * 500_000 + b"e.",
    "repeated arrays": b"\x80\x03C\xff" + bytes(255) + b"q\x00" + b"](" + b"h\x00" * 1_000_000 + b"e.",
    "bytearrays": b"\x80\x05" + b"\x96" + struct.pack("<Q", 2**33) + b".",
    "a buffer out of band": b"\x80\x05\x97.",
    "system": global_("os", "system") + b"X\x05\x00\x00\x00touch\x85R.",
    "eval by another name": b"\x80\x04X\x08\x00\x00\x00builtinsX\x04\x00\x00\x00eval\x93.",
    "a walk along attributes": b"\x80\x04X\x05\x00\x00\x00numpyX\x11\x00\x00\x00core.multiarray.os\x93.",
    "a persistent id": b"\x80\x03X\x01\x00\x00\x00aQ.",
    "an extension": b"\x80\x02\x82\x01.",
    "an array without end": array_pickle((2**40,), b"x"),
    "a bomb of bytes": b"\x80\x03" + global_("numpy", "dtype") + b"".join(b"C\x01x0" for _ in range(100_000)) + b"N.",
    "text repeated by a constructor": b"\x80\x03]"
    + b"".join(b"X\x08\x00\x00\x00" + b"x" * 8 + b"a" for _ in range(400_000))
    + b".",
    "ordered dicts": global_("collections", "OrderedDict")
    + b")R0" * 1
    + b"".join(global_("collections", "OrderedDict") + b")R0" for _ in range(100_000))
    + b"N.",
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize(("command", "suffix"), [(NETWORK, ".pkl"), (REFERENCE, ".pkl")], ids=["network", "statistics"])
def test_a_pickle(place: Place, name: str, command: tuple[str, list[str]], suffix: str) -> None:
    path = place / f"bomb{suffix}"
    path.write_bytes(PICKLES[name])
    place.refuses(command[0], [text.format(path.name) for text in command[1]], path.name)


def npy(shape: str, dtype: str = "|u1", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An npy file with any header."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


HEADERS = {
    "a large shape": npy("(100000, 1000, 1000, 3)"),
    "a shape that overflows": npy("(4294967296, 4294967296, 3)"),
    "a negative shape": npy("(-1, 8, 8, 3)"),
    "objects": npy("(4, 8, 8, 3)", "|O"),
    "texts": npy("(2,)", "<U1000000000"),
    "voids": npy("(4,)", "|V2147483647"),
    "a shape that is no tuple": npy("'x'"),
    "deep": npy("(" * 5000 + ")" * 5000),
    "a header that is code": npy("__import__('os').system('touch hacked')"),
    "a claimed header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{",
    "numbers without end": npy("(" + "9" * 4000 + ",)"),
    "no header": b"\x93NUMPY",
    "version 9": npy("(1, 8, 8, 3)", version=b"\x09\x00"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_an_array(place: Place, name: str) -> None:
    (place / "images/bomb.npy").write_bytes(HEADERS[name])
    place.refuses(IMAGES[0], [text.format("images") for text in IMAGES[1]], "bomb.npy")
    for entry, command in (("arr_0.npy", IMAGES), ("tint/features.npy", IMAGES), ("mu.npy", REFERENCE)):
        with zipfile.ZipFile(place / "bomb.npz", "w") as archive:
            archive.writestr(entry, HEADERS[name])
            archive.writestr("sigma.npy", HEADERS[name])
        place.refuses(command[0], [text.format("bomb.npz") for text in command[1]], "bomb.npz")
    assert not (place / "hacked").exists()


def swollen(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


PNGS: dict[str, bytes] = {
    "huge": claimed_png(60_000, 60_000),
    "wide": claimed_png(2**31 - 1, 1),
    "without pixels": claimed_png(0, 0),
    "text that swells": claimed_png(
        8, 8, chunk(b"zTXt", b"a\0\0" + swollen(60 * 2**20)), chunk(b"IDAT", swollen(8 * 25))
    ),
    "a profile that swells": claimed_png(
        8, 8, chunk(b"iCCP", b"a\0\0" + swollen(60 * 2**20)), chunk(b"IDAT", swollen(8 * 25))
    ),
    "many chunks": claimed_png(8, 8, *[chunk(b"tEXt", b"a\0b")] * 100_000),
    "no rows": claimed_png(8, 8, chunk(b"IDAT", swollen(0))),
    "rows cut short": claimed_png(8, 8, chunk(b"IDAT", swollen(7 * 25))),
    "rows of another": claimed_png(64, 64, chunk(b"IDAT", swollen(8 * 25))),
    "an animation": png(8, 8)[:33] + chunk(b"acTL", struct.pack(">II", 10**6, 0)) + png(8, 8)[33:],
}


@pytest.mark.parametrize("name", PNGS)
def test_a_png(place: Place, name: str) -> None:
    (place / "images/bomb.png").write_bytes(PNGS[name])
    outcome = place.run(IMAGES[0], [text.format("images") for text in IMAGES[1]])
    if name not in ("text that swells", "a profile that swells"):  # words beside sound pixels may be left unread
        assert outcome.code == 2
        assert "bomb.png" in outcome.err
    with zipfile.ZipFile(place / "bomb.zip", "w") as archive:
        archive.writestr("bomb.png", PNGS[name])
    assert place.run(TRAINING[0], [text.format("bomb.zip") for text in TRAINING[1]]).code == 2


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(hacked) (w) file closefile\n"
FORMATS = {
    "EPS": POSTSCRIPT,
    "GIF": b"GIF89a\x08\x00\x08\x00\x00\x00\x00;",
    "BMP": b"BM" + bytes(52),
    "TIFF": b"II*\x00" + bytes(60),
    "PPM": b"P6 8 8 255\n" + bytes(192),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PCX": b"\x0a\x05\x01\x08" + bytes(124),
    "ICO": b"\x00\x00\x01\x00\x01\x00" + bytes(60),
    "IM": b"Image type: RGB image\r\n" + bytes(600),
}


@pytest.mark.parametrize("name", FORMATS)
def test_another_format_under_the_name_of_a_png(place: Place, name: str) -> None:
    (place / "images/bomb.png").write_bytes(FORMATS[name])
    place.refuses(IMAGES[0], [text.format("images") for text in IMAGES[1]], "bomb.png")
    place.refuses(
        "repro", ["data", "convert", "images", "--out", "new.zip", "--resolution", "8", "--workers", "0"], "bomb.png"
    )
    assert not (place / "hacked").exists()


def zip_of(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def overlapping(path: Path) -> None:
    """A thousand entries that share one stream."""
    zip_of(path, {"000.png": png(64, 64)})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entries = b"".join(content[start:end].replace(b"000.png", b"%03d.png" % i) for i in range(1000))
    tail = b"PK\x05\x06\0\0\0\0" + struct.pack("<HHIIH", 1000, 1000, len(entries), start, 0)
    path.write_bytes(content[:start] + entries + tail)


def tar_of(path: Path, name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    path.write_bytes(info.tobuf() + bytes(1024))


TWO = {"a.png": png(8, 8), "b.png": png(8, 8)}


def labelled(path: Path, label: bytes) -> None:
    zip_of(path, {**TWO, "dataset.json": b'{"labels": [["a.png", 1], ["b.png", %s]]}' % label})


ARCHIVES: dict[str, Callable[[Path], object]] = {
    "a zip of zeros": lambda path: zip_of(path, {"a.png": bytes(200 * 2**20)}),
    "a zip that points outside": lambda path: zip_of(path, {"../../a.png": png(8, 8)}),
    "a zip from the root": lambda path: zip_of(path, {"/a.png": png(8, 8)}),
    "entries that overlap": overlapping,
    "labels without end": lambda path: zip_of(path, {**TWO, "dataset.json": b'{"labels": ' + b"[" * 100_000}),
    "a class of a billion": lambda path: labelled(path, b"1000000000"),
    "a class below 0": lambda path: labelled(path, b"-1"),
    "a class of 2.7": lambda path: labelled(path, b"2.7"),
    "a class that is a word": lambda path: labelled(path, b'"1"'),
    "a class of many digits": lambda path: labelled(path, b"9" * 5000),
    "a class that is true": lambda path: labelled(path, b"true"),
    "a class that is a list": lambda path: labelled(path, b"[1]"),
    "a deep class": lambda path: labelled(path, b"[" * 100_000),
    "labels of another shape": lambda path: zip_of(path, {**TWO, "dataset.json": b'{"labels": {"a.png": 1}}'}),
    "labels that are a number": lambda path: zip_of(path, {**TWO, "dataset.json": b"1"}),
    "labels that are not UTF-8": lambda path: zip_of(path, {**TWO, "dataset.json": b"\xff\xfe"}),
    "labels that swell": lambda path: zip_of(path, {**TWO, "dataset.json": b" " * (90 * 2**20)}),
    "a name of 60,000 letters": lambda path: zip_of(path, {**TWO, "c" * 60_000 + ".png": b"x"}),
    "a name of two lines": lambda path: zip_of(path, {**TWO, "c\nd.png": b"x"}),
}
TARS: dict[str, Callable[[Path], object]] = {
    "an entry of a petabyte": lambda path: tar_of(path, "a.png", size=2**50),
    "an entry of negative size": lambda path: tar_of(path, "a.png", size=-1),
    "a device": lambda path: tar_of(path, "a.png", tarfile.CHRTYPE),
    "a pipe": lambda path: tar_of(path, "a.png", tarfile.FIFOTYPE),
    "a link outside": lambda path: tar_of(path, "a.png", tarfile.SYMTYPE, link="/etc/passwd"),
    "a name outside": lambda path: tar_of(path, "../a.png"),
    "a sparse entry": lambda path: tar_of(path, "a.png", tarfile.GNUTYPE_SPARSE, size=2**40),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_zip(place: Place, name: str) -> None:
    ARCHIVES[name](place / "bomb.zip")
    place.refuses(IMAGES[0], [text.format("bomb.zip") for text in IMAGES[1]], "bomb.zip")
    place.refuses(TRAINING[0], [text.format("bomb.zip") for text in TRAINING[1]], "bomb.zip")


@pytest.mark.parametrize("name", TARS)
def test_a_tar(place: Place, name: str) -> None:
    TARS[name](place / "bomb.tar")
    place.refuses(IMAGES[0], [text.format("bomb.tar") for text in IMAGES[1]], "bomb.tar")


def safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor_header(**tensors: object) -> bytes:
    return json.dumps(tensors).encode()


TENSORS = {
    "a header of an exabyte": safetensors(b"{}", 2**60),
    "deep": safetensors(b'{"a":' * 100_000),
    "a tensor without end": safetensors(
        tensor_header(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]})
    ),
    "a shape that overflows": safetensors(
        tensor_header(a={"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 0]})
    ),
    "a metadata bomb": safetensors(tensor_header(__metadata__={"snapshot": "[" * 1_000_000})),
    "metadata that claim a network": safetensors(
        tensor_header(
            __metadata__={
                "snapshot": json.dumps(
                    {"network": {"img_resolution": 10**6, "img_channels": 10**6, "label_dim": 10**9}}
                )
            }
        )
    ),
    "nothing": safetensors(b"{}"),
    "no JSON": safetensors(b"\xff" * 100),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_safetensors_file(place: Place, name: str) -> None:
    (place / "bomb.safetensors").write_bytes(TENSORS[name])
    place.refuses(NETWORK[0], [text.format("bomb.safetensors") for text in NETWORK[1]], "bomb.safetensors")


def claims() -> Iterator[tuple[str, object]]:
    yield "img_resolution", 10**7
    yield "img_channels", 10**9
    yield "label_dim", 10**10
    yield "model_channels", 10**8
    yield "num_blocks", 10**8
    yield "channel_mult", [1] * 10**6
    yield "channel_mult", [10**9]
    yield "logvar_channels", 10**12
    yield "attn_resolutions", list(range(10**6))
    yield "img_resolution", -8
    yield "img_resolution", 2.5
    yield "model_channels", "many"
    yield "channels_per_head", 0
    yield "no_such_argument", 1


@pytest.mark.parametrize(("key", "value"), list(claims()), ids=lambda item: str(item)[:20])
def test_what_a_network_file_says_of_its_network(place: Place, key: str, value: object) -> None:
    """Sizes are held against the file before a network is built of them."""
    content = (place / "main.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    for name, text in header["__metadata__"].items():
        try:
            facts = json.loads(text)
        except ValueError:
            continue
        for inner in (facts, *(facts.values() if isinstance(facts, dict) else ())):
            if isinstance(inner, dict) and "img_resolution" in inner:
                inner[key] = value
                header["__metadata__"][name] = json.dumps(facts)
    changed = json.dumps(header).encode()
    assert changed != content[8 : 8 + size]
    (place / "bomb.safetensors").write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + size :])
    place.refuses(NETWORK[0], [text.format("bomb.safetensors") for text in NETWORK[1]], "bomb.safetensors")


@pytest.mark.parametrize(
    "seeds", ["0-" + "9" * 11, "0-" + "9" * 400, "-5", "5-1", "a-b", "", "0-1-2", "0x1-2", "1e9", "0 - 1"]
)
def test_seeds(place: Place, seeds: str) -> None:
    place.refuses("repro", ["generate", "--main", "main.pkl", *GENERATE[2:], "--seeds", seeds])
