"""Run the notebooks of the site from top to bottom: ``python docs/run_notebooks.py``, about half a minute.

Puts into each what its cells print and show. With ``--json FILE`` it leaves them alone and writes the same into a file,
for the tests. A notebook starts with an empty namespace, in an empty folder. A line ``!lightning-efficient ...`` calls
the command's function, which spares the seconds of a new process. What goes to standard error is not kept: it names
the machine.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from base64 import b64encode
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums are taken in one order, whatever the number of cores
os.environ.setdefault("MPLBACKEND", "agg")

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))
VARIES = "varies"
"""Tag of a cell whose output depends on the machine or the moment."""


def executed(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Run the code cells, in an empty folder, and return the outputs of each.

    Raises:
        RuntimeError: a cell failed.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    shell.system = lambda command: _system(shell.var_expand(command, depth=1))
    outputs = []
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for cell in _code(notebook):
                with capture_output() as captured:
                    result = shell.run_cell("".join(cell["source"]))
                if (error := result.error_before_exec or result.error_in_exec) is not None:
                    raise RuntimeError(f"a cell failed: {''.join(cell['source'])}") from error
                outputs.append(_outputs(captured))
        finally:
            os.chdir(here)
    return outputs


def _code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _system(command: str) -> None:
    from lightning_efficient.cli.main import main

    program, *words = shlex.split(command)
    if program != "lightning-efficient":
        raise ValueError(f"only lightning-efficient can be called here, not {program}")
    sys.argv, given = ["lightning-efficient", *words], sys.argv
    try:
        with redirect_stderr(sys.stdout):  # as a terminal shows both
            main(words)
    finally:
        sys.argv = given


def _outputs(captured: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if captured.stdout:
        found.append({"output_type": "stream", "name": "stdout", "text": captured.stdout.splitlines(keepends=True)})
    for shown in captured.outputs:
        data = {
            kind: b64encode(value).decode() if isinstance(value, bytes) else value for kind, value in shown.data.items()
        }
        data = {kind: value for kind, value in data.items() if kind in ("image/png", "text/plain")}
        found.append({"output_type": "display_data", "data": data, "metadata": {}})
    return found


def main() -> None:
    """Run them."""
    made = {}
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        made[path.name] = executed(notebook)
        if "--json" in sys.argv:
            continue
        for number, (cell, outputs) in enumerate(zip(_code(notebook), made[path.name], strict=True), start=1):
            cell["outputs"], cell["execution_count"] = outputs, number
        path.write_text(f"{json.dumps(notebook, indent=1, ensure_ascii=False)}\n", encoding="utf-8")
        sys.stdout.write(f"{path.name}\n")
    if "--json" in sys.argv:
        Path(sys.argv[-1]).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
