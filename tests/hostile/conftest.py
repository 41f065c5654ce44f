"""A fresh copy of the sound inputs for every case, and what must be true of every outcome."""

import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hostile import child, materials
from tests.hostile.child import Outcome

LONGEST = 700  # characters of a message


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materials.make(tmp_path_factory.mktemp("sound"))


class Place:
    """A folder with the sound inputs, in which commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def state(self) -> dict[bytes, str]:
        """Digest of everything that lies in the folder."""
        found = {}
        for root, _, files in os.walk(os.fsencode(self.folder)):
            for name in files:
                path = os.path.join(root, name)
                mode = os.lstat(path).st_mode
                if stat.S_ISREG(mode):
                    with open(path, "rb") as file:
                        found[path] = hashlib.file_digest(file, "sha256").hexdigest()
                else:
                    found[path] = oct(stat.S_IFMT(mode)) + (str(os.readlink(path)) if stat.S_ISLNK(mode) else "")
        return found

    def run(self, program: str, arguments: Sequence[str]) -> Outcome:
        """Run a command; whatever it says, it keeps to its limits, leaves inputs as they are and ends in order."""
        before = self.state()
        outcome = child.run(program, arguments, self.folder)
        after = self.state()
        shown = f"{program} {' '.join(arguments)[:500]}\nends with {outcome.code}:\n{outcome.err[-3000:]}"
        assert outcome.code is not None, f"still running after {child.SECONDS} s: {shown}"
        assert "Traceback" not in outcome.err, shown
        assert outcome.code in (0, 1, 2), shown
        assert {path: after.get(path) for path in before} == before, f"an input was changed: {shown}"
        left = [path for path in after if path.endswith(b".tmp")]
        assert not left, f"temporary files {left} are left: {shown}"
        if outcome.code:
            assert outcome.code == 2 or (program == "repro" and arguments[0] in ("check", "verify", "preflight")), shown
        if outcome.code == 2:
            lines = [line for line in outcome.err.splitlines() if line and not line.startswith("warning: ")]
            assert len(lines) == 1, f"expected one line: {shown}"
            assert len(lines[0]) <= LONGEST, f"too long: {shown}"
            assert outcome.grown <= child.RESIDENT, f"{outcome.grown / 2**20:.0f} MiB beyond idle: {shown}"
            new = [path for path in after if path not in before and not path.endswith(b".lock")]
            assert not new, f"refused, and yet wrote {new}: {shown}"
        return outcome

    def refuses(self, program: str, arguments: Sequence[str], *words: str) -> str:
        """Run a command that must be refused, by a message that has the `words` in it."""
        outcome = self.run(program, arguments)
        assert outcome.code == 2, f"not refused: {program} {' '.join(arguments)[:500]}\n{outcome.out[-1000:]}"
        for word in words:
            assert word in outcome.err
        return outcome.err


@pytest.fixture
def place(sound: Path, tmp_path: Path) -> Place:
    folder = tmp_path / "place"
    shutil.copytree(sound, folder)
    return Place(folder)
