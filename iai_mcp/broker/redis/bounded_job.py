"""RQ jobs that are looked at before they are read: one that is large, or no job at all, is dropped unread.

Imports RQ: import it late.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError, ResponseError
from rq.exceptions import NoSuchJobError
from rq.job import Job

from iai_mcp.broker.redis.stray import is_wrong_type
from iai_mcp.telemetry.events import log

__all__ = ["JOB_BYTES_MAX", "BoundedJob"]

JOB_BYTES_MAX = 64 * 1024  # of Redis's memory; a doorbell takes about 1 KiB


class BoundedJob(Job):
    """A job as it lies in Redis, of bounded size."""

    def refresh(self) -> None:
        """Read the job.

        Raises:
            NoSuchJobError: there is none, or there was one that cannot be read or is too large; it is gone now.
            RedisError: the server does not answer.
        """
        with suppress(ResponseError):  # an ACL, or a stand-in, without this command
            size: Any = self.connection.memory_usage(self.key, samples=0)
            if size is not None and size > JOB_BYTES_MAX:
                self._drop(f"it takes {size} bytes")
        try:
            super().refresh()  # type: ignore[no-untyped-call]
        except NoSuchJobError:
            self._drop("it names no work")
        except RedisError as error:
            if not is_wrong_type(error):
                raise
            self._drop("its key is of another type")
        except Exception as error:  # noqa: BLE001  bytes of any kind raise errors of any kind
            self._drop(f"it cannot be read: {type(error).__name__}")

    def _drop(self, why: str) -> None:
        if self.connection.delete(self.key):
            log.warning("job %s is no doorbell and was dropped: %s", ascii(self.id)[:80], why)
        raise NoSuchJobError(why)
