"""Metrics: counts of the pipeline, gauges of its state, and never a word of a memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import IaiMcpError, SpillUnavailable
from iai_mcp.metrics import endpoint, gauges, instruments
from iai_mcp.metrics.catalogue import CATALOGUE, EVENTS, series
from iai_mcp.metrics.gauges import Reading, Source, SourceCollector
from iai_mcp.recall import recall
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from iai_mcp.telemetry import observer
from tests.server.test_server import TOKEN, http
from tests.servers import Server, serving
from tests.support import ROOT, entry, pairs, wait_until
from tests.workers.test_workers import running

PATIENCE = 30


@pytest.fixture(autouse=True)
def _unwatched() -> Iterator[None]:
    """No observer is left after a test."""
    yield
    for one in observer._registered:
        observer.unwatch(one)


Shown = dict[tuple[str, str], float]


def parsed(text: str) -> Shown:
    """``(name, label's value) -> value`` of every sample."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(url: str, **headers: str) -> Shown:
    return parsed(httpx2.get(url, headers=headers).raise_for_status().text)


class Watch:
    """This process's own metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        observer.watch(instruments.ClientMetrics(self.registry))

    def __call__(self, name: str, label: str = "") -> float:
        return parsed(endpoint.exposition(self.registry).decode())[name, label]


def remembered(store: MemoryStore, text: str = "the ferry leaves from pier nine") -> MemoryRecord:
    record = MemoryRecord(text=text, embedding=[0.0] * store.meta.embedder.dims)
    store.insert(record)
    return record


# -- counting


def test_idle_hooks_make_nothing() -> None:
    """Without an observer each hook gives the same object every time; `benchmarks/watching.py` has the cost."""
    assert type(observer.now) is observer.Observer
    parcels: list[Parcel] = []
    for hook in (observer.now.recalling, lambda: observer.now.enqueuing(5), lambda: observer.now.batch(0)):
        assert hook() is hook()
    with observer.now.enqueuing(5) as watched:
        assert watched.carrying(parcels) is parcels


def test_a_recall_is_counted_from_the_cue_to_the_acknowledgement(store: MemoryStore) -> None:
    seen = Watch()
    remembered(store)
    store.enable_provenance_queue(coalesce_ms=0)
    for _ in range(3):
        recall(store, "ferry", "s", cue_embedding=[1.0, *[0.0] * (store.meta.embedder.dims - 1)])
    store.disable_provenance_queue()
    assert [seen("iai_mcp_recall_seconds_count", stage) for stage in ("embed", "search", "total")] == [3, 3, 3]
    assert seen("iai_mcp_enqueue_seconds_count") == seen("iai_mcp_enqueue_total", "pushed") == 3
    assert seen("iai_mcp_enqueue_entries_total", "pushed") == 3
    assert seen("iai_mcp_drained_entries_total", "applied") == seen("iai_mcp_batch_entries_sum") == 3
    batches = seen("iai_mcp_drained_batches_total")
    assert 1 <= batches <= 3
    for name in ("iai_mcp_batch_entries", "iai_mcp_merge_seconds", "iai_mcp_sync_seconds"):
        assert seen(f"{name}_count") == batches
    assert seen("iai_mcp_entry_delay_seconds_count") == batches
    assert 0 < seen("iai_mcp_merge_seconds_sum") < seen("iai_mcp_entry_delay_seconds_sum")


def test_spilled_and_refused_are_counted(store: MemoryStore, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Watch()
    record = remembered(store)
    store.enable_provenance_queue()
    queue = store._provenance_queue
    assert queue is not None
    queue.stop()  # from here on the spill takes the entries
    queue.enqueue(pairs(record.id, range(4)))
    monkeypatch.setenv("HOME", str(home / "file"))
    queue._spill.close()
    (home / "file").write_text("no folder")
    with pytest.raises((SpillUnavailable, IaiMcpError)):
        queue.enqueue(pairs(record.id, range(2)))
    assert seen("iai_mcp_enqueue_entries_total", "spilled") == 4
    assert seen("iai_mcp_enqueue_entries_total", "refused") == 2
    assert seen("iai_mcp_events_total", "spill_started") == seen("iai_mcp_events_total", "spill_failed") == 1


def test_two_observers_count_the_same(store: MemoryStore) -> None:
    first, second = Watch(), Watch()
    record = remembered(store)
    store.enable_provenance_queue(coalesce_ms=0)
    store.queue_provenance_batch([(record.id, entry("a"))])
    store.disable_provenance_queue()
    for seen in (first, second):
        assert seen("iai_mcp_enqueue_total", "pushed") == seen("iai_mcp_drained_entries_total", "applied") == 1


def test_every_event_of_the_source_is_counted_or_left_out_on_purpose() -> None:
    found = {
        name
        for folder in ("iai_mcp", "workers")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r'emit\(\s*"(\w+)"', path.read_text())
    }
    assert found - {"drained"} == {*EVENTS}  # drained has counters of its own


# -- reading the sources


def test_a_source_that_hangs_or_fails_costs_its_own_gauges_only() -> None:
    hold, broken = threading.Event(), [True]

    def fails() -> list[Reading]:
        if broken[0]:
            raise OSError("away")
        return [("iai_mcp_dead_letters", "", 2)]

    def hangs() -> list[Reading]:
        hold.wait()
        return [("iai_mcp_workers", "", 3)]

    def works() -> list[Reading]:
        return [("iai_mcp_lane_rows", "0", 7)]

    sources = [Source("redis", hangs), Source("files", fails), Source("store", works)]
    registry = CollectorRegistry()
    registry.register(SourceCollector(sources, wait=0.2))
    took = timeit.timeit(lambda: parsed(endpoint.exposition(registry).decode()), number=1)
    shown = parsed(endpoint.exposition(registry).decode())
    assert took < 1.5
    assert [shown["iai_mcp_source_up", source] for source in ("redis", "files", "store")] == [0, 0, 1]
    assert shown["iai_mcp_lane_rows", "0"] == 7
    assert ("iai_mcp_workers", "") not in shown
    assert sum(thread.name == "iai-mcp-gauges-redis" for thread in threading.enumerate()) == 1

    hold.set()
    broken[0] = False
    wait_until(lambda: ("iai_mcp_workers", "") in parsed(endpoint.exposition(registry).decode()))


def test_old_values_of_a_hanging_source_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "FRESH_S", 0.0)
    hold = threading.Event()
    hold.set()

    def read() -> list[Reading]:
        hold.wait()
        return [("iai_mcp_workers", "", 3)]

    registry = CollectorRegistry()
    registry.register(SourceCollector([Source("redis", read)], wait=0.2))
    assert parsed(endpoint.exposition(registry).decode())["iai_mcp_workers", ""] == 3
    hold.clear()
    shown = parsed(endpoint.exposition(registry).decode())
    hold.set()
    assert shown["iai_mcp_source_up", "redis"] == 0
    assert ("iai_mcp_workers", "") not in shown


def test_an_address_in_use_is_one_line(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = endpoint.serve(CollectorRegistry(), "127.0.0.1", 0)
    port = taken.url.split(":")[-1].split("/")[0]
    try:
        with pytest.raises(IaiMcpError, match=f"cannot serve metrics on 127.0.0.1:{port}: Address already in use"):
            endpoint.serve(CollectorRegistry(), "127.0.0.1", int(port))
        assert httpx2.get(taken.url.replace("/metrics", "/other")).status_code == 404
    finally:
        taken.close()


# -- over HTTP


def test_crowds_of_silent_connections_cost_a_worker_few_threads_and_no_scrape() -> None:
    before = threading.active_count()
    served = endpoint.serve(CollectorRegistry(), "127.0.0.1", 0)
    address = ("127.0.0.1", int(served.url.split(":")[2].split("/")[0]))
    with contextlib.ExitStack() as crowd:
        for number in range(300):
            link = crowd.enter_context(socket.create_connection(address, timeout=20))
            if number % 2:
                link.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        assert httpx2.get(served.url, timeout=20).status_code == 200
        few = before + endpoint.CONNECTIONS_MAX + 10
        wait_until(lambda: threading.active_count() <= few, 5)
        assert httpx2.get(served.url, timeout=20).status_code == 200
    served.close()


def test_the_server_answers_authorised_scrapes_only(tmp_path: Path) -> None:
    known = {"authorization": f"Bearer {TOKEN}"}
    with http(tmp_path, IAI_MCP_TOKEN=TOKEN) as server:
        url = server.url.replace("/mcp", "/metrics")
        refused = {
            401: [{}, {"authorization": "Bearer wrong"}],
            421: [{**known, "host": "evil.example"}],
            403: [{**known, "origin": "http://evil.example"}],
        }
        for status, cases in refused.items():
            for headers in cases:
                assert httpx2.get(url, headers=headers).status_code == status
        assert httpx2.post(url, headers=known).status_code == 405
        assert "text/plain" in httpx2.get(url, headers=known).headers["content-type"]
        shown = wait_until(lambda: s if ("iai_mcp_records", "") in (s := scraped(url, **known)) else None)
        assert shown["iai_mcp_source_up", "queue"] == shown["iai_mcp_source_up", "files"] == 1
        assert shown["iai_mcp_lane_pending_entries", "3"] == 0  # the embedded broker's
        assert ("iai_mcp_breaker_open", "") not in shown
        assert ("iai_mcp_workers", "") not in shown
        assert server.stop() == 0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as server:
        yield server


def test_workers_count_together_on_one_port_and_go_on_after_a_kill(
    tmp_path: Path, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "zanzibar"
    monkeypatch.setenv("IAI_MCP_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    monkeypatch.setenv("IAI_MCP_REDIS_URL", redis.url)
    counted = tmp_path / "counted"
    counted.mkdir()
    monkeypatch.setenv("TMPDIR", str(counted))
    store = MemoryStore()
    record = remembered(store, f"{secret} is an island")
    store.enable_provenance_queue()

    def ask() -> None:
        recall(store, secret, f"session-{secret}", client=f"client-{secret}")

    with running("worker", "-n", "2", "--metrics-port", "0") as supervisor:
        assert supervisor.stderr is not None
        url = supervisor.stderr.readline().split()[-1]
        for _ in range(3):
            ask()
        applied = ("iai_mcp_drained_entries_total", "applied")
        wait_until(lambda: scraped(url).get(applied) == 3, PATIENCE)
        for pid in Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        ask()
        wait_until(lambda: scraped(url)[applied] == 4, PATIENCE)  # it never restarted from zero
        shown = wait_until(lambda: s if (s := scraped(url)).get(("iai_mcp_records", "")) == 1 else None, PATIENCE)
        assert shown["iai_mcp_redis_aof_enabled", ""] == shown["iai_mcp_source_up", "redis"] == 1
        assert shown["iai_mcp_merge_seconds_count", ""] == shown["iai_mcp_drained_batches_total", ""]
        text = httpx2.get(url).text
        assert secret not in text
        assert str(record.id) not in text
        assert len([*counted.rglob("*.db")]) == 2 * 3  # a worker continues the files of its dead predecessor
        store.disable_provenance_queue()
        supervisor.terminate()
        assert supervisor.wait(30) == 0
    assert not [*counted.iterdir()]


# -- documentation, dashboard and alerts


DASHBOARD = ROOT / "deploy/grafana/dashboards/iai-mcp.json"
RULES = ROOT / "deploy/prometheus/alerts.yml"
KNOWN = {name for spec in CATALOGUE for name in series(spec)}


def test_the_documentation_lists_every_metric_as_it_is() -> None:
    lines = (ROOT / "docs/operations.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `iai_mcp_")
    ]
    wanted = [[f"`{s.name}`", s.kind, f"`{s.label}`" if s.label else "", s.where, s.help] for s in CATALOGUE]
    assert rows == wanted


@pytest.mark.parametrize("path", [DASHBOARD, RULES, RULES.with_name("alerts_test.yml")], ids=lambda p: p.name)
def test_what_is_asked_of_prometheus_exists(path: Path) -> None:
    asked = set(re.findall(r"\biai_mcp_\w+", path.read_text()))
    assert asked
    assert asked <= KNOWN


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = json.loads(DASHBOARD.read_text())
    panels: list[dict[str, Any]] = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            refs = [target["refId"] for target in panel["targets"]]
            assert refs
            assert len({*refs}) == len(refs)
            for target in panel["targets"]:
                assert target["expr"].count("(") == target["expr"].count(")")
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len({*cells}) == len(cells)
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "instance"}


def test_every_alert_is_tested_and_has_a_runbook_entry() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert len({*alerts}) == len(alerts) >= 6
    runbook = re.findall(r"^### (IaiMcp\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert runbook == alerts
    linked = re.findall(r"runbook: docs/operations.md#(\w+)", RULES.read_text())
    assert linked == [alert.lower() for alert in alerts]
    told = RULES.with_name("alerts_test.yml").read_text()
    for alert in alerts:
        fires = rf"alertname: {alert}\n\s+exp_alerts:\n"
        assert f"alertname: {alert}, exp_alerts: []" in told
        assert re.search(fires, told), alert
