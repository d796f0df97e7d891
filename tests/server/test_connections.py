"""Strangers on the HTTP port: silent, slow and abandoned connections, and requests for other names."""

from __future__ import annotations

import asyncio
import http.client as http_client
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from iai_mcp.errors import UsageError
from iai_mcp.server.hosts import Names
from tests.server.test_server import _JSON, INITIALIZE, ME, TOKEN, Http, http, used
from tests.support import wait_until

# Opens its connections in one process, so that the test's own limit of open files does not matter.
ATTACK = """
import resource, socket, sys, time
port, count, slow = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "slow"
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384) if hard > 0 else 16384, hard))
open_ = []
for _ in range(count):
    try:
        one = socket.create_connection(("127.0.0.1", port), timeout=30)
        if slow:
            one.sendall(b"POST /mcp HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nX: ")
        open_.append(one)
    except OSError:
        pass
print("there", len(open_), flush=True)
while slow:
    for one in open_:
        try:
            one.send(b"x")
        except OSError:
            pass
    time.sleep(0.5)
sys.stdin.read()
"""


@contextmanager
def strangers(port: int, count: int, kind: str) -> Iterator[int]:
    """``count`` connections that stay silent, or whose headers never end; yields how many got in."""
    command = [sys.executable, "-c", ATTACK, str(port), str(count), kind]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().split()[1])
        finally:
            process.kill()


def port_of(server: Http) -> int:
    return int(server.url.split(":")[2].split("/")[0])


def connected(server: Http) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), timeout=20)


