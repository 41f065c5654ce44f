"""What the doctor says of settings of the machine; that it finds a whole machine healthy is tested with the CLI."""

import socket

import pytest

from metrics.files import InputError
from repro import doctor


def test_settings_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_WORKERS", "many")
    with pytest.raises(InputError, match="workers is 'many'"):
        doctor.report(print)


def test_offline_asks_no_address_and_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("an address was asked")

    monkeypatch.setattr(socket, "create_connection", asked)
    monkeypatch.setenv("REPRO_OFFLINE", "1")
    monkeypatch.setenv("REPRO_WORKERS", "3")
    said: list[str] = []
    assert doctor.report(said.append)
    assert any("workers 3, offline 1" in line for line in said)
    assert "note offline: nothing is downloaded" in said
