"""The facts of an opened store: as they were at opening, and as any process has last written them."""

from __future__ import annotations

from msgspec.structs import replace

from iai_mcp.errors import LanesChanged, StoreError, StoreUnavailable
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import StoreMeta, change_meta, read_meta, signature

__all__ = ["StoreFacts"]


class StoreFacts:
    """What ``store.json`` says.

    Attributes:
        opened: the facts when the store was opened.

    Raises:
        StoreTooNew: a later version of this package wrote the store.
        StoreUnavailable: the file cannot be read.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._path = str(layout.meta)  # every enqueue checks it; a Path would cost three times the stat
        self._signature = signature(self._path)
        self._now = self.opened = read_meta(layout)

    @property
    def now(self) -> StoreMeta:
        """The facts as any process has last written them.

        Raises:
            StoreUnavailable: the store is gone, or another one is in its place.
        """
        found = signature(self._path)
        if found != self._signature:
            now = self._read()
            if now.store_id != self._now.store_id:
                raise StoreUnavailable(
                    f"another store is at {self._layout.root} now: put {self._now.store_id} back, or restart"
                )
            self._now, self._signature = now, found
        return self._now

    def _read(self) -> StoreMeta:
        """The file now. A wrong one is trouble with the storage: no entry is given up for it."""
        try:
            return read_meta(self._layout)
        except StoreUnavailable:
            raise
        except StoreError as error:
            raise StoreUnavailable(str(error)) from error

    @property
    def store_id(self) -> str:
        """The store's identity, which never changes."""
        return self._now.store_id

    @property
    def reuses(self) -> int:
        """How often a forgotten id has been used again, as of the last access. It costs no look at the file."""
        return self._now.reuses

    def next_reuse(self) -> int:
        """Count another use of forgotten ids; its number.

        Raises:
            OSError: the file cannot be written.
        """
        return change_meta(self._layout, lambda meta: replace(meta, reuses=meta.reuses + 1)).reuses

    def check_here(self) -> None:
        """Check that the store is where it was opened.

        Raises:
            StoreUnavailable: it is gone, or another one is in its place.
        """
        _ = self.now

    def check_lanes(self) -> None:
        """Check that the number of lanes has not changed since the store was opened.

        Raises:
            LanesChanged: it has.
        """
        if self.now.generation != self.opened.generation:
            raise LanesChanged(
                f"the store at {self._layout.root} has {self._now.lanes} lanes now, and had {self.opened.lanes} "
                "when this process opened it: restart the process"
            )
