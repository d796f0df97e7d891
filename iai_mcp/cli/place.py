"""Owns the command ``place``: which folder the entries in Redis belong to, after a move or a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from iai_mcp.cli.common import Json, Store, print_json, say, settled
from iai_mcp.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from iai_mcp.common.place import Place
    from iai_mcp.config import Settings
    from iai_mcp.storage.layout import Layout

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog="Example: iai-mcp place --take")(place)


def place(
    take: Annotated[
        bool, typer.Option("--take", help="This folder takes the entries in Redis: it was moved, or restored.")
    ] = False,
    new_id: Annotated[
        bool, typer.Option("--new-id", help="This folder is a copy: give the store an id of its own.")
    ] = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Show, or say after a move or a copy, which folder the entries in Redis belong to."""
    from iai_mcp.maintenance.verify import layout_of

    if take and new_id:
        raise UsageError("give --take for a folder that was moved, or --new-id for a copy, not both")
    settings = settled(store)
    layout = layout_of(None, settings)
    if new_id:
        _renamed(layout, settings)
    here, there = _places(layout, settings, take=take)
    if as_json:
        ours = here is not None and there is not None and here.id == there.id
        print_json({"folder": str(layout.root), "owner": None if there is None else _text(there), "ours": ours})
    elif there is None:
        say(f"no folder has the entries in Redis yet; {layout.root} will, once a client or worker starts")
    elif here is not None and here.id == there.id:
        say(f"the entries in Redis belong to {layout.root}")
    else:
        say(f"the entries in Redis belong to another folder: {_text(there)}")


def _places(layout: Layout, settings: Settings, *, take: bool) -> tuple[Place | None, Place | None]:
    """The place of this folder, and that of the folder that has the entries in Redis."""
    from iai_mcp.broker.redis.place import owner, take_place, visiting
    from iai_mcp.storage.meta import read_meta
    from iai_mcp.storage.place import store_place

    if not settings.redis_url:
        raise ConfigError("no Redis is configured: set IAI_MCP_REDIS_URL")
    here = store_place(layout)
    with visiting(settings, read_meta(layout).store_id) as (client, keys):
        if take:
            if here is None:
                raise ConfigError(f"{layout.locks} cannot be written: let this user write there")
            take_place(client, keys, here)
        return here, owner(client, keys)


def _renamed(layout: Layout, settings: Settings) -> None:
    import uuid
    from contextlib import closing

    from msgspec.structs import replace

    from iai_mcp.storage.meta import change_meta
    from iai_mcp.store import MemoryStore

    with closing(MemoryStore(layout.root, settings=settings)) as store, store.alone():
        made = change_meta(layout, lambda meta: replace(meta, store_id=uuid.uuid4().hex))
    say(f"the store at {layout.root} has the id {made.store_id} now")


def _text(place: Place) -> str:
    return f"{place.folder} on {place.host}"
