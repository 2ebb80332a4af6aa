"""The notebooks of the site run from top to bottom and print what is stored in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
VARIES = "varies"  # tag of cells whose output depends on the machine or the moment


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def kinds(outputs: list[dict[str, Any]]) -> list[list[str]]:
    return [sorted(output.get("data", ["text"])) for output in outputs]


def test_there_is_a_notebook_for_each_way_in() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["command_line", "existing_trainer", "wandb"]


@pytest.mark.slow
def test_every_cell_runs_and_prints_what_is_stored(tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    command = [sys.executable, str(DOCS / "run_notebooks.py"), "--json", str(made)]
    # the W&B process of an earlier test here would write below its own folder
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    now = json.loads(made.read_text(encoding="utf-8"))
    for path in NOTEBOOKS:
        for cell, outputs in zip(code_cells(read(path)), now[path.name], strict=True):
            where = f"{path.name}: {cell['source'][0]}"
            if VARIES in cell["metadata"].get("tags", []):
                assert bool(text(outputs)) == bool(text(cell["outputs"])), where
            else:
                assert text(outputs) == text(cell["outputs"]), where
                assert kinds(outputs) == kinds(cell["outputs"]), where


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_there_small_and_of_no_machine(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    assert len(content) < 250_000
    assert re.search(r"/(work|tmp|home|root|Users)/", content) is None
    cells = code_cells(read(path))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) >= 3
    assert all(
        len(o["data"].get("image/png", "")) < 200_000 for c in cells for o in c["outputs"] if "data" in o
    )  # 150 kB


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_form_that_jupyter_reads(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"code", "markdown"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_resolve(path: Path) -> None:
    prose = "\n".join("".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)\s#]+)", prose)
    assert targets
    assert [target for target in targets if not (path.parent / target).is_file()] == []


def test_a_page_of_the_site_has_the_cells_and_what_they_show() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        import hooks
    finally:
        sys.path.remove(str(DOCS))
    image = {"output_type": "display_data", "data": {"image/png": "QUJD", "text/plain": "<Image>"}, "metadata": {}}
    stream = {"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "See [W&B](wandb.ipynb)."]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [stream, image]},
    ]
    page = hooks.on_page_markdown(hooks.notebook_page({"cells": cells}, "x.ipynb"))
    assert page.splitlines()[:2] == ["# Title", "See [W&B](wandb.md)."]
    assert '<a href="x.ipynb" download>' in page
    assert "```python\nprint(1)\n```\n\n```text\na\nb\n```" in page
    assert "(data:image/png;base64,QUJD)" in page
