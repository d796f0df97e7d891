"""A minimal OTLP collector over HTTP: it keeps the spans that processes send, as dictionaries."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["Collector", "collecting", "flat"]


class Collector(ThreadingHTTPServer):
    """Accepts ``POST /v1/traces``.

    Attributes:
        received: the raw bodies.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[bytes] = []

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that sends its traces here."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {"IAI_MCP_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": url}

    def spans(self) -> list[dict[str, Any]]:
        """Every span so far; ``service`` is the name of the sending process."""
        return [
            {
                "trace_id": span.trace_id.hex(),
                "span_id": span.span_id.hex(),
                "parent_id": span.parent_span_id.hex() or None,
                "name": span.name,
                "start_ns": span.start_time_unix_nano,
                "end_ns": span.end_time_unix_nano,
                "service": {one.key: one.value.string_value for one in group.resource.attributes}["service.name"],
            }
            for body in self.received
            for group in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """No log of requests."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs for the block."""
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        try:
            yield collector
        finally:
            collector.shutdown()


def flat(spans: Sequence[ReadableSpan]) -> list[dict[str, Any]]:
    """Spans of this process as dictionaries."""
    found = []
    for span in spans:
        context = span.get_span_context()
        assert context is not None
        found.append(
            {
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
                "parent_id": f"{span.parent.span_id:016x}" if span.parent is not None else None,
                "name": span.name,
                "attributes": dict(span.attributes or {}),
            }
        )
    return found
