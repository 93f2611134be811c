"""A provider that says what it is told to, whatever is asked, with headers nobody should keep.

Knows: HTTP/1.1 and the bytes it was given. Must not know: any dialect, what a test expects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

HEADERS = {"set-cookie": "session=of-the-first-caller; Path=/", "x-of-the-first-caller": "yes"}


class Canned:
    """`answer` is told next, as JSON; `asked` counts calls."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.asked = 0
        self.port = 0


@contextmanager
def canned() -> Iterator[Canned]:
    """Serve until the block ends."""
    told = Canned()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            told.asked += 1
            body = json.dumps(told.answer).encode()
            self.send_response(200)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told.port = server.server_address[1]
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
