"""Every Python block of the pages runs, in the order of its page, and prints what the page shows."""

from __future__ import annotations

import ast
import os
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from doc_blocks import PAGES, Block, blocks, blocks_of, name_of, resolve
from page_fixtures import PREPARED

from lightning_efficient.cli.config_files import find

MOST_NOT_RUN = 2
"""How many blocks of all pages may be exempt; each says why."""

WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]
WORDS = {"cli.md": ["train.py", "fit", "--config", str(find("quickstart")), "--print_config"]}
"""What is typed after ``python`` where a block is a program."""


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection but those between processes of this machine."""

    def refused(self: socket.socket, address: object) -> None:
        raise ConnectionRefusedError("tests ask nothing of the network")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Give back what programs of the pages leave behind: random states and variables of the environment."""
    state, environment = (random.getstate(), torch.get_rng_state()), dict(os.environ)
    yield
    random.setstate(state[0])
    torch.set_rng_state(state[1])
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_and_prints_what_is_shown(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name_of(page) == "quantization.md":
        pytest.importorskip("torchao")
    found = [block for block in blocks_of(page) if block.language == "python"]
    names = PREPARED.get(name_of(page), dict)() | {"__name__": "__main__"}
    monkeypatch.setattr(sys, "argv", WORDS.get(name_of(page), ["train.py"]))
    for block in found:
        if block.mark == "not run":
            assert _imports(block)
            continue
        with pytest.MonkeyPatch.context() as patch:
            if block.shown is None and name_of(page) not in WORDS:  # a parser asks Trainer for its options
                _shorten(patch)
            capsys.readouterr()
            code = compile(block.code, str(block), "exec")
            names["__name__"] = "page" if block.mark == "definitions" else "__main__"
            with _program_may_end(block):
                exec(code, names)
            if block.shown is not None:
                assert capsys.readouterr().out.strip() == block.shown.strip(), str(block)


@contextmanager
def _program_may_end(block: Block) -> Iterator[None]:
    """Let a program end well, as one with ``--print_config`` does."""
    try:
        yield
    except SystemExit as ended:
        if ended.code:
            pytest.fail(f"{block} ends with {ended.code}")


def _shorten(patch: pytest.MonkeyPatch) -> None:
    """Let a Trainer train two batches of one epoch on the CPU, whatever a block asks for."""
    made = L.Trainer.__init__

    def short(self: L.Trainer, *args: Any, **options: Any) -> None:
        options |= {"max_epochs": 1, "accelerator": "cpu", "limit_train_batches": 2, "limit_val_batches": 2}
        made(self, *args, **options | {"enable_progress_bar": False, "enable_model_summary": False})

    patch.setattr(L.Trainer, "__init__", short)


def _imports(block: Block) -> bool:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Import):
            assert all(resolve(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert all(resolve(f"{node.module}.{alias.name}") for alias in node.names)
    return True


def test_few_blocks_are_exempt_and_each_says_why() -> None:
    exempt = {str(block): block.reason for block in blocks("python") if block.mark == "not run"}
    assert len(exempt) <= MOST_NOT_RUN
    assert all(len(reason.split()) >= 3 for reason in exempt.values())
