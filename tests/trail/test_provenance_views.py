"""``iai-mcp provenance``: a memory's timeline, rankings, exports of everything, and the trail live."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from iai_mcp.cli import common
from iai_mcp.cli.app import app
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import BadParams
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.rows import LANE_SCHEMA, from_row
from iai_mcp.store import MemoryStore
from iai_mcp.trail import query
from iai_mcp.trail import stream as trail_stream
from iai_mcp.trail.query import TrailFilters
from iai_mcp.trail.stream import Follower, stream
from tests.servers import serving, worker
from tests.support import cues, finished, python, wait_until

PATIENCE = 60
TERMINATE = 1 << (signal.SIGTERM - 1)  # in the mask of the signals that a process catches
Run = Callable[..., Result]


@pytest.fixture
def run(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``iai-mcp provenance`` on ``store`` in this process."""
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    monkeypatch.setenv("IAI_MCP_STORE", str(store.path))

    def invoke(*args: object, code: int = 0) -> Result:
        command = ["provenance", *map(str, args)]
        result = CliRunner().invoke(app, command, prog_name="iai-mcp")
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return invoke


def memories(store: MemoryStore, *texts: str) -> list[UUID]:
    return store.insert_many([MemoryRecord(text=text) for text in texts])


def recalled(record_id: UUID, cue: str, ts: str = "2026-11-23T12:00:00+00:00", **further: Any) -> tuple[UUID, Any]:
    return record_id, {"ts": ts, "cue": cue, "session_id": "s", **further}


@pytest.fixture
def asked(store: MemoryStore) -> list[UUID]:
    """Three memories: one recalled three times on two days, one once, one never."""
    ids = memories(store, "tabs or spaces", "the ferry's pier", "nobody asked")
    told = {"client": "editor", "recall_id": "r-1", "score": 0.5}
    store.append_provenance_batch(
        [
            recalled(ids[0], "which indent?", "2026-11-23T10:00:00+00:00", rank=2, **told),
            recalled(ids[1], "which indent?", "2026-11-23T10:00:00+00:00", rank=1, **told),
            recalled(ids[0], "tabs, again", "2026-11-23T11:00:00+00:00", rank=1, recall_id="r-2", session_id="t"),
            recalled(ids[0], 'say "tabs",\nplease', "2026-11-24T09:30:00+00:00", recall_id="r-3", mood="curious"),
        ]
    )
    return ids


def one_error(result: Result) -> str:
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# --- views for people ------------------------------------------------------------------------------------


def test_the_timeline_of_a_memory_goes_by_day_and_says_who_and_in_which_recall(
    run: Run, asked: list[UUID]
) -> None:
    assert run("--record", asked[0]).stdout.splitlines() == [
        "tabs or spaces",
        str(asked[0]),
        "",
        "2026-11-23",
        "  10:00:00  which indent?",
        "            s · editor · rank 2 · 0.500 · recall r-1",
        "  11:00:00  tabs, again",
        "            t · rank 1 · recall r-2",
        "",
        "2026-11-24",
        '  09:30:00  say "tabs", please',
        "            s · recall r-3",
    ]


def test_a_recall_shows_what_it_returned_by_rank(run: Run, asked: list[UUID]) -> None:
    said = run("--recall", "r-1").stdout
    assert said.splitlines()[:2] == ["which indent?", "2026-11-23 10:00:00  s · editor"]
    assert (
        said.index("1  0.500  the ferry's pier")
        < said.index("2  0.500  tabs or spaces")
        < said.index(str(asked[0]))
    )


def test_top_counts_and_never_lists_what_is_left(run: Run, asked: list[UUID]) -> None:
    lines = run("--top").stdout.splitlines()
    assert lines[1].split() == ["3", "2026-11-24", "09:30:00", "tabs", "or", "spaces"]
    assert lines[3].split()[:3] == ["1", "2026-11-23", "10:00:00"]
    assert "nobody asked" in run("--never").stdout
    assert [one["recalls"] for one in json.loads(run("--top", "--cue", "indent", "--json").stdout)["records"]] == [
        1,
        1,
    ]
    never = json.loads(run("--never", "--session", "t", "--json").stdout)["records"]
    assert {one["record_id"] for one in never} == {str(asked[1]), str(asked[2])}


