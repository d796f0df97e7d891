"""The Lua files of this package, each one atomic change of a lane's state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from typing import Any

import redis
from redis.exceptions import BusyLoadingError, NoPermissionError, NoScriptError, RedisError, ResponseError

from iai_mcp.broker.redis.client import failure
from iai_mcp.errors import BrokerLoading, BrokerUnavailable

__all__ = ["Script", "translated"]


class Script:
    """A Lua file of this package, run by its digest."""

    def __init__(self, name: str) -> None:
        self.source = resources.files("iai_mcp.broker.redis").joinpath(f"lua/{name}.lua").read_text()
        self.digest = _digest(self.source)

    def __call__(self, client: redis.Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            try:
                return client.execute_command("EVALSHA", self.digest, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
            except NoScriptError:  # the server restarted, or its scripts were flushed
                return client.execute_command("EVAL", self.source, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if "unexpected symbol near '#'" not in str(error):
                raise
            self.source = self.source.split("\n", 1)[1]  # a stand-in that knows no script flags
            self.digest = _digest(self.source)
            return self(client, keys, args)

    def load(self, client: redis.Redis) -> None:
        """Make the server know the script, so that the first push takes one round trip."""
        with suppress(NoPermissionError):  # EVAL will do
            client.script_load(self.source)


def _digest(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class translated:
    """Redis's errors become :class:`BrokerUnavailable`; LOADING becomes :class:`BrokerLoading`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BusyLoadingError):
            raise BrokerLoading(failure(error)) from error
        if isinstance(error, RedisError):
            raise BrokerUnavailable(failure(error)) from error
