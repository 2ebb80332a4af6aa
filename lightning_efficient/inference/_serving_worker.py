"""The part of a server that LitServe runs: read a request, answer several at once, write the responses."""

from __future__ import annotations

import hmac
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lightning_efficient.inference import _wire

LOG = logging.getLogger("lightning_efficient.serving")

MAX_DEADLINE_MS = 1e9  # eleven days; a longer one is none

Source: TypeAlias = Path | nn.Module | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ServedModel:
    """What a server tells of its model at ``/info``, so that a client can refuse another one.

    Attributes:
        name: Of the export folder or of the class.
        sha256: Of the weights; empty where the model has none that can be read.
        classes: Width of the logits.
        input_shape: Of one row, without the batch dimension.
        dtype: ``float32`` or ``uint8``, of the rows.
        max_rows: Most rows of one request, and of one call of the model.
        max_payload_bytes: Most bytes of one request.
        protocol: Version of the messages.
    """

    name: str
    sha256: str
    classes: int
    input_shape: tuple[int, ...]
    dtype: str
    max_rows: int
    max_payload_bytes: int
    protocol: int = _wire.VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as JSON has them."""
        return {**asdict(self), "input_shape": list(self.input_shape)}


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process needs; it travels there by pickle."""

    source: Source
    part: str
    runtime: str
    model: ServedModel
    max_batch_size: int
    batch_timeout_s: float
    api_key: str | None = None


class Rows(NamedTuple):
    """Rows of one request, and when its client stops waiting, by the monotonic clock."""

    array: np.ndarray
    until: float


class Reply(NamedTuple):
    """Status and body of one response; an error's body is text."""

    status: int
    body: bytes


def load(source: Source, part: str = "", runtime: str = "torch", device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return the callable from rows on a device to logits."""
    if isinstance(source, Path):
        from lightning_efficient.inference.exported import load_export

        exported: Any = load_export(source, runtime, parts=[part], device=device)  # type: ignore[arg-type]
        outputs = exported.metadata["parts"][part]["outputs"]
        if len(outputs) == 1:
            return exported.parts[part]
        place = outputs.index("logits") if "logits" in outputs else 0
        return lambda rows: exported.parts[part](rows)[place]
    if isinstance(source, nn.Module):
        return source.to(device).eval()
    return source


class Answering:
    """A model that answers requests of several rows each; one that fails does not fail its neighbours.

    Args:
        call: From rows ``(m, *input_shape)`` to logits ``(m, classes)``.
        model: What it is.
        device: Where it wants its rows.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], model: ServedModel, device: str) -> None:
        self.call, self.model, self.device = call, model, device

    def answer(self, requests: list[Rows]) -> list[Reply]:
        """Return one reply per request, in order: 200 with logits, 500, or 504 where the client waits no more."""
        replies: dict[int, Reply] = {}
        now = time.monotonic()
        for index, request in enumerate(requests):
            if now > request.until:
                replies[index] = Reply(504, b"the client's deadline passed before the model was free")
        replies |= self._answer({index: request for index, request in enumerate(requests) if index not in replies})
        return [replies[index] for index in range(len(requests))]

    def _answer(self, requests: dict[int, Rows]) -> dict[int, Reply]:
        if not requests:
            return {}
        counts = [len(request.array) for request in requests.values()]
        try:
            logits = self._logits(np.concatenate([request.array for request in requests.values()]))
        except Exception as error:
            if len(requests) > 1:  # one of them is to blame, or all are together too large
                alone = [self._answer({index: request}) for index, request in requests.items()]
                return {index: reply for replies in alone for index, reply in replies.items()}
            LOG.exception("the model failed on a request of %d rows", counts[0])
            text = f"the model failed: {type(error).__name__}: {error}".splitlines()[0][:300]
            return {index: Reply(500, text.encode()) for index in requests}
        told: dict[str, Any] = {"model": self.model.sha256, "requests": len(counts), "rows": sum(counts)}
        return {
            index: Reply(200, _wire.pack(own, **told, finite=bool(own.isfinite().all())))
            for index, own in zip(requests, logits.split(counts), strict=True)
        }

    def _logits(self, array: np.ndarray) -> Tensor:
        rows = torch.from_numpy(array)
        with torch.inference_mode():
            chunks = [self.call(chunk.to(self.device)) for chunk in rows.split(self.model.max_rows)]
            for chunk, given in zip(chunks, rows.split(self.model.max_rows), strict=True):
                check_logits(chunk, len(given), self.model.classes)
            return torch.cat(chunks).float().cpu()


def check_logits(logits: object, rows: int, classes: int | None = None) -> None:
    """Raise ``TypeError`` unless logits are a floating tensor ``(rows, classes)``."""
    held = f"{tuple(logits.shape)} of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise TypeError(f"the model returns {held} for {rows} rows, not logits (rows, classes)")
    if len(logits) != rows or classes not in (None, logits.shape[1]):
        raise TypeError(f"the model returns {held} for {rows} rows of {classes} classes")


