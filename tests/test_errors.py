from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_efficient.errors import (
    ConfigurationError,
    DataNotFoundError,
    MissingExtraError,
    did_you_mean,
    require,
)


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'lightning-efficient\[onnx\]'"):
        require("no_such_package.part", "onnx")


def test_an_installed_package_is_returned() -> None:
    assert require("json", "onnx") is sys.modules["json"]


def test_a_package_that_lacks_another_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import its_own_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_own_dependency") as raised:
        require("half_installed", "onnx")
    assert not isinstance(raised.value, MissingExtraError)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("vit_tin", " Did you mean 'vit_tiny'?"),
        ("resnet", " Did you mean 'resnet18'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_closest_names_are_suggested(given: str, hint: str) -> None:
    assert did_you_mean(given, ["resnet18", "vit_tiny", "densenet"]) == hint


def test_our_errors_are_caught_as_those_of_python() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(DataNotFoundError, FileNotFoundError)
    assert issubclass(MissingExtraError, ImportError)
