"""A client answers with logits of the rows it was given, or says in time why it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from lightning_efficient.errors import ConfigurationError, MissingExtraError
from lightning_efficient.inference._wire import pack, unpack
from lightning_efficient.inference.circuit_breaker import CircuitBreaker
from lightning_efficient.inference.edge_client import EdgeClient, ServerUnavailable
from lightning_efficient.inference.events import GlobalUnavailable

ROWS = torch.arange(8, dtype=torch.float32).reshape(4, 2)
MODEL = "a" * 64
SLACK = 0.4  # of a machine with other things to do; the deadlines below are far shorter than what they cut off

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


def sums(rows: Tensor) -> Tensor:
    total = rows.float().flatten(1).sum(1)
    return torch.stack([total, -total], 1)


def good(request: httpx.Request, **fields: Any) -> httpx.Response:
    rows, _ = unpack(request.content, max_bytes=10**7)
    return httpx.Response(200, content=pack(sums(rows), **({"model": MODEL} | fields)))


def message_of(shape: list[int]) -> bytes:
    header = json.dumps({"dtype": "float32", "shape": shape, "encoding": "raw"}).encode()
    return struct.pack("<4sHI", b"LEFX", 1, len(header)) + header


class Server:
    """Answers in turn by what it was given: a status, a body, an exception, ``good``, or a function; then ``good``."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.requests = list(answers), []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else good
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer, text="some\nreason")
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        result = answer(request)
        return await result if asyncio.iscoroutine(result) else result


@contextmanager
def a_client(server: Handler, **options: Any) -> Iterator[EdgeClient]:
    options = {"deadline_ms": 5000, "backoff_ms": 1, **options}
    with EdgeClient("http://test", transport=httpx.MockTransport(server), **options) as client:
        yield client


def reason_of(client: EdgeClient, rows: Tensor = ROWS) -> str:
    with pytest.raises(ServerUnavailable) as caught:
        client(rows)
    assert isinstance(caught.value, GlobalUnavailable)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


# ---- rows and logits


@pytest.mark.parametrize("options", [{}, {"compress": True}, {"dtype": "float16"}, {"max_rows": 3}, {"max_rows": 1}])
def test_rows_come_back_as_their_own_logits_in_order(options: dict[str, Any]) -> None:
    server = Server()
    with a_client(server, **options) as client:
        assert torch.equal(client(ROWS), sums(ROWS))
    assert len(server.requests) == -(-len(ROWS) // options.get("max_rows", 256))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8])
def test_floats_travel_as_float32_and_pixels_as_they_are(dtype: torch.dtype) -> None:
    server = Server()
    with a_client(server) as client:
        assert torch.equal(client(ROWS.to(dtype)), sums(ROWS))
    sent, header = unpack(server.requests[0].content, max_bytes=1000)
    assert sent.dtype == (torch.uint8 if dtype == torch.uint8 else torch.float32)
    assert header["deadline_ms"] == 5000


def test_a_row_that_is_not_finite_is_not_sent_and_its_logits_are_nan() -> None:
    server, rows = Server(), ROWS.clone()
    rows[1, 0], rows[3, 1] = torch.nan, torch.inf
    with a_client(server) as client:
        logits = client(rows)
        assert torch.equal(logits[[0, 2]], sums(rows[[0, 2]]))
        assert logits[[1, 3]].isnan().all()
        assert client(rows[[1, 3]]).isnan().all()
        assert client(rows[[1, 3]]).shape == (2, 2)
    assert len(server.requests) == 1


def test_a_number_too_large_for_float16_counts_as_not_finite() -> None:
    with a_client(Server(), dtype="float16") as client:
        assert client(torch.tensor([[1.0], [70000.0]])).isnan().tolist() == [[False] * 2, [True] * 2]


def test_without_a_finite_row_and_with_unknown_classes_there_is_no_answer() -> None:
    server = Server()
    with a_client(server) as client:
        assert reason_of(client, torch.full((1, 2), torch.nan)) == "rejected"
    assert server.requests == []


def test_logits_that_are_not_finite_are_handed_on() -> None:
    with a_client(Server(pack(torch.full((4, 2), torch.nan), model=MODEL))) as client:
        assert client(ROWS).isnan().all()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[1.0]], "rows is list; it must be a tensor"),
        (torch.zeros(3), r"rows is a tensor of shape \(3,\)"),
        (torch.zeros(0, 3), "at least one row"),
        (torch.zeros(1, 3, dtype=torch.int64), "rows is torch.int64; it must be of floats, or uint8"),
        (torch.zeros(1, 3), r"rows of shape \(3,\); the served model takes \(2,\)"),
    ],
)
def test_rows_that_no_server_would_take_are_an_error_of_the_program(rows: Any, says: str) -> None:
    with (
        a_client(Server(), expect={"input_shape": (2,)}) as client,
        pytest.raises(ConfigurationError, match=says),
    ):
        client(rows)


