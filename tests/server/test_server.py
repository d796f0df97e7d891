"""The MCP server over both transports, driven by the SDK's own client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import jsonschema
import pytest
from mcp import MCPError, StdioServerParameters
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Implementation

from iai_mcp import core
from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import BadParams, ConfigError
from iai_mcp.record import MemoryRecord
from iai_mcp.server.app import build
from iai_mcp.server.calls import Caller, Calls, encode, fitted, parameters
from iai_mcp.server.http import Address, read_token
from iai_mcp.server.resources import explain, markdown
from iai_mcp.server.tools import TOOLS
from iai_mcp.store import MemoryStore
from tests.servers import serving, worker
from tests.support import ROOT, cues, entry, finished, python, wait_until

ME = Implementation(name="tester", version="7")
COMMAND = [sys.executable, "-m", "iai_mcp", "serve"]
Talk = Callable[[Client], Awaitable[Any]]


# -- helpers


def talk(server: Any, what: Talk, mode: str = "legacy") -> Any:
    """What ``what`` does with a client of ``server``; what it raises comes out as it was raised."""

    async def run() -> Any:
        async with Client(server, mode=mode, client_info=ME, read_timeout_seconds=30) as client:
            try:
                return await what(client)
            except Exception as error:  # noqa: BLE001  the client's task groups would wrap it
                trouble.append(error)

    trouble: list[Exception] = []
    done = asyncio.run(run())
    if trouble:
        raise trouble[0]
    return done


async def used(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """The structured result of a call that succeeds."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content  # type: ignore[union-attr]
    return dict(result.structured_content)


async def refused(client: Client, tool: str, /, **arguments: Any) -> str:
    """What a call that fails tells the agent."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert result.structured_content is None
    said: str = result.content[0].text  # type: ignore[union-attr]
    assert "Traceback" not in said
    return said


def environment(folder: Path, **further: str) -> dict[str, str]:
    """What a server process needs, with its home inside ``folder`` and no vectors."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("IAI_MCP_")}
    settings = {"HOME": str(folder / "home"), "IAI_MCP_STORE": str(folder / "store"), "IAI_MCP_EMBEDDER": "none"}
    return {**mine, **settings, **further}


def stdio(folder: Path, **further: str) -> StdioServerParameters:
    """A stdio server for the SDK's client to start."""
    env = environment(folder, **further)
    return StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=env, cwd=ROOT)


FEW_FILES = (
    "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class Http:
    """A running HTTP server."""

    def __init__(self, folder: Path, *options: str, nofile: str = "", **env: str) -> None:
        self.folder = folder
        self._log = folder / "server.log"
        settings = environment(folder, **env)
        with open(self._log, "wb") as log:
            limited = [sys.executable, "-c", FEW_FILES, nofile] if nofile else []
            command = [*limited, *COMMAND, "--transport", "http", "--port", "0", *options]
            self.process = subprocess.Popen(command, cwd=ROOT, env=settings, stderr=log)
        wait_until(lambda: "/mcp" in self.log or self.process.poll() is not None, 30)
        assert self.process.poll() is None, self.log
        self.url = self.log.split()[-1]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def post(self, **headers: str) -> httpx2.Response:
        """A request that a server takes apart from its headers."""
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE}
        return httpx2.post(self.url, json=message, headers={**_JSON, **headers})

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Client]:
        """A client that knows the token."""
        async with httpx2.AsyncClient(headers=_KNOWN) as web:
            transport = streamable_http_client(self.url, http_client=web)
            async with Client(transport, read_timeout_seconds=30, **options) as client:
                yield client

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(15)


TOKEN = "s3cret-token"
_KNOWN = {"authorization": f"Bearer {TOKEN}"}
_JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream", **_KNOWN}
INITIALIZE = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}


