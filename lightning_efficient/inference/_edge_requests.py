"""Requests of an edge client: sent from a thread of their own, repeated where that may help, within a deadline."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.events import GlobalUnavailable

MAX_ANSWER_BYTES = 64_000_000

_AFTERWARDS_S = 0.1
"""How much longer than its caller a request waits: the caller's own limit is to be met first."""

Reason: TypeAlias = Literal[
    "timeout", "connection", "server_error", "open_circuit", "bad_answer", "other_model", "rejected"
]


class ServerUnavailable(GlobalUnavailable):
    """The server gave no answer that can be used.

    Attributes:
        reason: ``timeout``: the deadline passed; ``connection``: refused, reset, no such host, or
            what else hinders a request; ``server_error``: a
            5xx; ``open_circuit``: not even tried; ``bad_answer``: something else than logits of these rows;
            ``other_model``: logits of another model than expected; ``rejected``: a 4xx.
        status: Of HTTP, where there was one.
    """

    def __init__(self, reason: Reason, message: str, status: int | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.status = reason, status


@dataclass(frozen=True)
class Answer:
    """Status and body of a response."""

    status: int
    body: bytes

    def line(self) -> str:
        """Return what the server says, short and on one line."""
        return " ".join(self.body[:200].decode(errors="replace").split())


@dataclass
class Requests:
    """Send requests; methods may be called from several threads.

    Args:
        client: An ``httpx.AsyncClient`` without limits of its own, but for connecting.
        url: Of the server, for messages.
        retries: Most further tries of a request, after a connection error or a 503.
        backoff_s: Shortest pause before one, in seconds; the longest is twice that.
        hedge_s: After how many seconds without an answer to send a request a second time.
        counts: Where to count.
    """

    client: Any
    url: str
    retries: int = 1
    backoff_s: float = 0.02
    hedge_s: float | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._going: set[asyncio.Task[Answer]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        self._closed = False

    def post(self, bodies: Sequence[bytes], seconds: float) -> list[Answer]:
        """Send bodies to ``/predict`` side by side, and return all answers, none a refusal, or raise in time."""
        return self._run(self._all(bodies, time.monotonic() + seconds), seconds)

    def get(self, path: str, seconds: float) -> Answer:
        """Return the answer to one request, tried once."""
        return self._run(self._once("GET", path, time.monotonic() + seconds), seconds)

    def count(self, **amounts: int) -> None:
        """Add to the counts."""
        self._check_process()
        with self._lock:
            self.counts.update(amounts)

    def close(self) -> None:
        """Give up what is on its way, close the connections and end the thread."""
        if self._process not in (None, os.getpid()):  # thread and connections are those of another process
            return
        with self._lock:
            loop, self._loop, self._closed = self._loop, None, True
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(5)
            loop.close()

    def _run(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Wait for something done in the background; this thread keeps the deadline even where that one is stuck."""
        until = time.monotonic() + seconds
        too_late = ServerUnavailable("timeout", f"{self.url} gave no answer within {1000 * seconds:.0f} ms")
        try:
            loop = self._running()
        except ConfigurationError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), loop)
        try:
            return future.result(max(0.0, until - time.monotonic()))
        except TimeoutError as error:
            future.cancel()
            raise too_late from error
        except concurrent.futures.CancelledError as error:
            raise ServerUnavailable("connection", "the client was closed") from error

    def _check_process(self) -> None:
        """Fail at once in a forked process: its thread is gone, and a lock of it may be held for good."""
        if self._process not in (None, os.getpid()):
            raise ConfigurationError(
                f"the client of {self.url} was used before this process was forked; make a client in each process"
            )

    def _running(self) -> asyncio.AbstractEventLoop:
        self._check_process()
        with self._lock:
            if self._closed:
                raise ConfigurationError("the client is closed")
            if self._loop is None:
                self._process = os.getpid()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="edge-client")
                self._thread.start()
            return self._loop

    async def _all(self, bodies: Sequence[bytes], until: float) -> list[Answer]:
        tasks = [asyncio.ensure_future(self._tried(body, until)) for body in bodies]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one failed, the others are in vain
                task.cancel()

    async def _tried(self, body: bytes, until: float) -> Answer:
        for left in range(self.retries, -1, -1):
            pause = self.backoff_s * (1 + random.random())
            try:
                return await self._hedged(body, until)
            except ServerUnavailable as error:
                passing = error.reason == "connection" or error.status == 503
                if not passing or not left or time.monotonic() + pause >= until:
                    raise
            self.count(retries=1)
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _hedged(self, body: bytes, until: float) -> Answer:
        waiting = {asyncio.ensure_future(self._post(body, until))}
        try:
            if self.hedge_s is not None and not (await asyncio.wait(waiting, timeout=self.hedge_s))[0]:
                self.count(hedges=1)
                waiting.add(asyncio.ensure_future(self._post(body, until)))
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                good = [task for task in done if task.exception() is None]
                if good or not waiting:
                    return (good or list(done))[0].result()
        finally:
            for task in waiting:
                task.cancel()

    async def _post(self, body: bytes, until: float) -> Answer:
        answer = await self._once("POST", "/predict", until, body)
        if answer.status >= 400:
            reason: Reason = "server_error" if answer.status >= 500 else "rejected"
            message = f"{self.url} answers {answer.status}: {answer.line()}"
            raise ServerUnavailable(reason, message, answer.status)
        return answer

    async def _once(self, method: str, path: str, until: float, body: bytes = b"") -> Answer:
        """Send a request that is not cancelled with its caller, but ends by itself soon after ``until``.

        A cancelled request may leave its connection in httpx's pool, neither free nor closed; a hundred fill the pool.
        """
        going = asyncio.ensure_future(self._exchange(method, path, until, body))
        self._going.add(going)  # else nothing may hold it any more
        going.add_done_callback(self._gone)
        return await asyncio.shield(going)

    def _gone(self, task: asyncio.Task[Answer]) -> None:
        self._going.discard(task)
        if not task.cancelled():
            task.exception()  # which nobody may be waiting for

    async def _exchange(self, method: str, path: str, until: float, body: bytes) -> Answer:
        self.count(requests=1, bytes_up=len(body))
        received = bytearray()
        last = until + _AFTERWARDS_S
        wait = max(last - time.monotonic(), _AFTERWARDS_S)
        limits = (self.client.timeout.connect, wait, wait, wait)  # connect, read, write, wait for a connection
        try:
            async with self.client.stream(method, path, content=body, timeout=limits) as response:
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if time.monotonic() > last:
                        raise ServerUnavailable("timeout", f"{self.url} gave no whole answer in time")
                    if len(received) > MAX_ANSWER_BYTES:
                        raise ServerUnavailable("bad_answer", f"{self.url} answers more than {MAX_ANSWER_BYTES} bytes")
        except ServerUnavailable:
            raise
        except Exception as error:  # httpx does not turn all that may go wrong into its own
            text = " ".join(str(error).split())[:300] or type(error).__name__
            raise ServerUnavailable("connection", f"{self.url}: {text}") from error
        self.count(bytes_down=len(received))
        return Answer(response.status_code, bytes(received))

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()
