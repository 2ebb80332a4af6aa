"""A hybrid at work for a while, with a server that is killed, slowed and fed rubbish: does anything go wrong or grow?

One server (``serve_global``, a small convolutional network) and four threads, each with its own ``RoutedPredictor``, of
one ``EdgeClient``. A batch has 16 images of noise, half of which are asked about; 1 batch in 50 has a row that is not
finite. A fifth thread sends damaged requests all the time, and every 20 s an image that holds the model up for 0.5 s,
which is longer than the deadline. In turn the worker process is killed, the server is ended and started again, and the
whole server is killed and stays away for a tenth of the time. Each answer is compared with what the network that it
names gives for the image.

It fails, with status 1, where one of the lines of ``_soak_checks.py`` does not hold: an answer wrong or missing, memory
that grows, open files or threads that become more, batches late or slower with time, a server that does not come back
or does not end. Memory, files and threads of the server are judged from 60 s on; a small leak is seen in half an hour.
Starting servers comes on top of the seconds.

Needs Linux (``/proc``). ``--save`` writes ``results/serving_soak.json`` and draws ``docs/images/serving_soak.png``.

Run: ``python benchmarks/serving_soak.py [--seconds 1800] [--save]``; ``--seconds 60`` is what ``make soak`` runs.
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
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _soak_checks import (
    RECOVERY_S,
    STOP_S,
    Sample,
    check_answers,
    check_counts,
    check_fallback,
    check_latency,
    check_memory,
    check_recovery,
    is_late,
    read_processes,
    session_of,
)
from _soak_report import draw, in_windows, percentiles, report, steady
from harness import save
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
PHASES = {"before": 0.25, "worker killed": 0.2, "restarted": 0.2, "server away": 0.1, "server back": 0.25}
"""And the share of the time of each, counted from when the global model answers again."""
AWAY = "server away"
READINGS = 360
TOLERANCE = 1e-4
"""Of probabilities: batches of other sizes are summed in another order."""
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "serving_soak.png"


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


def count_wrong(images: Tensor, answer: Any, base: nn.Module, large: nn.Module) -> int:
    """Return how many rows have no answer, or another than that of the network that the answer names."""
    if len(answer.probabilities) != len(images) or len(answer.source) != len(images):
        return len(images)
    expected = torch.where((answer.source == GLOBAL)[:, None], large(images), base(images)).softmax(-1)
    finite = images.flatten(1).isfinite().all(1)
    close = (answer.probabilities - expected).abs().amax(1) < TOLERANCE
    return int((finite & ~close).sum()) + int((~finite & (answer.source != FALLBACK)).sum())


@dataclass
class Phase:
    """What happened between two faults; times in seconds since the beginning."""

    begin: float = 0.0
    end: float = 0.0
    rows: int = 0
    wrong: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    server: list[Sample] = field(default_factory=list)


class Soak:
    """The hybrid's side."""

    def __init__(self, port: int, seconds: float) -> None:
        self.url, self.seconds = f"http://127.0.0.1:{port}", seconds
        self.begin, self.ended, self.lock = time.monotonic(), threading.Event(), threading.Lock()
        self.models = models()
        self.phases: dict[str, Phase] = {}
        self.phase: Phase | None = None
        self.at, self.took, self.alone = (array("d") for _ in range(3))  # per batch: end, seconds, of its networks
        self.client_samples: list[Sample] = []
        self.server: int | None = None
        self.last_global, self.problems, self.late, self.stall = 0.0, list[str](), 0, 0.0
        self.client = EdgeClient(self.url, deadline_ms=DEADLINE_MS, breaker=CircuitBreaker(probe_after_s=(0.5, 1.5)))

    @property
    def now(self) -> float:
        return time.monotonic() - self.begin

    def enter(self, name: str | None) -> None:
        """Begin a phase; what happens in none is compared, but not counted by source."""
        with self.lock:
            if self.phase is not None:
                self.phase.end = self.now
            self.phase = None if name is None else self.phases.setdefault(name, Phase(begin=self.now))

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
                begin, phase = time.monotonic(), self.phase
                try:
                    answer = predictor(images)
                except Exception as error:
                    self.problems.append(f"{type(error).__name__}: {error}")
                    continue
                end = time.monotonic()
                wrong = count_wrong(images, answer, base, large)
                finite = images.flatten(1).isfinite().all(1)
                self.note(phase, end - begin, time.monotonic() - end, answer.source[finite], wrong)
                time.sleep(0.01)

    def note(self, phase: Phase | None, took: float, alone: float, source: Tensor, wrong: int) -> None:
        with self.lock:
            self.at.append(self.now)
            self.took.append(took)
            self.alone.append(alone)
            self.late += is_late(took, DEADLINE_MS / 1000, GRACE_S, self.stall)
            if (source == GLOBAL).any():
                self.last_global = self.now
            if phase is None:
                self.problems.extend([f"{wrong} wrong answers after a fault"] * bool(wrong))
                return
            phase.rows += BATCH
            phase.wrong += wrong
            if phase is self.phase:  # else it began before a fault and ended after it
                phase.sources.update(SOURCES[number] for number in source[source != BASE].tolist())

    def disturb(self) -> None:
        """Send what no one should send, with another client, so that the breaker of the first does not see it."""
        import httpx

        good = pack(torch.zeros(1, *SHAPE))
        rubbish = (b"", good[:-1], b"x" * 500, pack(torch.zeros(1, 3)), pack(torch.full((1, *SHAPE), torch.nan)))
        held, number = time.monotonic(), 0
        with httpx.Client(timeout=5, trust_env=False) as client:
            while not self.ended.is_set():
                number += 1
                body = rubbish[number % len(rubbish)]
                if time.monotonic() > held + HOLD_EVERY_S:
                    body, held = pack(torch.full((1, *SHAPE), HOLD_UP)), time.monotonic()
                try:
                    status = client.post(f"{self.url}/predict", content=body).status_code
                    if body in rubbish and not 400 <= status < 500:
                        self.problems.append(f"rubbish {number % len(rubbish)} got {status}")
                except httpx.HTTPError:
                    time.sleep(0.5)
                time.sleep(0.05)

    def watch(self) -> None:
        """Read memory, files and threads now and then; in between note for how long the machine holds a sleeper up."""
        every, due, stalls = max(0.5, self.seconds / READINGS), 0.0, [0.0] * 200
        while not self.ended.is_set():
            begin = time.monotonic()
            time.sleep(0.02)
            stalls = [*stalls[1:], time.monotonic() - begin - 0.02]
            self.stall = max(stalls)
            if self.now < due:
                continue
            due = self.now + every
            self.client_samples.append(read_processes([os.getpid()], self.now))
            phase, server = self.phase, self.server
            if phase is not None and server is not None:
                try:
                    sample = read_processes(session_of(server), self.now)
                except OSError:
                    continue
                if sample.files:
                    phase.server.append(sample)

    def recovered(self, since: float) -> float:
        """Return after how many seconds the global model answered again; -1 where it did not in time."""
        while self.last_global < since:
            if self.now > since + RECOVERY_S:
                return -1.0
            time.sleep(0.01)
        return self.last_global - since

    def last(self, name: str) -> None:
        """Let a phase last its share of the time."""
        self.enter(name)
        time.sleep(PHASES[name] * self.seconds)
        self.enter(None)

    def settle(self) -> None:
        """Wait until no answer is on its way that was asked for before a fault."""
        time.sleep(2 * DEADLINE_MS / 1000)


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


