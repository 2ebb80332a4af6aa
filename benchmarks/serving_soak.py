"""A hybrid at work for a while, with a server that is killed, slowed and fed rubbish: is every input answered in time?

One server (``serve_global``, a small convolutional network) and four threads, each with its own ``RoutedPredictor``, of
one ``EdgeClient``. A batch has 16 images of noise, half of which are asked about; 1 batch in 50 has a row that is not
finite. A fifth thread sends damaged requests all the time, and every 20 s an image that holds the model up for 0.5 s,
which is longer than the deadline. At 1/4 of the time the worker process is killed, at 1/2 the whole server, which is
started again at 0.6. Each answer is compared with what the network that it names gives for the image.

Reported per phase: batches, shares of the asked inputs by source, latency of a batch with its quantiles and maximum;
seconds from each fault to the first answer of the global model; resident memory and open files of the client and of the
server's processes after a tenth of the time and at the end; how many answers were wrong or missing. Exits with 1 where
one was, or where a batch took longer than the deadline and 500 ms. Shared machines stretch the latencies.

Run: ``python benchmarks/serving_soak.py [--seconds 1800] [--save]``; ``--seconds 60`` for a try.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import quantile, save, table
from torch import Tensor, nn

from lightning_efficient.functional.routing import query_score, query_threshold
from lightning_efficient.inference._wire import pack
from lightning_efficient.inference.circuit_breaker import CircuitBreaker
from lightning_efficient.inference.edge_client import EdgeClient
from lightning_efficient.inference.routed import BASE, FALLBACK, GLOBAL, SOURCES, RoutedPredictor
from lightning_efficient.inference.serving import serve_global

SHAPE, CLASSES, BATCH, THREADS = (1, 16, 16), 10, 16, 4
DEADLINE_MS, GRACE_S = 300, 0.5
HOLD_UP, HELD_S, HOLD_EVERY_S = 1e6, 0.5, 20.0
WORKER_DIES, SERVER_DIES, SERVER_BACK = 0.25, 0.5, 0.6
PHASES = ("before", "worker killed", "server killed", "server back")
TOLERANCE = 1e-4
"""Of probabilities: batches of other sizes are summed in another order."""


class Network(nn.Module):
    """Two convolutions and a classifier; it is held up by an image of ``HOLD_UP``."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, width, 3, 2), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        if bool((images == HOLD_UP).any()):
            time.sleep(HELD_S)
        return self.layers(images)


def models() -> tuple[nn.Module, nn.Module]:
    return Network(8, 0).eval(), Network(64, 1).eval()


@dataclass
class Phase:
    """What happened between two faults."""

    seconds: list[float] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    wrong: int = 0


class Soak:
    """The hybrid's side."""

    def __init__(self, port: int, seconds: float) -> None:
        self.url, self.seconds = f"http://127.0.0.1:{port}", seconds
        self.begin, self.ended, self.lock = time.monotonic(), threading.Event(), threading.Lock()
        self.models = models()
        self.phases = {name: Phase() for name in PHASES}
        self.phase = PHASES[0]
        self.last_global, self.problems = 0.0, list[str]()
        breaker = CircuitBreaker(probe_after_s=(0.5, 1.5))
        self.client = EdgeClient(self.url, deadline_ms=DEADLINE_MS, breaker=breaker)

    def work(self, seed: int) -> None:
        base, large = self.models
        draws = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            scores = query_score(base(torch.randn(512, *SHAPE, generator=draws)))
            predictor = RoutedPredictor(base, query_score, self.client, query_threshold(scores, 0.5))
            while not self.ended.is_set():
                images = torch.randn(BATCH, *SHAPE, generator=draws)
                if float(torch.rand((), generator=draws)) < 0.02:
                    images[0, 0, 0, 0] = torch.nan
                begin = time.monotonic()
                try:
                    answer = predictor(images)
                except Exception as error:
                    self.problems.append(f"{type(error).__name__}: {error}")
                    continue
                took = time.monotonic() - begin
                expected = torch.where((answer.source == GLOBAL)[:, None], large(images), base(images)).softmax(-1)
                finite = images.flatten(1).isfinite().all(1)
                close = (answer.probabilities - expected).abs().amax(1) < TOLERANCE
                wrong = int((finite & ~close).sum()) + int((~finite & (answer.source != FALLBACK)).sum())
                self.note(took, answer.source[finite], wrong)
                time.sleep(0.01)

    def note(self, took: float, source: Tensor, wrong: int) -> None:
        with self.lock:
            phase = self.phases[self.phase]
            phase.seconds.append(took)
            phase.wrong += wrong
            phase.sources.update(SOURCES[number] for number in source[source != BASE].tolist())
            if (source == GLOBAL).any():
                self.last_global = time.monotonic()

    def disturb(self) -> None:
        """Send what no one should send, with another client, so that the breaker of the first does not see it."""
        import httpx

        good = pack(torch.zeros(1, *SHAPE))
        rubbish = (b"", good[:-1], b"x" * 500, pack(torch.zeros(1, 3)), pack(torch.full((1, *SHAPE), torch.nan)))
        held, number = time.monotonic(), 0
        while not self.ended.is_set():
            number += 1
            body = rubbish[number % len(rubbish)]
            if time.monotonic() > held + HOLD_EVERY_S:
                body, held = pack(torch.full((1, *SHAPE), HOLD_UP)), time.monotonic()
            try:
                status = httpx.post(f"{self.url}/predict", content=body, timeout=2).status_code
                if body in rubbish and not 400 <= status < 500:
                    self.problems.append(f"rubbish {number % len(rubbish)} got {status}")
            except httpx.HTTPError:
                time.sleep(0.5)
            time.sleep(0.05)

    def until(self, share: float) -> None:
        time.sleep(max(0.0, self.begin + share * self.seconds - time.monotonic()))

    def recovered(self, since: float) -> float:
        """Return after how many seconds the global model answered again; -1 where it did not in a minute."""
        while self.last_global < since:
            if time.monotonic() > since + 60:
                return -1.0
            time.sleep(0.01)
        return self.last_global - since


