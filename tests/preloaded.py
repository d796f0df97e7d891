"""``iai-mcp`` as a program on the PATH that starts at once: a fork of one process that has imported everything.

For tests that run many real commands from a real shell. The process only imports: it opens no store, which is
what forking would not survive. Where forking is not safe at all (macOS) the program is ``python -m iai_mcp``.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import ROOT

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    sys.exit(int(server.recv(16) or 70))
"""


@contextmanager
def program(folder: Path) -> Iterator[Path]:
    """``folder``, made, with the program ``iai-mcp`` in it, for the block."""
    folder.mkdir()
    script, address = folder / "iai-mcp", folder / "socket"
    if sys.platform == "darwin":
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m iai_mcp "$@"\n')
        script.chmod(0o755)
        yield folder
        return
    script.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    script.chmod(0o755)
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.preloaded", str(address)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        yield folder
    finally:
        parent.communicate(timeout=20)  # the end of its stdin ends it


def _serve(address: str) -> None:
    for name in (
        "cli.app",
        "cli.demo_run",
        "core",
        "deployment.client_config",
        "maintenance.doctor",
        "server.stdio",
        "transfer.backup",
        "transfer.load",
        "transfer.restore",
    ):
        __import__(f"iai_mcp.{name}")
    for name in ("onnxruntime", "redis", "rich.progress", "rich.table", "tokenizers"):
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        print("ready", flush=True)  # noqa: T201
        while True:
            asking, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(asking)
            asking.close()


def _answer(asking: socket.socket) -> None:
    """Be the command that was asked for, in every respect, and never return."""
    code = 70
    try:
        head, given, *_ = socket.recv_fds(asking, 4, 3)
        size, asked = int.from_bytes(head, "big"), b""
        while len(asked) < size:
            asked += asking.recv(size - len(asked))
        args, folder, environ = json.loads(asked)
        for number, fd in enumerate(given):
            os.dup2(fd, number)
            os.close(fd)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environ)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.argv = ["iai-mcp", *args]
        try:
            runpy.run_module("iai_mcp", run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        asking.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*fork")
    _serve(sys.argv[1])
