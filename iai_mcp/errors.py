"""The one tree of errors: what a caller can catch, and whether it is their input, the place or a batch.

Third-party exceptions are translated into these where the library is used. A message says what is wrong
and what to do about it; it is shown to people as it stands.
"""

from __future__ import annotations

__all__ = [
    "BadParams",
    "BrokenCopy",
    "BrokerLoading",
    "BrokerUnavailable",
    "ConfigError",
    "EmbedderUnavailable",
    "EmbeddingMismatch",
    "IaiMcpError",
    "LanesChanged",
    "LeaseLost",
    "MalformedParcel",
    "QueueStopped",
    "RecordExists",
    "RecordNotFound",
    "SpillUnavailable",
    "StoreError",
    "StoreInUse",
    "StoreTooNew",
    "StoreUnavailable",
    "UnknownMethod",
    "UsageError",
]


class IaiMcpError(Exception):
    """Base of every error that this package raises on purpose."""


class UsageError(IaiMcpError, ValueError):
    """The caller's input is wrong; the same call can never succeed. Exit code 2 on the command line."""


class BadParams(UsageError):
    """A parameter of a method is missing, unknown or of the wrong kind."""


class UnknownMethod(UsageError):
    """``dispatch`` was asked for a method that it does not have."""


class ConfigError(UsageError):
    """A setting or environment variable holds a value that cannot be used."""


class BrokenCopy(UsageError):
    """An export or a backup is incomplete, damaged, or of a later version."""


class StoreInUse(UsageError):
    """The store must be at rest for this, and is not."""


class EmbeddingMismatch(UsageError):
    """A vector has another number of dimensions than the store's."""


class RecordExists(UsageError):
    """A record with this id is in the store already."""


class RecordNotFound(UsageError, LookupError):
    """No record has this id."""


class StoreError(IaiMcpError):
    """The store cannot do what was asked."""


class StoreTooNew(StoreError):
    """A later version of this package wrote the store."""


class StoreUnavailable(StoreError, OSError):
    """The storage is unavailable: disk full, no permission, folder gone. The same call may be repeated later."""


class LanesChanged(StoreUnavailable):
    """The store has another number of lanes than when this process opened it: open it anew."""


class BrokerUnavailable(IaiMcpError):
    """The broker did not take, give or acknowledge entries just now."""


class BrokerLoading(BrokerUnavailable):
    """The broker answers, and still loads its data: waiting helps."""


class LeaseLost(IaiMcpError):
    """Another worker has leased the lane since. The holder of the old fencing token must stop at once."""


class MalformedParcel(IaiMcpError, ValueError):
    """Bytes from a lane or a spill file do not decode to provenance entries."""


class SpillUnavailable(IaiMcpError, OSError):
    """The spill folder cannot take an entry (its disk is full, or it is not writable)."""


class QueueStopped(IaiMcpError, RuntimeError):
    """The queue is stopped and its spill cannot take the entries either."""


class EmbedderUnavailable(IaiMcpError):
    """The configured embedder cannot be loaded or did not answer."""
