"""One worker process for the configured store and Redis (``python -m workers``)."""

from __future__ import annotations

import argparse
import os
import sys

from iai_mcp.config import Settings
from iai_mcp.errors import IaiMcpError
from iai_mcp.events import configure


def main() -> int:
    """Run until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--burst", action="store_true", help="end as soon as every lane is empty")
    options = parser.parse_args()
    try:
        settings = Settings.load()
        configure(settings.log_level)
        return run(settings, burst=options.burst)
    except IaiMcpError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2


def run(settings: Settings, *, burst: bool) -> int:
    """Work with ``settings``.

    Raises:
        ConfigError: no Redis is configured, or it is too old.
    """
    from redis.exceptions import RedisError
    from rq import Queue

    from iai_mcp.broker.client import connect, failure
    from iai_mcp.broker.keys import Keys
    from iai_mcp.errors import BrokerUnavailable, ConfigError
    from workers.bench import bench_for, configured_store
    from workers.worker import ProvenanceWorker

    if not settings.redis_url:
        raise ConfigError("workers need IAI_MCP_REDIS_URL, such as redis://localhost:6379/0")
    connection = connect(settings.redis_url)
    store = configured_store()
    try:
        bench_for(store.store_id, connection)
        name = Keys(settings.namespace, store.store_id).queue
        worker = ProvenanceWorker([Queue(name, connection=connection)], connection=connection)
        worker.log_job_description = False
        level = {"warning": "WARNING", "error": "ERROR", "debug": "DEBUG"}.get(settings.log_level, "INFO")
        worker.work(burst=burst, logging_level=level)
        if burst:
            bench_for(store.store_id, connection).drain_all()
    except RedisError as error:
        raise BrokerUnavailable(f"Redis does not answer: {failure(error)}") from error
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
