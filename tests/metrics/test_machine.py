"""On what work runs: a file in the working folder, over which environment variables win."""

from pathlib import Path

import pytest
import torch

from metrics import distributed
from metrics.files import InputError
from metrics.machine import machine


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LAUNCHER", "DEVICE", "WORKERS", "CACHE", "WEIGHTS", "OFFLINE", "PATIENCE"):
        monkeypatch.delenv(f"REPRO_{name}", raising=False)


def test_without_either_everything_is_found_out() -> None:
    assert machine().launcher == ""
    assert machine().device == ""


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine.yaml").write_text("launcher: torchrun\nworkers: 3\ndevice: cpu\n")
    monkeypatch.setenv("REPRO_WORKERS", "1")
    assert (machine().launcher, machine().workers) == ("torchrun", "1")
    assert distributed.device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("launchre: python\n", "unknown key launchre; did you mean 'launcher'"),
        ("workers: many\n", "workers is 'many', expected a number"),
        ("patience: 1\n", "patience is '1', expected whole seconds, 3 or more"),
        ("[1]\n", "expected a mapping"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "machine.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        machine()
