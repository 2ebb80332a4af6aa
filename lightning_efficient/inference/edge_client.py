"""The global model as the edge sees it: rows in, logits out, or within the deadline the news that it cannot be had."""

from __future__ import annotations

import json
import math
import os
import time
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError, did_you_mean, require
from lightning_efficient.functional._checks import check_choice, check_count, check_flag, check_positive, is_integer
from lightning_efficient.inference import _wire
from lightning_efficient.inference._edge_requests import MAX_ANSWER_BYTES, Answer, Requests, ServerUnavailable
from lightning_efficient.inference.circuit_breaker import CircuitBreaker

__all__ = ["EdgeClient", "ServerUnavailable"]

EXPECTED = ("sha256", "classes", "input_shape")

_SAYS_NOTHING = (400, 413, 415, 422)
"""Refusals of one request, of which the next one need not be afraid."""


class EdgeClient:
    """Ask a server of :func:`~lightning_efficient.inference.serving.serve_global` for logits.

    A call takes at most ``deadline_ms``, whatever the network does: connecting, retrying, sending and receiving
    together. It returns logits or raises :class:`ServerUnavailable`, on which a ``RoutedPredictor`` answers by its base
    model. What the server says never raises anything else, a wrong key included: a device that is running must go on
    answering. Call :meth:`check` once at the start, which does raise ``ConfigurationError`` where key or model are
    wrong.

    A connection error or a 503 is tried again ``retries`` times, after a pause drawn between one and two times
    ``backoff_ms``, where the deadline allows it; a timeout is not. Rows that are not finite are not sent, as the server
    would refuse the whole request; their logits are NaN. More than ``max_rows`` go as several requests, side by side.

    A client may be called from several threads, which share its connections. It starts one thread at the first call,
    and refuses with ``ConfigurationError`` to be used in a process forked after that: make one in each process.

    Args:
        url: Such as ``http://10.0.0.5:8000``.
        deadline_ms: Longest time of a call, in ms.
        connect_ms: Longest time for opening a connection, in ms, within the deadline.
        retries: Most further tries of a request.
        backoff_ms: Shortest pause before one, in ms; the longest is twice that.
        breaker: Decides when not to try at all; by default one of its own. Every reason counts as a failure, but for a
            request that is refused for what it is (400, 413, 415, 422).
        api_key: Sent as ``X-API-Key``; by default the environment variable ``LIT_SERVER_API_KEY``, if it is set.
        expect: What the server's model must be: ``sha256``, ``classes``, ``input_shape``, or some of these; or the
            ``metadata`` of an export, for its part ``global``. Without ``sha256``, the model of the first answer or of
            :meth:`check`: a threshold is for one global model.
        compress: Whether to compress the rows by zlib.
        dtype: ``float32``, or ``float16`` for half the bytes; measure the accuracy with it. uint8 rows travel as such.
        max_rows: Most rows of one request.
        hedge_ms: Send a request a second time where no answer came after this, in ms, and take the first answer. The
            server computes both.
        transport: Of httpx, for tests.

    Attributes:
        statistics: Counts of ``calls``, ``answered``, ``requests``, ``retries``, ``hedges``, ``bytes_up``,
            ``bytes_down``, and of each reason.

    Raises:
        ConfigurationError: an option that cannot work, or rows that are no tensor ``(m, ...)`` of the expected shape.
        MissingExtraError: httpx is not installed.

    Example:
        >>> client = EdgeClient("http://127.0.0.1:9", deadline_ms=2000, retries=0)  # nobody listens there
        >>> try:
        ...     client(torch.zeros(2, 1, 8, 8))
        ... except ServerUnavailable as error:
        ...     print(error.reason)
        connection
        >>> client.close()
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_ms: float = 500.0,
        connect_ms: float = 200.0,
        retries: int = 1,
        backoff_ms: float = 20.0,
        breaker: CircuitBreaker | None = None,
        api_key: str | None = None,
        expect: Mapping[str, Any] | None = None,
        compress: bool = False,
        dtype: Literal["float32", "float16"] = "float32",
        max_rows: int = 256,
        hedge_ms: float | None = None,
        transport: Any = None,
    ) -> None:
        for option, given in (("deadline_ms", deadline_ms), ("connect_ms", connect_ms), ("backoff_ms", backoff_ms)):
            check_positive(option, given)
        if hedge_ms is not None:
            check_positive("hedge_ms", hedge_ms)
        if not is_integer(retries) or retries < 0:
            raise ConfigurationError(f"retries={retries!r} must be an integer of at least 0.")
        check_count("max_rows", max_rows)
        check_flag("compress", compress)
        check_choice("dtype", dtype, ("float32", "float16"))
        self.url, self.deadline_s, self.breaker = _url(url), deadline_ms / 1000, breaker or CircuitBreaker()
        self.expect = _expected(expect or {})
        self.compress, self.max_rows = compress, max_rows
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        httpx: Any = require("httpx", "serve")
        key = os.environ.get(_wire.KEY_VARIABLE) if api_key is None else api_key
        _check_key(key)
        headers = {"content-type": _wire.MEDIA_TYPE, "accept-encoding": "identity"}
        client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers | ({"x-api-key": key} if key else {}),
            # the deadline is for all phases together; httpx knows only limits for each
            timeout=httpx.Timeout(None, connect=connect_ms / 1000),
            transport=transport,
        )
        hedge_s = None if hedge_ms is None else hedge_ms / 1000
        self._requests = Requests(client, self.url, retries, backoff_ms / 1000, hedge_s)

    @property
    def num_classes(self) -> int | None:
        """Width of the logits, where it is known."""
        return self.expect.get("classes")

    @property
    def statistics(self) -> Counter[str]:
        """Counts since the client was made; see the class."""
        return self._requests.counts

    def __call__(self, rows: Tensor) -> Tensor:
        """Return logits ``(m, classes)``, float32 on the CPU, of rows ``(m, ...)``."""
        until = time.monotonic() + self.deadline_s
        rows, finite = self._prepared(rows)
        self._requests.count(calls=1)
        try:
            logits = self._asked(rows[finite], until)
        except ServerUnavailable as error:
            self._requests.count(**{error.reason: 1})
            raise
        self._requests.count(answered=1)
        if bool(finite.all()):
            return logits
        return torch.full((len(rows), logits.shape[1]), math.nan).index_copy(0, finite.nonzero()[:, 0], logits)

    def check(self, deadline_s: float = 5.0) -> dict[str, Any]:
        """Return what the server says of its model, and remember it as what to expect.

        Args:
            deadline_s: Longest time to wait, in seconds.

        Raises:
            ServerUnavailable: no answer, or not ready.
            ConfigurationError: the key is refused, or the model is not the expected one.
        """
        answer = self._requests.get("/info", deadline_s)
        if answer.status >= 500:
            raise ServerUnavailable("server_error", f"{self.url}/info answers {answer.status}", answer.status)
        if answer.status != 200:
            raise ConfigurationError(f"{self.url}/info answers {answer.status}: {answer.line()}")
        try:
            told = json.loads(answer.body)["model"]
            found, rows = _expected({name: told[name] for name in EXPECTED}), int(told["max_rows"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{self.url}/info is not that of a model served by serve_global") from error
        for name, value in self.expect.items():
            if found[name] != value:
                raise ConfigurationError(f"{self.url} serves a model with {name}={found[name]}; {value} is expected")
        self.expect = {name: value for name, value in found.items() if value}
        self.max_rows = min(self.max_rows, rows)
        return dict(told)

    def close(self) -> None:
        """Close the connections and end the thread; calls on their way are given up."""
        self._requests.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepared(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows as they travel, and which of them are finite."""
        if not isinstance(rows, Tensor) or rows.ndim < 2 or not len(rows):
            held = f"a tensor of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise ConfigurationError(f"rows is {held}; it must be a tensor (m, ...) of at least one row")
        if not rows.is_floating_point() and rows.dtype != torch.uint8:
            raise ConfigurationError(f"rows is {rows.dtype}; it must be of floats, or uint8")
        shape = self.expect.get("input_shape")
        if shape is not None and tuple(rows.shape[1:]) != shape:
            raise ConfigurationError(f"rows has rows of shape {tuple(rows.shape[1:])}; the served model takes {shape}")
        rows = rows.detach().cpu()
        rows = rows.to(self.dtype) if rows.is_floating_point() else rows
        return rows, rows.flatten(1).isfinite().all(1)

    def _asked(self, rows: Tensor, until: float) -> Tensor:
        """Return logits of finite rows, where the breaker lets them through, and tell it what came of it."""
        if not len(rows):
            if self.num_classes is None:
                raise ServerUnavailable("rejected", "no row is finite", 422)
            return torch.empty(0, self.num_classes)
        if not self.breaker.allow():
            raise ServerUnavailable("open_circuit", f"{self.url} failed too often and is not tried now")
        try:
            chunks = rows.split(self.max_rows)
            wait = {"deadline_ms": 1000 * self.deadline_s}
            bodies = [_wire.pack(chunk, compress=self.compress, **wait) for chunk in chunks]
            answers = self._requests.post(bodies, until - time.monotonic())
            logits = torch.cat([self._read(answer, len(chunk)) for answer, chunk in zip(answers, chunks, strict=True)])
        except ServerUnavailable as error:
            (self.breaker.release if error.status in _SAYS_NOTHING else self.breaker.failure)()
            raise
        except BaseException:
            self.breaker.release()
            raise
        self.breaker.success()
        return logits

    def _read(self, answer: Answer, rows: int) -> Tensor:
        """Return the logits of an answer, after checking that they are those of these rows by the expected model."""
        status = answer.status
        try:
            if status != 200:
                raise _wire.WireError(f"the status is {status}")
            logits, header = _wire.unpack(answer.body, max_bytes=MAX_ANSWER_BYTES)
        except _wire.WireError as error:
            raise ServerUnavailable("bad_answer", f"{self.url}: {error}", status) from error
        if logits.dtype != torch.float32 or logits.ndim != 2 or len(logits) != rows or not logits.shape[1]:
            held = f"{logits.dtype} of shape {tuple(logits.shape)}"
            raise ServerUnavailable("bad_answer", f"{self.url} answers {held} for {rows} rows", status)
        model = header.get("model")
        found = {"sha256": model if isinstance(model, str) and model else None, "classes": logits.shape[1]}
        for name, value in found.items():
            if value is not None:
                self.expect.setdefault(name, value)
            if self.expect.get(name) != value:
                message = f"{self.url} answers by a model with {name}={value}; {self.expect[name]} is expected"
                raise ServerUnavailable("other_model", message, status)
        return logits


