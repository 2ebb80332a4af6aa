"""The verb ``report``: one file, its path, and one line for a mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for version in range(2):
        folder = tmp_path / "runs" / "tiny" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"epoch,step,val/loss\n0,1,{version + 1}\n1,2,0.5\n")
    return Path("runs/tiny")


def test_the_page_lies_in_the_run_folder_and_its_path_is_told(runs: Path, command: Callable[..., Any]) -> None:
    done = command("report", runs / "version_0")
    assert (done.status, done.out, done.err) == (0, "runs/tiny/version_0/report.html\n", "")
    page = Path("runs/tiny/version_0/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>tiny/version_0</title>" in page
    assert command("report", runs / "version_0").status == 0  # a page that is there is replaced
    assert Path("runs/tiny/version_0/report.html").read_text(encoding="utf-8") == page
    assert sorted(path.name for path in Path("runs/tiny/version_0").iterdir()) == ["metrics.csv", "report.html"]


def test_a_folder_above_one_run_will_do_and_the_page_may_lie_elsewhere(runs: Path, command: Callable[..., Any]) -> None:
    (runs / "version_1" / "metrics.csv").unlink()
    done = command("report", "runs", "--output", "new/page.html")
    assert (done.status, done.out) == (0, "new/page.html\n")
    assert "tiny/version_0" in Path("new/page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere is no run: there is no such folder"),
        (["runs"], "runs holds 2 runs; name one of runs/tiny/version_0, runs/tiny/version_1"),
        (["runs/tiny/version_0", "--output", "runs"], "--output runs is a folder; name a file such as report.html"),
        (["runs/tiny/version_0", "--output", "/dev/null/x/page.html"], "--output /dev/null/x/page.html: it cannot be"),
        (["runs/tiny/version_0", "--x", "macs"], "no run has an axis 'macs'"),
        (["runs/tiny/version_0", "--among", "absent"], "absent is no run: there is no such folder"),
        (["runs/tiny/version_0", "--outptu", "a"], "unknown option --outptu. Did you mean '--output'?"),
        ([], "the following arguments are required: RUN; see lightning-efficient report --help"),
    ],
    ids=["absent", "several", "folder", "not-writable", "axis", "among", "misspelt", "nothing"],
)
def test_a_mistake_is_one_line(runs: Path, command: Callable[..., Any], words: list[str], says: str) -> None:
    done = command("report", *words)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error: {says}")
    assert done.err.count("\n") == 1
    assert not list(Path().rglob("*.html")) + list(Path().rglob("*.partial"))


def test_the_browser_is_opened_if_asked(
    runs: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert command("report", runs / "version_0", "--open").status == 0
    assert opened == [(runs / "version_0" / "report.html").resolve().as_uri()]


@pytest.mark.parametrize(
    "statement", ["main(['report', '--help'])", "main(['report', 'absent'])"], ids=["help", "slip"]
)
def test_what_reads_no_run_loads_no_torch(statement: str) -> None:
    code = (
        "import sys\nfrom lightning_efficient.cli.main import main\n"
        f"try:\n    {statement}\nexcept SystemExit:\n    pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'wandb', 'yaml', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
