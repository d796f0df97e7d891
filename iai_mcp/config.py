"""Frozen settings, and the only module that reads them from the environment.

Each setting is one field of :class:`Settings`. The field's metadata holds the environment variable and the text of
the documentation's table. For a secret ``NAME``, the variable ``NAME_FILE`` may name a file that holds it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from iai_mcp.common.regular_files import NOTE_MAX, read_regular
from iai_mcp.errors import ConfigError

__all__ = [
    "ResolvedSetting",
    "Settings",
    "home",
    "markdown_table",
    "overflow_dir",
    "read_secret",
    "resolved",
    "unknown_variables",
    "world_readable",
]

SIGNING_KEY_CHARACTERS = 32  # at least
ENGINE_SECRETS = Path("/run/secrets")  # container engines mount secrets here and choose the mode


def _setting(
    default: Any, env: str, help: str, *, choices: tuple[str, ...] = (), secret: bool = False, off: bool = False
) -> Any:
    metadata = {"env": env, "help": help, "choices": choices, "secret": secret, "off": off}
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set from outside, read once by :meth:`load`.

    Times are in seconds unless the name says ``_ms``; sizes are in bytes.
    """

    store: Path | None = _setting(None, "IAI_MCP_STORE", "Folder of the store (default: ~/.iai-mcp/store).")
    embedder: str = _setting(
        "builtin",
        "IAI_MCP_EMBEDDER",
        "The embedder: builtin, none, fastembed, sentence-transformers or openai.",
        choices=("builtin", "none", "fastembed", "sentence-transformers", "openai"),
    )
    embedder_model: str = _setting(
        "",
        "IAI_MCP_EMBEDDER_MODEL",
        "Model of the embedder (default: the embedder's own).",
    )
    embedder_url: str = _setting(
        "", "IAI_MCP_EMBEDDER_URL", "Base URL of an OpenAI-compatible endpoint (embedder openai)."
    )
    embedder_key: str = _setting("", "IAI_MCP_EMBEDDER_KEY", "API key for that endpoint.", secret=True)
    client: str = _setting("", "IAI_MCP_CLIENT", "Name of this client. Each provenance entry holds it.")
    spill_dir: Path | None = _setting(
        None, "IAI_MCP_SPILL_DIR", "Folder of the local spill (default: ~/.iai-mcp/.provenance-overflow)."
    )
    journal: Literal["off", "write", "fsync"] = _setting(
        "off",
        "IAI_MCP_JOURNAL",
        "Write every entry to the spill before enqueue returns: off, write (survives kill -9) or fsync "
        "(survives a power cut).",
        choices=("off", "write", "fsync"),
    )
    max_entry_bytes: int = _setting(
        2**20,
        "IAI_MCP_MAX_ENTRY_BYTES",
        "Maximum size of one provenance entry, in bytes of JSON. A larger one is refused.",
    )
    stop_budget: float = _setting(
        5.0,
        "IAI_MCP_STOP_BUDGET",
        "Maximum seconds that a stopping queue drains before it spills the remaining entries.",
    )
    cleanup_age: float = _setting(
        10.0, "IAI_MCP_CLEANUP_AGE", "Age in seconds from which a table version may be removed."
    )
    lock_timeout: float = _setting(
        10.0,
        "IAI_MCP_LOCK_TIMEOUT",
        "Maximum seconds that a writer waits for a lane in use by another process.",
    )
    redis_url: str = _setting(
        "",
        "IAI_MCP_REDIS_URL",
        "Redis that brokers the entries (redis://, rediss:// or unix://); empty: the embedded broker.",
        secret=True,
    )
    namespace: str = _setting(
        "", "IAI_MCP_NAMESPACE", "Prefix of the RQ queue's name and of every Redis key of this store."
    )
    lane_ceiling: int = _setting(
        100_000,
        "IAI_MCP_LANE_CEILING",
        "Maximum number of entries of a lane in Redis. Above it clients spill. Concurrent clients may exceed it "
        "by one recall each.",
    )
    lease_s: float = _setting(
        10.0, "IAI_MCP_LEASE", "Seconds after its last renewal at which a worker's lease on a lane expires."
    )
    push_budget_ms: float = _setting(
        10.0, "IAI_MCP_PUSH_BUDGET_MS", "Maximum milliseconds of a push to Redis. After that the entry is spilled."
    )
    redis_durability: Literal["memory", "fsync"] = _setting(
        "memory",
        "IAI_MCP_REDIS_DURABILITY",
        "When an entry counts as taken by Redis: memory (Redis has it in memory; appendfsync decides what a power "
        "cut costs) or fsync (WAITAOF confirms it on Redis's disk; needs Redis 7.2 and appendfsync always). With "
        "fsync, an entry that is not confirmed within the push budget is spilled, and the spill is synced.",
        choices=("memory", "fsync"),
    )
    retain_mb: float = _setting(
        8.0,
        "IAI_MCP_RETAIN",
        "MiB of memory for entries that are in Redis and not yet in the store. A client pushes them again where "
        "Redis loses them (power cut, failover, FLUSHALL). Beyond it they are spilled. off: nothing is retained.",
        off=True,
    )
    linger_ms: float = _setting(
        50.0,
        "IAI_MCP_LINGER_MS",
        "Maximum milliseconds that the oldest entry of a lane waits for more entries (the linger).",
    )
    max_batch: int = _setting(4096, "IAI_MCP_MAX_BATCH", "Maximum number of entries in one write of a worker.")
    token: str = _setting(
        "", "IAI_MCP_TOKEN", "Bearer token that clients of `serve --transport http` must send.", secret=True
    )
    http_connections: int = _setting(
        1000,
        "IAI_MCP_HTTP_CONNECTIONS",
        "Maximum number of open connections of the HTTP server; half of them are for clients that passed all "
        "checks. Fewer where the limit of open files allows no more.",
    )
    http_idle_timeout: float = _setting(
        5.0, "IAI_MCP_HTTP_IDLE_TIMEOUT", "Seconds after which a connection without a request is closed."
    )
    http_head_timeout: float = _setting(
        10.0,
        "IAI_MCP_HTTP_HEAD_TIMEOUT",
        "Maximum seconds from the first byte of a request to the end of its headers.",
    )
    http_body_timeout: float = _setting(
        30.0,
        "IAI_MCP_HTTP_BODY_TIMEOUT",
        "Maximum seconds of a request's body, and of a client's pause in reading an answer.",
    )
    http_sessions: int = _setting(
        1000,
        "IAI_MCP_HTTP_SESSIONS",
        "Maximum number of MCP sessions over HTTP. Beyond it the oldest idle one ends.",
    )
    http_session_idle: float = _setting(
        1800.0, "IAI_MCP_HTTP_SESSION_IDLE", "Seconds without a request after which an MCP session over HTTP ends."
    )
    signing_key: str = _setting(
        "",
        "IAI_MCP_SIGNING_KEY",
        "Key that clients and workers share. With it every entry that leaves a process is signed, and what has no "
        "valid signature becomes a dead letter. At least 32 characters; several, separated by commas or lines: "
        "the first one signs, all of them are accepted.",
        secret=True,
    )
    traces: str = _setting(
        "off",
        "IAI_MCP_TRACES",
        "OpenTelemetry traces: off, or otlp to send them to OTEL_EXPORTER_OTLP_ENDPOINT. Needs the extra otel.",
        choices=("off", "otlp"),
    )
    log_level: str = _setting(
        "warning",
        "IAI_MCP_LOG",
        "Log level on stderr: debug, info, warning or error.",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: Literal["text", "json"] = _setting(
        "text",
        "IAI_MCP_LOG_FORMAT",
        "Format of the log on stderr: text, or json (one object a line).",
        choices=("text", "json"),
    )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environ`` (default: the environment of this process, now).

        An empty variable counts as not set. A secret's file is read once, now.

        Raises:
            ConfigError: a variable holds an unusable value or names an unusable file. The message names it.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for spec in fields(cls):
            name = spec.metadata["env"]
            raw = env.get(name, "")
            if spec.metadata["secret"] and (file := env.get(f"{name}_FILE", "")):
                if raw:
                    raise ConfigError(f"{name} and {name}_FILE are both set: unset one of them")
                lines = spec.name == "signing_key"
                raw = read_secret(Path(file).expanduser(), f"{name}_FILE={file}", lines=lines)
            if raw != "":
                values[spec.name] = _parse(spec.name, spec.default, raw, spec.metadata)
        settings = cls(**values)
        settings.signing_keys  # noqa: B018  a bad one is told at once
        return settings

    @property
    def retain_bytes(self) -> int:
        """Bytes of memory for entries that are in Redis and not yet in the store."""
        return int(self.retain_mb * 2**20)

    @property
    def signing_keys(self) -> tuple[str, ...]:
        """The keys of ``signing_key``: the first one signs, all of them are accepted.

        Raises:
            ConfigError: a key is shorter than ``SIGNING_KEY_CHARACTERS``.
        """
        if not self.signing_key:
            return ()
        keys = tuple(key.strip() for key in self.signing_key.strip().replace(",", "\n").split("\n"))
        if any(len(key) < SIGNING_KEY_CHARACTERS for key in keys):
            raise ConfigError(
                "IAI_MCP_SIGNING_KEY holds an empty key or one of fewer than "
                f"{SIGNING_KEY_CHARACTERS} characters: make one with `openssl rand -hex 32`"
            )
        return keys

    @property
    def store_path(self) -> Path:
        """The store's folder: the setting, else ``~/.iai-mcp/store``."""
        return self.store if self.store is not None else home() / ".iai-mcp" / "store"


@dataclass(frozen=True, slots=True)
class ResolvedSetting:
    """A setting with its value and source.

    Attributes:
        name: the field of :class:`Settings`.
        variable: the environment variable.
        value: the value in force, defaults included. A secret is not masked here.
        source: ``environment``, ``default``, or the path of the file that holds the secret.
        secret: whether ``value`` must never be shown.
    """

    name: str
    variable: str
    value: str | float | None
    source: str
    secret: bool


def resolved(environ: Mapping[str, str] | None = None) -> list[ResolvedSetting]:
    """Every setting as :meth:`Settings.load` reads it from ``environ``, with its source.

    Raises:
        ConfigError: as :meth:`Settings.load`.
    """
    env = os.environ if environ is None else environ
    settings, found = Settings.load(env), []
    for spec in fields(Settings):
        name, secret = spec.metadata["env"], spec.metadata["secret"]
        value = _FOLDERS[spec.name](settings) if spec.name in _FOLDERS else getattr(settings, spec.name)
        file = env.get(f"{name}_FILE", "") if secret else ""
        source = "environment" if env.get(name, "") else file or "default"
        found.append(
            ResolvedSetting(spec.name, name, str(value) if isinstance(value, Path) else value, source, secret)
        )
    return found


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables that start like a setting but are not one, misspelled names above all."""
    env = os.environ if environ is None else environ
    known = {spec.metadata["env"] for spec in fields(Settings)}
    known |= {f"{spec.metadata['env']}_FILE" for spec in fields(Settings) if spec.metadata["secret"]}
    return sorted(name for name in env if name.startswith("IAI_MCP_") and name not in known)


def markdown_table() -> str:
    """The table of settings for the documentation."""
    lines = ["| Variable | In Python | Default | |", "|---|---|---|---|"]
    for spec in fields(Settings):
        meta, default = spec.metadata, spec.default
        default = f"{default:g}" if isinstance(default, float) else default
        shown = "" if default in (None, "") else f"`{default}`"
        secret = f" A secret: `{meta['env']}_FILE` names a file with it." if meta["secret"] else ""
        lines.append(f"| `{meta['env']}` | `{spec.name}` | {shown} | {meta['help']}{secret} |")
    return "\n".join(lines)


def _parse(name: str, default: Any, raw: str, meta: Mapping[str, Any]) -> Any:
    env = meta["env"]
    if meta["choices"]:
        if raw.lower() not in meta["choices"]:
            raise ConfigError(f"{env}={raw!r} is not one of {', '.join(meta['choices'])}")
        return raw.lower()
    if name in ("store", "spill_dir"):
        return Path(raw).expanduser()
    if default is MISSING or isinstance(default, str):
        return raw
    if meta["off"] and raw.lower() == "off":
        return type(default)(0)
    try:
        value = type(default)(raw)
    except ValueError:
        raise ConfigError(f"{env}={raw!r} is not a number") from None
    if not value >= 0 or value == float("inf"):
        raise ConfigError(f"{env}={raw!r} must be zero or more")
    return value


def read_secret(path: Path, named: str, *, lines: bool = False) -> str:
    """The single line of a file, without surrounding blanks. Errors call the file ``named``.

    Args:
        lines: the file may hold several lines.

    Raises:
        ConfigError: the file cannot be read, is empty, or holds more than one line.
    """
    try:
        secret = read_regular(path, NOTE_MAX, follow=True).decode().strip()  # Kubernetes mounts links
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not secret:
        raise ConfigError(f"{named} is empty")
    if len(secret.splitlines()) > 1 and not lines:
        raise ConfigError(f"{named} holds more than one line")
    return secret


def world_readable(environ: Mapping[str, str] | None = None, *further: Path | None) -> list[Path]:
    """The secret files, those of the settings and ``further`` ones, that every user of this machine can read."""
    env = os.environ if environ is None else environ
    secret = [spec.metadata["env"] for spec in fields(Settings) if spec.metadata["secret"]]
    named = [Path(file).expanduser() for name in secret if (file := env.get(f"{name}_FILE", ""))]
    return [path for path in (*named, *further) if path is not None and _world_readable(path)]


def _world_readable(path: Path) -> bool:
    with suppress(OSError):
        readable = path.stat().st_mode & stat.S_IROTH
        return bool(readable) and ENGINE_SECRETS not in path.absolute().parents
    return False


def home() -> Path:
    """The user's home folder, from ``HOME`` at this moment."""
    return Path(os.environ.get("HOME") or Path.home())


def overflow_dir(settings: Settings) -> Path:
    """The spill folder, computed at each call: a process may change ``HOME`` after it made the queue."""
    return settings.spill_dir or home() / ".iai-mcp" / ".provenance-overflow"


_FOLDERS = {"store": lambda settings: settings.store_path, "spill_dir": overflow_dir}  # defaults depend on HOME