def test_the_key_is_sent_and_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    with a_client(server) as client:
        client(ROWS)
    monkeypatch.setenv("LIT_SERVER_API_KEY", "from outside")
    for options in ({}, {"api_key": "given"}):
        with a_client(server, **options) as client:
            client(ROWS)
    assert [request.headers.get("x-api-key") for request in server.requests] == [None, "from outside", "given"]


# ---- what goes wrong


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (500, "server_error"),
        (504, "server_error"),
        (400, "rejected"),
        (401, "rejected"),
        (404, "rejected"),
        (413, "rejected"),
        (422, "rejected"),
        (429, "rejected"),
        (301, "bad_answer"),
        (204, "bad_answer"),
        (b"<html>a portal of the hotel</html>", "bad_answer"),
        (b"", "bad_answer"),
        (pack(torch.zeros(4, 2))[:-1], "bad_answer"),
        (pack(torch.zeros(3, 2)), "bad_answer"),
        (pack(torch.zeros(4, 2, 1)), "bad_answer"),
        (pack(torch.zeros(4, 0)), "bad_answer"),
        (pack(torch.zeros(4, 2, dtype=torch.uint8)), "bad_answer"),
        (pack(torch.zeros(4, 3), model=MODEL), "other_model"),
        (pack(torch.zeros(4, 2), model="b" * 64), "other_model"),
        (pack(torch.zeros(4, 2), model=["b"]), "other_model"),
        (pack(torch.zeros(4, 2)), "other_model"),
        (httpx.ReadError(""), "connection"),
        (httpx.ConnectError("All connection\nattempts failed"), "connection"),
        (httpx.ConnectTimeout(""), "connection"),
        (httpx.InvalidURL("what httpx does not call\nan HTTPError"), "connection"),
        (ExceptionGroup("several", [OverflowError("port")]), "connection"),
        (message_of([0, *[2**31 - 1] * 7]), "bad_answer"),
    ],
)
def test_every_failure_is_unavailability_with_its_reason(answer: Any, reason: str) -> None:
    with a_client(Server(answer), retries=0, expect={"sha256": MODEL, "classes": 2}) as client:
        assert reason_of(client) == reason
        assert torch.equal(client(ROWS), sums(ROWS))
        assert client.statistics[reason] == 1
        assert (client.statistics["calls"], client.statistics["answered"]) == (2, 1)


def test_without_expectations_the_first_model_is_the_one() -> None:
    other = pack(torch.zeros(4, 2), model="b" * 64)
    with a_client(Server(good, other)) as client:
        client(ROWS)
        assert client.num_classes == 2
        assert reason_of(client) == "other_model"
        assert torch.equal(client(ROWS), sums(ROWS))


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_efficient.inference._edge_requests.MAX_ANSWER_BYTES", 1000)
    with a_client(Server(bytes(2000))) as client:
        assert reason_of(client) == "bad_answer"


