"""Where the process of a trial begins: light, and quiet before torch is loaded, which may have something to say."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from lightning_efficient.cli.quiet import quiet

if TYPE_CHECKING:
    from lightning_efficient.cli._search_workers import TrialJob

quiet()


def begin(job: TrialJob, link: Connection) -> None:
    """Run a trial, with all that it prints in its log."""
    with job.log.open("ab", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    from lightning_efficient.cli._search_trial import run_trial

    run_trial(job, link)
