"""What a check is, how checks are run within their time, and what is kept of them."""

import signal
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch

from metrics.files import InputError, on_one_line, write_json
from metrics.results import environment
from repro.study import Study
from repro.study.rates import RECORD, Finding, Measured, Record, read_record

PASS, FAIL, SKIP = "pass", "fail", "skip"
LIMIT = 540.0  # seconds for all checks together, so that ten minutes are not passed by what cannot be interrupted
MEASURED_FOR = 4.0  # seconds of each rate, behind a warm-up
LENGTHY = 3  # times its equal share of what is left, that a check may take
LEAST, MOST = 1.0, {"cpu": 20.0}  # seconds that one thing of a check may be given; on other devices a minute


class OutOfTimeError(BaseException):
    """The time of a check has run out; no Exception, since those are explained away in many places."""


@dataclass
class Setting:
    """What checks are run with."""

    study: Study
    device: torch.device
    gpus: int
    offline: bool = False
    #: By `time.monotonic`.
    deadline: float = 0.0
    #: What was found so far.
    record: Record = field(default_factory=lambda: Record(""))

    def share(self, among: int) -> float:
        """Seconds for one of so many things that are still to be looked at."""
        most = MOST.get(self.device.type, 60.0)
        return min(max((self.deadline - time.monotonic()) / max(among, 1), LEAST), most)


#: What is found, and measured, one thing after the other.
Check = Callable[[Setting], Iterator[Finding | Measured]]


def passed(about: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(PASS, about, text)


def failed(about: str, text: str, remedy: str) -> Finding:
    """It is not."""
    return Finding(FAIL, about, f"{text}; {remedy}")


def skipped(about: str, reason: str) -> Finding:
    """It was not looked at."""
    return Finding(SKIP, about, reason)


def run(
    checks: Mapping[str, Check],
    setting: Setting,
    echo: Callable[[str], None],
    limit: float = LIMIT,
) -> tuple[Record, bool]:
    """Run checks by name, and keep what they find beside what others of them have found before.

    Returns what is known now, and whether none of those that ran failed. Each is kept as soon as it has ended, so that
    an interruption costs one. Raises InputError where an earlier record cannot be read.
    """
    setting.record = replace(read_record(setting.study), study=setting.study.study)
    _start_afresh(setting, checks)
    began, sound = time.monotonic(), True
    for number, (name, check) in enumerate(checks.items()):
        left = max(began + limit - time.monotonic(), LEAST)
        # What a quick check leaves over is for those behind it.
        setting.deadline = time.monotonic() + min(left, LENGTHY * left / (len(checks) - number))
        found = []
        for finding in _answered(name, check, setting):
            found.append(finding)
            if isinstance(finding, Finding):
                sound = sound and finding.status != FAIL
                echo(f"{finding.status:5}{name:11}{finding.about}: {finding.text}")
        _keep(setting, name, found)
    return setting.record, sound


def _start_afresh(setting: Setting, names: Container[str]) -> None:
    """Forget what another machine has found, and what is looked at again."""
    facts = environment(setting.device)
    machine, old = f"{facts['device']}, {facts['versions']}", setting.record
    checks = {name: found for name, found in old.checks.items() if name not in names and old.machine == machine}
    rates = [rate for rate in old.rates if old.machine == machine]
    setting.record = replace(old, machine=machine, date=time.strftime("%Y-%m-%d %H:%M"), checks=checks, rates=rates)


def _keep(setting: Setting, name: str, found: Sequence[Finding | Measured]) -> None:
    record = setting.record
    findings = [each for each in found if isinstance(each, Finding)]
    rates = {(rate.part, rate.subject): rate for rate in record.rates}
    measured = [replace(rate, date=record.date) for rate in found if isinstance(rate, Measured)]
    rates |= {(rate.part, rate.subject): rate for rate in measured}
    setting.record = replace(record, checks=record.checks | {name: findings}, rates=list(rates.values()))
    write_json(setting.study.out / RECORD, asdict(setting.record))


def _answered(name: str, check: Check, setting: Setting) -> Iterator[Finding | Measured]:
    """What a check finds; that it breaks or takes too long is a finding too."""
    count = 0
    try:
        with time_limit(setting.deadline - time.monotonic()):
            for found in check(setting):
                count += isinstance(found, Finding)
                yield found
    except OutOfTimeError:
        yield skipped("the rest" if count else "all", f"no time was left; `--only {name}` gives it all there is")
    except (InputError, OSError) as err:
        yield Finding(FAIL, "could not be finished", on_one_line(str(err)))
    except torch.OutOfMemoryError as err:
        yield failed("memory", on_one_line(str(err))[:200], "a smaller sampler.batch_size, or a larger GPU")
    except Exception as err:
        said = f"{type(err).__name__} {on_one_line(str(err))[:300]}"
        yield failed("unexpected", said, "see what the driver and PyTorch say of this device, or report it")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError inside once so many seconds have passed; only the first thread has a limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def per_second(call: Callable[[], object], amount: float, device: torch.device, seconds: float) -> float:
    """How much a second `call` does, which does `amount`; it is repeated for so many seconds behind a first time.

    Where the first time takes as long already, it counts itself.
    """
    first = timed(call, device)
    if first >= seconds:
        return amount / first
    times: list[float] = []
    while sum(times) < seconds:
        times.append(timed(call, device))
    return amount * len(times) / sum(times)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, with what it has started on a GPU."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
