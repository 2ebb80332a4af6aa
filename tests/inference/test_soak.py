"""A client that is late again and again holds no more of the system than before."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lightning_efficient.inference._edge_requests import Requests, ServerUnavailable

SLOW_S = 0.02
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def slow_server() -> Iterator[str]:
    """The address of a server that answers every other request too late."""
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for number in range(10**6):
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(3)
                await asyncio.sleep(SLOW_S * (number % 2))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()

    loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_late_requests_leave_no_connection_that_is_neither_free_nor_closed(slow_server: str) -> None:
    client = httpx.AsyncClient(base_url=slow_server, timeout=httpx.Timeout(None, connect=5.0))
    requests, late = Requests(client, slow_server, retries=0), []
    before = len(list(DESCRIPTORS.iterdir()))

    def work() -> None:
        for number in range(20):
            try:
                requests.post([b"abc"], SLOW_S * number / 20 + 0.001)
            except ServerUnavailable:
                late.append(number)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert late, "no request was late, so that nothing was tried"
    until = time.monotonic() + 20
    pool = client._transport._pool
    while requests._going and time.monotonic() < until:
        time.sleep(0.02)
    assert not requests._going
    assert all(connection.is_idle() or connection.is_closed() for connection in pool.connections)
    requests.close()
    assert len(list(DESCRIPTORS.iterdir())) <= before
