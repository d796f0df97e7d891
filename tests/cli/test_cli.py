"""The command line: what goes to stdout and what to stderr, exit codes, and what each command leaves behind."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from iai_mcp import __version__
from iai_mcp.cli.app import app
from iai_mcp.config import Settings
from iai_mcp.embedders import registry
from iai_mcp.embedders.base import EmbedderId
from iai_mcp.errors import EmbedderUnavailable, StoreUnavailable
from iai_mcp.maintenance.reembed import reembed
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore
from tests.support import entry

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    log = logging.getLogger("iai_mcp")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, without vectors: most of what is tested here needs none."""
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")

    def invoke(*args: object, code: int = 0, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, prog_name="iai-mcp")
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return invoke


@pytest.fixture
def document(run: Run) -> Callable[..., dict[str, Any]]:
    """Runs a command with ``--json``; stdout is one document and nothing else."""

    def invoke(*args: object, code: int = 0, stdin: str | bytes | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run(*args, "--json", code=code, stdin=stdin).stdout)
        return found

    return invoke


def a_file(folder: Path, lines: Sequence[object], name: str = "chat.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def one_error(result: Result) -> str:
    """The one line on stderr of a command that printed no result."""
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def words(text: str) -> str:
    return " ".join(text.split())


# --- starting --------------------------------------------------------------------------------------------


def test_help_is_fast_since_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, atexit\n"
        "sys.argv = ['iai-mcp', '--help']\n"
        "heavy = {'lancedb', 'pyarrow', 'onnxruntime', 'numpy', 'tokenizers', 'redis', 'rq'}\n"
        "atexit.register(lambda: print('HEAVY', sorted(heavy & set(sys.modules))))\n"
        "from iai_mcp.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert "HEAVY []" in done.stdout
    assert "iai-mcp demo" in done.stdout


def test_the_package_runs_as_a_module_too() -> None:
    command = [sys.executable, "-m", "iai_mcp", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"iai-mcp {__version__}\n"


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["recal", "x"], "No such command 'recal'"),
        (["recall"], "see `iai-mcp recall --help`"),
        (["recall", "x", "--colour"], "No such option: --colour"),
        (["recall", "x", "-k", "0"], "'--limit'"),
        (["recall", " "], "the cue is empty"),
        (["capture", " "], "the text is empty"),
        (["list", "--since", "yesterday"], "--since 'yesterday' is not an ISO 8601 time"),
        (["provenance", "--until", "x"], "--until 'x' is not an ISO 8601 time"),
        (["provenance", "--record", "x"], "'x' is not a record id"),
        (["get", "x"], "'x' is not a record id"),
        (["get", str(UUID(int=7))], f"no memory has the id {UUID(int=7)}"),
        (["import", "nowhere.md"], "nowhere.md does not exist"),
        (["list", "--store", ""], "--store is empty"),
        (["dead", "retry"], "either ids"),
        (["dead", "drop", "abc"], "no dead letter has the id abc"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run: Run, args: list[str], told: str) -> None:
    assert told in one_error(run(*args, code=2))


def test_a_wrong_setting_names_its_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_LOG", "loud")
    assert "IAI_MCP_LOG='loud' is not one of" in one_error(run("list", code=2))


def test_a_folder_that_is_no_store_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    assert "holds no store.json" in one_error(run("list", "--store", tmp_path / "other", code=1))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_trouble_with_the_place_is_exit_code_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("no space left\non the disk")

    monkeypatch.setattr("iai_mcp.core.dispatch", fail)
    assert one_error(run("status", code=1)) == "error: no space left on the disk"


def test_an_interrupt_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("iai_mcp.core.dispatch", interrupted)
    result = run("status", code=128 + signal.SIGINT)
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize("further", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_error(run: Run, tmp_path: Path, further: list[str]) -> None:
    path = a_file(tmp_path, [{"text": f"line {number} {'x' * 400}"} for number in range(400)])
    run("import", path)
    command = [sys.executable, "-m", "iai_mcp", "list", "--limit", "400", *further]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.readline()
        listing.stdout.close()
        said = listing.stderr.read()
        listing.wait(30)
    assert "rror" not in said
    assert "Traceback" not in said


def test_a_closed_stdout_is_no_error(run: Run) -> None:
    run("capture", "one memory")
    command = [sys.executable, "-m", "iai_mcp", "status"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_has_no_width(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "/".join(["a-folder-with-a-long-name"] * 8) / "store"
    run("capture", "the cat sat on the mat and " * 30, "--store", path)
    assert f"store     {path}\n" in run("status", "--store", path).stdout
    shown = run("recall", "cat", "--store", path, "--session", "a-session-with-a-long-name").stdout.splitlines()
    assert len(shown) == 4  # head, text, id, a blank line
    assert "a-session-with-a-long-name" in run("provenance", "--store", path).stdout


@pytest.mark.parametrize("command", ["list", "recall cue", "provenance", "status", "dead list", "get 1"])
def test_looking_makes_no_store(run: Run, tmp_path: Path, command: str) -> None:
    said = one_error(run(*command.split(), "--store", tmp_path / "mistyped", code=2))
    assert "there is no store at" in said
    assert not (tmp_path / "mistyped").exists()


def test_an_argument_that_is_no_text_is_refused(run: Run) -> None:
    assert "is not UTF-8 text" in one_error(run("capture", "caf\udce9", code=2))


# --- capture, recall, list, get --------------------------------------------------------------------------


def test_capture_then_recall_then_look_at_the_trace(document: Callable[..., dict[str, Any]]) -> None:
    kept = document("capture", "Ada prefers tabs", "--session", "s1", "--role", "user", "--tag", "style")
    assert kept["created"] is True
    assert document("capture", "Ada prefers tabs", "--session", "s1", "--role", "user")["created"] is False

    found = document("recall", "what does Ada prefer?", "--session", "asker")
    assert set(found) == {"recall_id", "cue", "hits", "timings_ms", "provenance"}
    (hit,) = found["hits"]
    assert (hit["record_id"], hit["text"], hit["tags"]) == (kept["record_id"], "Ada prefers tabs", ["style"])
    assert hit["score"] > 0

    (left,) = document("provenance", "--record", kept["record_id"])["entries"]
    assert (left["cue"], left["session_id"], left["client"]) == ("what does Ada prefer?", "asker", "iai-mcp-cli")
    assert {"entry_id", "record_id", "seq", "ts", "rank", "score", "recall_id"} <= left.keys()
    assert document("get", kept["record_id"])["provenance"] == [left]
    for condition in (["--session", "asker"], ["--cue", "ADA"], ["--recall", found["recall_id"]]):
        assert document("provenance", *condition)["entries"] == [left]
    for condition in (["--session", "s1"], ["--cue", "bob"], ["--recall", "x"], ["--until", "2001-01-01"]):
        assert document("provenance", *condition)["entries"] == []


def test_recall_without_a_trace_leaves_none(document: Callable[..., dict[str, Any]]) -> None:
    document("capture", "one memory")
    assert document("recall", "memory", "--no-trace")["hits"]
    assert document("provenance")["entries"] == []


def test_the_client_in_the_trace_can_be_named(
    document: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_CLIENT", "cron")
    document("capture", "one memory")
    document("recall", "memory")
    assert [left["client"] for left in document("provenance")["entries"]] == ["cron"]


def test_capture_reads_standard_input(document: Callable[..., dict[str, Any]], run: Run) -> None:
    kept = document("capture", "-", stdin="two\nlines\n")
    assert document("get", kept["record_id"])["text"] == "two\nlines"
    assert "byte 4" in one_error(run("capture", "-", stdin=b"caf\xe9", code=2))


def test_list_and_recall_look_only_where_they_are_told(document: Callable[..., dict[str, Any]]) -> None:
    document("capture", "red apple", "--session", "a", "--role", "user", "--tag", "fruit")
    document("capture", "red brick", "--session", "b", "--role", "assistant", "--tag", "wall")
    newest_first = document("list")
    assert [one["text"] for one in newest_first["records"]] == ["red brick", "red apple"]
    assert newest_first["total"] == 2
    assert [one["text"] for one in document("list", "--limit", 1, "--offset", 1)["records"]] == ["red apple"]
    for condition in (["--tag", "fruit"], ["--role", "user"]):
        assert [one["text"] for one in document("list", *condition)["records"]] == ["red apple"]
        assert [hit["text"] for hit in document("recall", "red", *condition)["hits"]] == ["red apple"]
    assert [one["text"] for one in document("list", "--session", "a")["records"]] == ["red apple"]
    assert [hit["text"] for hit in document("recall", "red", "--in-session", "a")["hits"]] == ["red apple"]
    assert document("list", "--until", "2001-01-01") == {"records": [], "total": 0}
    assert document("recall", "red", "--since", "2999-01-01")["hits"] == []


def test_the_store_is_where_the_option_or_the_variable_says(
    run: Run, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("capture", "here", "--store", tmp_path / "mine")
    assert MemoryStore(tmp_path / "mine").count() == 1
    assert not (home / ".iai-mcp").exists()
    monkeypatch.setenv("IAI_MCP_STORE", str(tmp_path / "mine"))
    assert "here" in run("list").stdout


def test_people_see_text_ids_and_trace_and_no_escape_sequences(
    run: Run, document: Callable[..., dict[str, Any]]
) -> None:
    kept = document("capture", "a \x1b[31mred\x1b[0m [bold]memory[/bold]", "--session", "s1")
    run("recall", "red memory", "--session", "asker")
    for args in (["list"], ["recall", "red", "--no-trace"], ["get", kept["record_id"]]):
        said = run(*args).stdout
        assert "\x1b" not in said
        assert "[bold]memory[/bold]" in said
        assert kept["record_id"] in said
        assert "s1" in said
    assert not any(line.endswith(" ") for line in said.splitlines())
    trace = words(run("provenance").stdout)
    assert f"asker iai-mcp-cli 1 1.000 red memory {kept['record_id']}" in trace


def test_nothing_found_is_said_on_stderr(run: Run) -> None:
    for args in (["list"], ["recall", "x"], ["provenance"], ["dead", "list"]):
        result = run(*args)
        assert result.stdout == ""
        assert result.stderr


# --- import ----------------------------------------------------------------------------------------------


def test_the_same_file_twice_adds_nothing(document: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = a_file(tmp_path, [{"text": f"turn {number}", "session_id": "s"} for number in range(600)])
    assert document("import", path) == {"added": 600, "existing": 0, "forgotten": 0, "bad": []}
    assert document("import", path) == {"added": 0, "existing": 600, "forgotten": 0, "bad": []}
    listed = document("list", "--limit", 600)["records"]
    assert [one["text"] for one in listed] == [f"turn {number}" for number in reversed(range(600))]


def test_bad_lines_are_told_and_passed_over(run: Run, tmp_path: Path) -> None:
    path = a_file(tmp_path, [{"text": "one"}, "{", {"text": "two"}, {"nope": 1}])
    result = run("import", path, "--json")
    told = json.loads(result.stdout)
    assert (told["added"], [bad["line"] for bad in told["bad"]]) == (2, [2, 4])
    assert set(told["bad"][0]) == {"file", "line", "reason"}
    assert result.stderr.splitlines()[1] == f"{path}:4: has no text"
    assert words(run("import", path).stdout) == "0 added, 2 already there, 2 bad lines"


def test_an_import_of_nothing_but_bad_lines_fails(run: Run, tmp_path: Path) -> None:
    run("import", a_file(tmp_path, ["{", "}"]), code=1)
    assert run("import", a_file(tmp_path, [])).stdout == "0 added\n"


def test_strict_stops_at_the_first_bad_line_and_counts_what_is_kept(
    run: Run, document: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = a_file(tmp_path, [{"text": "one"}, {"text": "two"}, "{", {"text": "three"}, "{"])
    result = run("import", "--strict", "--json", path, code=1)
    told = json.loads(result.stdout)
    assert (told["added"], [bad["line"] for bad in told["bad"]]) == (2, [3])
    assert result.stderr.splitlines()[-1].startswith(f"error: stopped at {path}:3: is not JSON")
    assert document("list")["total"] == 2


def test_standard_input_can_be_imported(document: Callable[..., dict[str, Any]]) -> None:
    assert document("import", "-", stdin='{"text":"piped"}\n')["added"] == 1


def test_a_reply_is_found_by_the_turn_before_it(
    run: Run, document: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run("import", a_file(tmp_path, [{"text": t, "session_id": "s"} for t in ("which editor?", "vim", "ok")]))
    found = document("recall", "editor", "-k", 2, "--no-trace")["hits"]
    assert {hit["text"] for hit in found} == {"which editor?", "vim"}


# --- forget ----------------------------------------------------------------------------------------------


def test_a_forgotten_memory_does_not_come_back_by_import(
    run: Run, document: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = a_file(tmp_path, [{"text": "keep this"}, {"text": "forget this"}])
    run("import", path)
    run("recall", "this")
    (gone,) = (one["record_id"] for one in document("list")["records"] if one["text"] == "forget this")
    assert document("forget", gone, "--yes") == {"forgotten": [gone]}
    assert [left["record_id"] != gone for left in document("provenance")["entries"]] == [True]
    assert document("import", path) == {"added": 0, "existing": 1, "forgotten": 1, "bad": []}
    assert "1 forgotten before" in run("import", path).stdout
    assert one_error(run("forget", gone, "--yes", code=2)).endswith("nothing was forgotten")


def test_forget_asks_on_a_terminal_and_wants_yes_elsewhere(
    run: Run, document: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = document("capture", "dear to me")["record_id"]
    assert "--yes" in one_error(run("forget", kept, code=2))
    monkeypatch.setattr("iai_mcp.cli.memories._on_terminal", lambda: True)
    asked = run("forget", kept, stdin="n\n", code=1)
    assert "dear to me" in asked.stderr
    assert asked.stdout == ""
    assert document("list")["total"] == 1
    assert run("forget", kept, stdin="y\n").stdout == "forgot 1 memory\n"
    assert document("list")["total"] == 0


def test_forget_does_nothing_where_one_of_the_ids_is_unknown(
    run: Run, document: Callable[..., dict[str, Any]]
) -> None:
    kept = document("capture", "dear to me")["record_id"]
    run("forget", kept, uuid4(), "--yes", code=2)
    assert document("list")["total"] == 1


# --- reembed ---------------------------------------------------------------------------------------------


class Fake:
    """An embedder of two dimensions that fails on some texts, or altogether."""

    id = EmbedderId("fake", 2)
    dims = 2

    def __init__(self, *, poison: str = "poison", broken: str = "broken") -> None:
        self.poison, self.broken, self.down = poison, broken, False

    def embed_documents(self, texts: Sequence[str]) -> Any:
        if self.down or any(self.poison in text for text in texts):
            raise EmbedderUnavailable("it did not answer")
        return np.array([[np.nan if self.broken in text else 1.0, 0.0] for text in texts], np.float32)

    def embed_query(self, text: str) -> Any:
        return self.embed_documents([text])[0]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(registry, "load", lambda _: made)
    monkeypatch.setattr(registry, "describe", lambda now: None if now.embedder == "none" else made.id)
    return made


def without_vectors(path: Path, texts: Sequence[str]) -> None:
    """A store whose memories were kept by words alone."""
    plain = MemoryStore(path, settings=Settings(embedder="none"))
    plain.insert_many([MemoryRecord(text=text) for text in texts])


def test_reembed_goes_on_where_it_was_interrupted(tmp_path: Path, fake: Fake) -> None:
    texts = [f"text {number}" for number in range(5)]
    without_vectors(tmp_path / "store", texts)
    store = MemoryStore(tmp_path / "store")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reembed(store, batch=2, progress=interrupt)
    assert not store.vectors_match()

    seen: list[tuple[int, int]] = []
    again = MemoryStore(tmp_path / "store")
    done = reembed(again, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert (done.embedded, done.skipped, done.embedder, done.dims) == (3, (), "fake", 2)
    assert seen == [(2, 3), (3, 3)]
    assert store.vectors_match()
    assert store.count_without_vector() == 0
    assert all(record.embedding == [1.0, 0.0] for record in store.stream())
    assert reembed(store).embedded == 0


def test_reembed_leaves_out_what_cannot_be_embedded_and_ends(tmp_path: Path, fake: Fake) -> None:
    without_vectors(tmp_path / "store", ["one", "poison", "two", "broken", "three", "four"])
    store = MemoryStore(tmp_path / "store")
    done = reembed(store, batch=2)
    bad = {str(record.id) for record in store.stream() if record.text in ("poison", "broken")}
    assert (done.embedded, set(done.skipped)) == (4, bad)
    assert store.count_without_vector() == 2


def test_reembed_gives_up_where_the_embedder_itself_is_down(tmp_path: Path, fake: Fake) -> None:
    without_vectors(tmp_path / "store", ["one", "two"])
    fake.down = True
    store = MemoryStore(tmp_path / "store")
    with pytest.raises(EmbedderUnavailable):
        reembed(store)
    assert not store.vectors_match()


def test_reembed_from_words_to_the_builtin_embedder(
    run: Run, document: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    document("capture", "the cat sat on the mat")
    assert "IAI_MCP_EMBEDDER" in one_error(run("reembed", code=2))
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "builtin")
    told = document("reembed")
    assert told == {"embedded": 1, "embedder": "builtin:all-MiniLM-L6-v2-int8", "dims": 384, "skipped": []}
    assert run("reembed").stdout.startswith("0 embedded")
    assert document("status")["store"]["vectors_match"] is True


# --- status and dead letters -----------------------------------------------------------------------------


def test_status_counts_what_was_applied(run: Run, document: Callable[..., dict[str, Any]]) -> None:
    document("capture", "one memory")
    document("recall", "memory")
    told = document("status")
    assert (told["store"]["records"], told["dead"], told["spilled"]["entries"]) == (1, 0, 0)
    assert sum(lane["applied"] for lane in told["lanes"]) == 1
    said = words(run("status").stdout)
    for part in (
        "holds 1 memory",
        "broker embedded",
        "lane pending in flight applied rows versions",
        "all 0 0 1 1",
    ):
        assert part in said


@pytest.fixture
def letters(document: Callable[..., dict[str, Any]]) -> tuple[MemoryStore, UUID]:
    """A store with one memory and four dead letters: fine, poison, of no memory, and raw."""
    kept = UUID(document("capture", "one memory")["record_id"])
    store = MemoryStore()
    dead = DeadLetters(store.layout)
    for number, (record_id, cue) in enumerate([(kept, "fine"), (kept, "poison"), (uuid4(), "gone")], 1):
        keys: dict[str, Any] = {"entry_id": f"p-{number}", "producer": "p", "producer_seq": number}
        dead.add_entry(0, (record_id, entry(cue, **keys)), "ValueError: it failed")
    dead.add_raw(1, b"no parcel", "not a provenance parcel")
    return store, kept


def test_dead_letters_are_retried_kept_or_dropped(
    run: Run,
    document: Callable[..., dict[str, Any]],
    letters: tuple[MemoryStore, UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, kept = letters
    fine, poison, _, raw = (letter["id"] for letter in document("dead", "list")["letters"])
    write = MemoryStore.append_provenance_batch

    def picky(self: MemoryStore, pairs: Any, records_cache: Any = None) -> Any:
        if any(data["cue"] == "poison" for _, data in pairs):
            raise ValueError("it failed again")
        return write(self, pairs, records_cache)

    monkeypatch.setattr(MemoryStore, "append_provenance_batch", picky)
    result = run("dead", "retry", "--all", "--json", code=1)
    told = json.loads(result.stdout)
    assert told == {
        "applied": 1,
        "duplicate": 0,
        "unknown": 1,
        "failed": [{"id": poison, "reason": "ValueError: it failed again"}],
        "raw": [raw],
    }
    assert "their memory is gone" in result.stderr
    assert [left["cue"] for left in document("provenance", "--record", kept)["entries"]] == ["fine"]
    assert [letter["id"] for letter in document("dead", "list")["letters"]] == [poison, raw]
    assert "no dead letter" in one_error(run("dead", "show", fine, code=2))

    monkeypatch.setattr(MemoryStore, "append_provenance_batch", write)
    assert run("dead", "retry", poison).stdout == "1 applied, 0 already applied\n"
    assert "raw bytes" in run("dead", "retry", raw, code=1).stderr
    assert document("dead", "drop", raw) == {"dropped": 1}
    assert document("dead", "list") == {"letters": [], "not_kept": 0}
    assert [left["seq"] for left in store.get(kept).provenance] == [1, 2]  # type: ignore[union-attr]


def test_a_letter_that_was_applied_meanwhile_adds_nothing(
    document: Callable[..., dict[str, Any]], letters: tuple[MemoryStore, UUID]
) -> None:
    store, kept = letters
    letter = DeadLetters(store.layout).all()[0]
    assert letter.pair is not None
    store.append_provenance_batch([letter.pair])
    told = document("dead", "retry", letter.id)
    assert (told["applied"], told["duplicate"]) == (0, 1)
    assert len(document("get", kept)["provenance"]) == 1


def test_letters_stay_where_the_place_fails(
    run: Run, letters: tuple[MemoryStore, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = letters

    def fail(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "append_provenance_batch", fail)
        assert one_error(run("dead", "retry", "--all", code=1)) == "error: the disk is full"
    assert DeadLetters(store.layout).count() == 4


def test_dead_letters_are_shown(run: Run, document: Callable[..., dict[str, Any]], letters: object) -> None:
    first = document("dead", "list")["letters"][0]
    assert first["entry"]["cue"] == "fine"
    said = run("dead", "list").stdout
    assert first["id"] in said
    assert "ValueError: it failed" in said
    assert json.loads(run("dead", "show", first["id"]).stdout) == document("dead", "show", first["id"]) == first
    assert document("dead", "drop", "--all") == {"dropped": 4}
