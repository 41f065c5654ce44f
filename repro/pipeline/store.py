"""What any study has made already, found by what it is, so that nothing is made twice on one disk."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from metrics.files import InputError, link_or_copy


class Store:
    """The outputs of all studies below `root`, each at STUDY/SECTION/.../NAME."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def borrow(self, target: Path, is_same: Callable[[Path], bool]) -> bool:
        """Link `target`, a path below the root, from another study's or stage's file of its section and name.

        One that does not pass `is_same`, which may raise InputError, is passed over. Returns whether there is one.
        """
        section, *below = target.relative_to(self.root).parts[1:]
        pattern = "/".join(["*", section, *["*"] * (len(below) - 1), target.name])
        for other in sorted(self.root.glob(pattern)):
            same = False
            with contextlib.suppress(InputError):
                same = other != target and is_same(other)
            if same:
                link_or_copy(other, target)
                return True
        return False
