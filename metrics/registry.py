"""Doors for what others add: names, and what they stand for."""

import importlib
import sys
from collections.abc import Iterable
from typing import TypeVar

from metrics.errors import InputError, explained, nearest

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """Names -> entries of one kind, called `what` in messages, in the order in which they were registered."""

    def __init__(self, what: str, **entries: Entry) -> None:
        super().__init__(entries)
        self.what = what

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry; returns it. Raises InputError where the name is taken by another one."""
        if self.setdefault(name, entry) is not entry:
            raise InputError(f"{self.what} '{name}' is registered already; choose another name")
        return entry

    def __missing__(self, name: str) -> Entry:
        raise InputError(f"{self.what} '{name}' is unknown{nearest(name, self)}")


def load_plugins(modules: Iterable[str]) -> None:
    """Import, which runs, modules that register entries, from the working folder or installed; or raise InputError."""
    for name in modules:
        if "" not in sys.path:
            sys.path.insert(0, "")
        with explained(f"plugin '{name}' cannot be imported", "run where Python finds it"):
            importlib.import_module(name)
