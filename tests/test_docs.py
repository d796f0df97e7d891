"""The documentation is run: each command by a real shell, each block of Python; links lead somewhere.

What cannot be run here is matched by one of ``ELSEWHERE``, each with its reason; a command that nobody thought of
is run, and fails where it cannot.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command
from typer.testing import CliRunner

import iai_mcp
from iai_mcp import core, errors
from iai_mcp.cli.app import app
from iai_mcp.config import markdown_table
from tests import preloaded, servers
from tests.support import ROOT

README = ROOT / "README.md"
START = ROOT / "docs" / "getting-started.md"
FILES = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*FILES, ROOT / "CHANGELOG.md", ROOT / "CODE_OF_CONDUCT.md", ROOT / "benchmarks" / "README.md"]

# A part of a command line that this matches is not run here, and why; "tests/...": what runs it instead.
ELSEWHERE = {
    r"^pip install ": "this environment is what it would install",
    r"^pytest$": "this is it",
    r"^nox ": "tests/test_contributing.py::test_the_sessions_of_nox_are_those_that_contributing_describes",
    r"(^|/|\s)\.venv": "this environment is what it would make",
    r"^docker ": "needs an engine; tests/deployment/test_deploy.py",
    r"^kubectl ": "needs a cluster; tests/deployment/test_deploy.py",
    r"^(systemctl|useradd) ": "needs root, and systemd as process 1",
    r"(^|\s)/(etc|opt)/": "writes to root's folders",
    r"promtool ": "not everywhere; run by .ci/run",
    r"^python -m (tests|tools)\.see_alerts": "takes minutes, and Prometheus",
    r"^rq worker": "tests/broker/redis/test_redis.py::test_every_kind_of_worker_drains",
    r"^iai-mcp demo$": "tests/cli/test_demo.py::test_the_demo_tells_a_newcomer_what_happened",
    r"^iai-mcp provenance --follow": "tests/trail/test_provenance_views.py::"
    "test_follow_prints_what_other_processes_write_until_it_is_told_to_stop",
    r"^iai-mcp up ": "tests/workers/test_workers.py::test_up_brings_up_everything_and_takes_it_down",
    r"^iai-mcp worker -n 2$": "tests/workers/test_workers.py::"
    "test_workers_drain_what_recalls_left_and_come_back_when_killed",
    r"^iai-mcp worker .*--metrics-port": "tests/metrics/test_metrics.py::"
    "test_workers_count_together_on_one_port_and_go_on_after_a_kill",
}

# What runs until it is stopped: it is seen to be up, ended with SIGTERM, and must end with 0. Ports are free ones.
LASTING = re.compile(r"^(iai-mcp serve|python -m workers)\b")

# What a reader has, when a file's first command is run.
NOTES = "mkdir ~/notes && echo 'We decided to dredge the harbour in May.' > ~/notes/may.md"
BEFORE = {
    "README.md": NOTES,
    "getting-started.md": NOTES,
    "data.md": (  # two of each, for the plural
        "iai-mcp capture 'Boats need a permit.' && iai-mcp capture 'The tram is slow.' && "
        "iai-mcp recall 'who needs a permit?'"
    ),
    "operations.md": "sh deploy/make-secrets && iai-mcp capture 'Boats need a permit.'",
}

LASTS = """#!{python} -IS
import re, subprocess, sys, urllib.error, urllib.request
process = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE, text=True)
for line in process.stderr:
    sys.stderr.write(line)
    if port := re.search("(serving MCP|metrics) on http://[^/]*:([0-9]+)/", line):
        break
else:
    sys.exit("it never came up")
try:
    urllib.request.urlopen("http://127.0.0.1:" + port[2] + "/healthz", timeout=20).close()
except urllib.error.HTTPError:
    pass  # it answers
