"""A server answers every good request by its own rows, whatever comes beside it, and ends when told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from serving_settings import POISON, SHAPE, SLOW, UNKNOWN, Tiny, free_port, kill, served

from lightning_efficient.errors import ConfigurationError, MissingExtraError
from lightning_efficient.inference._serving_worker import Answering, Rows
from lightning_efficient.inference._wire import pack, unpack
from lightning_efficient.inference.circuit_breaker import CircuitBreaker
from lightning_efficient.inference.edge_client import EdgeClient, ServerUnavailable
from lightning_efficient.inference.routed import SOURCES, RoutedPredictor
from lightning_efficient.inference.serving import describe, serve_global

KEY = "a secret"
MODEL = Tiny()


def rows_of(number: float, count: int = 1) -> Tensor:
    return torch.full((count, *SHAPE), float(number))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a key, which ends well."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    options = {"batch_timeout_ms": 20, "max_rows": 8, "max_batch_size": 16, "max_payload_mb": 0.001}
    with served(port, log, KEY, **options) as process:
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


def ask(url: str, body: bytes, key: str | None = KEY) -> httpx.Response:
    headers = {} if key is None else {"x-api-key": key}
    return httpx.post(f"{url}/predict", content=body, headers=headers, timeout=30, trust_env=False)


def logits_of(response: httpx.Response) -> tuple[Tensor, dict[str, Any]]:
    assert response.status_code == 200, response.text
    return unpack(response.content, max_bytes=10**6)


def test_info_tells_the_model_and_health_needs_no_key(url: str) -> None:
    headers = {"x-api-key": KEY}
    told = httpx.get(f"{url}/info", headers=headers).json()["model"]
    assert told == describe(MODEL, input_shape=SHAPE, max_rows=8, max_payload_bytes=1000)[2].to_dict()
    assert len(told["sha256"]) == 64
    assert httpx.get(f"{url}/info").status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200
    assert [httpx.get(f"{url}/{page}", headers=headers).status_code for page in ("docs", "openapi.json")] == [404, 404]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_logits_are_those_of_the_rows_in_order(url: str, count: int) -> None:
    rows = torch.arange(4.0 * count).reshape(count, *SHAPE)
    logits, header = logits_of(ask(url, pack(rows, compress=True)))
    assert torch.equal(logits, MODEL(rows))
    assert header["finite"] is True
    assert torch.equal(logits_of(ask(url, pack(rows.half())))[0], MODEL(rows))


def test_requests_that_wait_together_are_answered_by_one_call(url: str) -> None:
    def one(number: int) -> dict[str, Any]:
        logits, header = logits_of(ask(url, pack(rows_of(number, 1 + number % 3))))
        assert torch.equal(logits, MODEL(rows_of(number, 1 + number % 3)))
        return header

    with ThreadPoolExecutor(13) as pool:
        blocker = pool.submit(ask, url, pack(rows_of(SLOW)))
        time.sleep(0.3)
        headers = list(pool.map(one, range(12)))
        assert blocker.result().status_code == 200
    assert max(header["requests"] for header in headers) >= 4
    assert any(header["rows"] > 8 for header in headers)  # more than one call takes, in pieces


BAD = {
    "nan": (pack(rows_of(float("nan"))), KEY, 422, "row 0 holds numbers that are not finite"),
    "empty rows": (pack(torch.zeros(1, 0, 2)), KEY, 422, "has a 0 beyond the first size"),
    "shape": (pack(torch.zeros(1, 2, 2)), KEY, 422, "a row has shape (2, 2)"),
    "dtype": (pack(rows_of(1).to(torch.uint8)), KEY, 422, "the rows are uint8"),
    "no rows": (pack(torch.zeros(0, *SHAPE)), KEY, 422, "no rows"),
    "many rows": (pack(rows_of(1, 9)), KEY, 413, "9 rows; at most 8"),
    "truncated": (pack(rows_of(1))[:-1], KEY, 400, "but the message holds 15"),
    "garbage": (b"garbage" * 20, KEY, 400, "does not begin"),
    "empty": (b"", KEY, 400, "no header"),
    "oversized": (pack(torch.zeros(1, 1000)), KEY, 413, "larger than 1000 bytes"),
    "wrong key": (pack(rows_of(1)), "another", 401, "X-API-Key is missing or wrong"),
    "strange key": (
        pack(rows_of(1)),
        "schl\u00fcssel".encode().decode("latin-1"),
        401,
        "X-API-Key is missing or wrong",
    ),
    "no key": (pack(rows_of(1)), None, 401, "X-API-Key is missing or wrong"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_one_line(url: str, name: str) -> None:
    body, key, status, says = BAD[name]
    headers = {} if key is None else {b"x-api-key": key.encode("latin-1")}
    response = httpx.post(f"{url}/predict", content=body, headers=headers, timeout=30)
    assert response.status_code == status
    assert says in response.json()["detail"]


@pytest.mark.parametrize("deadline", [10**400, 1e9, -1, 0, float("nan"), "soon", None, True])
def test_a_deadline_that_is_none_does_not_fail_the_request(url: str, deadline: Any) -> None:
    assert torch.equal(logits_of(ask(url, pack(rows_of(1), deadline_ms=deadline)))[0], MODEL(rows_of(1)))


def test_an_oversized_stream_without_a_length_is_refused(url: str) -> None:
    chunks = (bytes(100) for _ in range(50))
    response = httpx.post(f"{url}/predict", content=chunks, headers={"x-api-key": KEY}, timeout=30)
    assert response.status_code == 413


def test_bad_requests_do_not_fail_their_neighbours(url: str) -> None:
    bad = [(body, key, status) for body, key, status, _ in BAD.values() if key in (KEY, None, "another")]
    poisoned = [(pack(rows_of(POISON)), KEY, 500)] * 2
    good = [(pack(rows_of(number)), KEY, 200) for number in range(20)]
    requests = [request for trio in zip(good, (bad + poisoned) * 2, strict=False) for request in trio]
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda request: ask(url, *request[:2]), requests))
    assert [response.status_code for response in responses] == [status for _, _, status in requests]
    answered = [logits_of(response)[0] for response in responses if response.status_code == 200]
    assert len(answered) == 20
    assert torch.equal(torch.cat(answered), MODEL(torch.cat([rows_of(number) for number in range(20)])))
    failed = [response.text for response in responses if response.status_code == 500]
    assert set(failed) == {"the model failed: RuntimeError: a poisoned row"}


def test_logits_that_are_not_finite_travel_and_are_told(url: str) -> None:
    logits, header = logits_of(ask(url, pack(torch.cat([rows_of(UNKNOWN), rows_of(1)]))))
    assert header["finite"] is False
    assert logits.isnan().any(1).tolist() == [True, False]


def test_a_slow_model_costs_the_client_its_deadline_and_no_more(url: str) -> None:
    with EdgeClient(url, deadline_ms=200, api_key=KEY) as client:
        begin = time.monotonic()
        with pytest.raises(ServerUnavailable, match="timeout"):
            client(rows_of(SLOW))
        assert time.monotonic() - begin < 0.6
    with EdgeClient(url, deadline_ms=5000, api_key=KEY) as client:
        assert torch.equal(client(rows_of(2)), MODEL(rows_of(2)))


@pytest.mark.study
def test_a_thousand_requests_are_answered_within_a_minute(url: str) -> None:
    begin = time.monotonic()
    with EdgeClient(url, deadline_ms=20_000, api_key=KEY) as client, ThreadPoolExecutor(8) as pool:
        assert client.check()["name"] == "Tiny"
        answers = list(pool.map(lambda number: client(rows_of(number)), range(1000)))
        assert client.statistics["answered"] == 1000
        assert client.statistics["retries"] == 0
    assert torch.equal(torch.cat(answers), MODEL(torch.cat([rows_of(number) for number in range(1000)])))
    assert time.monotonic() - begin < 60


def test_check_refuses_a_wrong_key_and_another_model(url: str) -> None:
    with EdgeClient(url, api_key="wrong") as client, pytest.raises(ConfigurationError, match=r"401: .*X-API-Key"):
        client.check()
    with (
        EdgeClient(url, api_key=KEY, expect={"sha256": "0" * 64}) as client,
        pytest.raises(ConfigurationError, match="serves a model with sha256="),
    ):
        client.check()


# ---- a server that dies


def processes_of(session: int) -> dict[int, str]:
    """Return the command lines of the processes of a session that are alive."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


