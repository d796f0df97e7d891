"""Checks an installation and a store, one line for each check: PASS, WARN, FAIL or SKIP, and a remedy.

Changes nothing, makes no store, and never fails itself: a check that raises is a FAIL with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from iai_mcp.config import Settings
from iai_mcp.errors import ConfigError
from iai_mcp.maintenance.checks import disk, installation, redis, signing, store
from iai_mcp.maintenance.checks.check import Check, State, Subject

__all__ = ["Check", "State", "examine"]


def examine(path: str | None = None) -> Iterator[Check]:
    """Run every check of the store at ``path`` (default: as the settings say), each as it is asked for."""
    yield from _guarded("python", installation.python)
    yield from _guarded("packages", installation.packages)
    try:
        settings = Settings.load()
    except ConfigError as error:
        yield Check("settings", State.FAIL, str(error), "correct it, or unset it")
        return
    yield from _guarded("settings", installation.secrets)
    subject = Subject(settings, path)
    for name, check in _checks(subject):
        yield from _guarded(name, lambda check=check: check(subject))  # type: ignore[misc]


def _checks(subject: Subject) -> Iterator[tuple[str, Callable[[Subject], Iterable[Check]]]]:
    """The checks that apply, by name and in the order of the report."""
    yield "store", store.store
    if subject.exists:
        yield "store folder", store.folder
        yield "embedder", store.embedder
        yield "lanes", store.lanes
        yield "upkeep", store.upkeep
        yield "forgotten", store.erasures
    for name, check in (("redis", redis.redis), ("clock", redis.clock), ("workers", redis.workers)):
        if subject.settings.redis_url:
            yield name, check
        else:
            yield name, lambda _, n=name: [Check(n, State.SKIP, "the embedded broker needs none")]  # type: ignore[misc]
    if subject.exists and subject.settings.redis_url:
        yield "redis place", redis.place
    if subject.settings.redis_url:
        yield "signing", signing.signing
    yield "disk", disk.free_space
    yield "spill folder", disk.spill_folder
    yield "spill", disk.spill
    if subject.exists:
        yield "waiting", disk.waiting
        yield "dead letters", disk.dead_letters


def _guarded(name: str, check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  a panic of LanceDB's Rust is no Exception
        words = str(error).splitlines()[0][:200] if str(error) else ""
        yield Check(name, State.FAIL, f"{type(error).__name__}: {words}", "correct that, then check again")
