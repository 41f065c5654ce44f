"""The processes of a group, which watch over each other: none waits for ever for one that was killed or hangs."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

BEAT = 1.0  # seconds between signs of life
EXIT_CODE = 75  # of a process whose group is broken: try again, in the words of sysexits.h


class Sign(tuple[bool, int, int]):
    """What a process says of itself: (has it ended, a number that grows, its `Peers.count`), as text in the store."""

    @classmethod
    def read(cls, text: bytes) -> "Sign":
        ended, number, count = map(int, text.split())
        return cls((bool(ended), number, count))


class Peers:
    """This process's view of the others, through the group's store.

    Every process gives a sign of life each second, from a thread of its own, so that long work, downloads and waiting
    are no silence. Where one is silent for `patience` seconds (killed, or its machine is gone), has ended while this
    one waits for it, or stays away from an exchange for `limit` seconds that this one is in, this process says which
    one and ends, with exit code 75, whatever its main thread is blocked in.
    """

    def __init__(self, store: Any, rank: int, world: int, patience: float, limit: float) -> None:
        self.store, self.rank, self.world, self.patience, self.limit = store, rank, world, patience, limit
        #: Grows when an exchange begins and when it is over: odd within one.
        self.count = 0
        self._since = self._said = time.monotonic()  # when the exchange began, and when last a line said who is awaited
        self._meeting, self._hurry, self._pid = False, False, os.getpid()
        self._others = [other for other in range(world) if other != rank]
        self._signs: dict[int, tuple[Sign | None, float]] = dict.fromkeys(self._others, (None, time.monotonic()))
        store.set(f"name/{rank}", f"{socket.gethostname()}, pid {os.getpid()}")
        store.set(f"sign/{rank}", "0 0 0")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=[store.clone()], name="peers", daemon=True)
        self._thread.start()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Around whatever needs all processes; where it breaks, the process is named that is to blame, if one is."""
        self.count, self._since = self.count + 1, time.monotonic()
        try:
            yield
        except RuntimeError:
            self._hurry = True
            self._thread.join(12 * BEAT)  # which ends this process where one is silent
            raise
        self.count += 1

    def meet(self) -> None:
        """Wait until every process is here, however long that takes while all are alive."""
        with self.exchange():
            self._meeting, self._said = True, time.monotonic()
            number, wait = self.count, 1e-4
            if self.store.add(f"here/{number}", 1) == self.world:
                self.store.set(f"open/{number}", "1")
            while not self.store.check([f"open/{number}"]):
                time.sleep(wait)
                wait = min(2 * wait, 0.1)
            self._meeting = False

    def leave(self) -> None:
        """Say that this process ends, and watch the others no more."""
        if os.getpid() == self._pid and not self._ended.is_set():
            self._ended.set()
            self._thread.join(2 * BEAT)
            with suppress(RuntimeError):  # of a store that is gone
                self.store.set(f"sign/{self.rank}", f"1 0 {self.count}")

    def _watch(self, store: Any) -> None:
        names = store.multi_get([f"name/{other}" for other in self._others])  # waits until all have begun
        self._names = {other: name.decode() for other, name in zip(self._others, names, strict=True)}
        number, last, whole = 0, time.monotonic(), True
        self._signs = dict.fromkeys(self._others, (None, last))
        while not self._ended.wait(BEAT):
            number, now = number + 1, time.monotonic()
            if now - last > 5 * BEAT:  # this process, or all of them, stood still
                self._signs = {other: (sign, now) for other, (sign, _) in self._signs.items()}
            last = now
            try:
                if whole:
                    store.set(f"sign/{self.rank}", f"0 {number} {self.count}")
                    texts = store.multi_get([f"sign/{other}" for other in self._others])
                    for other, sign in zip(self._others, map(Sign.read, texts), strict=True):
                        if sign != self._signs[other][0]:
                            self._signs[other] = (sign, time.monotonic())
            except RuntimeError:  # whoever has the store is gone, and nothing is heard of the others any more
                whole = False
                if self.rank and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                    self._signs = {0: self._signs[0]}
            self._judge(time.monotonic())

    def _judge(self, now: float) -> None:
        """End this process where another one is gone."""
        within, waited = self.count % 2 == 1, now - self._since

        def those(blamed: Callable[[Sign, float], bool]) -> list[int]:
            return [other for other, (sign, at) in self._signs.items() if blamed(sign or Sign((False, 0, 0)), now - at)]

        patience = min(self.patience, 10 * BEAT) if self._hurry else self.patience
        if within and (ended := those(lambda sign, _: sign[0] and sign[2] <= self.count)):
            self._end(ended, "ended before the others")
        if silent := those(lambda sign, silence: silence > patience and not sign[0]):
            self._end(silent, f"gave no sign of life for {patience:.0f} seconds, so it was killed or cut off")
        away = those(lambda sign, _: sign[2] < self.count) if within and waited > self.limit else []
        if away and not self._meeting:
            self._end(away, f"stayed away from what all do together for {self.limit / 60:.0f} minutes, so it hangs")
        if away and now - self._said > self.limit:
            self._said = now
            _say(f"process {self.rank} has waited for {self._named(away)} for {waited / 60:.0f} minutes")

    def _named(self, others: list[int]) -> str:
        return " and ".join(f"process {other} ({self._names[other]})" for other in others)

    def _end(self, others: list[int], what: str) -> NoReturn:
        goes_on = "this process ends too, and the same command goes on from what is finished"
        _say(f"error: {self._named(others)} {what}; {goes_on}")
        sys.stdout.flush()
        os._exit(EXIT_CODE)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