def worker_of(session: int) -> int:
    """Return the process that computes."""
    for process in session_of(session):
        if b"multiprocessing-fork" in Path(f"/proc/{process}/cmdline").read_bytes():
            return process
    raise SystemExit("no worker process was found")


def stop(server: subprocess.Popen[bytes], number: signal.Signals) -> tuple[int, int, float]:
    """Send a signal as a terminal or a scheduler does; return the status, the one that is meant, and seconds."""
    begin = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(server.pid, number)
    else:
        os.kill(server.pid, number)
    try:
        status = server.wait(2 * STOP_S)
    except subprocess.TimeoutExpired:
        status = 0
        os.killpg(server.pid, signal.SIGKILL)
    return status, 128 + number, time.monotonic() - begin


def soak(seconds: float) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start_server(port)
    run = Soak(port, seconds)
    run.server = server.pid
    works = [threading.Thread(target=run.work, args=(seed,), daemon=True) for seed in range(THREADS)]
    threads = [*works, *(threading.Thread(target=each, daemon=True) for each in (run.disturb, run.watch))]
    recovery: dict[str, float] = {}
    stops: dict[str, tuple[int, int, float]] = {}
    try:
        for thread in threads:
            thread.start()
        recovery["start"] = run.recovered(0.0)
        run.last("before")
        os.kill(worker_of(server.pid), signal.SIGKILL)
        killed = run.now
        run.settle()
        settled = run.now
        recovery["worker killed"] = settled - killed + run.recovered(settled)
        run.last("worker killed")
        stops["SIGTERM"] = stop(server, signal.SIGTERM)
        server = start_server(port)
        run.server = server.pid
        recovery["restarted"] = run.recovered(run.now)
        run.last("restarted")
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        run.server = None
        run.settle()
        run.last(AWAY)
        server = start_server(port)
        run.server = server.pid
        recovery["server back"] = run.recovered(run.now)
        run.last("server back")
        run.ended.set()
        for thread in threads:
            thread.join(10)
        stops["SIGINT"] = stop(server, signal.SIGINT)
    finally:
        run.ended.set()
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)
        run.client.close()
    hung = sum(thread.is_alive() for thread in threads)
    phases = {name: summary(run, phase) for name, phase in run.phases.items()}
    windows = in_windows(run.at, run.took, run.alone, run.now)
    checks = [
        *check_answers(phases, run.problems, hung),
        *check_fallback(phases, AWAY),
        *check_latency(len(run.took), run.late, max(run.took, default=0.0), steady(windows, phases)),
        *check_recovery(recovery, stops),
        *check_memory("client", run.client_samples),
        *check_counts("client", run.client_samples),
    ]
    for name, phase in run.phases.items():
        if phase.server:
            checks += check_memory(f"server, {name}", phase.server) + check_counts(f"server, {name}", phase.server)
    return {
        "seconds": seconds,
        "deadline_ms": DEADLINE_MS,
        "phases": phases,
        "windows": windows,
        "recovery_s": recovery,
        "client": {name: run.client.statistics[name] for name in sorted(run.client.statistics)},
        "problems": run.problems[:20],
        "checks": [check._asdict() for check in checks],
        "samples": {
            "client": [list(sample) for sample in run.client_samples],
            **{f"server, {name}": [list(each) for each in phase.server] for name, phase in run.phases.items()},
        },
    }


def summary(run: Soak, phase: Phase) -> dict[str, Any]:
    asked = phase.sources.total()
    took = [each for at, each in zip(run.at, run.took, strict=True) if phase.begin <= at < phase.end]
    return {
        "begin_s": phase.begin,
        "end_s": phase.end,
        "batches": len(took),
        "rows": phase.rows,
        "asked": asked,
        **{source: phase.sources[source] / asked if asked else 0.0 for source in ("global", "fallback")},
        **percentiles(took),
        "wrong": phase.wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve and ask for a while, with faults.")
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--save", action="store_true", help="write results/serving_soak.json and the picture")
    parser.add_argument("--server", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        return run_server(options.server)
    if not Path("/proc/self/statm").exists():
        parser.error("the soak reads memory, files and threads from /proc, which only Linux has")
    torch.set_num_threads(1)
    logging.getLogger("lightning_efficient.routing").setLevel(logging.ERROR)  # thousands of fallbacks are the point
    found = soak(options.seconds)
    held = report(found)
    if options.save:
        print(save("serving_soak", found))
        draw(found, PICTURE, AWAY)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