def test_what_there_is_none_of_is_said_on_stderr(run: Run, asked: list[UUID], store: MemoryStore) -> None:
    cases: list[tuple[list[object], str]] = [
        (["--record", asked[2]], "no entry of the trace matches"),
        (["--recall", "r-9"], "no entry of the trace matches"),
        (["--top", "--offset", 5], "--offset 5 is beyond the last result: lower it"),
    ]
    for args, told in cases:
        result = run(*args)
        assert (result.stdout, result.stderr.strip()) == ("", told)
    store.append_provenance_batch([recalled(asked[2], "at last")])
    assert run("--never").stderr == "every memory was recalled\n"


def test_a_page_says_how_to_see_the_next(run: Run, asked: list[UUID]) -> None:
    assert "older ones: --offset 2" in run("--record", asked[0], "--limit", 2).stderr
    assert "more: --offset 1" in run("--top", "--limit", 1).stderr
    assert "tabs, again" in run("--record", asked[0], "--limit", 1, "--offset", 1).stdout


def test_control_characters_never_reach_the_terminal(run: Run, store: MemoryStore) -> None:
    (record_id,) = memories(store, "red \x1b[31m")
    store.append_provenance_batch([recalled(record_id, "\x1b[2J", session_id="\x07", recall_id="r")])
    for view in (["--record", record_id], ["--recall", "r"], ["--top"]):
        assert not set(run(*view).stdout) & set("\x1b\x07\x9b")


def test_colours_are_for_terminals_that_want_them(store: MemoryStore, asked: list[UUID]) -> None:
    views = [["--top"], ["--record", str(asked[0])], ["--recall", "r-1"], ["--session", "s"]]
    painted = on_a_terminal(store, views)
    assert all("\x1b[" in said for said in painted)
    assert not any("\x1b" in said for said in on_a_terminal(store, views, NO_COLOR="1"))


def on_a_terminal(store: MemoryStore, views: list[list[str]], **env: str) -> list[str]:
    """What each view writes where stdout is a terminal."""
    code = "import json, sys; from iai_mcp.cli.app import app\n"
    code += "for view in json.loads(sys.argv[1]): app(['provenance', *view], standalone_mode=False); print('END')"
    settings = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    settings |= {"IAI_MCP_STORE": str(store.path), "IAI_MCP_EMBEDDER": "none", "TERM": "xterm-256color", **env}
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", code, json.dumps(views)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=settings) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # Linux's word for the end
            while part := os.read(ours, 65536):
                said += part
        assert process.wait(PATIENCE) == 0, process.communicate()
    os.close(ours)
    return said.decode().split("END")[:-1]