# ---- trying again


@pytest.mark.parametrize("problem", [503, httpx.ConnectError(""), httpx.RemoteProtocolError("disconnected")])
def test_a_connection_error_or_a_503_is_tried_again_once(problem: Any) -> None:
    server = Server(problem)
    with a_client(server) as client:
        assert torch.equal(client(ROWS), sums(ROWS))
        assert client.statistics["retries"] == 1
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("problem", "retries", "requests"), [(503, 1, 2), (httpx.ConnectError(""), 2, 3), (500, 3, 1), (422, 3, 1)]
)
def test_there_are_no_more_tries_than_allowed_and_none_for_other_problems(
    problem: Any, retries: int, requests: int
) -> None:
    server = Server(*[problem] * 5)
    with a_client(server, retries=retries) as client:
        reason_of(client)
    assert len(server.requests) == requests


def test_no_try_begins_after_the_deadline() -> None:
    server = Server(503)
    with a_client(server, deadline_ms=300, backoff_ms=400) as client:
        assert reason_of(client) == "server_error"
    assert len(server.requests) == 1


def test_one_failed_part_fails_the_call_without_waiting_for_the_others() -> None:
    slow_one_ended: list[bool] = []

    async def slow(request: httpx.Request) -> httpx.Response:
        try:
            await asyncio.sleep(20)
        finally:
            slow_one_ended.append(True)
        return good(request)

    with a_client(Server(slow, 500), max_rows=2) as client:
        assert reason_of(client) == "server_error"
        assert slow_one_ended == []
    assert slow_one_ended == [True]


def test_a_late_answer_is_read_to_its_end_as_a_cancelled_request_may_keep_its_connection_for_good() -> None:
    ended, outcome = threading.Event(), []

    async def slow(request: httpx.Request) -> httpx.Response:
        try:
            await asyncio.sleep(0.3)
            outcome.append("answered")
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise
        finally:
            ended.set()
        return good(request)

    with a_client(Server(slow), deadline_ms=50) as client:
        assert reason_of(client) == "timeout"
        assert outcome == []
        assert ended.wait(5)
        assert outcome == ["answered"]
        assert torch.equal(client(ROWS), sums(ROWS))


@pytest.mark.parametrize("second", [good, 500, httpx.ConnectError("")])
def test_a_hedge_is_sent_when_the_first_is_slow_and_the_first_good_answer_counts(second: Any) -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(20 if second is good else 0.3)
        return good(request)

    with a_client(Server(slow, second), hedge_ms=20) as client:
        assert torch.equal(client(ROWS), sums(ROWS))
        assert client.statistics["hedges"] == 1


# ---- the breaker


def a_breaker(**options: Any) -> CircuitBreaker:
    return CircuitBreaker(**{"failures": 2, "probe_after_s": (0.2, 0.2), **options})


def test_after_failures_nothing_is_sent_until_a_probe_succeeds() -> None:
    server = Server(500, 500, 500)
    now = [0.0]
    breaker = a_breaker(clock=lambda: now[0], probe_after_s=(10, 10))
    with a_client(server, breaker=breaker) as client:
        assert [reason_of(client) for _ in range(4)] == ["server_error"] * 2 + ["open_circuit"] * 2
        assert len(server.requests) == 2
        now[0] = 10.0
        assert reason_of(client) == "server_error"
        assert reason_of(client) == "open_circuit"
        now[0] = 20.0
        assert torch.equal(client(ROWS), sums(ROWS))
        assert torch.equal(client(ROWS), sums(ROWS))
        assert client.statistics["open_circuit"] == 3


@pytest.mark.parametrize(("status", "state"), [(413, "closed"), (422, "closed"), (401, "open"), (404, "open")])
def test_a_request_refused_for_what_it_is_does_not_open_it_and_a_wrong_key_does(status: int, state: str) -> None:
    breaker = a_breaker()
    with a_client(Server(status, status), breaker=breaker) as client:
        assert [reason_of(client) for _ in range(2)] == ["rejected"] * 2
    assert breaker.state == state