def make_api(settings: WorkerSettings, request_timeout: float | None = None) -> Any:
    """Return the ``LitAPI`` of a model; pickle makes it anew, so that its class need not be at module level."""
    import litserve
    from fastapi import Depends, HTTPException, Request, Response
    from litserve.loops.base import collate_requests
    from litserve.loops.simple_loops import BatchedLoop
    from starlette.requests import ClientDisconnect

    model = settings.model

    async def read(request: Request) -> Rows:
        """Check a request before it is queued: what is refused here never meets another one's batch."""
        arrived = time.monotonic()
        too_large = HTTPException(413, f"the request is larger than {model.max_payload_bytes} bytes")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > model.max_payload_bytes:
            raise too_large
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > model.max_payload_bytes:
                    raise too_large
        except ClientDisconnect as error:  # nobody reads the answer, but without one a traceback is printed
            raise HTTPException(400, "the client went away within its request") from error
        try:
            rows, header = _wire.unpack(bytes(body), max_bytes=model.max_payload_bytes)
            _wire.check_rows(rows, shape=model.input_shape, dtype=model.dtype, max_rows=model.max_rows)
        except _wire.WireError as error:
            raise HTTPException(error.status, str(error)) from error
        deadline: Any = header.get("deadline_ms")
        limited = type(deadline) in (int, float) and 0 < deadline < MAX_DEADLINE_MS
        until = arrived + deadline / 1000 if limited else float("inf")
        return Rows((rows if model.dtype == "uint8" else rows.float()).numpy(), until)

    def authorize(request: Request) -> None:
        if settings.api_key is None or request.url.path == "/health":
            return
        given = request.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), settings.api_key.encode()):
            raise HTTPException(401, "the header X-API-Key is missing or wrong")

    class PatientLoop(BatchedLoop):
        """Wait for the first request, then for those beside it: LitServe's own asks a thousand times a second."""

        def get_batch_requests(self, lit_api: Any, request_queue: Any, transport: Any) -> tuple[list, list]:
            try:
                first = request_queue.get(timeout=1.0)
            except (Empty, EOFError, ConnectionError):
                if os.getppid() != lit_api.parent:
                    raise SystemExit(0) from None
                return [], []
            return collate_requests(self, lit_api, _Ahead(first, request_queue), transport)

    class GlobalAPI(litserve.LitAPI):
        def setup(self, device: str) -> None:
            # Ctrl-C in a terminal reaches every process; the first one ends the others
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            parent = multiprocessing.parent_process()
            self.parent = os.getppid() if parent is None or parent.pid is None else parent.pid
            end_with(self.parent)
            device = device if isinstance(device, str) else device[0]
            self.answering = Answering(load(settings.source, settings.part, settings.runtime, device), model, device)

        def decode_request(self, request: Any) -> Any:
            return request

        def batch(self, inputs: list[Rows]) -> list[Rows]:
            return inputs

        def predict(self, x: list[Rows]) -> list[Reply]:
            return self.answering.answer(x)

        def unbatch(self, output: list[Reply]) -> list[Reply]:
            return output

        def encode_response(self, output: Reply) -> Any:
            if output.status == 200:
                return Response(output.body, media_type=_wire.MEDIA_TYPE)
            return Response(output.body, output.status, media_type="text/plain")

        def __reduce__(self) -> Any:
            return make_api, (replace(settings, api_key=None), self.request_timeout)

    # LitServe and FastAPI read these, and would find the text of this file's annotations
    authorize.__annotations__ = {"request": Request}
    read.__annotations__ = {"request": Request}
    GlobalAPI.decode_request.__annotations__ = {"request": Annotated[Any, Depends(read)]}
    GlobalAPI.encode_response.__annotations__ = {}
    GlobalAPI.authorize = staticmethod(authorize)
    api = GlobalAPI(settings.max_batch_size, settings.batch_timeout_s, loop=PatientLoop())
    api.request_timeout = request_timeout
    return api


class _Ahead:
    """A queue of which the first entry has been taken out already."""

    def __init__(self, first: Any, queue: Any) -> None:
        self.first, self.queue = [first], queue

    def get(self, timeout: float) -> Any:
        return self.first.pop() if self.first else self.queue.get(timeout=timeout)

    def get_nowait(self) -> Any:
        return self.first.pop() if self.first else self.queue.get_nowait()


def end_with(parent: int) -> None:
    """End this process, whatever it does, soon after the one that started it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


class ForkGuard:
    """Let the processes that are forked from this one end with it, also after a hard kill, and by SIGTERM.

    LitServe forks the one that holds its queues and the one that answers HTTP. Both have the listening socket, so that
    the port would stay taken, and both have the signal handlers of this process, which are not meant for them.
    """

    _processes: ClassVar[set[int]] = set()
    _registered: ClassVar[bool] = False

    def __enter__(self) -> None:
        if not ForkGuard._registered and hasattr(os, "register_at_fork"):
            ForkGuard._registered = True  # what is registered cannot be taken back
            os.register_at_fork(after_in_child=self._forked)
        self._processes.add(os.getpid())

    def __exit__(self, *_: object) -> None:
        self._processes.discard(os.getpid())

    @classmethod
    def _forked(cls) -> None:
        if not cls._processes:
            return
        parent = cls._processes.pop()
        cls._processes.clear()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the first process tells the others
        end_with(parent)
