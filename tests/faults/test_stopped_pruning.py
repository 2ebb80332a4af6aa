"""A run that prunes is killed between two rounds, and goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_stopped_runs import whole_and_killed

PRUNING = {
    "sparsity": 0.6,
    "structure": "channels",
    "saliency": "first_order",
    "end": 0.6,
    "rounds": 3,
    "measure": "false",
}


@pytest.mark.slow
def test_a_pruned_classifier_resumes_between_two_rounds_after_a_kill(fit: Callable[..., Any]) -> None:
    options = [f"--trainer.callbacks.{name}={value}" for name, value in PRUNING.items()]
    ends = whole_and_killed(fit, "tiny_pruned.yaml", "--trainer.callbacks+=GradualPruning", *options)
    one, other = (end["callbacks"]["GradualPruning[pruning]"] for end in ends)
    assert [entry["step"] for entry in one["history"]] == [3, 6, 9]
    assert one["history"] == other["history"]
    assert one["keep"].keys() == other["keep"].keys()
    assert all(torch.equal(bits, other["keep"][name]) for name, bits in one["keep"].items())