def forked_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the process that holds the queues and the one that answers HTTP: forked, so of the same command line."""
    found = processes_of(process.pid)
    return sorted(number for number, line in found.items() if number != process.pid and line == found[process.pid])


def assert_all_gone(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 10
    while processes_of(process.pid):
        assert time.monotonic() < until, processes_of(process.pid)
        time.sleep(0.05)
    while True:  # nobody holds it, but perhaps for a moment a client of another test
        try:
            socket.create_server(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < until, f"port {port} is held"
            time.sleep(0.05)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
def test_after_a_hard_kill_of_its_first_process_nothing_is_left_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens; on_ready must not ask there
    port = free_port()
    with served(port, tmp_path / "log") as process:
        with socket.create_connection(("127.0.0.1", port)) as gone:  # a client that ends within its request
            gone.sendall(b"POST /predict HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nhalf of it")
            time.sleep(0.2)
        assert logits_of(ask(f"http://127.0.0.1:{port}", pack(rows_of(1)), None))[0].shape == (1, 3)
        assert len(forked_of(process)) == 2
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert_all_gone(process, port)
    assert (tmp_path / "log").read_text() == "ready\n"


@needs_proc
@pytest.mark.parametrize(
    ("which", "number", "dead"),
    [
        pytest.param(0, signal.SIGTERM, "SyncManager-1 (-15)", marks=pytest.mark.study),
        (1, signal.SIGKILL, "LitServer-0 (-9)"),
    ],
)
def test_a_server_of_which_a_process_dies_ends_with_one_line(
    tmp_path: Path, which: int, number: signal.Signals, dead: str
) -> None:
    port = free_port()
    with served(port, tmp_path / "log") as process:
        os.kill(forked_of(process)[which], number)
        assert process.wait(15) == 1
        assert_all_gone(process, port)
    lines = (tmp_path / "log").read_text().splitlines()
    assert f"the server ends, as a process of it died (its exit code): {dead}" in lines


def test_nothing_is_lost_when_the_server_dies_and_it_is_asked_again_when_it_is_back(tmp_path: Path) -> None:
    port, ended, answers = free_port(), threading.Event(), []
    breaker = CircuitBreaker(failures=3, probe_after_s=(0.3, 0.5))
    client = EdgeClient(f"http://127.0.0.1:{port}", deadline_ms=1000, breaker=breaker)
    sources: list[tuple[float, str]] = []
    slowest = [0.0]

    def work(thread: int) -> None:
        predictor = RoutedPredictor(lambda rows: -MODEL(rows), lambda logits: logits[:, 0], client, threshold=-50.0)
        number = 0
        while not ended.is_set():
            number = number % 10 + 1
            rows = torch.cat([rows_of(number), rows_of(20)])  # 20 is kept: its query score is -80
            begin = time.monotonic()
            prediction = predictor(rows)
            slowest[0] = max(slowest[0], time.monotonic() - begin)
            source = SOURCES[prediction.source[0]]
            sources.append((time.monotonic(), source))
            right = {"global": 0, "fallback": 1}[source]  # the base says the opposite of the global model
            time.sleep(0.01)
            answers.append((int(prediction.prediction[0]) == right, SOURCES[prediction.source[1]] == "base"))

    def wait_for(wanted: str) -> None:
        since, until = time.monotonic(), time.monotonic() + 20
        while not any(moment > since and source == wanted for moment, source in sources[-200:]):
            assert time.monotonic() < until, f"no answer by {wanted}: {Counter(source for _, source in sources)}"
            time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    try:
        with served(port, tmp_path / "first") as process:
            for thread in threads:
                thread.start()
            wait_for("global")
            kill(process)
            wait_for("fallback")
        wait_for("fallback")
        with served(port, tmp_path / "second") as process:
            wait_for("global")
            ended.set()
            for thread in threads:
                thread.join(10)
            begin = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
            assert process.wait(10) == 130
            assert time.monotonic() - begin < 4
            assert (tmp_path / "second").read_text() == "ready\n"
    finally:
        ended.set()
        client.close()
    assert not any(thread.is_alive() for thread in threads)
    assert answers.count((True, True)) == len(answers) > 20
    assert client.statistics["open_circuit"] > 0
    assert slowest[0] < 1.6


# ---- the part that answers, without a server


def a_request(number: float, count: int = 1, until: float = float("inf")) -> Rows:
    return Rows(rows_of(number, count).numpy(), until)


def answering(call: Callable[[Tensor], Any] = MODEL, **changes: Any) -> Answering:
    model = describe(MODEL, input_shape=SHAPE)[2]
    return Answering(call, replace(model, **changes), "cpu")


def test_rows_beyond_what_one_call_takes_are_computed_in_pieces() -> None:
    sizes: list[int] = []

    def call(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return MODEL(rows)

    replies = answering(call, max_rows=4).answer([a_request(number, 3) for number in range(3)])
    assert sizes == [4, 4, 1]
    for number, reply in enumerate(replies):
        logits, header = unpack(reply.body, max_bytes=1000)
        assert torch.equal(logits, MODEL(rows_of(number, 3)))
        assert (header["requests"], header["rows"]) == (3, 9)


def test_a_request_whose_client_waits_no_more_is_not_computed() -> None:
    rows: list[int] = []

    def call(batch: Tensor) -> Tensor:
        rows.append(len(batch))
        return MODEL(batch)

    late = a_request(1, until=time.monotonic() - 0.001)
    replies = answering(call).answer([late, a_request(2, 2), late])
    assert [reply.status for reply in replies] == [504, 200, 504]
    assert rows == [2]
    assert [reply.status for reply in answering(call).answer([late])] == [504]
    assert rows == [2]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda rows: MODEL(rows)[:1], "returns (1, 3) of torch.float32 for 2 rows of 3 classes"),
        (lambda rows: MODEL(rows)[:, :2], "returns (2, 2) of torch.float32 for 2 rows of 3 classes"),
        (lambda rows: MODEL(rows).long(), "not logits (rows, classes)"),
        (lambda rows: (MODEL(rows),), "returns tuple for 2 rows"),
    ],
)
def test_what_is_no_logits_is_an_error_of_the_server(output: Any, says: str) -> None:
    [reply] = answering(output).answer([a_request(1, 2)])
    assert reply.status == 500
    assert says in reply.body.decode()


def test_a_wide_model_answers_in_float32() -> None:
    [reply] = answering(lambda rows: MODEL(rows).double()).answer([a_request(1)])
    assert unpack(reply.body, max_bytes=1000)[0].dtype == torch.float32


# ---- options


def test_an_export_is_described_by_its_metadata(tmp_path: Path) -> None:
    from lightning_efficient.inference.export import export_graphs

    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    folder = tmp_path / "export"
    export_graphs({"global": network}, torch.zeros(2, *SHAPE), folder, formats=("torch",))
    source, part, model = describe(folder)
    assert (source, part) == (folder, "global")
    assert (model.name, model.classes, model.input_shape, model.dtype) == ("export", 3, SHAPE, "float32")
    metadata = json.loads((folder / "metadata.json").read_text())
    with EdgeClient("http://test", expect=metadata) as client:
        assert client.expect == {"sha256": model.sha256, "classes": 3, "input_shape": SHAPE}
    with pytest.raises(ConfigurationError, match=r"part='edge': .* has the parts \['global'\]"):
        describe(folder, part="edge")
    (folder / "global.pt2").write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="is not the file that was exported"):
        describe(folder)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no export"):
        serve_global(tmp_path, port=free_port())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "10.0.0.5"}, "host='10.0.0.5' is not one of"),
        ({"port": 80}, "port=80 must be an integer from 1024 to 65535"),
        ({"port": "8000"}, "port='8000' must be an integer"),
        ({"max_batch_size": 0}, "max_batch_size=0 must be"),
        ({"max_rows": 0}, "max_rows=0 must be"),
        ({"workers": 0}, "workers=0 must be"),
        ({"max_payload_mb": -1}, "max_payload_mb=-1 must be"),
        ({"queue_timeout_s": 0}, "queue_timeout_s=0 must be"),
        ({"batch_timeout_ms": -1}, "batch_timeout_ms=-1 must be from 0 to queue_timeout_s"),
        ({"batch_timeout_ms": 20_000}, "batch_timeout_ms=20000 must be from 0"),
        ({"device": "gpu"}, "device='gpu' is not one of"),
        ({"runtime": "tvm"}, "runtime='tvm' is not one of"),
        ({"runtime": "onnx", "device": "cuda"}, "runs on the CPU"),
        ({"input_shape": None}, "input_shape=None must be the shape of one row"),
        ({"input_shape": (0, 2)}, r"input_shape=\(0, 2\) must be"),
        ({"input_shape": (5,), "source": nn.Linear(4, 3)}, r"fails on one row of shape \(5,\): RuntimeError"),
        ({"source": nn.Flatten(0)}, "not logits"),
        ({"source": lambda rows: rows}, "cannot be carried to a worker process"),
        ({"dtype": "int8"}, "dtype='int8' is not one of"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_starts(options: dict[str, Any], says: str) -> None:
    options = {"source": Tiny(), "port": 8000, "input_shape": SHAPE, **options}
    with pytest.raises(ConfigurationError, match=says):
        serve_global(options.pop("source"), **options)


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"port={port} cannot be used on 127.0.0.1: Address already in use"
        ):
            serve_global(Tiny(), input_shape=SHAPE, port=port)


def test_without_litserve_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litserve", None)
    with pytest.raises(MissingExtraError, match=r"lightning-efficient\[serve\]"):
        serve_global(Tiny(), input_shape=SHAPE)
