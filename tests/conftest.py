"""What every test may use. One thread per worker: the machine has two cores and xdist two workers."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


# HYPOTHESIS_PROFILE=thorough pytest -m hypothesis --timeout 0 takes half an hour for the property tests alone
settings.register_profile("suite", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "suite")
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every property test the examples of a longer profile, also where it names a number of its own."""
    for item in items if PROFILE != "suite" else []:
        test = getattr(item, "obj", None)
        if test is not None and is_hypothesis_test(test):
            own = getattr(test, "_hypothesis_internal_use_settings", None) or settings.default
            most = settings.get_profile(PROFILE).max_examples
            test._hypothesis_internal_use_settings = settings(own, max_examples=most)


def pytest_collection_finish() -> None:
    """Leave what is there now out of every later garbage collection: going through it took a third of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_unconfigure() -> None:
    """Let it be collected again, so that libraries find nothing leaked at the end."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, so that nothing a run writes lands in the checkout."""
    monkeypatch.chdir(tmp_path)