def test_a_row_that_is_not_finite_is_not_asked_of_the_breaker() -> None:
    breaker = a_breaker(failures=1)
    breaker.failure()
    with a_client(Server(), breaker=breaker, expect={"classes": 2}) as client:
        assert client(torch.full((1, 2), torch.nan)).isnan().all()


# ---- real sockets: the deadline


@contextmanager
def listening(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Accept connections, and do something with each in a thread."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def handle(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                behave(connection, ended)

        def accept() -> None:
            while not ended.is_set():
                try:
                    connection = server.accept()[0]
                except TimeoutError:
                    continue
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(5)


def silence(connection: socket.socket, ended: threading.Event) -> None:
    ended.wait(30)


def trickle(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not ended.wait(0.02):  # no gap is long: no limit of a single phase would notice
        connection.sendall(b"x")


def hang_up(connection: socket.socket, ended: threading.Event) -> None:
    connection.recv(10)


@pytest.mark.parametrize("behave", [silence, trickle])
def test_the_deadline_holds_against_silence_and_against_a_trickle(behave: Any) -> None:
    with listening(behave) as url, EdgeClient(url, deadline_ms=250, retries=3) as client:
        for _ in range(2):
            begin = time.monotonic()
            assert reason_of(client) == "timeout"
            assert 0.2 < time.monotonic() - begin < 0.25 + SLACK
        assert client.statistics["requests"] == 2


def test_the_deadline_holds_while_large_rows_are_not_taken() -> None:
    with listening(silence) as url, EdgeClient(url, deadline_ms=300, max_rows=1) as client:
        begin = time.monotonic()
        assert reason_of(client, torch.zeros(4, 1_000_000)) == "timeout"
        assert time.monotonic() - begin < 0.3 + SLACK


def test_the_deadline_holds_where_the_background_is_stuck() -> None:
    def stuck(request: httpx.Request) -> httpx.Response:
        time.sleep(1.5)
        return good(request)

    with a_client(Server(stuck), deadline_ms=200) as client:
        begin = time.monotonic()
        assert reason_of(client) == "timeout"
        assert time.monotonic() - begin < 0.2 + SLACK


def test_a_connection_that_is_closed_is_tried_again_and_then_given_up() -> None:
    with listening(hang_up) as url, EdgeClient(url, deadline_ms=5000, backoff_ms=1) as client:
        assert reason_of(client) == "connection"
        assert client.statistics["requests"] == 2


def test_a_host_without_a_name_is_a_connection_problem() -> None:
    with EdgeClient("http://no-such-host.invalid:8000", deadline_ms=5000, retries=0) as client:
        assert reason_of(client) in ("connection", "timeout")


# ---- threads, closing


def test_many_threads_get_their_own_logits() -> None:
    async def later(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.001)
        return good(request)

    wrong: list[int] = []
    with a_client(Server(*[later] * 400)) as client:

        def ask(thread: int) -> None:
            for call in range(50):
                rows = torch.full((1 + call % 3, 2), float(100 * thread + call))
                if not torch.equal(client(rows), sums(rows)):
                    wrong.append(thread)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert client.statistics["answered"] == 400
    assert wrong == []


def test_closing_gives_up_a_call_on_its_way_and_refuses_the_next() -> None:
    entered = threading.Event()

    async def forever(request: httpx.Request) -> httpx.Response:
        entered.set()
        await asyncio.sleep(60)
        return good(request)

    with a_client(Server(forever), deadline_ms=30_000) as client:
        reasons: list[str] = []
        thread = threading.Thread(target=lambda: reasons.append(reason_of(client)))
        thread.start()
        assert entered.wait(10)
        client.close()
        thread.join(10)
        assert reasons == ["connection"]
        with pytest.raises(ConfigurationError, match="the client is closed"):
            client(ROWS)
        client.close()


# ---- check and options


def info(status: int = 200, **changes: Any) -> httpx.Response:
    model = {"name": "net", "sha256": MODEL, "classes": 2, "input_shape": [2], "max_rows": 3, **changes}
    return httpx.Response(status, json={"model": model})


def test_check_learns_what_is_served() -> None:
    server = Server(lambda request: info())
    with a_client(server) as client:
        assert client.check()["name"] == "net"
        assert client.expect == {"sha256": MODEL, "classes": 2, "input_shape": (2,)}
        assert client.num_classes == 2
        client(ROWS)
    assert [request.url.path for request in server.requests] == ["/info", "/predict", "/predict"]  # 4 rows, 3 at most


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (401, "http://test/info answers 401: some reason"),
        (404, "answers 404"),
        (b"[]", "not that of a model served by serve_global"),
        (b'{"model": null}', "not that of a model"),
        (b'{"model": {"sha256": 1}}', "not that of a model"),
        (lambda request: info(classes=3), "serves a model with classes=3; 2 is expected"),
        (lambda request: info(sha256="b" * 64), "with sha256=b+; a+ is expected"),
        (lambda request: info(input_shape=[3]), r"with input_shape=\(3,\); \(2,\) is expected"),
    ],
)
def test_check_refuses_another_server_another_key_and_another_model(answer: Any, says: str) -> None:
    expect = {"sha256": MODEL, "classes": 2, "input_shape": [2]}
    with a_client(Server(answer), expect=expect) as client, pytest.raises(ConfigurationError, match=says):
        client.check()


