"""Where the process of a trial begins: light, and quiet before torch is loaded, which may have something to say."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from lightning_efficient.cli.quiet import quiet

if TYPE_CHECKING:
    from lightning_efficient.cli._search_workers import TrialJob

quiet()


def begin(job: TrialJob, link: Connection) -> None:
    """Run a trial in a process group of its own, with all that it prints in its log."""
    os.setpgid(0, 0)  # the search stops and ends this process with all that it starts
    threading.Thread(target=_end_with_search, daemon=True).start()
    with job.log.open("ab", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    from lightning_efficient.cli._search_trial import run_trial

    run_trial(job, link)


def _end_with_search() -> None:
    """End this process and what it has started when the search is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