def closed_after(one: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the server closes; meanwhile ``drip`` is sent every tenth of a second."""
    began = time.monotonic()
    one.settimeout(0.1)
    while time.monotonic() - began < 30:
        try:
            if drip:
                one.send(drip)
            if not one.recv(4096):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


def memory_kb(server: Http) -> int:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


@asynccontextmanager
async def client_of(server: Http) -> AsyncIterator[Client]:
    """A client that waits longer than the default for a busy machine."""
    async with httpx2.AsyncClient(headers=_JSON, timeout=60) as web:
        transport = streamable_http_client(server.url, http_client=web)
        async with Client(transport, mode="legacy", client_info=ME, read_timeout_seconds=60) as client:
            yield client


async def recall(server: Http) -> float:
    """Seconds of a connection, a handshake and a recall of a client that knows the token."""
    began = time.monotonic()
    async with client_of(server) as client:
        assert (await used(client, "memory_recall", cue="which pier"))["hits"]
        return time.monotonic() - began


async def _capture(server: Http) -> None:
    async with client_of(server) as client:
        await used(client, "memory_capture", text="The ferry leaves from pier nine")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_crowds_of_strangers_leave_room_for_a_recall(tmp_path: Path, whole: bool) -> None:
    patient = {"IAI_MCP_HTTP_HEAD_TIMEOUT": "60", "IAI_MCP_HTTP_IDLE_TIMEOUT": "60"}
    with http(tmp_path, nofile="1024", IAI_MCP_TOKEN=TOKEN, **patient) as server:
        asyncio.run(_capture(server))
        before, port = memory_kb(server), port_of(server)
        with strangers(port, 2000, "silent") as silent, strangers(port, 2000, "slow") as slow:
            assert silent + slow == 4000
            took = [asyncio.run(recall(server)) for _ in range(3)]
            abandon(port, 3000 if whole else 300)
            took.append(asyncio.run(recall(server)))
        assert max(took) < 5, took  # on a free machine under one second
        assert memory_kb(server) - before < 150_000
        assert server.stop() == 0


def abandon(port: int, count: int) -> None:
    """Open ``count`` sessions over one connection and end none."""
    message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE})
    with closing(http_client.HTTPConnection("127.0.0.1", port, timeout=60)) as link:
        for _ in range(count):
            link.request("POST", "/mcp", message, _JSON)
            answer = link.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()


def test_a_connection_that_asks_nothing_in_time_is_closed(tmp_path: Path) -> None:
    limits = {
        "IAI_MCP_HTTP_IDLE_TIMEOUT": "0.5",
        "IAI_MCP_HTTP_HEAD_TIMEOUT": "1",
        "IAI_MCP_HTTP_BODY_TIMEOUT": "1.5",
    }
    with http(tmp_path, **limits) as server:
        with connected(server) as silent:
            assert closed_after(silent) < 5
        with connected(server) as slow:
            slow.sendall(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX: ")
            assert 0.5 < closed_after(slow, b"x") < 6
        with connected(server) as slow:
            slow.sendall(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: 100000\r\n\r\n")
            assert 1 < closed_after(slow, b" ") < 7
        with connected(server) as second:  # a second request on a connection that was good once
            second.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert second.recv(4096).startswith(b"HTTP/1.1 200")
            second.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
            assert closed_after(second, b"x") < 6
        assert server.post().status_code == 200
        assert server.stop() == 0


def test_a_client_that_does_not_read_its_answers_is_let_go(tmp_path: Path) -> None:
    with http(tmp_path, IAI_MCP_HTTP_BODY_TIMEOUT="1") as server, connected(server) as deaf:
        deaf.settimeout(1)
        request = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
        with pytest.raises(ConnectionError):
            _shout(deaf, request)
        assert server.post().status_code == 200


def _shout(deaf: socket.socket, request: bytes) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with suppress(TimeoutError):
            deaf.sendall(request)


def test_beyond_the_bound_the_oldest_idle_session_goes(tmp_path: Path) -> None:
    def ask(session: str) -> int:
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        return httpx2.post(server.url, json=message, headers={**_JSON, "mcp-session-id": session}).status_code

    with http(tmp_path, IAI_MCP_HTTP_SESSIONS="3") as server:
        first, second, third = (server.post().headers["mcp-session-id"] for _ in range(3))
        assert ask(first) == 200  # now the second one is the oldest
        fourth = server.post()
        assert fourth.status_code == 200
        assert [ask(one) for one in (second, first, third)] == [404, 200, 200]


def test_an_idle_session_ends(tmp_path: Path) -> None:
    def gone() -> bool:
        time.sleep(1.2)  # asking keeps it alive
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        return httpx2.post(server.url, json=message, headers={**_JSON, "mcp-session-id": one}).status_code == 404

    with http(tmp_path, IAI_MCP_HTTP_SESSION_IDLE="0.5") as server:
        one = server.post().headers["mcp-session-id"]
        assert wait_until(gone, 20)


# -- names


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("LocalHost.:8765", True),
        ("localhost:", True),
        ("127.0.0.1:8799", True),
        ("[::1]", True),
        ("[0:0:0:0:0:0:0:1]:8765", True),
        ("[::0001]:65535", True),
        ("memory.example", True),
        ("Memory.Example.:443", True),
        ("xn--bcher-kva.example", True),
        ("[fd00::7]:8765", True),
        ("127.0.0.1:8799.evil.com", False),
        ("127.0.0.1.evil.com:8799", False),
        ("localhost:0", False),
        ("localhost:65536", False),
        ("localhost:+80", False),
        ("localhost:８０", False),
        ("localhost:80:80", False),
        ("localhost..", False),
        ("user@localhost", False),
        ("localhost@evil.com", False),
        ("localhost:80@evil.com", False),
        ("localhost/evil.com", False),
        ("localhost#.evil.com", False),
        ("local host", False),
        ("::1", False),
        ("[::1", False),
        ("[::1]evil.com", False),
        ("[::1%25eth0]", False),
        ("[localhost]", False),
        ("[127.0.0.1]", False),
        ("127.1", False),
        ("2130706433", False),
        ("", False),
        (".", False),
        (":8765", False),
    ],
)
def test_a_host_is_parsed_not_matched_as_text(host: str, known: bool) -> None:
    names = Names(["localhost", "127.0.0.1", "::1", "memory.example", "bücher.example", "fd00::7"])
    assert names.host(host) is known
    assert names.origin(f"http://{host}") is known
    assert names.origin(f"HTTPS://{host}") is known


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "localhost",
        "file://",
        "ftp://localhost",
        "http://localhost/",
        "http:localhost",
        "http:///localhost",
        "http://localhost http://evil.com",
        "http://localhost?x",
        "https://https://localhost",
        "://localhost",
    ],
)
def test_an_origin_is_parsed_too(origin: str) -> None:
    assert not Names(["localhost"]).origin(origin)


@pytest.mark.parametrize(
    "name", ["memory.example:8765", "http://memory.example", "a b", "", "[::1]:1", "x@y", "*"]
)
def test_a_name_to_allow_is_checked_at_the_start(name: str) -> None:
    with pytest.raises(UsageError, match="--allow-host"):
        Names([name])


def raw(server: Http, *headers: str) -> str:
    """The status line of a handshake with these headers, and nothing beside them."""
    body = '{"jsonrpc":"2.0","id":1,"method":"initialize","params":' + json.dumps(INITIALIZE) + "}"
    own = [f"Content-Length: {len(body)}", "Content-Type: application/json", "Accept: application/json"]
    with connected(server) as link:
        text = "\r\n".join(["POST /mcp HTTP/1.1", *headers, *own, "Connection: close", "", body])
        link.sendall(text.encode())
        return link.recv(4096).decode().split("\r\n")[0]


def test_the_server_answers_to_its_own_names_only(tmp_path: Path) -> None:
    with http(tmp_path, "--allow-host", "Memory.Example") as server:
        port = port_of(server)
        taken = ("LOCALHOST", f"127.0.0.1:{port}", "[::1]:80", "memory.example.", "MEMORY.example:443")
        assert [raw(server, f"Host: {host}") for host in taken] == ["HTTP/1.1 200 OK"] * len(taken)
        others = ("127.0.0.1:8799.evil.com", "user@localhost", "evil.com", "localhost:99999")
        assert {raw(server, f"Host: {host}")[:12] for host in others} == {"HTTP/1.1 421"}
        assert raw(server, "Host: localhost", "Host: localhost")[:12] == "HTTP/1.1 400"
        good = "Host: localhost"
        assert raw(server, good, "Origin: HTTP://LOCALHOST:3000") == "HTTP/1.1 200 OK"
        assert raw(server, good, "Origin: null")[:12] == "HTTP/1.1 403"
        assert raw(server, good, "Origin: http://127.0.0.1:8799.evil.com")[:12] == "HTTP/1.1 403"
        twice = raw(server, good, "Origin: http://localhost", "Origin: http://localhost")
        assert twice[:12] == "HTTP/1.1 403"
        metrics = server.url.replace("/mcp", "/metrics")
        assert httpx2.get(metrics, headers={"host": "127.0.0.1:1.evil.com"}).status_code == 421
