"""What is asked for on the command line: names, several sets, subsets; what cannot be done, and what is lost."""

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metrics import detectors, features, references
from metrics.__main__ import main
from metrics.features import FeatureSet
from metrics.files import InputError
from metrics.frechet import frechet_distance
from metrics.images import sets
from metrics.measure import METRICS, Metric, Options
from metrics.statistics import from_features

TAGS = {"detector": "hue", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}
SECONDS = 5


class Hue:
    """Mean of each colour plane."""

    name, dim, tags = "hue", 3, TAGS

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


class Shade(Hue):
    """The same under another name."""

    name, tags = "shade", {**TAGS, "detector": "shade"}


class Headless(Hue):
    """Stands for Inception whose weights have no final layer."""

    name, tags = "inception", {**TAGS, "detector": "inception"}

    def logits(self, features: Tensor) -> Tensor:
        raise InputError("these Inception weights have no final layer 'fc'")


detectors.register("hue", lambda **_: Hue())
detectors.register("shade", lambda **_: Shade())


def folder(path: Path, count: int = 8, size: tuple[int, int] = (8, 8), seed: int = 0, classes: int = 0) -> Path:
    """PNGs of a width and a height, in folders per class if there are several."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        place = path / str(i % classes) if classes else path
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(place / f"{i:03d}.png")
    return path


def statistics_file(path: Path, name: str = "hue", dim: int = 3, **tags: str) -> Path:
    x = np.random.default_rng(7).standard_normal((40, dim)) * 30 + 127
    references.save({name: from_features(x, TAGS | {"detector": name} | tags)}, path)
    return path


def feature_file(path: Path, count: int = 30, seed: int = 1, **tags: str) -> tuple[Path, np.ndarray]:
    x = (np.random.default_rng(seed).standard_normal((count, 3)) * 30 + 127).astype(np.float32)
    features.save({"hue": FeatureSet.of(x, TAGS | tags)}, path)
    return path, x


def evaluate(*arguments: Path | str, ref: Path, detector: str = "hue", cache: Path | None = None) -> list[str]:
    kept = ["--cache", str(cache)] if cache else ["--no-cache"]
    return [
        *("evaluate", *map(str, arguments), "--ref", str(ref), "--detectors", detector, "--workers", "0", *kept),
    ]


def measured(capsys: pytest.CaptureFixture[str], command: list[str], code: int = 0) -> dict[str, Any]:
    """Run it; what `--json -` says, which is all that there is on standard output."""
    capsys.readouterr()
    assert main([*command, "--json", "-"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


Case = Callable[[Path], list[str]]
#: What cannot be done -> the command, and words of its one line.
IMPOSSIBLE: dict[str, tuple[Case, str]] = {
    "Inception score without logits": (
        lambda t: [
            *evaluate(folder(t / "a", 12), ref=statistics_file(t / "r.npz", "inception"), detector="inception"),
            *("--metrics", "fd,is"),
        ],
        "no final layer",
    ),
    "Inception score of kept features": (
        lambda t: [
            *evaluate(keep_as(t / "f.npz", "inception"), ref=statistics_file(t / "r.npz", "inception")),
            *("--metrics", "is", "--detectors", "shade"),
        ],
        "no final layer",
    ),
    "KID subsets larger than the set": (
        lambda t: [*evaluate(folder(t / "a"), ref=folder(t / "b", 30)), "--metrics", "kid", "--kid-subset-size", "9"],
        "subsets of 9 images needs as many on both sides, found 30 and 8",
    ),
    "KID subsets larger than the reference": (
        lambda t: [*evaluate(folder(t / "a", 30), ref=folder(t / "b")), "--metrics", "kid", "--kid-subset-size", "9"],
        "found 8 and 30",
    ),
    "KID subsets larger than a block": (
        lambda t: [
            *evaluate(folder(t / "a", 30), ref=folder(t / "b", 30)),
            *("--metrics", "kid", "--kid-subset-size", "20", "--blocks", "2"),
        ],
        "found 30 and 15",
    ),
    "more neighbours than images": (
        lambda t: [*evaluate(folder(t / "a"), ref=folder(t / "b", 30)), "--metrics", "precision_recall", "--k", "8"],
        "k = 8 nearest neighbours need more than 8 images, found 8",
    ),
    "more neighbours than images of the reference": (
        lambda t: [*evaluate(folder(t / "a", 30), ref=folder(t / "b", 5)), "--metrics", "prdc"],
        "k = 5 nearest neighbours need more than 5 images, found 5",
    ),
    "neighbours from statistics": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--metrics", "fd,prdc"],
        "r.npz: holds statistics only, and precision_recall need features",
    ),
    "copies without the training images": (
        lambda t: [*evaluate(folder(t / "a", 30), ref=statistics_file(t / "r.npz")), "--metrics", "authpct"],
        "the reference does not hold them all; name them with --train",
    ),
    "copies without held-out images": (
        lambda t: [*evaluate(folder(t / "a", 30), ref=folder(t / "b", 30)), "--metrics", "ct"],
        "name such a held-out set with --test",
    ),
    "copies among too few images": (
        lambda t: [
            *evaluate(folder(t / "a", 20), ref=folder(t / "b", 30)),
            *("--metrics", "ct", "--test", str(folder(t / "c", 30))),
        ],
        "C_T needs more than 20 images in a cell, found 20 in all",
    ),
    "training images that nothing compares with": (
        lambda t: [*evaluate(folder(t / "a"), ref=folder(t / "b")), "--train", str(folder(t / "c"))],
        "--train is given, which only authpct and ct can compare with",
    ),
    "classes without labels": (
        lambda t: [*evaluate(folder(t / "a", classes=2), ref=folder(t / "b")), "--metrics", "per_class"],
        "need labels on both sides",
    ),
    "jackknife of more blocks than images": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--error-blocks", "5"],
        "5 blocks need at least 10 images, found 8",
    ),
    "extrapolation of few images": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--metrics", "fd_infinity"],
        "blocks need at least 10 images, found 4",
    ),
    "features made otherwise": (
        lambda t: evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz", resize="area")),
        "tag 'resize' differs",
    ),
    "features of another width": (
        lambda t: evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz", dim=5)),
        "features have 3 and 5 dimensions",
    ),
    "reference without the detector": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--metrics", "fd,fd_shade"],
        "has no statistics of detector 'shade'",
    ),
    "reference that is no covariance": (
        lambda t: evaluate(folder(t / "a"), ref=no_covariance(t / "r.npz")),
        "negative eigenvalues",
    ),
    "more images than there are": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--num", "9"],
        "holds 8 images, so 9 cannot be taken",
    ),
    "more rows than a file has": (
        lambda t: [*evaluate(feature_file(t / "f.npz")[0], ref=statistics_file(t / "r.npz")), "--num", "31"],
        "holds 30 images, so 31 cannot be taken",
    ),
    "a seed without a number": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--seed", "1"],
        "seed is 1 without num, expected both",
    ),
    "a set of one image, behind a sound one": (
        lambda t: evaluate(folder(t / "a"), folder(t / "b", 1), ref=statistics_file(t / "r.npz")),
        "at least 2 images, found 1",
    ),
    "a set that is not there, behind a sound one": (
        lambda t: evaluate(folder(t / "a"), t / "gone", ref=statistics_file(t / "r.npz")),
        "gone",
    ),
    "one set twice": (
        lambda t: evaluate(folder(t / "a"), t / "a", ref=statistics_file(t / "r.npz")),
        "given twice",
    ),
    "a pattern that finds nothing": (
        lambda t: evaluate(t / "*.zip", ref=statistics_file(t / "r.npz")),
        "no file or folder of that pattern",
    ),
    "rows of other columns": (
        lambda t: [
            *evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")),
            *("--append", "--csv", str(written(t / "notes.csv", "metric,value\nfid,2.1\n"))),
        ],
        "notes.csv: has other columns",
    ),
    "rows for no file": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--append"],
        "name it with --csv",
    ),
    "an output that cannot be written": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--json", str(t / "a")],
        "name a file",
    ),
    "an output where not even root can write": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--json", "/proc/self/x.json"],
        "nothing can be written to /proc/self",
    ),
    "a metric in features that it is not defined in": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--metrics", "fd,is_hue"],
        "inception_score is defined in features of inception only",
    ),
    "a metric that there is not": (
        lambda t: [*evaluate(folder(t / "a"), ref=statistics_file(t / "r.npz")), "--metrics", "fd_hues"],
        "did you mean 'fd_hue'",
    ),
    "comparing sets of different numbers": (
        lambda t: [
            *("compare", str(folder(t / "a")), str(folder(t / "b", 9)), "--ref", str(statistics_file(t / "r.npz"))),
            *("--detectors", "hue", "--no-cache", "--error-blocks", "2"),
        ],
        "found 8 and 9",
    ),
    "comparing with more blocks than images": (
        lambda t: [
            *("compare", str(folder(t / "a")), str(folder(t / "b")), "--ref", str(statistics_file(t / "r.npz"))),
            *("--detectors", "hue", "--no-cache"),
        ],
        "10 blocks need at least 20 images, found 8",
    ),
}


def keep_as(path: Path, name: str) -> Path:
    x = np.random.default_rng(3).standard_normal((30, 3)).astype(np.float32)
    features.save({name: FeatureSet.of(x, TAGS | {"detector": name})}, path)
    return path


def no_covariance(path: Path) -> Path:
    stats = from_features(np.random.default_rng(0).standard_normal((9, 3)), TAGS)
    stats.sigma[:] = [[1, 2, 0], [2, 1, 0], [0, 0, 1]]
    references.save({"hue": stats}, path)
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(("command", "message"), IMPOSSIBLE.values(), ids=list(IMPOSSIBLE))
def test_what_cannot_be_done_is_refused_before_an_image_is_looked_at(
    command: Case, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an image was looked at")

    arguments = command(tmp_path)
    monkeypatch.setattr(sets, "inspect", never)
    monkeypatch.setattr(Hue, "__call__", never)
    monkeypatch.setitem(detectors.DETECTORS, "inception", lambda **_: Headless())
    began = time.monotonic()
    assert main(arguments) == 2
    assert time.monotonic() - began < SECONDS
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.fixture
def failing() -> Iterator[None]:
    """A metric that nothing speaks against, and that fails at the end."""

    def fails(_: object) -> list[Any]:
        raise RuntimeError("out of luck")

    METRICS.register("unlucky", Metric(fails))
    yield
    del METRICS["unlucky"]


@pytest.mark.usefixtures("failing")
def test_a_metric_that_fails_at_the_end_does_not_take_the_others_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, ref, table = folder(tmp_path / "a", 20), folder(tmp_path / "b", 30, seed=1), tmp_path / "t.csv"
    command = [*evaluate(images, ref=ref), "--metrics", "fd,unlucky,prdc", "--csv", str(table)]
    found = measured(capsys, command, code=3)
    assert [x["metric"] for x in found["results"]] == ["fd_hue", "precision", "recall", "density", "coverage"]
    assert [x["why"] for x in found["missing"]] == ["unexpected RuntimeError: out of luck"]
    assert len(table.read_text().splitlines()) == 6
    assert main(command[:-2]) == 3
    told = capsys.readouterr()
    assert f"missing: unlucky of hue of {images} is missing: unexpected RuntimeError: out of luck" in told.err
    assert "coverage" in told.out


def test_a_set_that_fails_at_the_end_does_not_take_the_others_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, dark = folder(tmp_path / "sound"), tmp_path / "dark"
    dark.mkdir()
    for i in range(4):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(dark / f"{i}.png")
    monkeypatch.setattr(Hue, "__call__", lambda _, x: torch.log(x.float().mean(dim=(2, 3))))  # -inf where it is dark
    found = measured(capsys, evaluate(dark, sound, ref=statistics_file(tmp_path / "r.npz")), code=3)
    assert [x["images"] for x in found["results"]] == [str(sound)]
    assert [(x["images"], "NaN or infinity" in x["why"]) for x in found["missing"]] == [(str(dark), True)]


def test_all_measures_what_can_be_and_says_what_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder(tmp_path / "a", 30)
    statistics = measured(capsys, [*evaluate(images, ref=statistics_file(tmp_path / "r.npz")), "--metrics", "all"])
    assert {x["metric"] for x in statistics["results"]} == {"fd_hue", "fd_hue_infinity", "vendi"}
    left_out = [text for text in statistics["warnings"] if "is left out" in text]
    assert {text.split(" of ")[0] for text in left_out} == {
        *("kid", "precision_recall", "density_coverage", "per_class", "adm_precision_recall", "authpct", "ct")
    }
    assert "kid of hue is left out: " in left_out[0]
    assert "holds statistics only" in left_out[0]
    options = ["--metrics", "all", "--kid-subset-size", "20"]
    everything = measured(capsys, [*evaluate(images, ref=folder(tmp_path / "b", 30, seed=1)), *options])
    assert {"kid", "precision", "coverage", "authpct"} < {x["metric"] for x in everything["results"]}
    assert [text.split(" of ")[0] for text in everything["warnings"] if "is left out" in text] == ["per_class", "ct"]
    with pytest.raises(InputError, match="metric 'everything' is unknown"):
        Options(("everything",))


@pytest.mark.parametrize(
    ("metrics", "detectors_", "expected"),
    [
        (("fid",), ("inception",), {"inception": ("fd",)}),
        (("FID", "kid", "is", "prdc"), ("inception",), {"inception": ("fd", "kid", "inception_score", *("P", "D"))}),
        (("fd_dinov2",), ("inception",), {"dinov2": ("fd",)}),
        (("fid", "fd_dinov2"), ("inception",), {"inception": ("fd",), "dinov2": ("fd",)}),
        (("fd_dinov2", "kid"), ("inception",), {"inception": ("kid",), "dinov2": ("fd",)}),
        (("fd", "is"), ("dinov2",), {"dinov2": ("fd",), "inception": ("inception_score",)}),
        (("fid_infinity", "prdc_dinov2"), ("hue",), {"inception": ("fd_infinity",), "dinov2": ("P", "D")}),
    ],
)
def test_the_names_that_people_expect(
    metrics: tuple[str, ...], detectors_: tuple[str, ...], expected: dict[str, tuple[str, ...]]
) -> None:
    options = Options(metrics).bound(detectors_)
    long = {"P": "precision_recall", "D": "density_coverage"}
    found = {name: options.of(name) for name in options.detectors}
    assert found == {name: tuple(long.get(x, x) for x in asked) for name, asked in expected.items()}


def test_several_sets_are_measured_each_and_a_pattern_or_pool_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = statistics_file(tmp_path / "r.npz")
    (tmp_path / "shards").mkdir()
    paths = [feature_file(tmp_path / f"{i}.npz", 30 + i, seed=i)[0] for i in range(3)]
    images = [folder(tmp_path / "shards" / str(i), 8, seed=i) for i in range(2)]
    found = measured(capsys, evaluate(*paths, *images, ref=ref))
    target = references.load(ref)
    assert target is not None
    for path, result in zip(paths, found["results"], strict=False):
        (kept,) = features.load(path).values()
        assert result["images"] == str(path)
        assert result["num_images"] == kept.num_images
        expected = frechet_distance(kept.statistics(), target.require("hue"))
        assert result["value"] == pytest.approx(expected, rel=1e-9)
    assert [x["images"] for x in found["sets"]] == [*map(str, paths), *map(str, images)]
    assert len({x["images_digest"] for x in found["sets"]}) == 5
    assert main(evaluate(*paths, ref=ref)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "detector", "set", "images", "subset", "value"]
    assert [line.split()[2] for line in lines[1:4]] == [*map(str, paths)]
    pooled = measured(capsys, [*evaluate(*images, ref=ref), "--pool"])
    pattern = measured(capsys, evaluate(tmp_path / "shards" / "*", ref=ref))
    assert [x["num_images"] for x in pooled["results"]] == [16]
    assert pattern["results"] == pooled["results"]


def test_rows_are_added_to_a_table_of_the_same_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref, table = statistics_file(tmp_path / "r.npz"), tmp_path / "table.csv"
    paths = [feature_file(tmp_path / f"{i}.npz", seed=i)[0] for i in range(3)]
    for path in paths:
        assert main([*evaluate(path, ref=ref), "--csv", str(table), "--append"]) == 0
    together = measured(capsys, evaluate(*paths, ref=ref))
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["images"] for row in rows] == [*map(str, paths)]
    assert [float(row["value"]) for row in rows] == [x["value"] for x in together["results"]]
    assert main([*evaluate(paths[0], ref=ref), "--csv", str(table)]) == 0  # which replaces it
    assert len(table.read_text().splitlines()) == 2


def test_a_table_on_the_screen_has_nothing_else_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*evaluate(folder(tmp_path / "a"), ref=statistics_file(tmp_path / "r.npz")), "--csv", "-"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["images_size"] == "8x8"


@pytest.mark.parametrize("seed", [[], ["--seed", "5"]])
def test_a_subset_of_kept_features_is_that_of_the_images_and_needs_none(
    seed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "CHUNK", 4)
    images, ref, kept = folder(tmp_path / "a", 30), statistics_file(tmp_path / "r.npz"), tmp_path / "kept.npz"
    cache, subset = tmp_path / "cache", ["--num", "9", *seed]
    fresh = measured(capsys, [*evaluate(images, ref=ref), *subset])
    make = ["features", str(images), "--out", str(kept), "--detectors", "hue", "--workers", "0", "--cache", str(cache)]
    assert main(make) == 0

    def never(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Hue, "__call__", never)
    of_file = measured(capsys, [*evaluate(kept, ref=ref), *subset])
    of_images = measured(capsys, [*evaluate(images, ref=ref, cache=cache), *subset])
    for found in (of_file, of_images):
        assert found["results"][0]["value"] == pytest.approx(fresh["results"][0]["value"], rel=1e-6)
        assert found["results"][0]["num_images"] == 9
        assert any("9 of 30 images" in text for text in found["warnings"])
    assert of_file["sets"][0]["images_size"] == "8x8"


def test_a_damaged_index_of_kept_features_is_no_harm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, ref, cache = folder(tmp_path / "a", 12), statistics_file(tmp_path / "r.npz"), tmp_path / "cache"
    assert main(evaluate(images, ref=ref, cache=cache)) == 0
    (index,) = cache.glob(f"*/{features.INDEX}")
    whole = index.read_bytes()
    fresh = measured(capsys, [*evaluate(images, ref=ref), "--num", "5"])["results"]
    for content in (b"", whole[:-40], b"no index"):
        index.write_bytes(content)
        found = measured(capsys, [*evaluate(images, ref=ref, cache=cache), "--num", "5"])["results"]
        assert found[0]["value"] == pytest.approx(fresh[0]["value"], rel=1e-6)
    index.write_bytes(whole)
    for chunk in index.parent.glob("chunk-*.npz"):
        chunk.write_bytes(chunk.read_bytes()[:-50])
    found = measured(capsys, [*evaluate(images, ref=ref, cache=cache), "--num", "6"])["results"]
    assert found[0]["num_images"] == 6


def test_sizes_are_recorded_told_and_refused_if_one_likes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large, wide = (folder(tmp_path / n, size=s) for n, s in (("s", (8, 8)), ("l", (16, 16)), ("w", (16, 8))))
    ref = tmp_path / "r.npz"
    extraction = ["--detectors", "hue", "--no-cache", "--workers", "0"]
    assert main(["reference", str(small), "--out", str(ref), *extraction]) == 0
    same = measured(capsys, [*evaluate(small, ref=ref), "--strict-size"])
    assert (same["reference_size"], same["sets"][0]["images_size"]) == ("8x8", "8x8")
    assert not [text for text in same["warnings"] if "images of" in text and "FID" not in text]
    other = measured(capsys, evaluate(large, wide, ref=ref))
    told = "\n".join(other["warnings"])
    assert f"{large}: images of 16x16 against 8x8 of {ref}: the detector resizes the two" in told
    assert f"{wide}: images that are not square, 16x8" in told
    assert f"{wide}: images of another aspect ratio" in told
    mixed = measured(capsys, [*evaluate(small, large, ref=ref), "--pool"])
    assert mixed["sets"][0]["images_size"] == "8x8..16x16"
    assert any("mixed sizes, 8x8..16x16" in text for text in mixed["warnings"])
    monkeypatch.setattr(Hue, "__call__", None)  # refused before it is called
    for sources in ((large,), (small, wide)):
        assert main([*evaluate(*sources, ref=ref), "--strict-size"]) == 2
        assert "--strict-size" in capsys.readouterr().err
    command = ["compare", str(small), str(large), "--ref", str(ref), "--error-blocks", "2", *extraction]
    assert main([*command, "--strict-size"]) == 2


def test_a_file_of_before_sizes_were_recorded_is_measured_as_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(
        capsys, [*evaluate(folder(tmp_path / "a"), ref=statistics_file(tmp_path / "r.npz")), "--strict-size"]
    )
    assert found["reference_size"] == ""
    strange = statistics_file(tmp_path / "s.npz", image_size="huge\nx")
    assert measured(capsys, evaluate(tmp_path / "a", ref=strange))["reference_size"] == ""


def test_what_there_is_to_choose_from_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    for word in (*METRICS, *detectors.DETECTORS, "img512", "prdc"):
        assert word in everything
    assert main(["list", "references"]) == 0
    assert "img512" in (few := capsys.readouterr().out)
    assert "dinov2" not in few.splitlines()[0]
