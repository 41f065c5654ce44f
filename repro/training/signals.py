"""Signals that ask a long run to stop: kept until it has saved its work."""

import signal
import threading
from typing import Any, NoReturn

import numpy as np

from metrics import distributed


class Interrupts:
    """Requests to stop, from the terminal or a scheduler, kept until the step under way is done.

    A second one of the same kind acts at once, as it does without this.
    """

    WATCHED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self._before = {number: signal.signal(number, self._note) for number in self.WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.number = number
        signal.signal(number, self._before[number])

    def anywhere(self) -> bool:
        """Whether any process was asked to stop; the same answer in all of them."""
        return bool(distributed.all_reduce_sum(np.array([float(self.number)]))[0])

    def leave(self, message: str) -> NoReturn:
        """End the process as a shell reports a signal's victim."""
        distributed.print0(message)
        raise SystemExit(128 + (self.number or signal.SIGTERM))
