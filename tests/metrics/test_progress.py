"""Progress on a terminal and in a log."""

import io
import re
import sys

import pytest
from tqdm import tqdm

from metrics import progress as module
from metrics.progress import Lines, progress


def test_in_a_log_there_is_a_line_a_minute_with_an_estimate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("sampling", total=1000, initial=100) as bar:
        for _ in range(9):
            now[0] += 20.0
            bar.update(50)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sampling: 250 of 1000 img,  2.50img/s, 05:00 to go"
    assert [line.split()[1] for line in lines] == ["250", "400", "550"]


def test_bytes_have_units_and_a_line_may_lack_a_total(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    with progress("fetch", total=2_000_000, unit="B") as bar:
        bar.update(1_000_000)
    assert re.match(r"fetch: 1\.00M of 2\.00M B", capsys.readouterr().err)
    assert list(progress("join", iter("abc"), unit="part")) == ["a", "b", "c"]
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_on_a_terminal_there_is_a_bar_and_in_other_processes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress("x", [1, 2]), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("x", [1, 2], unit="it") as bar:
        assert isinstance(bar, tqdm)
        assert list(bar) == [1, 2]
    with progress("x", total=5, hidden=True) as bar:
        assert bar.disable


def test_in_a_notebook_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is no terminal there, but what is written over is shown as such."""
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("sampling", total=5) as bar:
        assert isinstance(bar, tqdm)
        bar.update(5)
    assert "sampling: 100%" in stream.getvalue()
