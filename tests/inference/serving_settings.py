"""A tiny model behind a real server, in a process of its own: ``python serving_settings.py '{"port": 8123}'``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHAPE = (1, 2, 2)
POISON, UNKNOWN, SLOW = -666.0, -77.0, -555.0
"""Rows of these numbers make the model fail, answer NaN, or take ``SECONDS``."""
SECONDS = 1.0


class Tiny(nn.Module):
    """Logits that tell the row: its numbers summed, that negated, and zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, rows: Tensor) -> Tensor:
        if bool((rows == SLOW).any()):
            time.sleep(SECONDS)
        if bool((rows == POISON).any()):
            raise RuntimeError("a poisoned row\nand a second line")
        total = self.weight * rows.flatten(1).sum(1)
        total = torch.where((rows.flatten(1) == UNKNOWN).any(1), torch.nan, total)
        return torch.stack([total, -total, torch.zeros_like(total)], dim=1)


def free_port() -> int:
    """Return a port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def served(port: int, log: Path, key: str | None = None, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Serve ``Tiny`` while the context lasts, and end every process of it; what it prints is in ``log``."""
    environment = {name: value for name, value in os.environ.items() if name != "LIT_SERVER_API_KEY"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({} if key is None else {"LIT_SERVER_API_KEY": key})
    command = [sys.executable, __file__, json.dumps({"port": port, **options})]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while b"ready" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            time.sleep(0.05)
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers at once, as a power cut would."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def main() -> int:
    from lightning_efficient.inference.serving import serve_global

    def ready() -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    return serve_global(Tiny(), input_shape=SHAPE, on_ready=ready, **json.loads(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
