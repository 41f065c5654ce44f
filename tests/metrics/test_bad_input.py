"""Bad input through the command line: one line that names the culprit and the remedy, exit code 2, old outputs kept."""

import io
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metrics import detectors, features, references
from metrics.__main__ import main
from metrics.features import FeatureSet
from metrics.statistics import Statistics, from_features

TAGS = {"detector": "colour", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}


class Colour:
    """Mean of each colour plane."""

    name = "colour"
    dim = 3
    tags = TAGS

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


class Broken(Colour):
    """A detector with broken weights."""

    def __call__(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 3), torch.nan)


detectors.register("colour", lambda **_: Colour())
detectors.register("broken", lambda **_: Broken())


def png(seed: int = 0, size: int = 8) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def folder(path: Path, count: int = 4, **extra: bytes) -> Path:
    path.mkdir()
    for i in range(count):
        (path / f"{i}.png").write_bytes(png(i))
    for name, content in extra.items():
        (path / f"{name}.png").write_bytes(content)
    return path


def archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def tape(path: Path, entries: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = tarfile.SYMTYPE, link
            file.addfile(info)
    return path


def huge_png() -> bytes:
    """A few hundred bytes that claim 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def arrays(path: Path, **content: np.ndarray) -> Path:
    np.savez(path, allow_pickle=True, **content)
    return path


def pixels(count: int = 4, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(dtype)


def feature_file(path: Path, x: np.ndarray, **tags: str) -> Path:
    features.save({"colour": FeatureSet.of(x.astype(np.float32), TAGS | tags)}, path)
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


RNG = np.random.default_rng(0)


def statistics_file(path: Path, **tags: str) -> Path:
    references.save({"colour": from_features(RNG.standard_normal((20, 3)), TAGS | tags)}, path)
    return path


def evaluate(source: Path | str, ref: Path | str, *more: str, detector: str = "colour") -> list[str]:
    return ["evaluate", str(source), "--ref", str(ref), "--detectors", detector, "--no-cache", "--workers", "0", *more]


def images_case(build: Callable[[Path], Path]) -> Callable[[Path], list[str]]:
    """Evaluate the images that `build` makes against a sound reference."""
    return lambda tmp: evaluate(build(tmp), statistics_file(tmp / "ref.npz"))


def reference_case(build: Callable[[Path], Path | str]) -> Callable[[Path], list[str]]:
    """Evaluate sound images against the reference that `build` makes."""
    return lambda tmp: evaluate(folder(tmp / "images"), build(tmp))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


CASES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "missing path": (images_case(lambda t: t / "nowhere"), "nowhere"),
    "empty folder": (images_case(lambda t: folder(t / "empty", 0)), "empty"),
    "one image": (images_case(lambda t: folder(t / "single", 1)), "at least 2 images, found 1"),
    "truncated PNG": (images_case(lambda t: folder(t / "i", cut_off=png()[:100])), "cut_off.png"),
    "empty PNG": (images_case(lambda t: folder(t / "i", nothing=b"")), "nothing.png"),
    "text named PNG": (images_case(lambda t: folder(t / "i", text=b"no image at all")), "text.png"),
    "absurdly large PNG": (images_case(lambda t: folder(t / "i", huge=huge_png())), "huge.png"),
    "zip entry that escapes": (
        images_case(lambda t: archive(t / "e.zip", {"../x.png": png(), "y.png": png()})),
        "e.zip",
    ),
    "zip bomb": (
        images_case(lambda t: archive(t / "bomb.zip", {f"{i}.png": png() + b"\0" * 50_000_000 for i in range(3)})),
        "bomb.zip",
    ),
    "truncated zip": (images_case(lambda t: cut(archive(t / "c.zip", {"a.png": png(), "b.png": png()}))), "c.zip"),
    "zip without images": (images_case(lambda t: archive(t / "none.zip", {"readme.txt": b"hello"})), "none.zip"),
    "tar entry that escapes": (images_case(lambda t: tape(t / "e.tar", {"../x.png": png(), "y.png": png()})), "e.tar"),
    "tar with a link": (images_case(lambda t: tape(t / "l.tar", {"y.png": png()}, link="/etc/passwd")), "l.tar"),
    "truncated tar": (images_case(lambda t: cut(tape(t / "c.tar", {"a.png": png(), "b.png": png()}), 0.06)), "c.tar"),
    "npz with an object array": (
        images_case(lambda t: arrays(t / "o.npz", arr_0=np.array([{}, {}], dtype=object))),
        "o.npz",
    ),
    "npz of floats": (images_case(lambda t: arrays(t / "f.npz", arr_0=pixels(dtype=np.float32))), "f.npz"),
    "npz of the wrong shape": (images_case(lambda t: arrays(t / "s.npz", arr_0=pixels()[..., 0])), "s.npz"),
    "npz without images": (images_case(lambda t: arrays(t / "w.npz", other=pixels())), "w.npz"),
    "truncated npz": (images_case(lambda t: cut(arrays(t / "c.npz", arr_0=pixels()))), "c.npz"),
    "unknown kind of file": (images_case(lambda t: written(t / "movie.mp4", b"film")), "movie.mp4"),
    "more images than there are": (
        lambda t: evaluate(folder(t / "few"), statistics_file(t / "r.npz"), "--num", "9"),
        "few",
    ),
    "reference without the detector": (
        lambda t: evaluate(folder(t / "i"), statistics_file(t / "r.npz"), detector="broken"),
        "r.npz: has no statistics of detector 'broken'",
    ),
    "features with NaN": (
        images_case(lambda t: feature_file(t / "nan.npz", np.full((5, 3), np.nan))),
        "nan.npz: 'colour/features' holds NaN",
    ),
    "features of another width": (
        images_case(lambda t: feature_file(t / "wide.npz", RNG.standard_normal((9, 5)))),
        "5 and 3 dimensions",
    ),
    "features of another resize": (
        images_case(lambda t: feature_file(t / "pil.npz", RNG.standard_normal((9, 3)), resize="pil")),
        "tag 'resize' differs: 'pil'",
    ),
    "features of other weights": (
        images_case(lambda t: feature_file(t / "w.npz", RNG.standard_normal((9, 3)), weights_sha256="1" * 64)),
        "tag 'weights_sha256' differs",
    ),
    "missing reference": (reference_case(lambda t: t / "gone.npz"), r"gone.npz: no such file"),
    "reference pickle with a foreign global": (
        reference_case(lambda t: written(t / "evil.pkl", b"cos\nsystem\n(S'true'\ntR.")),
        r"evil.pkl: names os.system",
    ),
    "truncated reference pickle": (
        reference_case(lambda t: written(t / "c.pkl", pickle.dumps({"fid": {"mu": np.zeros(9)}})[:50])),
        "c.pkl",
    ),
    "reference pickle of something else": (
        reference_case(lambda t: written(t / "list.pkl", pickle.dumps([1, 2]))),
        "list.pkl: expected a dict",
    ),
    "reference that is no npz": (reference_case(lambda t: written(t / "n.npz", b"nothing")), "n.npz: not a sound npz"),
    "reference of another detector": (
        reference_case(lambda t: arrays(t / "edm.npz", mu=np.zeros(2048), sigma=np.eye(2048))),
        r"edm.npz: has no statistics of detector 'colour', only of \['inception'\]",
    ),
    "reference of another width": (
        reference_case(lambda t: arrays(t / "w.npz", mu=np.zeros(7), sigma=np.eye(7))),
        "w.npz: mu has shape",
    ),
    "reference with an indefinite sigma": (
        reference_case(
            lambda t: (
                references.save(
                    {"colour": Statistics(9, np.zeros(3), np.array([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]]), TAGS)},
                    t / "neg.npz",
                ),
                t / "neg.npz",
            )[1]
        ),
        "negative eigenvalues",
    ),
    "KID from statistics alone": (
        lambda t: evaluate(folder(t / "i"), statistics_file(t / "only.npz"), "--metrics", "fd,kid"),
        "only.npz: holds statistics only",
    ),
    "KID of few images": (
        lambda t: evaluate(folder(t / "i"), folder(t / "j"), "--metrics", "kid"),
        "subsets of 1000 images",
    ),
    "classes without labels": (
        lambda t: evaluate(folder(t / "i"), folder(t / "j"), "--metrics", "per_class"),
        "need labels",
    ),
    "too few neighbours": (
        lambda t: evaluate(folder(t / "i"), folder(t / "j"), "--metrics", "density_coverage"),
        "k = 5 nearest neighbours need more than 5 images, found 4",
    ),
    "unknown metric": (
        lambda t: evaluate(folder(t / "i"), folder(t / "j"), "--metrics", "fdi"),
        "metric 'fdi' is unknown; did you mean 'fd'",
    ),
    "unknown detector": (
        lambda t: evaluate(folder(t / "i"), folder(t / "j"), detector="vgg"),
        "vgg",
    ),
    "weights that are not there": (
        lambda t: evaluate(folder(t / "i"), folder(t / "j"), "--weights", str(t / "no.pth"), detector="inception"),
        "no.pth",
    ),
    "weights of something else": (
        lambda t: evaluate(
            folder(t / "i"), folder(t / "j"), "--weights", str(written(t / "no.pth", b"text")), detector="inception"
        ),
        "no.pth",
    ),
    "output that is a folder": (
        lambda t: [*evaluate(folder(t / "i"), folder(t / "j")), "--csv", str(t)],
        "a folder or no file; name a file",
    ),
    "output below a file": (
        lambda t: [*evaluate(folder(t / "i"), folder(t / "j")), "--csv", str(written(t / "f", b"") / "x.csv")],
        "nothing can be written to",
    ),
    "sets of different size in a comparison": (
        lambda t: [
            *("compare", str(feature_file(t / "a.npz", RNG.standard_normal((30, 3))))),
            *(str(feature_file(t / "b.npz", RNG.standard_normal((31, 3)))), "--ref", str(statistics_file(t / "r.npz"))),
            *("--detectors", "colour"),
        ],
        "found 30 and 31",
    ),
    "unknown option": (lambda t: [*evaluate("i", "j"), "--metric", "fd"], "No such option"),
    "missing option": (lambda t: ["evaluate", "i"], "Missing option '--ref'"),
    "plugin that is not there": (
        lambda t: [*evaluate(folder(t / "i"), folder(t / "j")), "--plugin", "no_such_module"],
        "plugin 'no_such_module' cannot be imported",
    ),
}


EARLIER = '{"results": [], "warnings": ["an earlier result"], "versions": "autoguidance-repro 0.1.0"}'


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=list(CASES))
def test_bad_input_is_one_line_exit_code_2_and_touches_no_output(
    arguments: Callable[[Path], list[str]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(tmp_path)
    out = tmp_path / "out.json"
    out.write_text(EARLIER)
    code = main([*command, "--json", str(out)])
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("metrics: error: ")]
    assert code == 2
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    assert not any("Traceback" in line for line in lines)
    assert re.search(message, errors[0]), errors[0]
    assert out.read_text() == EARLIER


@pytest.mark.parametrize("command", ["reference", "features"])
def test_files_being_replaced_survive_a_failure(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = feature_file(tmp_path / "old.npz", RNG.standard_normal((4, 3)))
    earlier = out.read_bytes()
    source = folder(tmp_path / "images", cut_off=png()[:80])
    assert main([command, str(source), "--out", str(out), "--detectors", "colour", "--no-cache", "--workers", "0"]) == 2
    assert "cut_off.png" in capsys.readouterr().err
    assert out.read_bytes() == earlier


def test_a_detector_that_gives_nan_names_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "images")
    assert main(evaluate(source, source, detector="broken")) == 2
    assert "detector 'broken' gave NaN or infinity for an image from" in capsys.readouterr().err