@pytest.mark.parametrize(("answer", "reason"), [(503, "server_error"), (httpx.ConnectError("no"), "connection")])
def test_check_tells_an_absent_server_from_a_wrong_one(answer: Any, reason: str) -> None:
    with a_client(Server(answer)) as client, pytest.raises(ServerUnavailable) as caught:
        client.check()
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "localhost:8000"}, "url='localhost:8000' must begin with http:// or https://"),
        ({"url": "http://"}, "and a host"),
        ({"url": None}, "url=None must begin"),
        ({"url": "http://test:99999"}, "url='http://test:99999' must be an address.*range 0-65535"),
        ({"url": "http://test:0"}, "must have a port from 1 to 65535"),
        ({"url": "http://[::1"}, "must be an address.*Invalid IPv6 URL"),
        ({"url": "http://test\n"}, r"url='http://test\\n' must hold no spaces"),
        ({"api_key": "schl\u00fcssel"}, "api_key .* must be printable ASCII"),
        ({"api_key": "secret\n"}, "must be printable ASCII text without spaces or line ends"),
        ({"api_key": b"secret"}, "must be printable ASCII"),
        ({"deadline_ms": 0}, "deadline_ms=0 must be a finite number above 0"),
        ({"connect_ms": -1}, "connect_ms=-1 must be"),
        ({"backoff_ms": float("inf")}, "backoff_ms=inf must be"),
        ({"hedge_ms": 0}, "hedge_ms=0 must be"),
        ({"retries": -1}, "retries=-1 must be an integer of at least 0"),
        ({"max_rows": 0}, "max_rows=0 must be"),
        ({"compress": "no"}, "compress='no' must be True or False"),
        ({"dtype": "float8"}, "dtype='float8' is not one of"),
        ({"expect": {"sha265": MODEL}}, "expect has 'sha265'.*Did you mean 'sha256'"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        EdgeClient(**{"url": "http://test", **options})
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_forked_process_is_told_at_once_to_make_its_own_client() -> None:
    with a_client(Server()) as client:
        client(ROWS)
        child = os.fork()
        if not child:
            try:
                client(ROWS)
            except ConfigurationError as error:
                client.close()
                os._exit(0 if "make a client in each process" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(client(ROWS), sums(ROWS))


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"lightning-efficient\[serve\]"):
        EdgeClient("http://test")
