"""Files that were right once: cut short, with bits turned, with a part of another."""

import random
from collections.abc import Iterator

import pytest

from tests.hostile.conftest import Place
from tests.hostile.materials import COMMANDS, EXTRACTION, GUIDE

GENERATE = ["--seeds", "0-1", "--steps", "2", "--batch-size", "2", "--out", "look"]
SNAPSHOTS = [f"raw/tiny-0000032-{std}.pkl" for std in ("0.050", "0.100")]
#: File -> what reads it.
READERS = {
    "features.npz": ("metrics", ["evaluate", "features.npz", "--ref", "statistics.npz", *EXTRACTION]),
    "statistics.npz": ("metrics", ["evaluate", "images", "--ref", "statistics.npz", *EXTRACTION]),
    "statistics.pkl": ("metrics", ["evaluate", "images", "--ref", "statistics.pkl", *EXTRACTION]),
    "images/0.png": ("metrics", ["evaluate", "images", "--ref", "statistics.npz", *EXTRACTION]),
    "images.zip": ("metrics", ["evaluate", "images.zip", "--ref", "statistics.npz", *EXTRACTION]),
    "images.tar": ("metrics", ["evaluate", "images.tar", "--ref", "statistics.npz", *EXTRACTION]),
    "images.npz": ("metrics", ["evaluate", "images.npz", "--ref", "statistics.npz", *EXTRACTION]),
    "main.safetensors": ("repro", ["generate", "--main", "main.safetensors", *GENERATE]),
    "main.pkl": ("repro", ["generate", "--main", "main.pkl", *GENERATE]),
    "set.zip": ("repro", ["data", "check", "set.zip"]),
    SNAPSHOTS[0]: ("repro", ["reconstruct", *SNAPSHOTS, "--ema", "0.07", "--out", "made"]),
    "studies/mini.yaml": ("repro", ["cost", "mini"]),
    "search.yaml": ("repro", [*GUIDE, "--settings", "search.yaml"]),
    "out/mini/results/mini-auto/measures.csv": ("repro", ["report", "--partial"]),
    "committed/measures.csv": COMMANDS["check"],
    "committed/claims.csv": COMMANDS["verdicts"],
}
#: Files whose content is covered by a checksum or by another digest: any change of them is found.
SEALED = ("features.npz",)
CUTS = (0.0, 0.3, 0.6, 0.95)
FLIPS = range(3)


def cases() -> Iterator[tuple[str, float]]:
    for name in READERS:
        yield from ((name, cut) for cut in CUTS)


@pytest.mark.parametrize(("name", "cut"), list(cases()))
def test_a_file_that_is_cut_short(place: Place, name: str, cut: float) -> None:
    content = (place / name).read_bytes()
    (place / name).write_bytes(content[: int(len(content) * cut)])
    outcome = place.run(*READERS[name])
    if not name.endswith((".yaml", ".csv", ".tar")):  # these may be whole without their end
        assert outcome.code == 2


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("name", READERS)
def test_a_file_with_bits_turned(place: Place, name: str, flip: int) -> None:
    """One byte, eight, or a run of them, at places chosen by a fixed seed, in the first bytes more often."""
    rng = random.Random(f"{name} {flip}")
    content = bytearray((place / name).read_bytes())
    if flip % 3 == 2:
        start = rng.randrange(len(content))
        content[start : start + 64] = rng.randbytes(len(content[start : start + 64]))
    else:
        for _ in range(1 + 7 * (flip % 3)):
            at = rng.randrange(len(content) if flip < 3 else min(len(content), 600))
            content[at] ^= 1 << rng.randrange(8)
    (place / name).write_bytes(content)
    outcome = place.run(*READERS[name])
    if name in SEALED:
        assert outcome.code == 2, outcome.out


@pytest.mark.parametrize("name", ["features.npz", "statistics.npz", "main.safetensors", "main.pkl", "set.zip"])
def test_a_file_with_another_behind_it(place: Place, name: str) -> None:
    content = (place / name).read_bytes()
    (place / name).write_bytes(content[: len(content) // 2] + (place / "main.pkl").read_bytes())
    place.refuses(*READERS[name])


CELLS = ["", "nan", "inf", "-1", "1e999", "words", '"', "a,b,c", "=1+1", "\x00", "9" * 400, "é" * 300]


@pytest.mark.parametrize("value", CELLS, ids=lambda text: ascii(text)[:20])
@pytest.mark.parametrize("column", ["block", "metric", "value", "num_images", "configuration", "guidance"])
def test_a_table_edited_by_hand(place: Place, column: str, value: str) -> None:
    """All read it alike; the report, which takes longest, also shows and draws its numbers."""
    command = "report" if column in ("value", "guidance") else "verify"
    path = place / "out/mini/results/mini-auto/measures.csv"
    header, first, *rest = path.read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index(column)] = value
    path.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    place.run(*COMMANDS[command])