def _url(url: str) -> str:
    if isinstance(url, str) and any(character.isspace() or not character.isprintable() for character in url):
        raise ConfigurationError(f"url={url!r} must hold no spaces, line ends or other such characters")
    httpx: Any = require("httpx", "serve")
    try:
        parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("begin with http:// or https:// and a host, as http://10.0.0.5:8000")
        if parts.port == 0:
            raise ValueError("have a port from 1 to 65535")
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        known = str(error).startswith(("begin", "have"))
        says = str(error) if known else f"be an address, as http://10.0.0.5:8000: {error}"
        raise ConfigurationError(f"url={url!r} must {says}") from error
    return url.rstrip("/")


def _check_key(key: object) -> None:
    """Raise unless a header can carry a key; the message does not tell the key."""
    if key is None or (isinstance(key, str) and key.isascii() and key.isprintable() and key == key.strip()):
        return
    raise ConfigurationError(
        f"api_key (or {_wire.KEY_VARIABLE}) must be printable ASCII text without spaces or line ends around it"
    )


def _expected(given: Mapping[str, Any]) -> dict[str, Any]:
    if "parts" in given:  # metadata.json of an export
        if "global" not in given["parts"]:
            raise ConfigurationError(
                f"expect is of an export with the parts {sorted(given['parts'])}, without 'global'"
            )
        part = given["parts"]["global"]
        shape = given["input"]["shape"]
        given = {"sha256": part["weights_sha256"], "classes": part["classes"], "input_shape": shape}
    for name in given:
        if name not in EXPECTED:
            raise ConfigurationError(f"expect has {name!r}, not one of {list(EXPECTED)}.{did_you_mean(name, EXPECTED)}")
    return {
        name: tuple(value) if name == "input_shape" else value for name, value in given.items() if value is not None
    }
