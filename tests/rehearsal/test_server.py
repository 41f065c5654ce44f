"""The file server's faults are those of the world: what a client without patience sees."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import IncompleteRead

import pytest

from tests.rehearsal.server import Server

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server({"/x": CONTENT})
    yield found
    found.close()


def get(server: Server, path: str = "/x", **headers: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    with opener.open(urllib.request.Request(server.base + path, headers=names)) as response:
        return bytes(response.read())


def test_a_range_is_served_of_the_version_that_was_asked_for(server: Server) -> None:
    assert get(server, Range="bytes=100-", If_Range='"v0"') == CONTENT[100:]
    server.tags["/x"] += 1
    assert get(server, Range="bytes=100-", If_Range='"v0"') == CONTENT
    assert server.gets("/x") == ["bytes=100-", "bytes=100-"]


def test_faults_come_one_per_request_in_order(server: Server) -> None:
    server.faults["/x"] = [503, ("drop", 1000), ("bytes", b"other")]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(server)
    with pytest.raises(IncompleteRead) as caught:
        get(server)
    assert caught.value.partial == CONTENT[:1000]
    assert get(server) == b"other"
    assert get(server) == CONTENT


def test_what_is_not_there_is_not_found(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server, "/y")
