"""What is printed is hostile input as well: no command and no log line lets a text act on a terminal."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from iai_mcp.common.printable import coloured_only, escaped, flat, plain
from iai_mcp.config import Settings
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from iai_mcp.telemetry.events import configure, emit, log
from tests.support import ROOT, entry

BIDI = "\u202a\u202e\u2066\u2069\u200e\u200f\u061c"
HIDDEN = "\u2028\u2029\u200b\u2060\ufeff\U000e0041"
ACTS = "\x1b]0;owned\x07\x1b[2J\x1b[8m\x9b31m\x85\x7f\x08\x00"
EVIL = f"evil{ACTS}{BIDI}{HIDDEN}"
LINE = f"{EVIL}\r\nFORGED\nFORGED"  # where one line is due
UNSAFE = {*ACTS, *BIDI, *HIDDEN, "\r"} - {*"]0;owned[2J8m31"}
# What Rich and Typer write themselves: colours, and the moves of a progress bar.
OWN = re.compile(r"\x1b\[(?:\d{1,2}(?:;\d{1,3})*m|\?25[lh]|1A|2K)|\r(?=\x1b\[)")
HIDES = re.compile(r"\x1b\[8m")

RUN = """
import json, sys
from iai_mcp.cli.app import app
try:
    from iai_mcp.cli.streams import guard
    guard()
except ImportError:
    pass  # the code of before
for argv in json.loads(sys.argv[1]):
    try:
        app(argv, prog_name="iai-mcp")
    except SystemExit:
        pass
    except Exception as error:
        print("CRASHED", argv, repr(error), file=sys.stderr)
    sys.stdout.flush()
"""


def settings_of(folder: Path, **env: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    store = {"IAI_MCP_STORE": str(folder / "store"), "IAI_MCP_EMBEDDER": "none", "TERM": "xterm-256color"}
    return {**mine, **store, "IAI_MCP_LOG": "debug", "IAI_MCP_CLIENT": LINE.replace("\0", ""), **env}


def in_a_pipe(folder: Path, commands: list[list[str]], **env: str) -> tuple[str, str]:
    """What the commands write where stdout and stderr are pipes."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        env=settings_of(folder, **env),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=500,
    )
    return done.stdout.decode(), done.stderr.decode()