process.terminate()
sys.stderr.write(process.stderr.read())
sys.exit(process.wait(30))
"""


@dataclass
class Block:
    """A fenced block: where, in what language, what it says, and what is shown as its output."""

    path: Path
    line: int
    language: str
    text: str
    shown: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"{self.path.name}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """The blocks of a file; one without a language is the output of the one before."""
    found: list[Block] = []
    lines = iter(enumerate(path.read_text().splitlines(), 1))
    for number, line in lines:
        if line.startswith("```"):
            inside = []
            for _, below in lines:
                if below.startswith("```"):
                    break
                inside.append(below)
            if language := line.removeprefix("```"):
                found.append(Block(path, number, language, "\n".join(inside)))
            else:
                found[-1].shown = inside
    return found


ALL = [block for path in FILES for block in blocks(path)]
COMMANDS = [block for block in ALL if block.language == "sh"]


def parts(line: str) -> list[str]:
    """The commands of a line that ``&&`` joins, without its comment."""
    if line.startswith("("):
        return [line]
    found = [""]
    for word in re.split(r"( && |\s+#\s)", line):
        if word.strip() == "#" and _closed(found[-1]):
            break
        if word == " && " and _closed(found[-1]):
            found.append("")
        else:
            found[-1] += word
    return [part.strip() for part in found if part.strip()]


def _closed(text: str) -> bool:
    try:
        shlex.split(text)
    except ValueError:  # within quotes
        return False
    return True


def elsewhere(part: str) -> str | None:
    return next((pattern for pattern in ELSEWHERE if re.search(pattern, part)), None)


EVERY = [part for block in COMMANDS for line in block.text.splitlines() for part in parts(line)]


# -- what can be run is run


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PATH with ``iai-mcp``, this Python, and ``lasts``."""
    with preloaded.program(tmp_path_factory.mktemp("programs") / "bin") as folder:
        (folder / "lasts").write_text(LASTS.format(python=sys.executable))
        (folder / "lasts").chmod(0o755)
        yield f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def script(path: Path) -> tuple[str, list[Block]]:
    """One shell script of all that can be run in a file; each block's output begins with a line of its own."""
    lines, run = [f"{{ {BEFORE.get(path.name, ':')}; }} > before"], []
    for block in blocks(path):
        todo = [p for line in block.text.splitlines() for p in parts(line) if not elsewhere(p)]
        if block.language == "sh" and todo:
            run.append(block)
            lines += ["printf '\\036'", *map(lasting, todo)]
    return "\n".join(lines), run


def lasting(part: str) -> str:
    if not LASTING.match(part):
        return part
    part = re.sub("--metrics-port [0-9]+", "--metrics-port 0", part).replace("iai-mcp", "python -m iai_mcp", 1)
    return f"lasts {part}{' --port 0' if ' --transport http' in part else ''}"