@contextmanager
def http(folder: Path, *options: str, nofile: str = "", **env: str) -> Iterator[Http]:
    """A server for the block; ``nofile``: its limit of open files."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Http(folder, *options, nofile=nofile, **env)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(10)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    """One server with a token for all tests that leave it running."""
    folder = tmp_path_factory.mktemp("shared")
    file = folder / "token"
    file.write_text(f"{TOKEN}\n")
    with http(folder, "--token-file", str(file), IAI_MCP_TOKEN="not-this-one") as server:
        yield server


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    """A store in this process, behind the server's calls."""
    made = Calls(Settings(embedder="none", store=tmp_path / "store"))
    yield made
    made.close()


@pytest.fixture
def server(calls: Calls) -> Any:
    """The server in this process: the client talks to it without a transport."""
    return build(calls)


def process(folder: Path, **further: str) -> subprocess.Popen[str]:
    """A stdio server with pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        COMMAND, cwd=ROOT, env=environment(folder, **further), stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def lines(*messages: dict[str, Any]) -> str:
    return "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)


HELLO = lines({"id": 0, "method": "initialize", "params": INITIALIZE}, {"method": "notifications/initialized"})


def call_line(number: int, tool: str, **arguments: Any) -> str:
    return lines({"id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})


# -- what a client sees first


def test_every_tool_says_what_it_takes_and_gives_and_does(server: Any) -> None:
    tools = talk(server, lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == [*core.METHODS]
    for tool in tools:
        assert tool.title
        assert "Use it" in tool.description or "Keep" in tool.description
        for schema in (tool.input_schema, tool.output_schema):
            jsonschema.Draft202012Validator.check_schema(schema)
        params = TOOLS[tool.name].params
        assert params is core.METHODS[tool.name][0]
        assert set(tool.input_schema["properties"]) == {*params.__struct_fields__} - params.internal
        assert tool.input_schema["additionalProperties"] is False

    def hints(name: str) -> tuple[bool, bool, bool]:
        found = next(tool.annotations for tool in tools if tool.name == name)
        return found.read_only_hint, found.destructive_hint, found.idempotent_hint

    assert hints("memory_capture") == (False, False, True)
    assert hints("memory_recall") == (False, False, False)  # it writes the trace
    assert hints("memory_forget") == (False, True, False)
    assert all(hints(name) == (True, False, True) for name in ("memory_get", "memory_provenance", "memory_status"))


def test_parameters_are_described_typed_and_limited_for_clients() -> None:
    for name, tool in TOOLS.items():
        for field, schema in tool.input_schema["properties"].items():
            assert schema["description"], f"{name}: {field} has no description"
            assert isinstance(schema["type"], str), f"{name}: {field} has no single type"
    recall = TOOLS["memory_recall"].input_schema
    assert recall["required"] == ["cue"]
    assert recall["properties"]["cue"].items() >= {"type": "string", "minLength": 1, "maxLength": 8000}.items()
    assert recall["properties"]["session"].keys() == {"type", "maxLength", "description"}  # no null, no default
    limit = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10}
    assert recall["properties"]["limit"].items() >= limit.items()
    assert "client" not in recall["properties"]  # the transport knows it
    tags = {"type": "array", "items": {"type": "string", "maxLength": 1000}, "maxItems": 100}
    assert recall["properties"]["tags"].items() >= tags.items()
    record_id = {"type": "string", "format": "uuid", "maxLength": 1000}
    assert TOOLS["memory_get"].input_schema["properties"]["record_id"].items() >= record_id.items()
    assert TOOLS["memory_provenance"].input_schema["properties"]["offset"]["default"] == 0


def test_the_server_introduces_itself(server: Any) -> None:
    async def look(client: Client) -> tuple[Any, Any]:
        return client.server_info, client.instructions

    info, instructions = talk(server, look)
    assert info.name == "iai-mcp"
    assert info.version
    assert "recall_id" in instructions


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = "[name for name in ('lancedb', 'onnxruntime', 'pyarrow', 'redis') if name in sys.modules]"
    assert finished(python(f"import sys, iai_mcp.server.stdio; print({heavy})")) == "[]\n"
    assert finished(python("import sys, iai_mcp.cli.app; print('mcp' in sys.modules)")) == "False\n"


# -- the tools


def test_a_memory_is_captured_recalled_explained_and_forgotten(server: Any) -> None:
    async def life(client: Client) -> None:
        made = await used(client, "memory_capture", text="Ada prefers tabs", session_id="s1", tags=["style"])
        assert made["created"] is True
        again = await used(client, "memory_capture", text="Ada prefers tabs", session_id="s1")
        assert again == {**made, "created": False}

        found = await used(client, "memory_recall", cue="What does Ada prefer?", session_id="s2", limit=3)
        assert [hit["record_id"] for hit in found["hits"]] == [made["record_id"]]

        async def entries(**conditions: Any) -> list[dict[str, Any]]:
            return list((await used(client, "memory_provenance", **conditions))["entries"])

        while not (seen := await entries(recall_id=found["recall_id"])):
            await asyncio.sleep(0.01)
        assert seen[0]["cue"] == "What does Ada prefer?"
        assert seen[0]["session_id"] == "s2"
        assert seen[0]["client"] == "tester/7"
        by = ({"record_id": made["record_id"]}, {"session_id": "s2"}, {"cue": "ADA"}, {"since": "2020-01-01"})
        for conditions in by:
            assert await entries(**conditions) == seen
        assert await entries(session_id="s1") == []
        assert await entries(until="2020-01-01") == []
        assert await entries(offset=1) == []

        whole = await used(client, "memory_get", record_id=made["record_id"])
        assert whole["text"] == "Ada prefers tabs"
        assert [one["recall_id"] for one in whole["provenance"]] == [found["recall_id"]]

        assert await used(client, "memory_forget", record_id=made["record_id"]) == {
            "record_id": made["record_id"],
            "forgotten": True,
        }
        assert "no memory has the id" in await refused(client, "memory_forget", record_id=made["record_id"])
        assert await entries() == []
        assert (await used(client, "memory_status"))["store"]["records"] == 0

    talk(server, life)
    talk(server, life, "auto")  # the protocol without a handshake


def test_a_session_that_is_not_named_is_this_process(server: Any) -> None:
    async def capture(client: Client) -> list[str]:
        texts = ("one", "two")
        return [(await used(client, "memory_capture", text=text))["session_id"] for text in texts]

    first, second = talk(server, capture)
    assert first == second
    assert first.startswith("stdio-")


def test_what_is_wrong_comes_back_as_a_sentence(server: Any) -> None:
    async def ask(client: Client) -> None:
        assert await refused(client, "memory_recall", cue="  ") == "the cue is empty: say what to look for"
        assert "the text is empty" in await refused(client, "memory_capture", text="\n")
        assert "8,001 characters" in await refused(client, "memory_recall", cue="x" * 8001)
        assert "no parameter 'client'" in await refused(client, "memory_recall", cue="x", client="forged/1")
        assert "cue" in await refused(client, "memory_recall")
        assert "limit" in await refused(client, "memory_recall", cue="x", limit=0)
        assert "is not a record id" in await refused(client, "memory_get", record_id="7")
        assert "no memory has the id" in await refused(client, "memory_get", record_id=str(uuid4()))
        assert "ISO 8601" in await refused(client, "memory_provenance", since="yesterday")
        assert "view" in await refused(client, "memory_provenance", view="worst")
        assert (await used(client, "memory_recall", cue="x", session_id=None, tags=None))["hits"] == []
        with pytest.raises(MCPError, match="no tool 'memory_erase'"):
            await client.session.call_tool("memory_erase", {})

    talk(server, ask)


def test_a_store_that_cannot_be_opened_is_said_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "stranger").touch()
    calls = Calls(Settings(embedder="none", store=folder))

    async def ask(client: Client) -> None:
        assert "not empty and holds no store.json" in await refused(client, "memory_status")
        (folder / "stranger").unlink()
        assert (await used(client, "memory_status"))["store"]["records"] == 0

    talk(build(calls), ask)
    calls.close()


def test_views_count_each_entry_once_and_nothing_of_the_forgotten(server: Any, calls: Calls) -> None:
    store = calls.store()
    records = [MemoryRecord(f"memory {number}") for number in range(5)]
    store.insert_many(records)
    often, once, twice, gone, never = (record.id for record in records)
    asked = [(often, entry(n)) for n in range(3)] + [(twice, entry(n)) for n in range(2)] + [(once, entry(0))]
    store.append_provenance_batch([*asked, *((gone, entry(n)) for n in range(9))])
    store.append_provenance_batch([(once, entry("late", ts="2026-11-25T00:00:00+00:00"))])
    lane = store.lane(lane_of(often, store.lanes))
    lane._table.add(lane._table.search().where(f"record_id = '{often}'").to_arrow())  # a writer without the lock
    store.delete(gone)

    async def view(client: Client) -> None:
        top = (await used(client, "memory_provenance", view="top"))["records"]
        shown = [(one["record_id"], one["recalls"]) for one in top]
        assert shown == [(str(often), 3), (str(once), 2), (str(twice), 2)]  # of equals the later one first
        assert top[1]["last_recalled"] == "2026-11-25T00:00:00+00:00"
        assert top[0]["text"] == "memory 0"
        page = (await used(client, "memory_provenance", view="top", limit=1, offset=1))["records"]
        assert [one["record_id"] for one in page] == [str(once)]
        unused = (await used(client, "memory_provenance", view="never"))["records"]
        assert [one["record_id"] for one in unused] == [str(never)]
        since = (await used(client, "memory_provenance", view="never", since="2026-11-24"))["records"]
        assert [one["record_id"] for one in since] == [str(never), str(twice), str(often)]
        assert (await used(client, "memory_provenance", view="never", offset=1))["records"] == []

    talk(server, view)


def test_a_result_that_is_too_large_is_shortened_evenly() -> None:
    hits = [{"record_id": str(number), "text": "é" * 5000} for number in range(10)]
    result, encoded = fitted({"hits": hits}, limit=20_000)
    assert len(encoded) <= 20_000
    assert encoded == encode(result)
    assert result["truncated"] is True
    assert {len(hit["text"]) for hit in result["hits"]} == {800}
    assert fitted({"hits": hits})[0] == {"hits": hits}
    long = {"text": "t", "provenance": [{"seq": number} for number in range(1500)]}
    assert [one["seq"] for one in fitted(long)[0]["provenance"]] == [*range(500, 1500)]
    with pytest.raises(BadParams, match="lower the limit"):
        fitted({"ids": [*range(9999)]}, limit=100)


def test_the_caller_counts_where_the_call_says_nothing() -> None:
    caller = Caller("mine", "tester/7")
    assert parameters(TOOLS["memory_recall"], {"cue": "x"}, caller) == {
        "cue": "x",
        "session_id": "mine",
        "client": "tester/7",
    }
    assert parameters(TOOLS["memory_capture"], {"text": "x", "session_id": "s"}, caller)["session_id"] == "s"
    assert parameters(TOOLS["memory_provenance"], {}, caller) == {}  # a filter is never assumed
    with pytest.raises(BadParams, match="101 items"):
        parameters(TOOLS["memory_capture"], {"text": "x", "tags": ["t"] * 101}, caller)
    with pytest.raises(BadParams, match="it takes none"):
        parameters(TOOLS["memory_status"], {"deep": True}, caller)


# -- resources and the prompt


def test_memories_are_resources(server: Any, calls: Calls) -> None:
    records = [MemoryRecord(f"memory {number}\n# not a heading") for number in range(51)]
    calls.store().insert_many(records)
    newest = max(records, key=lambda record: record.created_at)
    calls.store().append_provenance_batch([(newest.id, entry("why?\n## Injected", client="c/1", rank=1))])

    async def look(client: Client) -> None:
        first = await client.list_resources()
        rest = await client.list_resources(cursor=first.next_cursor)
        assert (len(first.resources), len(rest.resources), rest.next_cursor) == (50, 1, None)
        templates = await client.list_resource_templates()
        assert templates.resource_templates[0].uri_template == "memory://{record_id}{?format}"

        [page] = (await client.read_resource(f"memory://{newest.id}")).contents
        assert page.mime_type == "text/markdown"
        assert "> # not a heading" in page.text  # type: ignore[union-attr]
        assert "client c/1 · rank 1: “why? ## Injected”" in page.text  # type: ignore[union-attr]
        [data] = (await client.read_resource(f"memory://{newest.id}?format=json")).contents
        found = json.loads(data.text)  # type: ignore[union-attr]
        assert (data.mime_type, cues(found["provenance"])) == ("application/json", ["why?\n## Injected"])

        for uri, said in (
            (f"memory://{uuid4()}", "no memory has the id"),
            ("memory://7", "not a record id"),
            ("file:///etc/passwd", "not the address of a memory"),
        ):
            with pytest.raises(MCPError, match=said):
                await client.read_resource(uri)
        with pytest.raises(MCPError, match="cursor"):
            await client.list_resources(cursor="-1")

    talk(server, look)
    assert "Not yet." in markdown({**core.record_dict(newest), "provenance": []})


def test_a_prompt_asks_for_the_sources(server: Any) -> None:
    async def ask(client: Client) -> None:
        [prompt] = (await client.list_prompts()).prompts
        assert [argument.name for argument in prompt.arguments or []] == ["recall_id", "session_id"]
        got = await client.get_prompt("explain_sources", {"recall_id": "r1"})
        assert "`recall_id` = `r1`" in got.messages[0].content.text  # type: ignore[union-attr]
        mine = await client.get_prompt("explain_sources")
        assert "`session_id` = `stdio-" in mine.messages[0].content.text  # type: ignore[union-attr]
        with pytest.raises(MCPError, match="no prompt"):
            await client.get_prompt("explain")
        with pytest.raises(MCPError, match="recall_id or session_id, not topic"):
            await client.get_prompt("explain_sources", {"topic": "x"})

    talk(server, ask)
    with pytest.raises(BadParams, match="needs"):
        explain({}, "")
    with pytest.raises(BadParams, match="not an id"):
        explain({"recall_id": "r`\nignore"}, "")


# -- stdio


def test_stdio_serves_the_sdk_client_and_leaves_the_trace_in_the_store(tmp_path: Path) -> None:
    async def work(client: Client) -> None:
        await used(client, "memory_capture", text="Ada prefers tabs")
        for number in range(5):
            found = await used(client, "memory_recall", cue=f"cue {number}")
            assert len(found["hits"]) == 1
        together = (used(client, "memory_recall", cue="at once") for _ in range(8))
        assert len(await asyncio.gather(*together)) == 8

    talk(stdio(tmp_path), work)
    store = MemoryStore(tmp_path / "store", settings=Settings(embedder="none"))
    left = core.dispatch(store, "memory_provenance")["entries"]
    assert len(left) == 13  # the end of the client is the end of the server, and it drained
    assert {one["client"] for one in left} == {"tester/7"}
    assert len({one["session_id"] for one in left}) == 1


def test_the_end_of_stdin_answers_what_was_asked_and_says_nothing_else(tmp_path: Path) -> None:
    with process(tmp_path) as child:
        text = call_line(1, "memory_capture", text="Ada prefers tabs")
        out, err = child.communicate(f"{HELLO}{text}not json\n{'x' * 1_100_000}\n", timeout=30)
        assert (child.returncode, err) == (0, "")
    answers = {answer["id"]: answer for answer in map(json.loads, out.splitlines()) if answer["id"] is not None}
    assert answers[0]["result"]["serverInfo"]["name"] == "iai-mcp"
    assert answers[1]["result"]["structuredContent"]["created"] is True
    troubles = [answer["error"]["message"] for answer in map(json.loads, out.splitlines()) if "error" in answer]
    assert [trouble.partition(":")[0] for trouble in troubles] == [
        "the line is not a JSON-RPC message",
        "the message is longer than 1,048,576 bytes",
    ]


@pytest.mark.parametrize(
    ("id", "message"),
    [
        (7, '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":%s}'),
        ("a-7", '{"method":"tools/call","params":%s,"jsonrpc":"2.0","id":"a-7"}'),
        (7, '{"method": "tools/call", "params": %s, "id": 7, "jsonrpc": "2.0"}'),
        (None, '{"jsonrpc":"2.0","method":"tools/call","params":{"a":{},"id":9,"b":%s}}'),
        (None, '{"jsonrpc":"2.0","method":"tools/call","params":{"a":%s,"id":9}}'),
    ],
)
def test_who_sent_too_much_gets_its_own_answer(tmp_path: Path, id: int | str | None, message: str) -> None:
    params = json.dumps({"text": "x" * 3_000_000 + '},"id":8}', "last": {}})
    with process(tmp_path) as child:
        out, _ = child.communicate(f"{HELLO}{message % params}\n", timeout=30)
    (told,) = [answer for answer in map(json.loads, out.splitlines()) if "error" in answer]
    assert (told["id"], "longer than" in told["error"]["message"]) == (id, True)


def test_nohup_keeps_the_server(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with http(tmp_path) as server:
            server.process.send_signal(signal.SIGHUP)
            assert server.post().status_code == 200
            assert server.stop() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])  # SIGHUP: the terminal is closed
def test_a_signal_ends_stdio_with_its_answers_given_and_its_trace_kept(
    tmp_path: Path, number: signal.Signals
) -> None:
    with process(tmp_path) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(HELLO + call_line(1, "memory_capture", text="Ada prefers tabs"))
        child.stdin.flush()
        assert [json.loads(child.stdout.readline())["id"] for _ in range(2)] == [0, 1]
        child.stdin.write("".join(call_line(n, "memory_recall", cue=f"cue {n}") for n in range(2, 12)))
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["id"] >= 2
        child.send_signal(number)
        assert child.wait(10) == 0
        later = [json.loads(line) for line in child.stdout.read().splitlines()]
        assert child.stderr is not None
        assert child.stderr.read() == ""
    answered = 1 + sum("result" in answer for answer in later)
    store = MemoryStore(tmp_path / "store", settings=Settings(embedder="none"))
    assert len(core.dispatch(store, "memory_provenance")["entries"]) == answered


def test_a_killed_client_leaves_no_server_behind(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-m', 'iai_mcp', 'serve'],"
        "stdin=subprocess.PIPE, stdout=subprocess.PIPE); child.stdin.write(sys.argv[1].encode());"
        "child.stdin.flush(); child.stdout.readline(); print(child.pid, flush=True); sys.stdin.read()"
    )
    with python(code, HELLO, **environment(tmp_path)) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not _alive(pid), 15)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return _signalled(pid) if not Path("/proc/self").exists() else False


def _signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- HTTP


def test_three_http_clients_at_once_each_leave_their_own_trace(shared: Http) -> None:
    async def one(name: str) -> tuple[str, list[dict[str, Any]]]:
        info = Implementation(name=name, version="1")
        async with shared.client(mode="legacy", client_info=info) as client:
            session = (await used(client, "memory_capture", text=f"{name} likes {name}"))["session_id"]
            calls = [used(client, "memory_recall", cue=f"{name} {number}", limit=1) for number in range(5)]
            assert all(len(found["hits"]) == 1 for found in await asyncio.gather(*calls))
            while len(seen := (await used(client, "memory_provenance", session_id=session))["entries"]) < 5:
                await asyncio.sleep(0.02)
            return session, list(seen)

    async def all_of_them() -> list[tuple[str, list[dict[str, Any]]]]:
        return list(await asyncio.gather(*map(one, ("ada", "bob", "cy"))))

    traces = asyncio.run(all_of_them())
    assert len({session for session, _ in traces}) == 3  # each its own MCP session
    for name, (session, seen) in zip(("ada", "bob", "cy"), traces, strict=True):
        assert {one["client"] for one in seen} == {f"{name}/1"}
        assert {one["session_id"] for one in seen} == {session}
        assert {one["cue"] for one in seen} == {f"{name} {number}" for number in range(5)}


def test_http_without_a_handshake_takes_the_session_from_the_call(shared: Http) -> None:
    async def work() -> None:
        async with shared.client(mode="auto", client_info=ME) as client:
            await ask(client)

    async def ask(client: Client) -> None:
        made = await used(client, "memory_capture", text="Ada prefers tabs", session_id="modern")
        assert made["session_id"] == "modern"
        found = await used(client, "memory_recall", cue="tabs", session_id="modern")
        while not (seen := (await used(client, "memory_provenance", recall_id=found["recall_id"]))["entries"]):
            await asyncio.sleep(0.01)
        assert (seen[0]["client"], seen[0]["session_id"]) == ("tester/7", "modern")
        assert (await used(client, "memory_capture", text="nobody's"))["session_id"] == ""

    asyncio.run(work())


def test_strangers_hosts_origins_and_floods_are_refused(shared: Http) -> None:
    port = shared.url.split(":")[2].split("/")[0]
    assert shared.post().status_code == 200
    assert shared.post(host=f"localhost:{port}").status_code == 200
    assert shared.post(origin=f"http://localhost:{port}").status_code == 200
    assert shared.post(host="evil.example").status_code == 421
    assert shared.post(host=f"localhost.evil.example:{port}").status_code == 421
    assert shared.post(origin="http://evil.example").status_code == 403
    assert shared.post(origin="null").status_code == 403
    flood = httpx2.post(shared.url, content=b"[" + b"1," * 600_000 + b"1]", headers=_JSON)
    assert flood.status_code == 413
    assert httpx2.post(shared.url, content=_trickle(), headers=_JSON).status_code == 413  # without a length
    assert httpx2.get(shared.url.replace("/mcp", "/"), headers=_KNOWN).status_code == 404


def _trickle() -> Iterator[bytes]:
    for _ in range(20):
        yield b"x" * 65_536


def test_a_token_is_asked_of_everyone_even_on_loopback(shared: Http) -> None:
    bare = shared.post(authorization="")
    assert bare.status_code == 401
    wrong = ("Bearer wrong", "Bearer", f"Bearer {TOKEN} x", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}")
    for authorization in wrong:
        answer = shared.post(authorization=authorization)
        challenge = answer.headers["www-authenticate"]
        assert (answer.status_code, challenge) == (401, 'Bearer realm="iai-mcp", error="invalid_token"')
    nothing = httpx2.post(shared.url, json={})
    assert (nothing.status_code, nothing.headers["www-authenticate"]) == (401, 'Bearer realm="iai-mcp"')
    assert shared.post(authorization=f"bearer {TOKEN}").status_code == 200
    assert TOKEN not in shared.log


def test_sigterm_ends_http_cleanly_while_the_embedder_is_still_loading(tmp_path: Path) -> None:
    with http(tmp_path, IAI_MCP_EMBEDDER="builtin") as server:
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_http_while_clients_listen_and_keeps_the_trace(
    tmp_path: Path, number: signal.Signals
) -> None:
    async def work(server: Http) -> int:
        async with Client(server.url, mode="legacy", client_info=ME, read_timeout_seconds=20) as client:
            await used(client, "memory_capture", text="Ada prefers tabs")
            await used(client, "memory_recall", cue="before")
            flying = [asyncio.create_task(client.call_tool("memory_recall", {"cue": "flying"})) for _ in range(5)]
            await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            assert await asyncio.to_thread(server.stop, number) == 0
            ended = await asyncio.gather(*flying, return_exceptions=True)
            return sum(not isinstance(one, BaseException) and not one.is_error for one in ended)

    with http(tmp_path) as server:
        answered = 1 + asyncio.run(work(server))
        assert server.log.count("\n") == 1, server.log  # where it listens, and no complaint
    store = MemoryStore(tmp_path / "store", settings=Settings(embedder="none"))
    assert len(core.dispatch(store, "memory_provenance")["entries"]) >= answered


def test_redis_brokers_the_trace_of_the_server(tmp_path: Path) -> None:
    async def work(client: Client) -> None:
        await used(client, "memory_capture", text="Ada prefers tabs")
        found = await used(client, "memory_recall", cue="tabs")
        while not (await used(client, "memory_provenance", recall_id=found["recall_id"]))["entries"]:
            await asyncio.sleep(0.02)
        state = await used(client, "memory_status")
        assert (state["broker"], state["queue"]["counts"]["enqueued"]) == ("redis", 1)

    with serving(tmp_path / "redis") as redis, http(tmp_path, IAI_MCP_REDIS_URL=redis.url) as server:
        with worker(redis.url, tmp_path / "store", env=environment(tmp_path)):
            talk(server.url, work)
        assert server.stop() == 0


# -- the command line


@pytest.mark.parametrize(
    ("options", "env", "code", "said"),
    [
        (["--host", "0.0.0.0"], {}, 2, "lets other machines in: set IAI_MCP_TOKEN"),
        (["--token-file", "nowhere"], {}, 2, "--token-file nowhere: No such file"),
        ([], {"IAI_MCP_TOKEN": "two words"}, 2, "printable ASCII"),
        ([], {"IAI_MCP_STORE": "/dev/null/store"}, 1, "cannot open the store"),
        (["--store", ""], {}, 2, "--store is empty"),
        (["--host", "999.1.1.1"], {"IAI_MCP_TOKEN": "x"}, 1, "cannot listen on 999.1.1.1:8765"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, options: list[str], env: dict[str, str], code: int, said: str
) -> None:
    from typer.testing import CliRunner

    from iai_mcp.cli.app import app

    result = CliRunner().invoke(app, ["serve", "--transport", "http", *options], env=env)
    assert result.exit_code == code, result.exception
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_address_knows_its_names() -> None:
    assert Address("::1").local
    assert Address("localhost").local
    assert not Address("0.0.0.0").local
    assert not Address("memory.example").local
    assert Address("::1").shown == "[::1]"
    there = Address("192.0.2.7", names=["memory.example"]).own_names()
    assert all(map(there.host, ("192.0.2.7:8765", "memory.example", "memory.example:80", "localhost:1")))
    assert there.origin("https://memory.example")
    assert not there.host("192.0.2.8")
    assert not Address(names=["memory.example"]).own_names().host("192.0.2.7")


def test_a_token_comes_from_the_file_before_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert read_token(Settings(token="setting"), file) == "from-file"
    assert read_token(Settings(token="setting"), None) == "setting"
    assert read_token(Settings(), None) == ""
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_token(Settings(token="setting"), file)


def test_a_failure_nobody_expected_is_a_sentence_and_a_quiet_event(
    server: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("secret text of a memory")

    monkeypatch.setattr(core, "dispatch", broken)
    said = talk(server, lambda client: refused(client, "memory_recall", cue="x"))
    assert said == "memory_recall failed on the server (RuntimeError); its log says more (IAI_MCP_LOG=debug)"
    assert "call_failed" in caplog.text
    assert "secret" not in caplog.text
