"""An OTLP/HTTP collector for tests: keeps every span it is sent.

Knows: OTLP's messages. Must not know: what a span should hold.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector(ThreadingHTTPServer):
    """Answers `status` to every export; `raw` is all that came, `spans` what was accepted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.raw = b""
        self.paths: set[str] = set()
        self.spans: list[Any] = []
        self.resource: dict[str, str] = {}

    @property
    def endpoint(self) -> str:
        """Return what a configuration names."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, name: str) -> list[Any]:
        """Return the spans of a name."""
        return [span for span in self.spans if span.name == name]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.raw += body
        self.server.paths.add(self.path)
        if self.server.status == 200:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.resource = {
                    pair.key: pair.value.string_value for pair in group.resource.attributes
                }
                for scope in group.scope_spans:
                    self.server.spans.extend(scope.spans)
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (its name there)
        """Say nothing."""


def attributes(span: Any) -> dict[str, Any]:
    """Return a span's attributes as Python values."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes
    }


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a port of the kernel's choice."""
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield collector
    finally:
        collector.shutdown()
        collector.server_close()
        thread.join()
