"""One trace from a recall to its acknowledgement in another process, and no trace while tracing is off."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler

from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import decode, encode
from iai_mcp.errors import BadParams, ConfigError
from iai_mcp.recall import recall
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from iai_mcp.telemetry import observer, tracing
from tests.server.test_server import HELLO, call_line, process
from tests.servers import serving, worker
from tests.support import finished, python, wait_until
from tests.telemetry.collector import collecting, flat

SECRET = "zanzibar"


@pytest.fixture(autouse=True)
def _unwatched() -> Iterator[None]:
    yield
    for one in observer._registered:
        observer.unwatch(one)


def watched(sampler: Sampler | None = None) -> InMemorySpanExporter:
    """Trace this process into memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler) if sampler else TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer.watch(tracing.Tracing(provider.get_tracer("test")))
    return exporter


def asked(store: MemoryStore, times: int = 1) -> None:
    """Recalls of one memory, drained."""
    dims = store.meta.embedder.dims
    store.insert(MemoryRecord(text=f"{SECRET} is an island", embedding=[1.0] * dims))
    store.enable_provenance_queue()
    for _ in range(times):
        recall(store, SECRET, "s", cue_embedding=[1.0] * dims)
    store.disable_provenance_queue()


def finished_spans(exporter: InMemorySpanExporter) -> list[dict[str, Any]]:
    return flat(exporter.get_finished_spans())


def tree(spans: list[dict[str, Any]]) -> dict[str, str | None]:
    """The name of each span's parent."""
    names = {span["span_id"]: span["name"] for span in spans}
    return {span["name"]: names.get(span["parent_id"]) for span in spans}


WHOLE = {
    "recall": None,
    "embed": "recall",
    "search": "recall",
    "push": "recall",
    "claim": "push",
    "merge": "push",
    "ack": "push",
}

RECALL = """
import sys
from iai_mcp.store import MemoryStore
from iai_mcp.recall import recall
store = MemoryStore()
store.enable_provenance_queue()
recall(store, sys.argv[1], "s")
store.disable_provenance_queue()
print(sorted({name.split(".")[0] for name in sys.modules}))
"""


# -- across processes


def test_one_trace_from_the_recall_to_the_acknowledgement_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "store"
    monkeypatch.setenv("IAI_MCP_STORE", str(place))
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    store = MemoryStore()
    store.insert(MemoryRecord(text=f"{SECRET} is an island", embedding=[0.0] * store.meta.embedder.dims))
    with serving(tmp_path / "redis") as redis, collecting() as collector:
        monkeypatch.setenv("IAI_MCP_REDIS_URL", redis.url)
        with worker(redis.url, place, env={**collector.env, "OTEL_SERVICE_NAME": "worker"}):
            finished(python(RECALL, SECRET, **collector.env, OTEL_SERVICE_NAME="client"))
            wait_until(lambda: sum(store.lane(n).count() for n in range(store.lanes)) == 1, 30)
    found = collector.spans()  # both processes have ended and sent theirs
    assert tree(found) == WHOLE
    assert len({span["trace_id"] for span in found}) == 1
    assert Counter(span["service"] for span in found) == {"client": 4, "worker": 3}
    at = {span["name"]: (span["start_ns"], span["end_ns"]) for span in found}
    assert at["recall"][0] <= at["push"][0] <= at["claim"][1] <= at["merge"][0] <= at["merge"][1] <= at["ack"][0]
    assert all(SECRET.encode() not in body for body in collector.received)


def test_a_recall_joins_the_trace_of_the_client_that_asks(tmp_path: Path, store: MemoryStore) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    call = json.loads(call_line(3, "memory_recall", cue=SECRET))
    call["params"]["_meta"] = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    asked(store)  # in tmp_path too
    with collecting() as collector:
        server = process(tmp_path, **collector.env)
        out, err = server.communicate(f"{HELLO}{json.dumps(call)}\n", 60)
    assert (server.returncode, err) == (0, "")
    assert SECRET in out
    found = collector.spans()
    (recalled,) = (span for span in found if span["name"] == "recall")
    assert (recalled["trace_id"], recalled["parent_id"]) == (trace_id, span_id)
    assert {span["trace_id"] for span in found} == {trace_id}


