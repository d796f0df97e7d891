"""OpenTelemetry traces: one trace from a recall through push, claim, merge and acknowledgement, across processes.

``IAI_MCP_TRACES`` switches them on, and only then is ``opentelemetry`` imported (the extra ``otel``). The context
travels with the parcels, as a W3C ``traceparent``; no span carries a cue or a record's id.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import ConfigError
from iai_mcp.telemetry import observer

if TYPE_CHECKING:
    from opentelemetry.trace import SpanKind, Tracer

__all__ = ["MOST_TRACES", "Tracing", "start"]

MOST_TRACES = 128  # of one batch that are followed: a batch may hold thousands of recalls

_started: Tracing | None = None
_starting = threading.Lock()


def start(settings: Settings) -> None:
    """Trace this process from now on as the settings say; does nothing where that is so already, or is off.

    Where the program has set a tracer provider of its own, that one is used.

    Raises:
        ConfigError: the extra is missing, or the setting makes no sense.
    """
    global _started
    with _starting:
        if _started is None and settings.traces not in ("", "off"):
            _started = Tracing(_tracer(settings.traces))
            observer.watch(_started)


def _tracer(where: str) -> Tracer:
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError("IAI_MCP_TRACES needs OpenTelemetry: pip install 'iai-mcp[otel]'") from None
    from iai_mcp._version import __version__

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # nobody has set one
        exporter = _exporter(where)
        name = os.environ.get("OTEL_SERVICE_NAME") or "iai-mcp"
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name, "service.version": __version__}))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return provider.get_tracer("iai_mcp", __version__)  # not made global: other libraries' spans are not ours
    return trace.get_tracer("iai_mcp", __version__)


def _exporter(where: str) -> Any:
    if where == "otlp":
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise ConfigError("IAI_MCP_TRACES=otlp needs its exporter: pip install 'iai-mcp[otel]'") from None
        return OTLPSpanExporter()
    if "/" not in where:
        raise ConfigError(f"IAI_MCP_TRACES={where!r} is none of off, otlp and the path of a file (with a /)")
    return _file_exporter(Path(where).expanduser())


def _file_exporter(path: Path) -> Any:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Lines(SpanExporter):
        """One JSON object a line, appended in one write, so that several processes may share the file."""

        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            data = b"".join(msgspec.json.encode(_told(span)) + b"\n" for span in spans)
            try:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    os.write(fd, data)
                finally:
                    os.close(fd)
            except OSError:
                return SpanExportResult.FAILURE
            return SpanExportResult.SUCCESS

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise ConfigError(f"IAI_MCP_TRACES={path}: {error.strerror or error}") from None
    return Lines()


def _told(span: Any) -> dict[str, Any]:
    context = span.get_span_context()
    return {
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent is not None else None,
        "name": span.name,
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "attributes": dict(span.attributes or {}),
        "status": span.status.status_code.name,
        "pid": os.getpid(),
    }


# -- the watcher


class Tracing(observer.Observer):
    """Makes spans of what the pipeline tells."""

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._trace = trace
        self._nothing = Context()
        self._propagator = TraceContextTextMapPropagator()

    def recalling(self) -> observer.Recalled:
        return _Recalled(self._tracer, self._trace.SpanKind.INTERNAL, "recall")

    def enqueuing(self, entries: int) -> observer.Enqueue:
        return _Enqueue(self._tracer, self._trace.SpanKind.PRODUCER, "push")

    def batch(self, lane: int) -> observer.Batch:
        return _Batch(self, lane)

    def follow(self, told: str, marks: Sequence[int], attributes: Mapping[str, int]) -> None:
        """The spans of one batch in the trace that the ``traceparent`` names; nothing where it names none."""
        context = self._propagator.extract({"traceparent": told}, self._nothing)
        if context is self._nothing:
            return
        kind = self._trace.SpanKind.CONSUMER
        for name, begin, end in zip(("claim", "merge", "ack"), marks, marks[1:], strict=False):
            self._tracer.start_span(name, context, kind, attributes=attributes, start_time=begin).end(end)


class _Current:
    """A span that is the current one for a block. Of an error it tells the kind: its words may quote a cue."""

    __slots__ = ("_manager", "_span", "_tracer")

    def __init__(self, tracer: Tracer, kind: SpanKind, name: str) -> None:
        self._tracer = tracer
        self._manager = tracer.start_as_current_span(
            name, kind=kind, record_exception=False, set_status_on_exception=False
        )

    def __enter__(self) -> Self:
        self._span = self._manager.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if kind is not None:
            self._span.set_attribute("error.type", kind.__name__)
        self._manager.__exit__(kind, error, trace)


class _Recalled(_Current, observer.Recalled):
    """The span ``recall``, with a child for each stage but the hand-over, which is the span of ``enqueue``."""

    __slots__ = ()

    def stages(self, seconds: Mapping[str, float]) -> None:
        if not self._span.is_recording():
            return
        end = time.time_ns()
        at = end - int(seconds["total"] * 1e9)
        for stage, took in seconds.items():
            upto = at + int(took * 1e9)
            if stage not in ("provenance", "total"):
                self._tracer.start_span(stage, start_time=at).end(upto)
            at = upto


class _Enqueue(_Current, observer.Enqueue):
    """The span ``push``, renamed to ``spill`` where that is what came of it."""

    __slots__ = ()

    def carrying(self, parcels: list[Parcel]) -> list[Parcel]:
        context = self._span.get_span_context()
        if not context.trace_flags.sampled:
            return parcels
        self._span.set_attribute("iai_mcp.entries", sum(len(parcel.seqs) for parcel in parcels))
        self._span.set_attribute("iai_mcp.lanes", sorted(parcel.lane for parcel in parcels))
        told = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        return [msgspec.structs.replace(parcel, trace=told) for parcel in parcels]

    def spilled(self, *, journal: bool) -> None:
        self._span.update_name("journal" if journal else "spill")


class _Batch(observer.Batch):
    """The spans ``claim``, ``merge`` and ``ack``, once in each trace that has entries in the batch.

    They are made when the batch is over: a batch that fails is done again, and its traces show the run that
    succeeded.
    """

    __slots__ = ("_lane", "_marks", "_parcels", "_tracing")

    def __init__(self, tracing: Tracing, lane: int) -> None:
        self._tracing = tracing
        self._lane = lane
        self._marks = [time.time_ns()]
        self._parcels: list[Parcel] = []

    def claimed(self, parcels: Sequence[object]) -> None:
        self._marks.append(time.time_ns())
        self._parcels = [parcel for parcel in parcels if isinstance(parcel, Parcel)]

    def written(self) -> None:
        self._marks.append(time.time_ns())

    def acknowledged(self) -> None:
        self._marks.append(time.time_ns())
        traced: dict[str, int] = {}
        for parcel in self._parcels:
            if isinstance(parcel.trace, str):
                traced[parcel.trace] = traced.get(parcel.trace, 0) + len(parcel.seqs)
        size = sum(len(parcel.seqs) for parcel in self._parcels)
        for told in [*traced][:MOST_TRACES]:
            counts = {"iai_mcp.lane": self._lane, "iai_mcp.entries": traced[told], "iai_mcp.entries.batch": size}
            self._tracing.follow(told, self._marks, counts)
