"""How checks are run: each is answered within its time, what is found is kept, and parts can be run alone."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from metrics.files import InputError
from repro import preflight as room
from repro.preflight.checks import Check, Setting, failed, passed, per_second, run, skipped
from repro.study import cost
from repro.study.rates import RECORD, Finding, Measured, Rates, read_record

Lines = list[str]


def sound(_: Setting) -> Iterator[Finding | Measured]:
    yield passed("this", "is well")
    yield Measured("training", "mini-main", 50.0)


def unsound(_: Setting) -> Iterator[Finding]:
    yield skipped("that", "is not here")
    yield failed("this", "is not well", "mend it")


def broken(_: Setting) -> Iterator[Finding]:
    yield passed("first", "is well")
    raise InputError("a file is missing")


def slow(setting: Setting) -> Iterator[Finding]:
    yield passed("first", "is well")
    time.sleep(60)
    yield passed("never", "is said")


def driver(_: Setting) -> Iterator[Finding]:
    raise RuntimeError("CUDA error: an illegal memory access")
    yield


def memory(_: Setting) -> Iterator[Finding]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    yield


@pytest.mark.parametrize(
    ("check", "healthy", "lines"),
    [
        (sound, True, ["pass x          this: is well"]),
        (unsound, False, ["skip x          that: is not here", "fail x          this: is not well; mend it"]),
        (broken, False, ["pass x          first: is well", "fail x          could not be finished: a file is missing"]),
        (driver, False, ["fail x          unexpected: RuntimeError CUDA error: an illegal memory access; see"]),
        (memory, False, ["fail x          memory: CUDA out of memory. Tried to allocate 2.00 GiB; a smaller"]),
    ],
)
def test_every_check_is_answered(setting: Setting, check: Check, healthy: bool, lines: Lines) -> None:
    said: Lines = []
    record, found = run({"x": check}, setting, said.append)
    assert found == healthy
    assert len(said) == len(lines)
    assert all(line.startswith(expected) for line, expected in zip(said, lines, strict=True)), said
    assert read_record(setting.study) == record


def test_a_check_that_takes_too_long_is_left_with_what_it_has(setting: Setting) -> None:
    said: Lines = []
    began = time.monotonic()
    _, healthy = run({"slow": slow, "x": sound}, setting, said.append, limit=1.0)
    assert time.monotonic() - began < 10
    assert healthy
    assert said[0] == "pass slow       first: is well"
    assert said[1].startswith("skip slow       the rest: no time was left; `--only slow`")
    assert said[2] == "pass x          this: is well"


def test_parts_add_up(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run({"a": sound, "b": unsound}, setting, lambda _: None)
    assert first.rates == [Measured("training", "mini-main", 50.0, date=first.date)]
    record, healthy = run({"b": sound}, setting, lambda _: None)
    assert healthy
    assert {name: [f.status for f in found] for name, found in record.checks.items()} == {"a": ["pass"], "b": ["pass"]}
    assert record.rates == [Measured("training", "mini-main", 50.0, date=record.date)]
    monkeypatch.setattr("repro.preflight.checks.environment", lambda _: {"device": "another", "versions": "y"})
    record, _ = run({"b": unsound}, setting, lambda _: None)
    assert list(record.checks) == ["b"]  # another machine's checks and rates do not count here
    assert record.rates == []


def test_a_record_that_cannot_be_read_is_refused(setting: Setting) -> None:
    path = setting.study.out / RECORD
    path.parent.mkdir(parents=True)
    for content in ("", "[]", '{"study": 3}', '{"study": "mini", "rates": [{"part": "vae"}]}'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"preflight.json.*delete"):
            read_record(setting.study)
    path.write_text(json.dumps({"study": "mini", "rates": [{"part": "vae", "subject": "x", "per_second": 0.0}]}))
    with pytest.raises(InputError, match="a rate is not above 0"):
        read_record(setting.study)


def test_a_rate_that_is_kept_keeps_its_date(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def another(_: Setting) -> Iterator[Measured]:
        yield Measured("sampling", "mini-main", 5.0)

    for check, date in ((sound, "2026-01-02 03:04"), (another, "2026-02-03 04:05")):
        monkeypatch.setattr("repro.preflight.checks.time.strftime", lambda _, date=date: date)
        record, _ = run({check.__name__: check}, setting, lambda _: None)
    shown = cost.show(setting.study, cost.cost(setting.study, Rates.of(record)), record).replace("\n  ", " ")
    assert f"* measured on {record.machine}, 2026-01-02 03:04 to 2026-02-03 04:05" in shown


def test_a_slow_rate_is_read_as_it_was_written(setting: Setting) -> None:
    def crawling(_: Setting) -> Iterator[Measured]:
        yield Measured("vae", "x", 1e-05)

    record, _ = run({"vae": crawling}, setting, lambda _: None)
    assert read_record(setting.study) == record
    assert record.rates[0].per_second == 1e-05


def test_rates_are_of_repeated_work_behind_a_first_time() -> None:
    seconds = iter([0.3, *[0.02] * 100])
    rate = per_second(lambda: time.sleep(next(seconds)), 2, torch.device("cpu"), 0.4)
    assert rate == pytest.approx(100, rel=0.3)
    assert per_second(lambda: time.sleep(0.3), 3, torch.device("cpu"), 0.1) == pytest.approx(10, rel=0.2)


def test_cost_counts_what_preflight_measures(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of the work is measured, and the measured rate is the one that counts."""
    monkeypatch.setattr("repro.preflight.speeds.MEASURED_FOR", 0.05)
    tasks = cost.unmeasured(setting.study, read_record(setting.study))
    assert {task.part for task in tasks} == {"training", "sampling", "png", "decoding", "features"}
    record, healthy = run(room.SPEEDS, setting, lambda _: None)
    assert healthy
    assert cost.unmeasured(setting.study, record) == []
    assert {(task.part, task.subject) for task in tasks} == {(rate.part, rate.subject) for rate in record.rates}
    found = cost.cost(setting.study, Rates.of(record))
    parts, shown = found.parts, cost.show(setting.study, found, record).splitlines()
    assert set(parts["origin"]) == {"measured"}
    assert any(line.startswith("* measured on cpu") for line in shown)
    assert max(map(len, shown)) <= cost.WIDTH
    for rate in record.rates:
        others = [replace(each, per_second=each.per_second / 2) if each == rate else each for each in record.rates]
        slower = cost.cost(setting.study, Rates.of(replace(record, rates=others))).parts
        ratio = slower["hours"] / parts["hours"]
        assert ratio[parts["subject"].eq(rate.subject) & parts["part"].eq(rate.part)].tolist() == [2]
        assert sorted(ratio)[:-1] == [1] * (len(parts) - 1)


def test_the_whole_says_what_the_study_takes(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repro.preflight.speeds.MEASURED_FOR", 0.05)
    said: Lines = []
    assert room.preflight(setting.study, said.append, ["training", "disk"], price=2.0)
    assert [line.split()[1] for line in said[:-3]] == ["disk"] * 3 + ["training"] * 2
    assert "hours on this CPU" in said[-3]
    assert "at 2 a GPU-hour" in said[-3]
    assert "slowest part: " in said[-3]
    assert said[-2] == "by rates of an A100, since not measured here: sampling, png, decoding, features"
    with pytest.raises(InputError, match="check 'trainin' is unknown; did you mean 'training'"):
        room.preflight(setting.study, said.append, ["trainin"])
