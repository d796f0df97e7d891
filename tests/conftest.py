"""Every test has a home, a spill folder and an environment of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from iai_mcp.store import MemoryStore
from tests import servers

# Nearly every test of these files starts a server, a worker or another process, or takes seconds.
SLOW_FILES = {
    "test_backup.py",
    "test_connections.py",
    "test_demo.py",
    "test_deploy.py",
    "test_driver.py",
    "test_export.py",
    "test_faults.py",
    "test_file_modes.py",
    "test_forget.py",
    "test_forged_jobs.py",
    "test_fuzz.py",
    "test_machine.py",
    "test_place.py",
    "test_printed_text.py",
    "test_provenance_views.py",
    "test_redis.py",
    "test_reused_ids.py",
    "test_reshard.py",
    "test_rights.py",
    "test_server.py",
    "test_stray_values.py",
    "test_tracing.py",
    "test_verify.py",
    "test_workers.py",
}
# What ``pytest --acl`` runs: what each user can do, and the main flows as these users.
ACL_SUITE = (
    "tests/broker/redis/test_rights.py",
    "tests/broker/redis/test_stray_values.py",
    "tests/broker/redis/test_redis.py",
    "tests/broker/redis/test_place.py",
    "tests/broker/redis/test_retained.py",
    "tests/broker/test_brokers.py",
    "tests/deployment/test_deploy.py",
    "tests/workers/test_forged_jobs.py",
    "tests/workers/test_stock_processes.py",
)
# All combinations of these files take minutes: plain ``pytest`` runs a fourth, ``--acl`` and ``--whole`` run all.
MATRICES = {"test_rights.py", "test_stray_values.py"}
PART = 4
SLOW_TESTS = {
    "test_entries_come_back_in_the_order_of_the_recalls",
    "test_files_versions_and_unindexed_rows_do_not_pile_up",
    "test_trouble_with_the_place_is_retried_for_ever",
}
# A test of another file that asks for one of these fixtures, or names one of these functions, starts a process.
SLOW_FIXTURES = {"programs", "redis", "server"}
STARTERS = {
    "Popen",
    "completed",
    "finished",
    "following",
    "http",
    "on_a_terminal",
    "python",
    "serving",
    "subprocess",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--acl",
        action="store_true",
        help="Run every Redis with the configuration and users of deploy/redis; without paths: the suites for it.",
    )

    parser.addoption(
        "--whole",
        action="store_true",
        help="Run every combination of the largest matrices, and crowds in full size.",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs this in the background, or nohup, has them ignored, by every program of the tests too.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    servers.ACL = config.getoption("--acl")
    if servers.ACL and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = [str(config.rootpath / path) for path in ACL_SUITE]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what ``-m "not slow"`` leaves out, and take a part of the largest matrices."""
    if not (servers.ACL or config.getoption("--whole")):
        matrix = [item for item in items if item.path.name in MATRICES and hasattr(item, "callspec")]
        left_out = {id(item) for at, item in enumerate(matrix) if at % PART}
        config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
        items[:] = [item for item in items if id(item) not in left_out]
    for item in items:
        assert isinstance(item, pytest.Function)
        starts = SLOW_FIXTURES & {*item.fixturenames} or STARTERS & {*names(item.function.__code__)}
        if starts or item.path.name in SLOW_FILES or item.originalname in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)


def names(code: CodeType) -> Iterator[str]:
    """The names that a function uses, those of its comprehensions and inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names(constant)


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether crowds have their full size."""
    return bool(request.config.getoption("--whole"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh ``HOME``, and none of this machine's settings."""
    for name in list(os.environ):
        if name.startswith("IAI_MCP_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    """An empty store with default settings; its queue is stopped afterwards."""
    made = MemoryStore(tmp_path / "store")
    yield made
    made.disable_provenance_queue()
