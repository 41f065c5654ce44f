"""Measuring what a program holds or makes: arrays, tensors, batches, and inside a training loop."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import metrics
from metrics import detectors, features
from metrics.evaluation import Extractor, compare, evaluate, evaluate_sets
from metrics.evaluator import Evaluator
from metrics.files import InputError
from metrics.images import NAME
from metrics.measure import Options
from metrics.streams import Stream

ROOT = Path(__file__).resolve().parents[2]
TAGS = {"detector": "corners", "weights_sha256": "0" * 64, "resize": "none", "dtype": "float32"}


class Corners:
    """The red, green and blue of the first pixel, and the mean: a detector of four features, in exact arithmetic."""

    name, dim, tags = "corners", 4, TAGS

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 256
        return torch.cat([x[:, :, 0, 0], x.mean(dim=(1, 2, 3))[:, None]], dim=1)


detectors.register("corners", lambda **_: Corners())
EXTRACTOR = Extractor(["corners"], batch_size=16)
WANTED: dict[str, Any] = {"extractor": EXTRACTOR, "options": Options(("fd", "kid", "prdc"), kid_subset_size=20)}
FAKE = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
REAL = torch.randint(0, 200, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def channels_last(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def folder(path: Path, images: torch.Tensor) -> Path:
    path.mkdir()
    for i, image in enumerate(channels_last(images)):
        PIL.Image.fromarray(image).save(path / f"{i:03d}.png")
    return path


def found(results: metrics.Results) -> dict[str, float]:
    return {m.metric: m.value for m in results.measurements}


class Squares:
    """A data set that has a length and items with labels, and cannot be iterated otherwise."""

    def __len__(self) -> int:
        return len(FAKE)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return PIL.Image.fromarray(channels_last(FAKE)[range(50)[index]]), index % 10


def generator() -> Iterator[torch.Tensor]:
    yield from FAKE.split(7)


HELD: dict[str, Any] = {
    "tensor": lambda: FAKE,
    "array": lambda: channels_last(FAKE),
    "read-only array": lambda: np.frombuffer(channels_last(FAKE).tobytes(), np.uint8).reshape(50, 8, 8, 3),
    "loader": lambda: DataLoader(TensorDataset(FAKE), batch_size=13),
    "loader with labels": lambda: DataLoader(TensorDataset(FAKE, torch.arange(50)), batch_size=13),
    "loader of a data set": lambda: DataLoader(Squares(), batch_size=9, collate_fn=list),  # type: ignore[arg-type]
    "generator": generator,
    "list of PIL images": lambda: [PIL.Image.fromarray(x) for x in channels_last(FAKE)],
    "list of arrays": lambda: list(channels_last(FAKE)),
    "tuple of tensors": lambda: tuple(FAKE),
    "data set": Squares,
}


@pytest.fixture(scope="module")
def from_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    root = tmp_path_factory.mktemp("files")
    return found(evaluate(folder(root / "fake", FAKE), folder(root / "real", REAL), **WANTED))


@pytest.mark.parametrize("kind", HELD)
def test_images_that_a_program_holds_are_measured_as_files_are(kind: str, from_files: dict[str, float]) -> None:
    results = evaluate(HELD[kind](), REAL, **WANTED)
    assert found(results) == from_files
    assert found(evaluate(FAKE, DataLoader(TensorDataset(REAL), batch_size=25), **WANTED)) == from_files


def test_what_is_measured_has_one_digest_and_size_however_it_comes() -> None:
    sets = [evaluate(HELD[kind](), REAL, **WANTED).sets["the images given"] for kind in ("array", "generator")]
    assert sets[0] == sets[1]
    assert sets[0]["images_size"] == "8x8"
    assert evaluate(FAKE[:49], REAL, **WANTED).sets["the images given"]["images_digest"] != sets[0]["images_digest"]


def test_grey_and_transparent_images_become_rgb_as_files_do() -> None:
    grey, alpha = FAKE[:, :1], torch.cat([FAKE, FAKE[:, :1]], dim=1)
    expected = found(evaluate(grey.repeat(1, 3, 1, 1), REAL, **WANTED))
    assert found(evaluate(grey, REAL, **WANTED)) == found(evaluate(channels_last(grey), REAL, **WANTED)) == expected
    assert found(evaluate(channels_last(alpha), REAL, **WANTED)) == found(evaluate(FAKE, REAL, **WANTED))


def test_a_subset_of_an_array_is_that_of_files_and_of_batches_the_first_ones(tmp_path: Path) -> None:
    files, real = folder(tmp_path / "fake", FAKE), REAL
    of_files, of_array = (found(evaluate(x, real, num=30, seed=3, **WANTED)) for x in (files, FAKE))
    assert of_files == of_array
    asked: list[int] = []

    def counted() -> Iterator[torch.Tensor]:
        for start in range(0, 50, 10):
            asked.append(start)
            yield FAKE[start : start + 10]

    assert found(evaluate(counted(), real, num=25, **WANTED)) == found(evaluate(FAKE[:25], real, **WANTED))
    assert asked == [0, 10, 20]  # not one more than it needs
    with pytest.raises(InputError, match="no random subset"):
        evaluate(counted(), real, num=25, seed=1, **WANTED)
    with pytest.raises(InputError, match="at least 2"):
        evaluate(counted(), real, num=0, **WANTED)
    with pytest.raises(InputError, match="are 50, so 60 cannot be taken"):
        evaluate(counted(), real, num=60, **WANTED)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (FAKE.float() / 255, r"float32 \[50, 3, 8, 8\], expected uint8.* of floats to 1"),
        (channels_last(FAKE).transpose(0, 3, 1, 2), r"an array \[50, 3, 8, 8\], expected"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"a tensor \[0, 3, 8, 8\]"),
        ([FAKE[0], FAKE[1].int()], r"int32 \[1, 3, 8, 8\]"),
        ([{"pixels": FAKE}], "dict.* is no batch of images"),
        ([(FAKE, FAKE)], "2 batches at a time"),
        ([PIL.Image.new("I;16", (8, 8))], "more than 8 bits"),
        ({"images": FAKE}, "dict"),
        (3.5, "float.*expected uint8"),
        (iter([]), "there were none"),
    ],
)
def test_what_holds_no_images_is_refused_with_what_is_expected(images: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as err:
        evaluate(images, REAL, **WANTED)
    assert "\n" not in str(err.value)


def test_what_cannot_be_measured_is_found_before_a_batch_is_asked_for(tmp_path: Path) -> None:
    def never() -> Iterator[torch.Tensor]:
        pytest.fail("a batch was asked for")
        yield FAKE

    with pytest.raises(InputError, match="KID with subsets of 1000"):
        evaluate(never(), REAL, extractor=EXTRACTOR, metrics=("kid",))
    with pytest.raises(InputError, match="need more than 60 images"):
        evaluate(never(), REAL, extractor=EXTRACTOR, options=Options(("precision_recall",), k=60))
    with pytest.raises(InputError, match="batches have no random subset"):  # nor is the reference looked at
        evaluate(never(), tmp_path / "nowhere.npz", extractor=EXTRACTOR, num=10, seed=0)


def test_statistics_in_the_place_of_images_are_refused() -> None:
    real = EXTRACTOR.read(REAL)
    statistics = replace(real, features={}, statistics={"corners": real.require("corners")})
    for asked in (lambda: evaluate(statistics, REAL, **WANTED), lambda: compare(EXTRACTOR, statistics, FAKE, REAL)):
        with pytest.raises(InputError, match="holds no features of 'corners'; give images or features"):
            asked()


def test_several_arrays_are_told_by_their_number() -> None:
    both = evaluate_sets([FAKE, REAL], REAL, EXTRACTOR, Options(("fd",)))
    assert {m.images: m.value for m in both.measurements} == {
        f"{NAME}, {i}": evaluate(x, REAL, extractor=EXTRACTOR).measurements[0].value
        for i, x in enumerate((FAKE, REAL), 1)
    }


def test_a_comparison_by_seed_takes_no_set_with_images_left_out(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "a", FAKE), folder(tmp_path / "b", FAKE)
    (first / "003.png").write_bytes(b"broken")
    (second / "007.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"leave the others without a partner: 003\.png"):
        compare(replace(EXTRACTOR, skip_bad=True), first, second, REAL)


def test_an_evaluator_is_updated_computed_and_reset(from_files: dict[str, float]) -> None:
    evaluator = Evaluator(REAL, **WANTED)
    for batch in FAKE.split(11):
        evaluator.update(batch)
    values = evaluator.compute()
    assert values == {"fd_corners": from_files["fd_corners"]} | {
        f"{name}_corners": from_files[name] for name in ("kid", "precision", "recall", "density", "coverage")
    }
    assert evaluator.compute() == values  # asking changes nothing
    evaluator.update(REAL)
    assert evaluator.compute()["fd_corners"] < values["fd_corners"]
    evaluator.reset()
    evaluator.update(DataLoader(TensorDataset(FAKE), batch_size=20))
    assert evaluator.compute() == values


def test_an_evaluator_without_images_or_with_too_few_says_so() -> None:
    evaluator = Evaluator(REAL, **WANTED)
    with pytest.raises(InputError, match="there were none"):
        evaluator.compute()
    evaluator.update(FAKE[:5])
    with pytest.raises(InputError, match="KID with subsets of 20"):
        evaluator.compute()


def test_features_of_a_stream_are_bounded_in_memory_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Stream({"corners": Corners()})
    whole.add(FAKE)
    monkeypatch.setattr("metrics.streams.CHUNK", 16)
    stream = Stream({"corners": Corners()})
    for batch in FAKE.split(12):
        stream.add(batch)
        assert sum(len(part) for part in stream._waiting["corners"]) < 16 + 12
    kept, expected = (x.reference().features["corners"] for x in (stream, whole))
    assert [isinstance(part, Path) for part in kept.parts.values()] == [True, True, False]
    np.testing.assert_array_equal(kept.gather(), expected.gather())
    np.testing.assert_allclose(kept.statistics(7, 41).sigma, expected.statistics(7, 41).sigma, rtol=1e-9)


def test_nan_of_a_detector_is_refused_in_a_loop_too() -> None:
    class Broken(Corners):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return super().__call__(images) / 0

    with pytest.raises(InputError, match="'corners' gave NaN or infinity"):
        Stream({"corners": Broken()}).add(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def test_a_batch_is_kept_only_when_the_next_one_is_under_way() -> None:
    order: list[str] = []

    class Told(Corners):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            order.append(f"sent {int(images[0, 0, 0, 0])}")
            return super().__call__(images)

    class Bar:
        def update(self, count: int) -> None:
            order.append(f"kept {count}")

    batches = [[np.full((4, 4, 3), i, np.uint8)] * (i + 1) for i in range(3)]
    made = features.detect(batches, {"corners": Told()}, bar=Bar())["corners"]
    assert order == ["sent 0", "sent 1", "kept 1", "sent 2", "kept 2", "kept 3"]
    assert (256 * made[:, 0]).tolist() == [0, 1, 1, 2, 2, 2]


WORKER = """
import sys
sys.path[:0] = [{root!r}, {folder!r}]
import numpy as np
from tests_in_code import FAKE, REAL, WANTED, Evaluator, evaluate
from metrics import distributed
distributed.init()
rank, world = distributed.rank(), distributed.world_size()
evaluator = Evaluator(REAL, **WANTED)
for batch in FAKE.chunk(world)[rank].split(8):
    evaluator.update(batch)
values = evaluator.compute()
shared = evaluate(FAKE.chunk(world)[rank].split(8), REAL, **WANTED)
held = evaluate(FAKE, REAL, **WANTED)
try:
    evaluator.reset()
    evaluator.compute()
except ValueError as err:
    said = str(err)
with open(f"{{rank}}.txt", "w") as file:
    print(values, said, file=file)
    for results in (shared, held):
        print([m.value for m in results.measurements], file=file)
"""


@pytest.mark.slow
def test_two_processes_that_feed_a_share_each_get_the_values_of_one(
    tmp_path: Path, from_files: dict[str, float]
) -> None:
    (tmp_path / "tests_in_code.py").write_text(Path(__file__).read_text())
    (tmp_path / "worker.py").write_text(WORKER.format(root=str(ROOT), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "worker.py"]
    finished = subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert finished.returncode == 0, finished.stderr.decode()
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first[0] == second[0]
    assert first[0].endswith("there were none; give at least 2")
    for values in (eval(first[0].partition("}")[0] + "}").values(), *map(eval, first[1:])):
        assert list(values) == pytest.approx(list(from_files.values()), rel=1e-9)
    assert second[1:] == ["[]", "[]"]