def start_server(port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--server", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise SystemExit("the server did not start")
    return process


def run_server(port: int) -> int:
    torch.set_num_threads(1)

    def ready() -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    return serve_global(models()[1], input_shape=SHAPE, port=port, on_ready=ready)


def processes(session: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                found.append(int(entry.name))
    return found


def worker_of(session: int) -> int:
    """Return the process that computes."""
    for process in processes(session):
        if b"multiprocessing-fork" in Path(f"/proc/{process}/cmdline").read_bytes():
            return process
    raise SystemExit("no worker process was found")


def usage(of: list[int]) -> dict[str, float]:
    page = os.sysconf("SC_PAGE_SIZE")
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in of)
    files = sum(len(list(Path(f"/proc/{process}/fd").iterdir())) for process in of)
    return {"resident_mb": pages * page / 1e6, "files": files}


def soak(seconds: float) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start_server(port)
    run = Soak(port, seconds)
    threads = [threading.Thread(target=run.work, args=(seed,), daemon=True) for seed in range(THREADS)]
    threads.append(threading.Thread(target=run.disturb, daemon=True))
    usages: dict[str, dict[str, float]] = {}
    recovery: dict[str, float] = {}
    try:
        for thread in threads:
            thread.start()
        run.until(0.1)
        usages["client, early"], usages["server, early"] = usage([os.getpid()]), usage(processes(server.pid))
        run.until(WORKER_DIES)
        with run.lock:
            run.phase = PHASES[1]
        os.kill(worker_of(server.pid), signal.SIGKILL)
        # requests that were answered before may still be noted
        recovery["worker killed"] = run.recovered(time.monotonic() + 2 * DEADLINE_MS / 1000) + 2 * DEADLINE_MS / 1000
        run.until(SERVER_DIES)
        with run.lock:
            run.phase = PHASES[2]
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)
        run.until(SERVER_BACK)
        server = start_server(port)
        with run.lock:
            run.phase = PHASES[3]
        recovery["server back"] = run.recovered(time.monotonic())
        run.until(1.0)
        usages["client, end"], usages["server, end"] = usage([os.getpid()]), usage(processes(server.pid))
        run.ended.set()
        for thread in threads:
            thread.join(10)
        begin = time.monotonic()
        os.killpg(server.pid, signal.SIGINT)
        status, stopped = server.wait(10), time.monotonic() - begin
    finally:
        run.ended.set()
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)
        run.client.close()
    return {
        "seconds": seconds,
        "deadline_ms": DEADLINE_MS,
        "phases": {name: summary(phase) for name, phase in run.phases.items()},
        "recovery_s": recovery,
        "usage": usages,
        "client": dict(run.client.statistics),
        "problems": run.problems,
        "hung_threads": sum(thread.is_alive() for thread in threads),
        "stop": {"status": status, "seconds": stopped},
    }


def summary(phase: Phase) -> dict[str, Any]:
    times = sorted(1000 * seconds for seconds in phase.seconds)
    asked = phase.sources.total()
    return {
        "batches": len(times),
        "asked": asked,
        **{source: phase.sources[source] / asked if asked else 0.0 for source in ("global", "fallback")},
        **{f"p{share}_ms": quantile(times, share / 100) if times else 0.0 for share in (50, 95, 99)},
        "max_ms": times[-1] if times else 0.0,
        "wrong": phase.wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve and ask for a while, with faults.")
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--save", action="store_true", help="write results/serving_soak.json")
    parser.add_argument("--server", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        return run_server(options.server)
    torch.set_num_threads(1)
    logging.getLogger("lightning_efficient.routing").setLevel(logging.ERROR)  # thousands of fallbacks are the point
    found = soak(options.seconds)
    columns = list(next(iter(found["phases"].values())))
    rows = [[column, *(phase[column] for phase in found["phases"].values())] for column in columns]
    table(f"A hybrid for {options.seconds:g} s, deadline {DEADLINE_MS} ms", ["", *PHASES], rows)
    table(
        "Resident memory and open files",
        ["", "MB", "files"],
        [[name, *each.values()] for name, each in found["usage"].items()],
    )
    for name in ("recovery_s", "client", "stop", "hung_threads"):
        print(f"{name}: {found[name]}")
    print(f"problems: {len(found['problems'])} {found['problems'][:3]}")
    if options.save:
        print(save("serving_soak", found))
    slowest = max(phase["max_ms"] for phase in found["phases"].values())
    wrong = sum(phase["wrong"] for phase in found["phases"].values())
    bad = found["problems"] or wrong or found["hung_threads"] or min(found["recovery_s"].values()) < 0
    return int(bool(bad) or slowest > DEADLINE_MS + 1000 * GRACE_S)


if __name__ == "__main__":
    sys.exit(main())
