"""An export comes into its folder whole or not at all, and over nothing that is not an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_networks import Branching, Doubled

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference._export_folder import install
from lightning_efficient.inference.export import ExportReport, export_graphs
from lightning_efficient.inference.exported import load_export, read_metadata

TORCH: Any = ("torch",)


def exported(folder: Path, **options: Any) -> ExportReport:
    return export_graphs({"model": Doubled()}, torch.zeros(2, 4), folder, formats=TORCH, **options)


def test_an_earlier_export_is_replaced_whole(tmp_path: Path) -> None:
    export_graphs({"old": Doubled()}, torch.zeros(2, 3), tmp_path / "x", formats=TORCH)
    exported(tmp_path / "x")
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"model.pt2", "metadata.json"}
    assert list(load_export(tmp_path / "x").parts) == ["model"]


def test_an_empty_folder_and_what_a_killed_export_left_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "x" / ".export-00.partial").mkdir(parents=True)
    exported(tmp_path / "x")
    assert load_export(tmp_path / "x").parts


@pytest.mark.parametrize("earlier", [False, True])
def test_other_files_are_refused_and_survive_even_an_overwrite(tmp_path: Path, earlier: bool) -> None:
    folder = tmp_path / "x"
    if earlier:
        exported(folder)
    folder.mkdir(exist_ok=True)
    (folder / "thesis.tex").write_text("years")
    with pytest.raises(ConfigurationError, match=r"holds 'thesis\.tex', which is no part of an earlier export"):
        exported(folder)
    exported(folder, overwrite=True)
    assert (folder / "thesis.tex").read_text() == "years"
    assert read_metadata(folder)["parts"]


def test_a_failed_export_leaves_the_earlier_one_in_force(tmp_path: Path) -> None:
    exported(tmp_path / "x")
    with pytest.raises(ConfigurationError, match="cannot be exported"):
        export_graphs({"model": Branching()}, torch.zeros(2, 4), tmp_path / "x", formats=TORCH)
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"model.pt2", "metadata.json"}
    load_export(tmp_path / "x")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigurationError, match=r"x' is a file; give a folder"):
        exported(tmp_path / "x")
    with pytest.raises(ConfigurationError, match=r"y' cannot be written \(Not a directory\)"):
        exported(tmp_path / "x" / "y")


def test_the_description_goes_first_and_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path / "x")
    partial = tmp_path / "partial"
    exported(partial)
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append((self.name, (tmp_path / "x" / "metadata.json").exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    install(partial, tmp_path / "x")
    assert seen == [("model.pt2", False), ("metadata.json", False)]