# --- what goes together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--top", "--never"], "--top and --never do not go together"),
        (["--top", "--record", "x"], "--top and --record do not go together"),
        (["--never", "--recall", "x"], "--never and --recall do not go together"),
        (["--follow", "--top"], "--follow and --top do not go together"),
        (["--follow", "--until", "1h"], "--follow and --until do not go together"),
        (["--follow", "--recall", "x"], "a recall leaves no more entries"),
        (["--follow", "--output", "x.csv"], "send stdout to the file"),
        (["--follow", "--json"], "--follow never ends, and a json file must"),
        (["--follow", "--format", "parquet"], "use --format table, jsonl or csv"),
        (["--json", "--format", "csv"], "give one of them"),
        (["--format", "xml"], "'--format'"),
        (["--output", "trail"], "the name 'trail' implies no format"),
        (["--output", ""], "--output is empty"),
        (["--output", "x.csv", "--format", "table"], "--output cannot take a table"),
        (["--since", "2 parsecs"], "nor a span back from now, such as 30m, 2h or 7d"),
        (["--since", "9"], "--since '9' is not"),
        (["--limit", "0"], "'--limit'"),
        (["--record", "x", "--format", "csv"], "'x' is not a record id"),
        (["--record", str(UUID(int=7)), "--format", "jsonl"], "no memory has the id"),
        (["--record", str(UUID(int=7))], "no memory has the id"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_code_2(run: Run, args: list[str], told: str) -> None:
    assert told in one_error(run(*args, code=2))


def test_parquet_is_not_for_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iai_mcp.cli.row_writers.on_terminal", lambda: True)
    assert "give --output FILE" in one_error(run("--format", "parquet", code=2))


@pytest.mark.parametrize(
    ("span", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("2h", timedelta(hours=2)),
        ("7d", timedelta(days=7)),
        ("3W", timedelta(weeks=3)),
    ],
)
def test_a_span_is_so_long_ago(span: str, ago: timedelta) -> None:
    found = common.moment("--since", span)
    assert found is not None
    assert abs(datetime.now(UTC) - ago - found) < timedelta(minutes=1)


def test_spans_choose_and_the_oldest_time_that_can_be_said_is_fine(
    run: Run, store: MemoryStore, asked: list[UUID]
) -> None:
    lately = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    store.append_provenance_batch([recalled(asked[2], "lately", lately)])
    for condition, found in [
        (["--since", "10m", "--until", "1m"], True),
        (["--since", "1m"], False),
        (["--since", "0001-01-01"], True),
        (["--until", "999999999w"], False),
    ]:
        entries = json.loads(run("--record", asked[2], *condition, "--json").stdout)["entries"]
        assert bool(entries) is found, condition
    with pytest.raises(BadParams):
        common.moment("--since", "-2h")


# --- exports ---------------------------------------------------------------------------------------------


def test_what_one_recall_left_in_several_lanes_comes_in_one_order(run: Run, store: MemoryStore) -> None:
    ids = sorted(memories(store, *"abcdefgh"), key=lambda one: -lane_of(one, store.lanes))
    store.append_provenance_batch([recalled(one, "at once", rank=rank) for rank, one in enumerate(ids)])
    whole = json.loads(run("--json").stdout)["entries"]
    assert [json.loads(line) for line in run("--format", "jsonl").stdout.splitlines()] == whole


def test_json_lines_are_the_entries_that_json_has(run: Run, asked: list[UUID]) -> None:
    for view in ([], ["--record", asked[0]], ["--session", "t"], ["--limit", 2]):
        whole = json.loads(run(*view, "--format", "json").stdout)["entries"]
        assert whole == json.loads(run(*view, "--json").stdout)["entries"]
        assert [json.loads(line) for line in run(*view, "--format", "jsonl").stdout.splitlines()] == whole
        assert whole
    for view in (["--top"], ["--never"], ["--top", "--limit", 1]):
        whole = json.loads(run(*view, "--json").stdout)["records"]
        assert [json.loads(line) for line in run(*view, "--format", "jsonl").stdout.splitlines()] == whole
        assert whole


def test_csv_has_a_header_and_quotes_what_must_be(run: Run, asked: list[UUID]) -> None:
    rows = [*csv.DictReader(io.StringIO(run("--record", asked[0], "--format", "csv").stdout, newline=""))]
    assert [*rows[0]] == LANE_SCHEMA.names
    assert [row["cue"] for row in rows] == ["which indent?", "tabs, again", 'say "tabs",\nplease']
    assert json.loads(rows[2]["rest"]) == {"mood": "curious"}
    (top, _) = csv.DictReader(io.StringIO(run("--top", "--format", "csv").stdout))
    assert (top["recalls"], top["text"], top["tags"]) == ("3", "tabs or spaces", "[]")
    nothing = run("--session", "nobody", "--format", "csv").stdout
    assert nothing.splitlines() == [",".join(f'"{name}"' for name in LANE_SCHEMA.names)]


def test_parquet_keeps_types_in_a_file_and_in_a_pipe(run: Run, asked: list[UUID], tmp_path: Path) -> None:
    there = tmp_path / "trail.parquet"
    run("--output", there)
    for table in (pq.read_table(there), pq.read_table(io.BytesIO(run("--format", "parquet").stdout_bytes))):
        assert table.schema.equals(LANE_SCHEMA)
        assert cues(table.to_pylist()) == ["which indent?", "which indent?", "tabs, again", 'say "tabs",\nplease']
    run("--top", "--output", there)
    assert pq.read_table(there)["recalls"].to_pylist() == [3, 1]


def test_a_file_is_written_whole_or_not_at_all(
    run: Run, asked: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "out" / "trail.csv"
    there.parent.mkdir()
    there.write_text("of yesterday")

    def full(*_: object) -> Any:
        yield LANE_SCHEMA.empty_table()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trail_stream, "stream", full)
        assert "No space left" in one_error(run("--output", there, code=1))
    assert [path.read_text() for path in there.parent.iterdir()] == ["of yesterday"]
    run("--output", there)
    assert len([*csv.reader(io.StringIO(there.read_text(), newline=""))]) == 5
    assert [path.name for path in there.parent.iterdir()] == ["trail.csv"]
    run("--output", "/dev/null", "--format", "csv")
    assert not Path("/dev/null").is_file()


def test_a_stream_is_all_of_it_once_in_order_and_nothing_forgotten(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_stream, "WINDOW", 7)  # many windows, whose seams must not show
    ids = memories(store, *(f"memory {number}" for number in range(12)))
    times = [f"2026-11-23T12:{number // 60:02d}:{number % 60:02d}+00:00" for number in range(300)]
    for start in range(0, 300, 100):
        some = range(start, start + 100)
        store.append_provenance_batch([recalled(ids[n % 12], str(n), times[n]) for n in some])
    doubled(store, ids[3])
    store.delete(ids[5])
    store.tombstones.add(ids[6])  # a process that was killed before it came to the trace

    found = [from_row(row) for rows in stream(store, TrailFilters()) for row in rows.to_pylist()]
    assert cues(found) == [str(n) for n in range(300) if n % 12 not in (5, 6)]
    only = [row["cue"] for rows in stream(store, TrailFilters(record_id=ids[3])) for row in rows.to_pylist()]
    assert only == [str(n) for n in range(300) if n % 12 == 3]
    assert cues(query.trail(store, TrailFilters(record_id=ids[3]))) == only
    monkeypatch.setattr(query, "_WHOLE_ROWS", 3)  # and a page of a memory with many entries is the same page
    assert cues(query.trail(store, TrailFilters(record_id=ids[3]), limit=5, offset=2)) == only[-7:-2]
    assert query.trail(store, TrailFilters(record_id=ids[3]), limit=5, offset=25) == []


def doubled(store: MemoryStore, record_id: UUID) -> None:
    """Add every row of a memory once more, as a writer without the lock might."""
    lane = store.lane(lane_of(record_id, store.lanes))
    rows = lane.rows([f"record_id = '{record_id}'"])
    again = rows.set_column(rows.schema.get_field_index("seq"), LANE_SCHEMA.field("seq"), [[10_000] * len(rows)])
    lane._table.add(again)


def test_times_out_of_turn_do_not_change_a_records_order(store: MemoryStore) -> None:
    ids = memories(store, "one", "two")
    for number, ts in enumerate(
        ["2026-11-23T12:00:00Z", "2026-11-23T10:00:00Z", "no time", "2026-11-23T13:00:00Z"]
    ):
        store.append_provenance_batch([recalled(record_id, str(number), ts) for record_id in ids])
    found = [row for rows in stream(store, TrailFilters()) for row in rows.to_pylist()]
    for record_id in ids:
        assert cues([row for row in found if row["record_id"] == str(record_id)]) == ["0", "1", "2", "3"]
    assert {row["cue"] for row in found[-2:]} == {"3"}


# --- live ------------------------------------------------------------------------------------------------


def test_a_follower_sees_each_new_entry_once(store: MemoryStore, asked: list[UUID]) -> None:
    reader = MemoryStore(store.path)
    everything = Follower(reader, TrailFilters(), newest=2)
    one = Follower(reader, TrailFilters(record_id=asked[2], cue="AGAIN"))
    assert [len(everything.poll()), len(everything.poll()), len(one.poll())] == [2, 0, 0]
    store.append_provenance_batch([recalled(asked[2], "once"), recalled(asked[2], "once again")])
    assert cues(everything.poll().to_pylist()) == ["once", "once again"]
    assert cues(one.poll().to_pylist()) == ["once again"]
    store.lane(lane_of(asked[2], store.lanes)).maintain(force=True)
    doubled(store, asked[2])
    assert [len(everything.poll()), len(one.poll())] == [0, 0]


def test_a_follower_misses_nothing_where_numbers_are_given_again(store: MemoryStore) -> None:
    """Forgetting a lane's last rows makes the next writer use their numbers again."""
    ids = memories(store, *(f"memory {number}" for number in range(40)))
    kept, gone = [one for one in ids if lane_of(one, store.lanes) == 0][:2]
    store.append_provenance_batch([recalled(kept, "first")])
    store.append_provenance_batch([recalled(gone, str(number)) for number in range(5)])
    follower = Follower(store, TrailFilters())
    follower.poll()
    store.delete(gone)
    MemoryStore(store.path).append_provenance_batch([recalled(kept, "second")])
    rows = store.lane(0).rows([], ["seq", "cue"]).to_pylist()
    assert next(row["seq"] for row in rows if row["cue"] == "second") <= 6  # so the trap is there
    assert cues(follower.poll().to_pylist()) == ["second"]


def test_a_follower_remembers_so_many_keys(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail_stream, "KNOWN_ENTRIES", 8)
    (record_id,) = memories(store, "busy")
    follower = Follower(store, TrailFilters())
    for start in range(0, 60, 20):
        store.append_provenance_batch([recalled(record_id, str(n)) for n in range(start, start + 20)])
        assert cues(follower.poll().to_pylist()) == [str(n) for n in range(start, start + 20)]
        assert len(follower.poll()) == 0
    (tail,) = [tail for tail in follower._tails if tail.seqs]
    assert len(tail.seqs) == 8


@contextmanager
def following(store: MemoryStore, *args: object, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """``iai-mcp provenance --follow`` in the background."""
    settings = {**os.environ, "IAI_MCP_STORE": str(store.path), "IAI_MCP_EMBEDDER": "none", **env}
    command = [sys.executable, "-m", "iai_mcp", "provenance", "--follow", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=settings, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def lines_of(process: subprocess.Popen[bytes], number: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().decode() for _ in range(number)]


def ended(process: subprocess.Popen[bytes]) -> bytes:
    """What the command had still to say; it ended well and without a word on stderr."""
    assert process.stdout is not None
    out = b"" if process.stdout.closed else process.stdout.read()
    assert process.wait(PATIENCE) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    return out


def test_follow_prints_what_other_processes_write_until_it_is_told_to_stop(
    store: MemoryStore, asked: list[UUID]
) -> None:
    one, every = ("--limit", 1, "--record", asked[1]), ("--format", "csv")
    with following(store, *one) as live, following(store, *every) as table:
        header = lines_of(table, 1)
        assert len(lines_of(live, 1)) == 1
        store.append_provenance_batch(
            [recalled(asked[1], "now", client="chat", rank=1), recalled(asked[2], "too")]
        )
        (line,) = lines_of(live, 1)
        assert line.split() == ["2026-11-23", "12:00:00", "s", "chat", "1", "now"]
        rows = [*csv.DictReader([*header, *lines_of(table, 2)])]
        assert sorted(row["cue"] for row in rows) == ["now", "too"]
        live.send_signal(signal.SIGINT)
        table.send_signal(signal.SIGTERM)
        assert ended(live) == ended(table) == b""


@pytest.mark.parametrize("idle", [True, False])
def test_follow_ends_when_nobody_reads_it(store: MemoryStore, asked: list[UUID], idle: bool) -> None:
    with following(store, "--limit", 1, "--format", "jsonl") as live:
        assert len(lines_of(live, 1)) == 1
        assert live.stdout is not None
        live.stdout.close()
        if not idle:
            store.append_provenance_batch([recalled(asked[0], str(number)) for number in range(50)])
        ended(live)


def test_a_signal_during_the_start_ends_it_well_too(store: MemoryStore) -> None:
    with following(store) as live:
        status = Path(f"/proc/{live.pid}/status")
        wait_until(lambda: int(status.read_text().split("SigCgt:")[1].split()[0], 16) & TERMINATE, 30)
        live.send_signal(signal.SIGTERM)
        assert ended(live) == b""


def test_follow_sees_what_workers_write(store: MemoryStore, asked: list[UUID], tmp_path: Path) -> None:
    with (
        serving(tmp_path / "redis") as server,
        worker(server.url, store.path),
        following(store, "--format", "jsonl", "--session", "far", IAI_MCP_REDIS_URL=server.url) as live,
    ):
        ask = "from iai_mcp.core import dispatch; from iai_mcp.store import MemoryStore; s = MemoryStore()\n"
        ask += "s.enable_provenance_queue(); dispatch(s, 'memory_recall', {'cue': 'pier', 'session_id': 'far'})\n"
        ask += "s.disable_provenance_queue()"
        wait_until(lambda: server.client().exists("rq:workers"), 30)
        env = {"IAI_MCP_STORE": str(store.path), "IAI_MCP_REDIS_URL": server.url, "IAI_MCP_EMBEDDER": "none"}
        client = python(ask, **env, IAI_MCP_PUSH_BUDGET_MS="2000")
        finished(client)
        found = [json.loads(line) for line in lines_of(live, 3)]
        assert {entry["cue"] for entry in found} == {"pier"}
        assert sorted(entry["record_id"] for entry in found) == sorted(map(str, asked))
        live.send_signal(signal.SIGINT)
        assert ended(live) == b""


# --- the index behind the timeline -----------------------------------------------------------------------


def test_a_store_from_before_the_index_gets_it(store: MemoryStore, asked: list[UUID]) -> None:
    number = lane_of(asked[0], store.lanes)
    store.lane(number)._table.drop_index("record_id_idx")
    assert "record_id" not in indexed(store.lane(number))
    later = MemoryStore(store.path)
    assert len(query.trail(later, TrailFilters(record_id=asked[0]))) == 3
    assert "record_id" in indexed(later.lane(number))


def indexed(lane: LaneTable) -> set[str]:
    return {column for index in lane._table.list_indices() for column in index.columns}
