"""Checks Redis: its settings, its clock and the workers that drain it."""

from __future__ import annotations

from collections.abc import Iterator

from iai_mcp.common.place import is_gone
from iai_mcp.maintenance.checks.check import Check, State, Subject
from iai_mcp.storage.place import store_place

__all__ = ["clock", "place", "redis", "workers"]

MIB = 2**20
SKEW_S = 2.0
_CHECKED = ("appendonly", "appendfsync", "eviction", "memory")  # kinds of warnings that have a check of their own


def redis(subject: Subject) -> Iterator[Check]:
    """Check that Redis answers and that its settings keep what waits in it."""
    seen = subject.redis
    if not seen.reachable:
        yield Check("redis", State.FAIL, seen.error or "unreachable", "start Redis, or correct IAI_MCP_REDIS_URL")
        return
    yield Check("redis", State.PASS, f"{seen.url}: version {seen.version}, answers in {seen.ping_ms} ms")
    if seen.error:
        yield Check("redis lanes", State.FAIL, seen.error, "let this user read and write the store's keys")
    for trouble in seen.troubles:
        state = State.WARN if trouble.mended else State.FAIL
        yield Check("redis lanes", state, trouble.message, trouble.remedy)
    yield _setting("redis appendonly", seen.appendonly, {"yes"}, "CONFIG SET appendonly yes")
    if seen.appendonly != "no":
        durable = subject.settings.redis_durability == "fsync"
        fits = {"always"} if durable else {"everysec", "always"}
        remedy = f"CONFIG SET appendfsync {'always' if durable else 'everysec'}"
        yield _setting("redis appendfsync", seen.appendfsync, fits, remedy)
    elif subject.settings.redis_durability == "fsync":
        message = "IAI_MCP_REDIS_DURABILITY=fsync, but Redis keeps nothing on disk: no entry is ever confirmed"
        yield Check("redis durability", State.FAIL, message, "CONFIG SET appendonly yes")
    policy = seen.maxmemory_policy
    yield _setting("redis eviction", policy, {"noeviction"}, "CONFIG SET maxmemory-policy noeviction")
    yield _memory(seen.used_memory, seen.maxmemory)
    for warning in seen.warnings:
        if warning.kind not in _CHECKED:
            yield Check("redis", State.FAIL, warning.message, warning.remedy)


def place(subject: Subject) -> Iterator[Check]:
    """Check that the entries in Redis belong to this folder, and not to a copy of it."""
    from iai_mcp.broker.redis.place import owner, refusal, visiting

    if not subject.redis.reachable:
        yield Check("redis place", State.SKIP, "Redis does not answer")
        return
    here = store_place(subject.layout)
    with visiting(subject.settings, subject.store.store_id) as (client, keys):
        there = owner(client, keys)
    if here is None or there is None or here.id == there.id or is_gone(there):
        yield Check("redis place", State.PASS, "no other folder has the entries of this store")
    else:
        yield Check("redis place", State.FAIL, refusal(there, here), "iai-mcp place --help")


def clock(subject: Subject) -> Iterator[Check]:
    """Check that the clocks of Redis and of this machine agree."""
    from iai_mcp.broker.redis.pending import clock_offset

    if not subject.redis.reachable:
        yield Check("clock", State.SKIP, "Redis does not answer")
        return
    ahead = clock_offset(subject.settings)
    far = abs(ahead) > SKEW_S
    message = f"Redis's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} ours"
    remedy = "let both machines follow the same time server (NTP)" if far else ""
    yield Check("clock", State.WARN if far else State.PASS, message, remedy)


def workers(subject: Subject) -> Iterator[Check]:
    """Check that a worker drains the lanes."""
    if not subject.redis.reachable:
        yield Check("workers", State.SKIP, "Redis does not answer")
    elif subject.redis.workers is None:
        yield Check("workers", State.WARN, "RQ's keys cannot be read", "let this user read rq:*")
    else:
        alive = sum(worker.alive for worker in subject.redis.workers)
        message = f"{alive} alive on the queue {subject.redis.queue!r}"
        remedy = "" if alive else "iai-mcp worker"
        yield Check("workers", State.PASS if alive else State.FAIL, message, remedy)


def _setting(name: str, value: str, wanted: set[str], remedy: str) -> Check:
    if value in wanted:
        return Check(name, State.PASS, value)
    if value == "unknown":
        return Check(name, State.WARN, "cannot be read", "let this user run CONFIG GET and INFO")
    risk = name.endswith("eviction") and value.startswith("allkeys")
    return Check(name, State.FAIL if risk else State.WARN, value, remedy)


def _memory(used: int | None, limit: int | None) -> Check:
    if used is None:
        return Check("redis memory", State.WARN, "cannot be read", "let this user run INFO")
    if not limit:
        return Check("redis memory", State.PASS, f"{used // MIB} MiB used, no limit set")
    message = f"{used // MIB} of {limit // MIB} MiB used"
    state = State.FAIL if used >= limit else State.WARN if used > 0.9 * limit else State.PASS
    return Check("redis memory", state, message, "" if state is State.PASS else "raise maxmemory, or add workers")
