"""OpenTelemetry traces: one trace from a recall through push, claim, merge and acknowledgement, across processes.

``IAI_MCP_TRACES=otlp`` switches them on. ``opentelemetry`` (the extra ``otel``) is imported only then. Parcels
carry the context as a W3C ``traceparent``. No span carries a cue or a record's id.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import msgspec

from iai_mcp.common import forks
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import ConfigError
from iai_mcp.telemetry import observer

if TYPE_CHECKING:
    from opentelemetry.trace import SpanKind, Tracer

__all__ = ["MAX_TRACES", "Tracing", "start"]

MAX_TRACES = 128  # per batch: a batch may hold thousands of recalls

_started: Tracing | None = None
_starting = threading.Lock()


def start(settings: Settings) -> None:
    """Start to trace this process if the settings ask for it. A second call does nothing.

    Spans go to the tracer provider of the program if it has set one.

    Raises:
        ConfigError: the extra is missing, or the setting is neither ``off`` nor ``otlp``.
    """
    global _started
    if settings.traces in ("", "off"):
        return
    if settings.traces != "otlp":
        raise ConfigError(f"IAI_MCP_TRACES={settings.traces!r} is not one of off, otlp")
    with _starting:
        if _started is None:
            _started = Tracing(_tracer())
            observer.watch(_started)


def _in_child() -> None:
    global _starting
    _starting = threading.Lock()


forks.in_children(_in_child)


def _tracer() -> Tracer:
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError("IAI_MCP_TRACES=otlp needs OpenTelemetry: pip install 'iai-mcp[otel]'") from None
    from iai_mcp._version import __version__

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # the program has set its own
        return trace.get_tracer("iai_mcp", __version__)
    name = os.environ.get("OTEL_SERVICE_NAME") or "iai-mcp"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("iai_mcp", __version__)  # not global: we do not export other libraries' spans


# -- the observer


class Tracing(observer.Observer):
    """An observer that turns the pipeline's calls into spans."""

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._trace = trace
        self._empty = Context()
        self._propagator = TraceContextTextMapPropagator()

    def recalling(self) -> observer.Recalled:
        return _Recalled(self._tracer, self._trace.SpanKind.INTERNAL, "recall")

    def enqueuing(self, entries: int) -> observer.Enqueue:
        return _Enqueue(self._tracer, self._trace.SpanKind.PRODUCER, "push")

    def batch(self, lane: int) -> observer.Batch:
        return _Batch(self, lane)

    def record_batch(self, traceparent: str, marks: Sequence[int], attributes: Mapping[str, int]) -> None:
        """Add the spans of one batch to the trace of ``traceparent``. A malformed ``traceparent`` is ignored."""
        context = self._propagator.extract({"traceparent": traceparent}, self._empty)
        if context is self._empty:
            return
        kind = self._trace.SpanKind.CONSUMER
        for name, begin, end in zip(("claim", "merge", "ack"), marks, marks[1:], strict=False):
            self._tracer.start_span(name, context, kind, attributes=attributes, start_time=begin).end(end)


class _Current:
    """Makes a span current for a block. An error is recorded by its type only: its message may quote a cue."""

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
    """The span ``recall`` with a child for each stage. The hand-over has its own span: see :class:`_Enqueue`."""

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
    """The span ``push``. It is renamed to ``spill`` or ``journal`` if the entries went to the spill."""

    __slots__ = ()

    def carrying(self, parcels: list[Parcel]) -> list[Parcel]:
        context = self._span.get_span_context()
        if not context.trace_flags.sampled:
            return parcels
        self._span.set_attribute("iai_mcp.entries", sum(len(parcel.seqs) for parcel in parcels))
        self._span.set_attribute("iai_mcp.lanes", sorted({parcel.lane for parcel in parcels}))
        traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        return [msgspec.structs.replace(parcel, trace=traceparent) for parcel in parcels]

    def spilled(self, *, journal: bool) -> None:
        self._span.update_name("journal" if journal else "spill")


class _Batch(observer.Batch):
    """The spans ``claim``, ``merge`` and ``ack``, once in each trace that has entries in the batch.

    They are made when the batch ends. A failed batch is repeated, and its traces show the successful run only.
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
        for traceparent in [*traced][:MAX_TRACES]:
            counts = {
                "iai_mcp.lane": self._lane,
                "iai_mcp.entries": traced[traceparent],
                "iai_mcp.entries.batch": size,
            }
            self._tracing.record_batch(traceparent, self._marks, counts)