def on_a_terminal(folder: Path, commands: list[list[str]], **env: str) -> str:
    """What the commands write where stdout and stderr are a terminal."""
    import termios

    ours, theirs = os.openpty()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST  # the terminal itself would add a return to each line
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    command = [sys.executable, "-c", RUN, json.dumps(commands)]
    env = settings_of(folder, **env)
    with subprocess.Popen(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # Linux's word for the end
            while part := os.read(ours, 65536):
                said += part
        process.wait(60)
    os.close(ours)
    return said.decode()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a spill, an import and a backup that hold hostile texts wherever one can stand."""
    folder = tmp_path_factory.mktemp("hostile")
    home = os.environ["HOME"]
    os.environ["HOME"] = str(folder)
    try:
        _fill(folder)
    finally:
        os.environ["HOME"] = home
    return folder


def _fill(folder: Path) -> None:
    store = MemoryStore(folder / "store", settings=Settings(embedder="none"))
    # Of a memory's text the lines stay.
    record = MemoryRecord(EVIL, session_id=LINE, role=LINE[:40], tags=[LINE, EVIL])
    store.insert_many([record, MemoryRecord("never recalled", session_id="s")])
    said: dict[str, Any] = {"session": LINE, "client": LINE, "recall_id": LINE, "rank": 1, "score": 0.5}
    store.append_provenance_batch([(record.id, entry(LINE, **said)) for _ in range(2)])
    entries = {"record_id": LINE, "entry": {"cue": LINE}}, {"record_id": str(record.id), "entry": {"cue": LINE}}
    letters = [
        {"id": f"5f0c3e9a1b2{n}", "at": LINE, "lane": 0, "reason": LINE, **one} for n, one in enumerate(entries)
    ]
    store.layout.dead_letters.parent.mkdir(parents=True, exist_ok=True)
    with open(store.layout.dead_letters, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(letter) + "\n" for letter in letters)
    store.disable_provenance_queue()
    spill = folder / ".iai-mcp" / ".provenance-overflow"
    spill.mkdir(parents=True, exist_ok=True)
    name = LINE.replace("\0", "").replace("/", "")[:80]
    (spill / f"{name}.jsonl").write_bytes(LINE.encode())
    inbox = folder / "inbox"
    (inbox / name).mkdir(parents=True)
    (inbox / name / f"{name}.jsonl").write_text(json.dumps({LINE: LINE, "text": [LINE]}) + "\nnot json\n")
    (inbox / f"{name}.md").write_bytes(b"\xff\xfe")
    broken = folder / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text(json.dumps({"format": LINE, "files": {LINE: LINE}, LINE: 1}))
    (folder / "record").write_text(str(record.id))


def commands(folder: Path, out: Path) -> dict[str, list[list[str]]]:
    """For each command the calls that print what the hostile folder holds; errors quote the arguments."""
    record, bad = (folder / "record").read_text(), LINE.replace("\0", "")
    inbox, broken = str(folder / "inbox"), str(folder / "broken")
    known = "5f0c3e9a1b21"
    nowhere = ["--store", str(folder / bad)]
    return {
        "demo": [["demo", bad]],
        "import": [["import", inbox], ["import", bad], ["import", inbox, "--json"], ["import", broken]],
        "capture": [
            ["capture", bad, "--session", bad],
            ["capture", bad, "--time", bad],
            ["capture", bad, "--json"],
        ],
        "recall": [
            ["recall", "evil"],
            ["recall", "evil", "--json"],
            ["recall", "x", "--tag", bad, "--since", bad],
        ],
        "list": [["list"], ["list", "--json"], ["list", "--role", bad], ["list", *nowhere]],
        "get": [["get", record], ["get", record, "--json"], ["get", bad]],
        "forget": [["forget", bad, "--yes"]],
        "provenance": [
            ["provenance"],
            ["provenance", "--top"],
            ["provenance", "--never"],
            ["provenance", "--record", record],
            ["provenance", "--json"],
            *[["provenance", "--format", form] for form in ("jsonl", bad)],
            ["provenance", "--output", str(out / bad)],
            ["provenance", "--since", bad],
        ],
        "reembed": [["reembed", *nowhere]],
        "status": [["status"], ["status", "--json"], ["status", *nowhere]],
        "serve": [["serve", "--transport", "http", "--host", bad, "--allow-host", bad, "--token-file", bad]],
        "install": [["install", "cursor", "--print", "--http", bad], ["install", "cursor", "--print", *nowhere]],
        "uninstall": [["uninstall", bad]],
        "hook": [["hook"]],
        "up": [["up", bad]],
        "worker": [["worker", "--metrics-host", bad, "--burst"]],
        "verify": [["verify"], ["verify", "--json"], ["verify", *nowhere]],
        "doctor": [["doctor"], ["doctor", "--json"], ["doctor", *nowhere]],
        "config": [["config"], ["config", "--json"]],
        "export": [["export", str(out / "export")], ["export", inbox]],
        "backup": [["backup", str(out / "backup")], ["backup", inbox]],
        "restore": [["restore", broken, "--store", str(out / "restored")], ["restore", bad]],
        "lanes": [["lanes"], ["lanes", bad], ["lanes", *nowhere]],
        "place": [["place"], ["place", *nowhere]],
        "dead": [["dead", "list"], *[["dead", do, one] for do in ("show", "retry") for one in (known, bad)]],
        "spill": [["spill", "list"], ["spill", "list", "--json"], ["spill", "replay"]],
        bad: [[bad], ["--" + bad]],
    }


def test_every_command_is_walked(hostile: Path, tmp_path: Path) -> None:
    from iai_mcp.cli.app import app

    walked = {*commands(hostile, tmp_path)}
    names = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback}
    names |= {one.name for one in app.registered_groups if one.name}
    assert names <= walked, f"add to commands(): {names - walked}"


def check(said: str, *, own: bool, lines: bool = True) -> None:
    left = OWN.sub("", said) if own else said
    assert not HIDES.search(said)
    found = sorted({f"{ord(sign):04x}" for sign in left if sign in UNSAFE})
    assert not found, (found, [line for line in left.split("\n") if UNSAFE & {*line}][:5])
    if lines:
        assert not [line for line in said.split("\n") if line.startswith("FORGED")]
    assert "CRASHED" not in said
    assert "Traceback" not in said


def calls(hostile: Path, out: Path, *, machine: bool) -> list[list[str]]:
    """All calls; ``machine``: those with output for programs too."""
    return [
        call
        for some in commands(hostile, out).values()
        for call in some
        if machine or not {"--json", "jsonl"} & {*call}
    ]


def test_nothing_acts_on_a_terminal(hostile: Path, tmp_path: Path) -> None:
    env = {"HOME": str(hostile), f"IAI_MCP_{EVIL}".replace("\0", ""): "x"}
    said = on_a_terminal(hostile, calls(hostile, tmp_path, machine=True), **env)
    assert said.count("evil") > 50
    check(said, own=True)
    table = on_a_terminal(hostile, [["provenance", "--format", "csv"]], **env)  # a cell may hold lines
    assert "evil" in table
    check(table, own=False, lines=False)


def test_nothing_acts_behind_a_pipe(hostile: Path, tmp_path: Path) -> None:
    env = {"HOME": str(hostile), f"IAI_MCP_{EVIL}".replace("\0", ""): "x"}
    out, err = in_a_pipe(hostile, calls(hostile, tmp_path, machine=False), **env)
    assert (out + err).count("evil") > 30
    check(out, own=False)
    check(err, own=False)


def test_json_and_csv_mean_the_same_on_a_terminal_and_in_a_pipe(hostile: Path) -> None:
    asked = [["provenance", "--json"]]
    env = {"HOME": str(hostile), "IAI_MCP_LOG": "error"}
    piped = json.loads(in_a_pipe(hostile, asked, **env)[0])
    shown = json.loads(on_a_terminal(hostile, asked, **env))
    assert shown == piped
    assert piped["entries"][0]["client"] == LINE
    rows = in_a_pipe(hostile, [["provenance", "--format", "csv"]], **env)[0]
    assert LINE in [row["client"] for row in csv.DictReader(rows.splitlines(keepends=True))]


def test_cells_are_no_formulas_for_a_spreadsheet(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "store", settings=Settings(embedder="none"))
    record = MemoryRecord("=1+1")
    store.insert(record)
    cells = ["=cmd|x", "+1", "-1", "@x", "\t=1", "\r=1", "a=1", "'=1", "", " =1", "＝1"]
    store.append_provenance_batch([(record.id, entry(cell, rank=1, score=-0.5)) for cell in cells])
    ask = ["provenance", "--format", "csv"]
    env = {"IAI_MCP_CLIENT": "c", "IAI_MCP_LOG": "error"}

    def read(*further: str) -> list[dict[str, str]]:
        out, err = in_a_pipe(tmp_path, [[*ask, *further]], **env)
        assert not err
        return list(csv.DictReader(out.splitlines(keepends=True)))

    assert sorted(row["cue"] for row in read()) == sorted(cells)
    quoted = read("--spreadsheet")
    expected = ["'=cmd|x", "'+1", "'-1", "'@x", "'\t=1", "'\r=1", "a=1", "'=1", "", "' =1", "'＝1"]
    assert sorted(row["cue"] for row in quoted) == sorted(expected)
    assert {row["score"] for row in quoted} == {"-0.5"}  # a number stays one
    out, err = in_a_pipe(tmp_path, [["provenance", "--spreadsheet"]], **env)
    assert "--spreadsheet" in err
    assert not out


# -- the functions


def test_each_form_keeps_what_it_should() -> None:
    assert plain(f"a\tb\n{EVIL}").startswith("a\tb\nevil\ufffd]0;owned\ufffd")
    assert not UNSAFE & {*plain(LINE)}
    assert flat("a\r\n\r\nb\tc\u2028d\x85e\x0bf") == "a b c d e f"
    assert plain("👩\u200d🚀 می\u200cخواهم é 漢字 🏴") == "👩\u200d🚀 می\u200cخواهم é 漢字 🏴"
    assert plain("\udc80") == "\ufffd"
    assert coloured_only("\x1b[1;32mgreen\x1b[0m\x1b[8mhidden\x1b[5m\x1b[38;5;8m") == (
        "\x1b[1;32mgreen\x1b[0m\ufffd[8mhidden\ufffd[5m\ufffd[38;5;8m"
    )
    text = json.dumps({"a": EVIL + "\udc80"}, ensure_ascii=False)
    assert json.loads(escaped(text)) == {"a": EVIL + "\udc80"}
    assert escaped(text).isascii()


# -- the log


class _Odd:
    def __str__(self) -> str:
        return LINE


@pytest.mark.parametrize("as_json", [True, False])
def test_no_event_forges_a_line(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = log.handlers[:], log.level, log.propagate
    try:
        configure("debug", as_json=as_json)
        odd: dict[str, Any] = {"field\x1b": EVIL, "odd": _Odd()}
        emit(LINE, path=Path(LINE.replace("\0", "")), name=LINE, lone="\udc80", **odd)
        log.warning("a plain %s", LINE)
        try:
            raise ValueError(LINE)
        except ValueError:
            log.exception("it failed: %s", LINE)
    finally:
        log.handlers[:], log.level, log.propagate = before
    said = capsys.readouterr().err
    assert not UNSAFE & {*said}
    if as_json:
        first, second, third = map(json.loads, said.splitlines())
        assert (first["name"], first["field\x1b"], first["lone"]) == (LINE, EVIL, "\udc80")
        assert second["message"] == f"a plain {LINE}"
        assert LINE in third["error"] or "FORGED" in third["error"]
    else:
        assert len([line for line in said.splitlines() if line.startswith(("INFO", "WARNING", "ERROR"))]) == 3


def test_a_command_prints_through_the_checked_functions_only() -> None:
    """A new command that writes by itself is caught here, before the guard of the streams has to catch it."""
    writes = re.compile(r"typer\.(?:echo|secho)\(|\bclick\.|(?<!\.)\bprint\(|sys\.std(?:out|err)\.write|Console\(")
    allowed = {"common.py", "screen.py", "streams.py"}
    found = [
        f"{path.name}:{number}"
        for path in sorted((ROOT / "iai_mcp" / "cli").glob("*.py"))
        if path.name not in allowed
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if writes.search(line)
    ]
    assert not found, f"use say, say_lines, note, error_line, print_json or screen of cli.common: {found}"


def test_what_a_command_forgets_the_guard_catches(tmp_path: Path) -> None:
    code = (
        "import sys, logging\nfrom iai_mcp.cli.streams import guard\nguard()\n"
        f"evil = {LINE!r}\n"
        "print(evil)\nprint(evil, file=sys.stderr)\nsys.stdout.writelines([evil])\n"
        "logging.basicConfig(); logging.getLogger('other').warning(evil)\n"
        "from rich.console import Console\nConsole(force_terminal=False).print(evil)\n"
        "raise ValueError(evil)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60)
    said = (done.stdout + done.stderr).decode()
    assert said.count("evil") >= 6
    assert not UNSAFE & {*said}, said
