"""What answers without torch. Each case needs a fresh interpreter, which without torch takes a tenth of a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ["torch", "lightning", "wandb", "matplotlib", "timm", "torchmetrics", "sklearn", "yaml"]
PROBE = """
import contextlib, io, json, os, sys
with contextlib.redirect_stdout(io.StringIO()) as out:
    {statement}
print(json.dumps([[name for name in {heavy} if name in sys.modules], sum(os.times()[:2]), out.getvalue()]))
"""


def fresh(statement: str) -> tuple[list[str], float, str]:
    """Run a statement in an interpreter of its own; return the heavy modules it loaded, CPU seconds, and its output."""
    code = PROBE.format(statement=statement, heavy=HEAVY)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "COVERAGE"))}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded, seconds, out = json.loads(answer.stdout)
    return loaded, seconds, out


@pytest.mark.parametrize(
    ("words", "says"),
    [("--help", "usage: lightning-efficient"), ("--version", "lightning-efficient "), ("configs ls", "quickstart")],
)
def test_what_needs_no_torch_answers_at_once(words: str, says: str) -> None:
    loaded, seconds, out = fresh(f"from lightning_efficient.cli.main import main; main({words.split()!r})")
    assert loaded == []
    assert says in out
    assert seconds < 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded, seconds, _ = fresh("import lightning_efficient; dir(lightning_efficient)")
    assert loaded == []
    assert seconds < 1


def test_every_public_name_resolves() -> None:
    import lightning_efficient

    for name in lightning_efficient.__all__:
        assert getattr(lightning_efficient, name) is not None
    assert sorted(lightning_efficient.__all__) == dir(lightning_efficient)


def test_a_public_name_comes_from_the_folder_that_declares_it() -> None:
    import lightning_efficient
    from lightning_efficient import callbacks

    assert lightning_efficient.LatencyProfiler is callbacks.LatencyProfiler


def test_an_unknown_name_is_an_attribute_error() -> None:
    import lightning_efficient

    with pytest.raises(AttributeError, match="has no attribute 'LatencyProfilr'"):
        lightning_efficient.LatencyProfilr  # noqa: B018
