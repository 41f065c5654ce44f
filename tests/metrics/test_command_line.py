"""The edge of both command lines."""

import signal
import time
from collections.abc import Iterator

import click
import pytest

from metrics import command_line


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.unraisablehook", None)  # restored with the handler
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Interrupted:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@click.group()
def cli() -> None: ...


@cli.command("finalise")
def finalise() -> None:
    found = Interrupted()
    del found
    for _ in range(100):
        time.sleep(0.1)


def test_a_signal_that_python_drops_in_a_finaliser_is_sent_again(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert command_line.run(cli, "tool", ["finalise"]) == 130
    assert time.monotonic() - began < 8
    assert "tool: error: stopped; what is finished is kept" in capsys.readouterr().err
