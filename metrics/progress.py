"""Progress of long work: a bar on a terminal or in a notebook, and elsewhere, as in a log file, a line a minute with an
estimate."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {rate_fmt}, {remaining} to go"


class Lines:
    """What this project uses of tqdm, in lines on standard error."""

    def __init__(self, iterable: Iterable[Any], total: int | None, initial: int, description: str, unit: str) -> None:
        self.iterable, self.total, self.initial, self.n = iterable, total, initial, initial
        self.description, self.unit = description, unit
        self.began = self.said = time.monotonic()

    def update(self, n: int = 1) -> None:
        """So much more is done."""
        self.n += n
        if (now := time.monotonic()) - self.said >= EVERY:
            self.said = now
            style: dict[str, Any] = {"prefix": self.description, "unit": self.unit, "unit_scale": self.unit == "B"}
            style |= {"initial": self.initial, "bar_format": LINE}
            line = tqdm.format_meter(self.n, self.total or 0, now - self.began, **style)
            print(line, file=sys.stderr, flush=True)

    def set_description(self, description: str) -> None:
        self.description = description

    def set_postfix(self, **_: Any) -> None:
        """A detail for terminals."""

    def close(self) -> None:
        """There is no bar to leave."""

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_watched() -> bool:
    """Whether standard error is a terminal, or what a notebook shows of it, which draws a bar anew as well."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def progress(
    description: str,
    iterable: Any = None,
    total: int | None = None,
    unit: str = "img",
    initial: int = 0,
    hidden: bool = False,
) -> Any:
    """Progress through `iterable`, or by `update`, to `total`, its length by default; `hidden`: nothing is shown."""
    total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
    if hidden or _is_watched():
        scale: dict[str, Any] = {"unit_scale": True, "unit_divisor": 1024} if unit == "B" else {}
        return tqdm(iterable, description, total, unit=unit, initial=initial, disable=hidden, mininterval=1, **scale)
    return Lines(iterable, total, initial, description, unit)
