"""Every mistake in a config ends the command with one line that names it, before anything is trained."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from malformed import Mistake, mistakes

from lightning_efficient.cli import efficient_cli
from lightning_efficient.cli.main import main

SEED = 20_26
LONG = 1000
CHOSEN = mistakes(200, SEED)


class Begun(Exception):
    """Training would begin: the mistake was let pass."""


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str | None]:
    """``problem(text) -> line``: what ``fit`` says about a config, and nothing if it would train."""

    def begin(*_: object) -> None:
        raise Begun

    verbs = efficient_cli.EfficientCLI.subcommands()
    # the parsers of the other verbs take most of the time and no part
    monkeypatch.setattr(efficient_cli, "VERBS", ("fit",))
    monkeypatch.setattr(efficient_cli.EfficientCLI, "subcommands", staticmethod(lambda: {"fit": verbs["fit"]}))
    monkeypatch.setattr("lightning.pytorch.trainer.trainer.Trainer._run_stage", begin)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "argv", ["lightning-efficient"])

    def run(text: str) -> str | None:
        Path("config.yaml").write_text(text, encoding="utf-8")
        capsys.readouterr()
        try:
            status = main(["fit", "--config", "config.yaml"])
        except Begun:
            return None
        errors = capsys.readouterr().err
        assert status == 2
        assert "Traceback" not in errors
        [line] = [line for line in errors.splitlines() if line.startswith("error:")]
        return line

    return run


def check(mistake: Mistake, problem: Callable[[str], str | None]) -> None:
    line = problem(mistake.text)
    assert line is not None, f"{mistake.name}: taken for a good config"
    named = [word for word in mistake.words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line)]
    assert named, f"{mistake.name}: none of {mistake.words} in {line!r}"
    assert not Path("executed").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mistake", CHOSEN, ids=lambda mistake: mistake.name)
def test_a_mistake_is_told_in_one_line_that_names_it(mistake: Mistake, problem: Callable[[str], str | None]) -> None:
    check(mistake, problem)


@pytest.mark.study
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_more_mistakes_are_told_in_one_line_that_names_them(
    seed: int, problem: Callable[[str], str | None]
) -> None:
    for mistake in mistakes(LONG // 5, seed):
        check(mistake, problem)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["quickstart", "disk/toy", "hybrid/digits", "fptt/adding", "compress/prune"])
def test_the_configs_without_a_mistake_would_train(name: str, problem: Callable[[str], str | None]) -> None:
    from lightning_efficient.cli.config_files import find

    assert problem(find(name).read_text(encoding="utf-8")) is None


def test_the_mistakes_are_those_of_the_seed_and_of_every_kind() -> None:
    assert [one.text for one in mistakes(200, SEED)] == [one.text for one in CHOSEN]
    assert len({one.text for one in CHOSEN}) == 200
    assert len({one.name.partition(":")[0] for one in CHOSEN}) > 20
    for kind in ("without ", "twice ", " from ", " for ", " as ", "tag", "level"):
        assert any(kind in one.name for one in CHOSEN), kind
