"""Write what the next version must load, once before a release, with the oldest versions and then with the newest.

``make test-oldest`` has set up ``.venv-oldest``. Then

    .venv-oldest/bin/python tests/compatibility/make_fixtures.py
    .venv/bin/python tests/compatibility/make_fixtures.py

write the set of this version: what an older torch wrote every newer one must load, and the second adds what needs
packages that the first lacks. What is there is left as it is: that older code wrote it is its only use.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

import files
import objects
import runs
import torch

from lightning_efficient import __version__

NEEDS = {"fits/quantization": "torchao", "files/quantized": "torchao", "files/export": "onnxruntime"}
"""What is left to the second environment where the first lacks a package."""
FILES: dict[str, tuple[Callable[[Path], None], dict[str, Callable[[Path], Any]]]] = {
    "threshold": (files.write_threshold, {"threshold": files.read_threshold}),
    "routing": (files.write_routing, {"routing": files.read_routing}),
    "pruned": (files.write_pruned, {"pruned": files.read_pruned}),
    "outputs": (files.write_outputs, {"outputs": files.read_outputs}),
    "export": (files.write_export, {"export": files.read_export, "export_of_torch": files.read_export_of_torch}),
    "quantized": (files.write_quantized, {"quantized": files.read_quantized}),
}
"""For each kind of file who writes it, and by name who reads what is recorded."""


def folder_name(release: str) -> str:
    """Return the folder of a version's fixtures.

    Example:
        >>> folder_name("0.1.0")
        'v0_1'
    """
    return f"v{'_'.join(release.split('.')[:2])}"


def entries() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield the folders of a set, and who writes each."""
    yield "configs", lambda folder: shutil.copytree(runs.CASES, folder)
    yield "pickles", objects.write_pickles
    for kind in FILES:
        yield f"files/{kind}", lambda folder, kind=kind: write_files(kind, folder)
    for case in runs.case_names(runs.CASES):
        yield f"fits/{case}", lambda folder, case=case: runs.write_run(case, folder)


def write_files(kind: str, folder: Path) -> None:
    """Write files of one kind, and what is recorded of them."""
    make, readers = FILES[kind]
    folder.mkdir(parents=True)
    make(folder)
    runs.record(folder, {name: read(folder) for name, read in readers.items()})


def main() -> int:
    """Write what the set of this version lacks."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    folder = runs.FIXTURES / folder_name(__version__)
    for name, write in entries():
        needed = NEEDS.get(name)
        if (folder / name).exists() or (needed and find_spec(needed) is None):
            continue
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            write(Path("new").resolve())
            shutil.copytree("new", folder / name)  # whole or not at all
        sys.stdout.write(f"wrote {folder / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
