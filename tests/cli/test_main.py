from __future__ import annotations

from collections.abc import Callable

import pytest

from lightning_efficient import __version__
from lightning_efficient.cli import configs, main

Command = Callable[..., object]


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_verb(command: Command, words: tuple[str, ...]) -> None:
    result = command(*words)
    assert result.status == 0
    assert result.err == ""
    for verb in main.VERBS:
        assert f"\n  {verb:<10}" in result.out


def test_help_lists_the_verbs_in_the_order_of_their_use(command: Command) -> None:
    assert [*main.VERBS][:7] == ["fit", "validate", "test", "calibrate", "predict", "export", "serve"]
    assert "  calibrate choose from where on a model answers, or asks a larger one\n" in command("--help").out


def test_help_fits_eighty_columns(command: Command) -> None:
    assert max(map(len, command("--help").out.splitlines())) <= 80


def test_version_is_that_of_the_package(command: Command) -> None:
    assert command("--version").out == f"lightning-efficient {__version__}\n"


def test_an_unknown_verb_names_the_closest_and_all(command: Command) -> None:
    result = command("fitt")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: unknown verb 'fitt'. Did you mean 'fit'? It must be one of: fit, validate")


def test_a_reader_that_leaves_is_no_error_page(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(configs, "say", broken)
    monkeypatch.setattr(main.sys.stderr, "close", lambda: None)
    result = command("configs", "ls")
    assert (result.status, result.err) == (1, "")


def test_ctrl_c_exits_with_130_and_one_word(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(configs, "run_configs", interrupted)
    result = command("configs", "ls")
    assert (result.status, result.err) == (130, "interrupted\n")
