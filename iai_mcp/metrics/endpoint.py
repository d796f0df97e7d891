"""The endpoint: the registry of each kind of process, and ``GET /metrics`` over HTTP.

The HTTP server exports :func:`server_registry`, a single worker :func:`worker_registry`. Several workers under one
supervisor count in shared files, and the supervisor exports their sum (:class:`SharedMetrics`).
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, disable_created_metrics, values
from prometheus_client.multiprocess import MultiProcessCollector

from iai_mcp.config import Settings
from iai_mcp.errors import IaiMcpError
from iai_mcp.metrics.catalogue import CATALOGUE
from iai_mcp.metrics.gauges import (
    Source,
    SourceCollector,
    file_readings,
    queue_readings,
    redis_readings,
    store_readings,
)
from iai_mcp.metrics.instruments import ClientMetrics, WorkerMetrics
from iai_mcp.telemetry import observer

if TYPE_CHECKING:
    from iai_mcp.store import MemoryStore

__all__ = [
    "CONTENT_TYPE",
    "Endpoint",
    "SharedMetrics",
    "exposition",
    "serve",
    "server_registry",
    "worker_registry",
]

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
STORE_PERIOD_S = 10.0  # between two readings of the store, by one of several workers
CONNECTIONS_MAX = 64  # of the endpoint of workers: each is a thread
_FILE_BYTES = 1 << 18  # four times the size of our metrics


# -- one process


def server_registry(settings: Settings, store: Callable[[], MemoryStore]) -> CollectorRegistry:
    """Start to measure this process, which has a write queue. Returns the registry to export.

    ``store`` returns the open store. It may block or fail while there is none.
    """
    registry = CollectorRegistry()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    observer.watch(ClientMetrics(registry))
    sources = [_files(settings), Source("store", lambda: store_readings(store())), _queue(store)]
    if settings.redis_url:
        sources.append(_redis(settings))
    registry.register(SourceCollector(sources))
    return registry


def _files(settings: Settings) -> Source:
    return Source("files", lambda: file_readings(settings))


def _redis(settings: Settings) -> Source:
    return Source("redis", lambda: redis_readings(settings))


def _queue(store: Callable[[], MemoryStore]) -> Source:
    def read() -> Iterator[tuple[str, str, float]]:
        queue = store().provenance_queue
        return queue_readings(queue) if queue is not None else iter(())

    return Source("queue", read)


def worker_registry(settings: Settings, store: MemoryStore) -> CollectorRegistry:
    """Start to measure this process, which is a single worker. Returns the registry to export."""
    registry = CollectorRegistry()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    observer.watch(WorkerMetrics(registry))
    sources = [_files(settings), Source("store", lambda: store_readings(store)), _redis(settings)]
    registry.register(SourceCollector(sources))
    return registry


# -- several workers under one supervisor


class SharedMetrics:
    """A temporary folder in which each worker counts in files of its own. The supervisor exports the sum.

    A restarted worker continues the files of its predecessor: sums never fall, and files do not multiply.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    @contextmanager
    def temporary(count: int) -> Iterator[SharedMetrics]:
        """A folder for ``count`` workers that lasts for the block.

        Raises:
            IaiMcpError: the folder cannot be made, or the disk is full.
        """
        try:
            folder = tempfile.TemporaryDirectory(prefix="iai-mcp-metrics-", ignore_cleanup_errors=True)
        except OSError as error:
            raise IaiMcpError(
                f"no folder for metrics: {error.strerror or error}; TMPDIR can name another"
            ) from None
        with folder:
            for number in range(1, count + 1):
                _reserve(Path(folder.name), number)
            yield SharedMetrics(Path(folder.name))

    def join(self, number: int, store: MemoryStore) -> None:
        """Start to measure this process, which is worker ``number`` (from 1)."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder)
        values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
        observer.watch(WorkerMetrics(CollectorRegistry()))
        if number == 1:  # one worker reads the store: the supervisor does not load LanceDB
            threading.Thread(target=_measure, args=(store,), name="iai-mcp-measure", daemon=True).start()

    def registry(self, settings: Settings) -> CollectorRegistry:
        """The registry that the supervisor exports."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self.folder))  # type: ignore[no-untyped-call]
        registry.register(SourceCollector([_files(settings), _redis(settings)]))
        return registry


def _reserve(folder: Path, number: int) -> None:
    """Make a worker's files, filled with zeros: a write to a memory-mapped hole on a full disk is fatal."""
    try:
        for kind in ("counter", "histogram", "gauge_mostrecent"):
            (folder / f"{kind}_{number}.db").write_bytes(bytes(_FILE_BYTES))
    except OSError as error:
        raise IaiMcpError(f"no room for metrics: {error.strerror or error}; TMPDIR can name a folder") from None


def _measure(store: MemoryStore) -> None:
    specs = {spec.name: spec for spec in CATALOGUE}
    gauges: dict[str, Any] = {}
    while True:
        try:
            for name, label, value in store_readings(store):
                labels = [specs[name].label] if label else []
                if name not in gauges:
                    gauges[name] = Gauge(
                        name, specs[name].help, labels, registry=None, multiprocess_mode="mostrecent"
                    )
                (gauges[name].labels(label) if label else gauges[name]).set(value)
        except (IaiMcpError, OSError):
            pass  # the drain reports a store that is unavailable
        time.sleep(STORE_PERIOD_S)


# -- over HTTP


def exposition(registry: CollectorRegistry) -> bytes:
    """The registry in Prometheus's text format. Takes about a second at most."""
    return prometheus_client.generate_latest(registry)


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection. Above the limit the oldest one is closed, so that a scrape gets in."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any, **further: Any) -> None:
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._mutex = threading.Lock()
        super().__init__(*args, **further)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._mutex:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > CONNECTIONS_MAX else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._mutex:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is not reported."""

    def server_bind(self) -> None:
        # As the parent does it, but without a DNS lookup of our own name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds until a connection that sends nothing is closed

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""


class Endpoint:
    """A running ``http://HOST:PORT/metrics``."""

    def __init__(self, server: WSGIServer, url: str) -> None:
        self._server = server
        self.url = url

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def serve(registry: CollectorRegistry, host: str, port: int) -> Endpoint:
    """Serve ``registry`` at ``/metrics`` on a thread. There is no access control.

    Raises:
        IaiMcpError: the address is in use or does not belong to this machine.
    """

    def answer(environ: Mapping[str, Any], start: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] != "/metrics" or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"the only resource is GET /metrics\n"]
        body = exposition(registry)
        start("200 OK", [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    kind: Any = type("_Server6", (_Server,), {"address_family": socket.AF_INET6}) if ":" in host else _Server
    shown = f"[{host}]" if ":" in host else host
    try:
        server = make_server(host, port, answer, kind, _Quiet)
    except (OSError, OverflowError) as error:
        raise IaiMcpError(
            f"cannot serve metrics on {shown}:{port}: {getattr(error, 'strerror', None) or error}"
        ) from None
    threading.Thread(target=server.serve_forever, name="iai-mcp-metrics", daemon=True).start()
    return Endpoint(server, f"http://{shown}:{server.server_port}/metrics")
