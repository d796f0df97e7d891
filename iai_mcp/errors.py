"""Every error that the package raises on purpose, in one tree.

The module that uses a third-party library translates its exceptions into these. A message says what is wrong and
names the remedy. It is shown to people unchanged.
"""

from __future__ import annotations

__all__ = [
    "BadParams",
    "BrokenCopy",
    "BrokerLoading",
    "BrokerUnavailable",
    "ConfigError",
    "DamagedStore",
    "EmbedderUnavailable",
    "EmbeddingMismatch",
    "ForkedProcess",
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
    "UnfitFile",
    "UnknownMethod",
    "UsageError",
    "WrongPlace",
]


class IaiMcpError(Exception):
    """Base of every error that this package raises on purpose."""


class UsageError(IaiMcpError, ValueError):
    """The caller's input is wrong; the same call can never succeed. Exit code 2 on the command line."""


class BadParams(UsageError):
    """A parameter of a method is missing, unknown or of the wrong type."""


class UnknownMethod(UsageError):
    """``dispatch`` has no method of this name."""


class ConfigError(UsageError):
    """A setting or environment variable holds an unusable value."""


class WrongPlace(ConfigError):
    """Another folder with the same store id uses this Redis."""


class BrokenCopy(UsageError):
    """An export or a backup is incomplete, damaged, or of a later version."""


class StoreInUse(UsageError):
    """The operation needs a store that no other process uses."""


class EmbeddingMismatch(UsageError):
    """The dimensions of a vector differ from those of the store."""


class RecordExists(UsageError):
    """The store already has a record with this id."""


class RecordNotFound(UsageError, LookupError):
    """No record has this id."""


class StoreError(IaiMcpError):
    """The store cannot do what was asked."""


class DamagedStore(StoreError, UsageError):
    """What the store's own files say cannot be: they are damaged, or were made to mislead."""


class StoreTooNew(StoreError):
    """A later version of this package wrote the store."""


class StoreUnavailable(StoreError, OSError):
    """The storage is unavailable: disk full, no permission, folder gone. The same call may be repeated later."""


class UnfitFile(IaiMcpError, OSError):
    """A file is a link, no regular file, or larger than its content can be."""

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}" if self.filename else super().__str__()


class ForkedProcess(StoreError):
    """A process that this one was forked from has used the storage, which does not survive that."""


class LanesChanged(StoreUnavailable):
    """The number of lanes changed after this process opened the store. Open it again."""


class BrokerUnavailable(IaiMcpError):
    """The broker did not take, return or acknowledge entries."""


class BrokerLoading(BrokerUnavailable):
    """The broker answers but is still loading its data. Try again soon."""


class LeaseLost(IaiMcpError):
    """Another worker has leased the lane since. The holder of the old fencing token must stop at once."""


class MalformedParcel(IaiMcpError, ValueError):
    """Bytes from a lane or a spill file do not decode to provenance entries."""


class SpillUnavailable(IaiMcpError, OSError):
    """The spill folder cannot take an entry: its disk is full, or it is not writable."""


class QueueStopped(IaiMcpError, RuntimeError):
    """The queue is stopped, and its spill cannot take the entries."""


class EmbedderUnavailable(IaiMcpError):
    """The configured embedder cannot be loaded or did not answer."""
