"""Replies of Redis that are taken apart as a whole: awaited till they are whole, left alone where they are odd."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from iai_mcp.broker.redis.client import control_client, fetch
from iai_mcp.broker.redis.resp import Unusual, replies
from tests.servers import Server, serving

TEXTS = st.one_of(
    st.binary(max_size=9), st.sampled_from([b"", b"\r\n", b"\r", b"\n", b"$1\r\nx", b"*1\r\n", b"-1"])
)

Text = bytes | list[bytes] | None


def coded(reply: Text) -> bytes:
    """A reply as Redis writes it."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n" % len(reply) + b"".join(map(coded, reply))


@given(st.lists(st.one_of(st.none(), TEXTS, st.lists(TEXTS, max_size=4)), min_size=1, max_size=3))
def test_whole_replies_are_read_and_others_awaited(expected: list[Text]) -> None:
    data = b"".join(map(coded, expected))
    try:
        assert replies(data, len(expected)) == expected
        odd = False
    except Unusual:
        odd = True
    texts = [text for one in expected for text in (one if isinstance(one, list) else [one])]
    assert odd == any(text is not None and b"\r\n" in text for text in texts)
    for end in range(len(data)):
        try:
            assert replies(data[:end], len(expected)) is None
        except Unusual:
            assert odd


@pytest.mark.parametrize("data", [b"-ERR no\r\n", b":1\r\n", b"+OK\r\n", b"$1\r\nx\r\n+"])
def test_other_replies_are_left_alone(data: bytes) -> None:
    with pytest.raises(Unusual):
        replies(data, 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


def test_what_a_server_holds_is_what_is_read(server: Server) -> None:
    client = control_client(server.client())
    ours = [b"", b"x", os.urandom(200_000).replace(b"\r\n", b"  "), b"$1", b"{}"] * 3
    client.rpush("usual", *ours)
    client.rpush("odd", *ours, b"a line\r\nbreak")
    for key, items in ((b"usual", ours), (b"odd", [*ours, b"a line\r\nbreak"]), (b"nothing", [])):
        read = fetch(client, (b"GET", b"nobody"), (b"LRANGE", key, b"0", b"-1"))
        assert read == [None, items]
    long = [b"l" * 5_000_000, b"x"]
    client.rpush("long", *long)
    assert fetch(client, (b"LRANGE", b"long", b"0", b"-1")) == [long]
    client.set("text", "no list")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        fetch(client, (b"LRANGE", b"text", b"0", b"-1"))
    assert fetch(client, (b"LRANGE", b"usual", b"0", b"1")) == [ours[:2]]