@pytest.mark.parametrize("path", [path for path in FILES if script(path)[1]], ids=lambda path: path.name)
def test_every_command_does_what_it_says(path: Path, programs: str, tmp_path: Path, home: Path) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "clone" / "deploy")
    said, run = script(path)
    env = {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT)}
    with contextlib.ExitStack() as stack:
        if "python -m workers" in said:
            env["IAI_MCP_REDIS_URL"] = stack.enter_context(servers.serving(tmp_path / "redis", acl=False)).url
        shell = ["sh", "-eux", "-c", said]
        done = subprocess.run(shell, cwd=tmp_path / "clone", env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    outputs = done.stdout.split("\036")[1:]
    assert len(outputs) == len(run)
    for block, output in zip(run, outputs, strict=True):
        if not any("iai-mcp demo" in line for line in block.text.splitlines()):
            missing = absent(block.shown, output, home)
            assert not missing, f"{block.place} shows what is not printed: {missing}\n{output}"


def absent(shown: list[str], output: str, home: Path) -> list[str]:
    """The lines that are not printed, whatever their numbers are; what is printed must be in the order shown."""
    output = re.sub(r"^(store .*)\n +", r"\1", output, flags=re.MULTILINE)  # a home as long as a test's is wrapped
    rest = iter(alike(line, home) for line in output.splitlines())
    return [line for line in shown if line.strip() and alike(line, home) not in rest]


def alike(line: str, home: Path) -> str:
    line = re.sub(r"[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}", "ID", line.replace(str(home), "~"))
    line = re.sub(r"\d[\d,]*", "0", line)
    return " ".join(re.sub("─+", "─", line).split())


@pytest.mark.parametrize("path", [START, ROOT / "docs" / "api.md"], ids=lambda path: path.name)
def test_every_block_of_python_prints_what_it_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of a file are one session; a comment after a ``print`` is what it prints."""
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    for block in blocks(path):
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * block.line + block.text, str(path), "exec"), session)
            wanted = re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE)
            assert not wanted or printed.getvalue().splitlines() == wanted, block.place


def test_python_is_in_no_other_file() -> None:
    assert {block.path.name for block in ALL if block.language == "python"} == {"getting-started.md", "api.md"}


def test_other_blocks_are_well_formed() -> None:
    read = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    for block in ALL:
        if block.language not in ("sh", "python", "mermaid"):  # tests/test_house.py has the diagram
            assert read[block.language](block.text), block.place


# -- what cannot be run


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_what_is_not_run_is_there_and_runs_where_it_is_said_to(pattern: str) -> None:
    assert any(elsewhere(part) == pattern for part in EVERY), "nothing matches it any more"
    for file, test in re.findall(r"(tests/\w+\.py)(?:::(\w+))?", ELSEWHERE[pattern]):
        assert f"def {test}" in (ROOT / file).read_text()


def test_rq_is_started_as_documented() -> None:
    documented = {part for part in EVERY if part.startswith("rq ")}
    started = {
        shlex.join(["rq", *words[words.index("rq.cli") + 1 :]])
        for words in servers.worker_commands("URL").values()
        if "rq.cli" in words
    }
    assert {part.replace("$IAI_MCP_REDIS_URL", "URL") for part in documented} == started


def named(path: Path) -> Iterator[str]:
    """Commands of ours within sentences."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose):
        if (words := " ".join(span.split())).startswith("iai-mcp ") and "…" not in words:
            yield words


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_that_is_named_parses(path: Path) -> None:
    """Its options exist, and its values are of the right kind; words like ``N`` stand for one."""
    for command in {*named(path), *(part for part in EVERY if path == FILES[0] and part.startswith("iai-mcp "))}:
        words = [{"N": "4", "CLIENT": "cursor"}.get(word, word) for word in shlex.split(command)[1:]]
        group, context = get_command(app), None
        while hasattr(group, "commands") and words and words[0] in group.commands:
            context = group.make_context(words[0], [], parent=context, resilient_parsing=True)
            group = group.commands[words.pop(0)]
        if words or not any(parameter.required for parameter in group.params):  # a name alone need not be complete
            with (
                contextlib.suppress(typer.Exit, SystemExit),
                contextlib.redirect_stdout(io.StringIO()),
            ):  # --help, --version
                group.make_context(group.name, words, parent=context)


# -- what is made from the program


def test_the_table_of_settings_is_what_the_program_prints() -> None:
    printed = CliRunner().invoke(app, ["config", "--markdown"]).stdout
    assert printed == f"{markdown_table()}\n"
    assert f"\n\n{printed}\n" in (ROOT / "docs" / "configuration.md").read_text()


def test_the_api_names_what_there_is() -> None:
    said = (ROOT / "docs" / "api.md").read_text()
    for name in (*iai_mcp.__all__, *errors.__all__, *core.METHODS):
        assert f"`{name}" in said or f".{name}`" in said, name
    for name in iai_mcp.__all__:
        assert getattr(iai_mcp, name) is not None
    for kind, (params, _) in core.METHODS.items():
        row = next(line for line in said.splitlines() if line.startswith(f"| `{kind}`"))
        assert {*re.findall(r"`(\w+)`", row.split("|")[2])} >= {*params.__struct_fields__}, kind
    methods = re.findall(r"^\| `(\w+)\(", said, re.MULTILINE)
    owners = (iai_mcp.MemoryStore, iai_mcp.ProvenanceWriteQueue)
    assert [m for m in methods if m != "MemoryStore" and not any(hasattr(owner, m) for owner in owners)] == []


def test_the_demo_looks_as_shown() -> None:
    """The heads in the text and in the picture are the program's; memories and numbers vary."""
    source = "".join(path.read_text() for path in (ROOT / "iai_mcp").rglob("*.py"))
    heads = re.findall(r'_head\("(.+?)"\)', source)
    (shown,) = [block.shown for block in blocks(START) if "iai-mcp demo" in block.text]
    in_text = [line.split(" ─")[0] for line in shown if re.match(r"\w.* ─", line)]
    picture = xml.etree.ElementTree.parse(ROOT / "docs" / "images" / "demo.svg")
    words = [text.replace("\u00a0", " ").strip() for text in picture.getroot().itertext()]
    in_picture = [word for word in words if word in heads]
    assert len(in_text) >= 3
    assert len(in_picture) >= 4
    assert [head for head in in_text if head not in heads] == []


def test_the_picture_loads_nothing() -> None:
    said = (ROOT / "docs" / "images" / "demo.svg").read_text()
    assert not re.search(r"@font-face|@import|url\((?!#)|<image|href=", said)


def test_the_reference_shows_what_is_public() -> None:
    said = (ROOT / "docs" / "reference.md").read_text()
    shown = {name: resolved(name) for name in re.findall(r"^::: ([\w.]+)$", said, re.MULTILINE)}
    assert {getattr(iai_mcp, name) for name in iai_mcp.__all__ if name != "__version__"} <= {*shown.values()}
    for name, options in re.findall(r"^::: ([\w.]+)\n    options:\n((?:      .*\n)+)", said, re.MULTILINE):
        for member in yaml.safe_load(options).get("members", []):
            assert getattr(shown[name], member).__doc__, member


def resolved(path: str) -> Any:
    """What a dotted name leads to."""
    parts = path.split(".")
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(path)
    return getattr(resolved(".".join(parts[:-1])), parts[-1])


# -- links


def slugs(path: Path) -> set[str]:
    """The anchors of a file's headings."""
    heads = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in slugs(there), target


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    said = README.read_text()
    assert len(said.splitlines()) <= 125
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name}" in said, page.name
