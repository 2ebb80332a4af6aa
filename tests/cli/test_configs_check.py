from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lightning_efficient.cli.config_files import shipped

Command = Callable[..., object]


def test_every_shipped_config_is_ok_and_nothing_is_built(command: Command, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    result = command("configs", "check")
    assert (result.status, result.err) == (0, "")
    configs = [name for name in shipped() if not name.startswith("search/")]
    assert [line.split() for line in result.out.splitlines()] == [[name, "ok"] for name in configs]
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_config_is_named_and_the_others_are_still_checked(command: Command, tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    fragment = tmp_path / "trainer" / "long.yaml"
    fragment.write_text("trainer:\n  max_epoch: 9\n")
    result = command("configs", "check", fragment, "quickstart")
    assert result.status == 2
    bad, good = result.out.splitlines()
    assert bad.split(maxsplit=1)[1].startswith(
        "error: unknown key 'trainer.max_epoch' in a config. Did you mean 'trainer.max_epochs'"
    )
    assert good.split() == ["quickstart", "ok"]


def test_a_space_of_a_search_is_told_from_a_config(command: Command) -> None:
    result = command("configs", "check", "search/digits")
    assert (result.status, result.out.split(maxsplit=1)[1].strip()) == (
        2, "error: it is no config of fit; see search --space, or wandb sweep"
    )  # fmt: skip


def test_a_config_that_is_no_fragment_must_be_whole(command: Command, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.yaml"
    lonely.write_text("trainer:\n  max_epochs: 9\n")
    result = command("configs", "check", lonely)
    assert result.status == 2
    assert "error: missing model" in result.out
