"""A file server on the loopback interface that fails on demand."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE = 2**18


class Server:
    """Serves `files` with range requests; `faults[path]` is a list of faults, one used up per GET.

    A fault is a status (503), ("drop", n): the connection ends after n bytes, ("slow", n): the same, slowly, or
    ("bytes", data): other content.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files: dict[str, bytes] = dict(files or {})
        self.faults: dict[str, list[Any]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.tags: Counter[str] = Counter()
        self.ranges = True
        self.validators = True
        self.announce = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                if self.path not in server.files:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(server.files[self.path])))
                self.end_headers()

            def do_GET(self) -> None:
                server.requests.append((self.command, self.path, self.headers.get("Range")))
                faults = server.faults.get(self.path, [])
                fault = faults.pop(0) if faults else None
                if isinstance(fault, int) and fault > 0:
                    self.send_response(fault)
                    self.send_header("Retry-After", "0")
                    self.end_headers()
                    return
                if self.path not in server.files:
                    self.send_error(404)
                    return
                body, tag = server.files[self.path], f'"v{server.tags[self.path]}"'
                if isinstance(fault, tuple) and fault[0] == "bytes":
                    body, fault = fault[1], None
                start = 0
                wanted = self.headers.get("Range")
                if wanted and server.ranges and self.headers.get("If-Range") in (None, tag):
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                else:
                    self.send_response(200)
                if server.validators:
                    self.send_header("ETag", tag)
                if server.announce:
                    self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                end = fault[1] if isinstance(fault, tuple) else len(body)
                for position in range(start, end, PIECE):
                    self.wfile.write(body[position : min(position + PIECE, end)])
                    if isinstance(fault, tuple) and fault[0] == "slow":
                        time.sleep(0.05)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hung up
        self.base = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def gets(self, path: str) -> list[str | None]:
        """The Range header of every GET of a path."""
        return [wanted for _, found, wanted in self.requests if found == path]

    def close(self) -> None:
        """Stop serving."""
        self.http.shutdown()
        self.http.server_close()
