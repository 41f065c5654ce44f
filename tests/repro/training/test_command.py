"""`repro train`: settings as `KEY=VALUE`, and what users see when one is wrong."""

import sys
from typing import Any

import pytest

from metrics.files import InputError
from repro import __main__ as command_line
from repro.strict import settings


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], {}),
        (["total_nimg=512Mi", "log_nimg=0.5Mi"], {"total_nimg": 512 << 20, "log_nimg": 1 << 19}),
        (["ref_lr=1e-2", "P_mean=-1", "ref_batches=0.5"], {"ref_lr": 0.01, "P_mean": -1, "ref_batches": 0.5}),
        (["conditional=false", "name=mine", "device_batch_size=null"], {
            "conditional": False, "name": "mine", "device_batch_size": None,
        }),
        (["network.dropout=0.1", "network.channel_mult=[1, 2]"], {"network": {"dropout": 0.1, "channel_mult": [1, 2]}}),
        (["network={dropout: 0.1}", "network.num_blocks=1"], {"network": {"dropout": 0.1, "num_blocks": 1}}),
        (["reference=a=b"], {"reference": "a=b"}),
    ],
)  # fmt: skip
def test_arguments_become_settings(pairs: list[str], expected: dict[str, Any]) -> None:
    assert settings(pairs) == expected


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["seed"], "'seed': expected KEY=VALUE"),
        (["=1"], "'=1': expected KEY=VALUE"),
        (["seed="], "'seed=': expected KEY=VALUE"),
        (["seed=1", "seed=2"], "'seed=2': expected KEY=VALUE, every key once"),
        (["network=1", "network.dropout=0"], "'network.dropout=0': expected KEY=VALUE, every key once"),
        (["seed={"], "'seed={': the value is not valid YAML"),
        (["network={a: 1, a: 2}"], "key 'a' occurs twice"),
    ],
)
def test_arguments_of_another_form_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(pairs)


def test_a_dry_run_prints_what_would_be_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("--set", "network.dropout=0.2", "--set", "total_nimg=1Mi")
    monkeypatch.setattr(sys, "argv", ["repro", "train", "--preset", "edm2-img64-xs", "--dry-run", *changes])
    command_line.main()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert (lines["network.dropout"], lines["total_nimg"], lines["seed"]) == ("0.2", str(1 << 20), "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--preset is missing; expected one of edm2-img512-xxs"),
        (["--preset", "edm2-img64-z"], "training preset 'edm2-img64-z' is unknown; did you mean"),
        (["--preset", "edm2-img64-s"], "--data and --out are needed"),
        (["--preset", "edm2-img64-s", "--set", "sed=1"], "unknown key sed; did you mean 'seed'?"),
        (["--preset", "edm2-img64-s", "--set", "network.dropuot=1"], "unknown key network.dropuot; did you"),
        (["--preset", "edm2-img64-s", "--watch", "grids=1"], "unknown key grids; did you mean 'grid'?"),
        (["--preset", "edm2-img64-s", "--watch", "num_images=1"], "num_images is 1, expected a finite"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line_and_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["repro", "train", *arguments])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert error.count("\n") == 1
