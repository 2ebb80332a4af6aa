"""A process that loads data dies, as it does where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import STEPS, differences, load, options_of


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_says_so_in_one_line_and_can_go_on(
    fit: Callable[..., Any], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(*options_of("with_workers", whole), folder=whole).status == 0
    options = options_of("with_workers", broken)
    died = fit(*options, "--trainer.callbacks+=faults.KillWorker", "--trainer.callbacks.step=6", folder=broken)
    assert died.status == 1, died.stderr
    assert "Traceback" not in died.stderr
    errors = [line for line in died.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "data.num_workers" in errors[0]
    assert fit(*options, "--ckpt_path", "last", folder=broken).status == 0
    end = load(next(broken.rglob("version_1/**/last.ckpt")))
    assert end["global_step"] == STEPS
    assert differences(load(next(whole.rglob("last.ckpt"))), end) == []
