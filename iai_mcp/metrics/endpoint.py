"""The endpoint: which registry a process shows, and ``GET /metrics`` over HTTP.

The HTTP server shows its own registry (:func:`for_server`), a worker its own (:func:`for_worker`). Several workers
under one supervisor count in shared files, so that one port shows their sum (:class:`Shared`).
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from iai_mcp.metrics.gauges import Source, Sources, files, queued, redis, stored
from iai_mcp.metrics.instruments import Metrics, WorkerMetrics
from iai_mcp.telemetry import observer

if TYPE_CHECKING:
    from iai_mcp.store import MemoryStore

__all__ = ["CONTENT_TYPE", "Endpoint", "Shared", "exposition", "for_server", "for_worker", "serve"]

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
STORE_READ_S = 10.0  # how often a worker among several measures the store
_FILE_BYTES = 1 << 18  # four times what our metrics take


# -- one process


def for_server(settings: Settings, store: Callable[[], MemoryStore]) -> CollectorRegistry:
    """Watch this process, which has a write queue; what a scrape of it shows.

    ``store`` gives the open store and may block or fail while there is none.
    """
    registry = CollectorRegistry()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    observer.watch(Metrics(registry))
    sources = [
        Source("files", lambda: files(settings)),
        Source("store", lambda: stored(store())),
        _queue_source(store),
    ]
    if settings.redis_url:
        sources.append(Source("redis", lambda: redis(settings)))
    registry.register(Sources(sources))
    return registry


def _queue_source(store: Callable[[], MemoryStore]) -> Source:
    def take() -> Iterator[tuple[str, str, float]]:
        queue = store().provenance_queue
        return queued(queue) if queue is not None else iter(())

    return Source("queue", take)


def for_worker(settings: Settings, store: MemoryStore) -> CollectorRegistry:
    """Watch this process, which is a worker on its own; what a scrape of it shows."""
    registry = CollectorRegistry()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    observer.watch(WorkerMetrics(registry))
    sources = [Source("files", lambda: files(settings)), Source("store", lambda: stored(store))]
    registry.register(Sources([*sources, Source("redis", lambda: redis(settings))]))
    return registry


# -- several workers under one supervisor


class Shared:
    """A temporary folder in which workers count, each in files of its own, so that one port shows the sum.

    A worker that is started again goes on with its predecessor's files: sums never fall, files never multiply.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    @contextmanager
    def made(count: int) -> Iterator[Shared]:
        """The folder for ``count`` workers, for the block.

        Raises:
            IaiMcpError: there is no room for it.
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
            yield Shared(Path(folder.name))

    def join(self, number: int, store: MemoryStore) -> None:
        """Watch this process, which is worker ``number``."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder)
        values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
        observer.watch(WorkerMetrics(CollectorRegistry()))
        if number == 1:  # it measures the store for all of them: the supervisor does not load LanceDB
            threading.Thread(target=_measure, args=(store,), name="iai-mcp-measure", daemon=True).start()

    def registry(self, settings: Settings) -> CollectorRegistry:
        """What a scrape of the supervisor shows."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self.folder))  # type: ignore[no-untyped-call]
        sources = [Source("files", lambda: files(settings)), Source("redis", lambda: redis(settings))]
        registry.register(Sources(sources))
        return registry


def _reserve(folder: Path, number: int) -> None:
    """Make a worker's files. Written, not only sized: a memory-mapped hole on a full disk kills who fills it."""
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
            for name, label, value in stored(store):
                labels = [specs[name].label] if label else []
                if name not in gauges:
                    gauges[name] = Gauge(
                        name, specs[name].help, labels, registry=None, multiprocess_mode="mostrecent"
                    )
                (gauges[name].labels(label) if label else gauges[name]).set(value)
        except (IaiMcpError, OSError):
            pass  # the drain says what is wrong with the place
        time.sleep(STORE_READ_S)


# -- over HTTP


def exposition(registry: CollectorRegistry) -> bytes:
    """What a scrape shows, in Prometheus's text format; takes a second or so at most."""
    return prometheus_client.generate_latest(registry)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # As the parent, without a look into the DNS for our own name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    timeout = 10  # a connection that says nothing is let go

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""


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
    """Serve ``registry`` at ``/metrics`` on a thread, to every client that can reach the address.

    Raises:
        IaiMcpError: the address is taken or is none of this machine's.
    """

    def answer(environ: Mapping[str, Any], start: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] != "/metrics" or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"there is only GET /metrics\n"]
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
