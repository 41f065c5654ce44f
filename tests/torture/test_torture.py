"""Every long command, ended once by each signal (`make torture`: twenty times)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rehearsal.server import Server
from tests.torture.commands import COMMANDS, prepare, torture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    server = Server()
    yield prepare(tmp_path_factory.mktemp("torture").resolve() / "made", server)
    server.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_ended_comes_out_as_if_it_had_not_been(name: str, made: Path, tmp_path: Path) -> None:
    torture(name, made, tmp_path.resolve(), 1)
