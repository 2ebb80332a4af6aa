"""The wheel holds what a user needs, and works far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("lightning_efficient", "configs", "pyproject.toml", "README.md", "LICENSE")
"""What the wheel is built from; a source tree without .git has them too."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for file in tracked() or present():
        target = source / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, target)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (only,) = built.glob("*.whl")
    return only


def tracked() -> list[Path]:
    """Return the files that git keeps or would add, or nothing where there is no git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return []
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PARTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def present() -> list[Path]:
    files = [file for part in PARTS for file in (ROOT / part, *(ROOT / part).rglob("*"))]
    return [file.relative_to(ROOT) for file in files if file.is_file() and "__pycache__" not in file.parts]


@pytest.mark.slow
def test_the_wheel_holds_every_config_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.yaml")}
    assert {f"lightning_efficient/{name}" for name in configs} <= names
    assert "lightning_efficient/configs/quickstart.yaml" in names
    assert "lightning_efficient/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]


@pytest.mark.slow
def test_the_wheel_declares_its_command_and_its_callbacks(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entries,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
    text = archive.read(entries).decode()
    assert "lightning-efficient = lightning_efficient.cli.main:main" in text
    assert "lightning_efficient = lightning_efficient.plugins:callbacks_from_environment" in text


@pytest.mark.slow
def test_the_unpacked_wheel_finds_its_configs_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    unpacked, elsewhere = tmp_path / "unpacked", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(unpacked)
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    where = "import lightning_efficient.cli.config_files as files; print(files.find('quickstart'))"
    for arguments, expected in (
        (["-m", "lightning_efficient.cli.main", "configs", "ls"], "quickstart "),
        (["-c", where], str(unpacked / "lightning_efficient" / "configs" / "quickstart.yaml")),
    ):
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(expected)
