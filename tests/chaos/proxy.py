"""A small TCP proxy that can misbehave: reset, swallow, drip and flap."""

from __future__ import annotations

import asyncio
import threading

__all__ = ["SLOW_S", "Proxy"]

SLOW_S = 0.03


class Proxy:
    """Forwards to ``port``; set :attr:`mode` at any time.

    Modes: ``pass``; ``swallow`` (takes everything, answers nothing); ``drip`` (a byte of the reply every
    4 ms); ``slow`` (each reply ``SLOW_S`` late); ``reset`` (the next request goes through, its reply is cut off);
    ``down`` (connections refused).
    """

    def __init__(self, port: int) -> None:
        self.mode = "pass"
        self.warm_up_s = 0.0  # a new connection answers nothing for so long
        self._target = port
        self._links: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def set(self, mode: str) -> None:
        """Change the mode; ``down`` cuts what is connected."""
        self.mode = mode
        if mode == "down":
            self._loop.call_soon_threadsafe(self._cut)

    def target(self, port: int) -> None:
        """Forward to another server from now on; what is connected is cut."""
        self._target = port
        self._loop.call_soon_threadsafe(self._cut)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _cut(self) -> None:
        for link in list(self._links):
            link.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        self._loop.run_forever()
        self._cut()
        server.close()
        if left := asyncio.all_tasks(self._loop):  # they end by themselves once their lines are cut
            self._loop.run_until_complete(asyncio.wait(left, timeout=5))
        self._loop.close()

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        if self.mode == "down":
            near_out.transport.abort()
            return
        self._links.add(near_out)
        await asyncio.sleep(self.warm_up_s)
        try:
            far_in, far_out = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            near_out.transport.abort()
            return
        self._links.add(far_out)
        await asyncio.gather(
            self._requests(near_in, far_out), self._replies(far_in, near_out), return_exceptions=True
        )
        for link in (near_out, far_out):
            self._links.discard(link)
            link.transport.abort()

    async def _requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if self.mode != "swallow":
                sink.write(data)
                await sink.drain()
        sink.transport.abort()

    async def _replies(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if self.mode == "reset":
                self.mode = "pass"
                sink.transport.abort()
                return
            if self.mode == "drip":
                for byte in data:
                    if sink.is_closing():
                        return
                    sink.write(bytes([byte]))
                    await asyncio.sleep(0.004)
            elif self.mode in ("pass", "slow"):
                await asyncio.sleep(SLOW_S if self.mode == "slow" else 0)
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