def test_nothing_is_imported_and_nothing_carried_while_it_is_off(tmp_path: Path, store: MemoryStore) -> None:
    asked(store)
    modules = finished(python(RECALL, SECRET, IAI_MCP_STORE=str(store.path), IAI_MCP_EMBEDDER="none"))
    assert "lancedb" in modules
    assert "opentelemetry" not in modules
    assert "prometheus_client" not in modules
    parcel = Parcel.of("s", 0, "p", 0.0, [])
    assert b"trace" not in encode(parcel)


# -- in one process


def test_the_embedded_broker_carries_it_too(store: MemoryStore) -> None:
    exporter = watched()
    asked(store)
    found = finished_spans(exporter)
    assert tree(found) == WHOLE
    (push,) = (span for span in found if span["name"] == "push")
    assert push["attributes"]["iai_mcp.entries"] == 1
    assert SECRET not in repr(found)


def test_it_goes_through_the_spill(store: MemoryStore) -> None:
    exporter = watched()
    asked(store)
    exporter.clear()
    record = store.list_records()[0]
    store.enable_provenance_queue()
    queue = store._provenance_queue
    assert queue is not None
    queue.stop()
    store.queue_provenance_batch([(record.id, {"ts": "", "cue": "while stopped", "session_id": "s"})])
    queue.start()
    assert queue.flush(10)
    store.disable_provenance_queue()
    found = finished_spans(exporter)
    assert tree(found) == {"spill": None, "claim": "spill", "merge": "spill", "ack": "spill"}
    assert len({span["trace_id"] for span in found}) == 1


def test_of_a_large_batch_some_traces_are_followed(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_TRACES", 2)
    exporter = watched()
    record = MemoryRecord(text="x", embedding=[0.0] * store.meta.embedder.dims)
    store.insert(record)
    store.enable_provenance_queue(coalesce_ms=60_000)  # they wait for one another
    for number in range(5):
        store.queue_provenance_batch([(record.id, {"ts": "", "cue": str(number), "session_id": "s"})])
    store.disable_provenance_queue()
    names = Counter(span["name"] for span in finished_spans(exporter))
    assert names == {"push": 5, "claim": 2, "merge": 2, "ack": 2}


def test_what_is_not_sampled_travels_light(store: MemoryStore) -> None:
    exporter = watched(ALWAYS_OFF)
    seen: list[Parcel] = []

    class Peek(observer.Observer):
        def batch(self, lane: int) -> observer.Batch:
            class Mine(observer.Batch):
                def claimed(self, parcels: Any) -> None:
                    seen.extend(parcels)

            return Mine()

    observer.watch(Peek())
    asked(store)
    assert [parcel.trace for parcel in seen] == [msgspec.UNSET]
    assert finished_spans(exporter) == []


def test_of_an_error_it_tells_the_kind(store: MemoryStore) -> None:
    exporter = watched()
    store.enable_provenance_queue()
    with pytest.raises(BadParams):
        store.queue_provenance_batch([(SECRET, {})])  # type: ignore[list-item]
    (span,) = finished_spans(exporter)
    assert span["attributes"] == {"error.type": "BadParams"}
    assert SECRET not in repr(exporter.get_finished_spans()[0].to_json())


@pytest.mark.parametrize(
    "trace", [None, 7, "", "nonsense", "00-0-0-01", ["00"], "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
def test_whatever_a_parcel_says_of_its_trace_its_entries_count(trace: object, store: MemoryStore) -> None:
    exporter = watched()
    parcel = Parcel.of(store.store_id, 0, "p", 0.0, [], trace=trace)
    assert decode(encode(parcel)) == parcel
    batch = observer.now.batch(0)
    batch.claimed([decode(encode(parcel))])
    batch.written()
    batch.acknowledged()
    assert finished_spans(exporter) == []


def test_a_reader_leaves_fields_of_a_later_version_alone() -> None:
    raw = encode(Parcel.of("s", 0, "p", 0.0, []))
    assert decode(raw[:-1] + b',"colour":"red"}') == decode(raw)


# -- settings


def test_an_unknown_setting_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="IAI_MCP_TRACES='yes' is not one of off, otlp"):
        tracing.start(Settings(traces="yes"))
    with pytest.raises(ConfigError, match="IAI_MCP_TRACES='yes' is not one of off, otlp"):
        Settings.load({"IAI_MCP_TRACES": "yes"})
    assert type(observer.now) is observer.Observer


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'iai-mcp\[otel\]'"):
        tracing.start(Settings(traces="otlp"))
