from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lightning_efficient.cli.config_files import find, is_fragment, shipped
from lightning_efficient.errors import ConfigurationError

Command = Callable[..., object]


def test_ls_says_what_each_config_is(command: Command) -> None:
    lines = command("configs", "ls").out.splitlines()
    assert lines[0].split(maxsplit=1) == ["quickstart", "a small timm classifier on handwritten digits"]
    assert [line.split()[0] for line in lines] == list(shipped())
    assert all(len(line.split()) > 2 for line in lines)


def test_cat_prints_the_file_as_it_is(command: Command) -> None:
    assert command("configs", "cat", "trainer/ddp").out == find("trainer/ddp").read_text()


def test_cp_writes_a_file_that_can_be_given_back(command: Command, tmp_path: Path) -> None:
    result = command("configs", "cp", "quickstart", "mine/first.yaml")
    assert (result.status, result.out) == (0, "mine/first.yaml\n")
    assert find("mine/first.yaml").read_text() == find("quickstart").read_text()


def test_cp_into_the_current_folder_keeps_the_name(command: Command, tmp_path: Path) -> None:
    assert command("configs", "cp", "trainer/ddp").out == "ddp.yaml\n"
    assert yaml.safe_load((tmp_path / "ddp.yaml").read_text())["trainer"]["devices"] == 2


def test_cp_overwrites_only_when_told(command: Command, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("precious")
    refused = command("configs", "cp", "quickstart", mine)
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == f"error: {mine} exists; choose another name, or overwrite it with --force\n"
    assert mine.read_text() == "precious"
    assert command("configs", "cp", "quickstart", mine, "--force").status == 0
    assert mine.read_text() == find("quickstart").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cat", "quickstat"], "no file and no shipped config is named 'quickstat'. Did you mean 'quickstart'?"),
        (["cp", "logger/wandbb"], "Did you mean 'logger/wandb'?"),
        (["check", "trainer/dpp"], "Did you mean 'trainer/ddp'"),
        (["lss"], "invalid choice: 'lss'"),
        ([], "the following arguments are required: ls | cat | cp | check"),
        (["cat"], "the following arguments are required: name"),
        (["cp", "quickstart", "--forc"], "unknown option --forc"),
        (["cp", "quickstart", "/proc/nothing/here.yaml"], "No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(command: Command, words: list[str], message: str) -> None:
    result = command("configs", *words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err


def test_a_file_goes_before_a_config_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "quickstart").write_text("seed_everything: 7")
    assert find("quickstart") == Path("quickstart")


def test_a_name_may_end_in_yaml() -> None:
    assert find("trainer/bf16.yaml") == find("trainer/bf16") == shipped()["trainer/bf16"].path


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "quick").mkdir()
    with pytest.raises(ConfigurationError, match="Did you mean 'quickstart'"):
        find("quick")


WHOLE = ("blocks/", "compress/", "disk/", "fptt/", "hybrid/", "search/", "selective/")


def test_fragments_are_told_by_their_folder() -> None:
    whole = {name for name, config in shipped().items() if not is_fragment(config.path)}
    assert whole == {
        "quickstart",
        *(name for name in shipped() if name.startswith(WHOLE)),
    }
