"""Commands and configs of the pages are those that the real parsers take."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import doc_blocks
import pytest
import yaml
from doc_blocks import ROOT, Block, Command, blocks, blocks_of, commands
from lightning.pytorch.cli import LightningArgumentParser

from lightning_efficient import plugins
from lightning_efficient.cli import compare, configs, report, search, serve
from lightning_efficient.cli._search_objectives import parse_aims
from lightning_efficient.cli.arguments import AFTER_TRAINING, expand
from lightning_efficient.cli.config_files import find, shipped
from lightning_efficient.cli.config_shape import check_shapes
from lightning_efficient.cli.configs_check import ConfigParser
from lightning_efficient.cli.main import VERBS
from lightning_efficient.cli.run import _is_timm_model
from lightning_efficient.cli.search_space import load_space

Parse = Callable[[list[str]], Any]

BASES = {
    "callbacks/chunked-backprop.md": "fptt/digits",
    "callbacks/fptt.md": "fptt/digits",
    "sequences.md": "fptt/digits",
    "methods/fptt.md": "fptt/digits",
    "methods/chunked-backprop.md": "fptt/digits",
}
"""The experiment that a page's fragments are put on; the quickstart where none is named."""


def command_ids(found: list[Command]) -> list[str]:
    """Name commands by page, and number those that a page repeats."""
    texts = [str(command) for command in found]
    return [
        f"{text} #{texts[:number].count(text)}" if text in texts[:number] else text for number, text in enumerate(texts)
    ]


def starting_with(program: str) -> list[Command]:
    """Return the commands that run a program, without what stands in front of it, such as a variable or srun."""
    return [
        Command(each.block, each.words[each.words.index(program) + 1 :], each.mistake)
        for each in commands()
        if program in each.words[:3] and not each.mistake
    ]


INLINE = re.compile(r"`(?:[A-Z_]+=\S+ )*python ((?:benchmarks|docs)/[^`\n]+)`")
"""A study in the text of a page."""

OURS = starting_with("lightning-efficient")
STUDIES = [
    each for each in starting_with("python") if each.words and each.words[0].startswith(("benchmarks/", "docs/"))
] + [
    Command(Block(page, 0, "bash", ""), tuple(shlex.split(found)))
    for page in doc_blocks.PAGES
    for found in sorted(
        set(re.findall(r"`(?:[A-Z_]+=\S+ )*python ((?:benchmarks|docs)/[^`\n]+)`", page.read_text("utf-8")))
    )
]


@pytest.fixture(scope="module")
def parse() -> Iterator[Parse]:
    """Parse as ``lightning-efficient VERB`` does, by one parser for each verb, and build nothing."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["lightning-efficient"])

        @cache
        def parser_of(verb: str) -> LightningArgumentParser:
            return ConfigParser(args=[verb, "--config", str(find("quickstart"))]).parser

        def parsed(words: list[str]) -> Any:
            expanded = expand(words, _is_timm_model)
            check_shapes(expanded)
            return parser_of(words[0]).parse_args(expanded)

        yield parsed


def written(page: Path) -> None:
    """Write the YAML files that a page tells its reader to save, and what its commands take from earlier ones."""
    for block in blocks_of(page):
        if block.language == "yaml" and block.file and "/" not in block.file:
            Path(block.file).write_text(block.code)
    for command in OURS:
        if command.block.page == page and command.words[:2] == ("configs", "cp"):
            configs.run_configs([*command.words[1:], "--force"])


def run_of(words: list[str]) -> None:
    """Make the run of a checkpoint, whose config a command without one takes."""
    if words[0] in AFTER_TRAINING and "--ckpt_path" in words and "--config" not in words:
        path = Path(words[words.index("--ckpt_path") + 1])
        name = path.parts[1] if path.parts[:1] == ("runs",) else "quickstart"
        config = next((each for each in shipped() if each.replace("/", "-").replace("_", "-") == name), "quickstart")
        config = "hybrid/digits" if "--max_drop" in words else config
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        (path.parents[1] / "config.yaml").write_text(find(config).read_text())


@pytest.fixture
def tiny_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the package that the page on plugins builds, from the page's own blocks."""
    found = {block.language: block.code for block in blocks_of(ROOT / "docs" / "plugins.md")}
    package, info = tmp_path / "site" / "tiny_package", tmp_path / "site" / "tiny_package-0.1.dist-info"
    (package / "configs").mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").touch()
    (package / "callbacks.py").write_text(found["python"])
    (package / "configs" / "hello.yaml").write_text(found["yaml"])
    project = tomllib.loads(found["toml"])["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path / "site")
    plugins.load_all()


@pytest.fixture
def _installed(request: pytest.FixtureRequest) -> None:
    """Install what the page of a command or block has its reader install."""
    params = request.node.callspec.params
    page = params["block"].page if "block" in params else params["command"].block.page
    if page.name == "plugins.md":
        request.getfixturevalue("tiny_package")


@pytest.mark.parametrize("command", OURS, ids=command_ids(OURS))
@pytest.mark.usefixtures("_installed")
def test_a_command_is_one_that_its_parser_takes(command: Command, parse: Parse) -> None:
    verb, *rest = command.words
    if verb in ("--help", "--version"):
        return
    assert verb in VERBS
    written(command.block.page)
    match verb:
        case "configs":
            configs._parser().parse_args(rest)
        case "serve":
            serve._parser().parse_args(rest)
        case "compare":
            compare._parser().parse_args(rest)
        case "report":
            report._parser().parse_args(rest)
        case "demo":
            assert rest == []
        case "search":
            options = search._options(rest)
            parse_aims(options.objectives, options.reward, options.target_latency_ms, options.exponent)
            load_space(options.space)
            parse(["fit", *options.fit])
        case _:
            run_of([verb, *rest])
            parse([verb, *rest])


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--config", "quickstart", "--trainer.max_epoch", "3"],
        ["fit", "--config", "quickstart", "--trainer.max_epochs", "many"],
        ["test", "--config", "quickstart", "--risk", "0.1"],
    ],
    ids=["misspelt", "of another type", "of another verb"],
)
def test_an_option_that_a_page_got_wrong_would_be_found(words: list[str], parse: Parse) -> None:
    with pytest.raises(argparse.ArgumentError):
        parse(words)


def fragments() -> list[Block]:
    return [block for block in blocks("yaml") if set(yaml.safe_load(block.code)) & {"model", "data", "trainer"}]


@pytest.mark.parametrize("block", fragments(), ids=str)
@pytest.mark.usefixtures("_installed")
def test_a_config_on_a_page_is_one_that_fit_takes(block: Block, parse: Parse) -> None:
    content = yaml.safe_load(block.code)
    file = Path("block.yaml")
    file.write_text(block.code)
    base = yaml.safe_load(find(BASES.get(doc_blocks.name_of(block.page), "quickstart")).read_text())
    # a model of another class would leave options of the base's own behind
    kept = {key: value for key, value in base.items() if key not in content or key == "trainer"}
    Path("base.yaml").write_text(yaml.safe_dump(kept))
    parsed = parse(["fit", "--config", "base.yaml", "--config", str(file)])["fit"]
    for section in content.keys() & {"model", "data"}:
        assert _short(parsed[section]["class_path"]) == _short(content[section]["class_path"])
    if added := [_short(each["class_path"]) for each in (content.get("trainer") or {}).get("callbacks+", [])]:
        assert [_short(each.class_path) for each in parsed["trainer"]["callbacks"]][-len(added) :] == added


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def test_every_other_yaml_block_is_a_search_space_that_loads(tmp_path: Path) -> None:
    others = [block for block in blocks("yaml") if block not in fragments()]
    for block in others:
        (tmp_path / "space.yaml").write_text(block.code)
        assert load_space(str(tmp_path / "space.yaml")).parameters


class _ParsedError(Exception):
    """Raised where a study would begin to work."""


@pytest.mark.parametrize("command", STUDIES, ids=command_ids(STUDIES))
def test_a_study_takes_the_options_that_a_page_gives_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / command.words[0]
    assert path.is_file()
    if len(command.words) == 1 or "argparse" not in path.read_text("utf-8"):
        assert len(command.words) == 1
        return
    words = ["digits" if word == "TASK" else word for word in command.words[1:]]
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        parse_args(self, words)
        raise _ParsedError

    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    # the harness starts a study anew with another allocator; here it has been
    monkeypatch.setenv("LIGHTNING_EFFICIENT_RESTARTED", "1")
    spec = importlib.util.spec_from_file_location(f"_study_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with pytest.raises(_ParsedError):
        module.main()


def test_shell_blocks_are_well_formed_bash() -> None:
    for block in blocks("bash", "console"):
        done = subprocess.run(
            ["bash", "-n"], input=doc_blocks.script(block), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}: {done.stderr}"


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {each.words[1] for each in commands() if each.words[0] == "make"}
    for page in doc_blocks.PAGES:
        named |= set(re.findall(r"`make ([\w-]+)", page.read_text("utf-8")))
    assert len(named) > 3
    assert named <= targets


def test_extras_that_pages_install_exist() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {
        extra
        for page in doc_blocks.PAGES
        for extras in re.findall(r"'\.\[([\w,]+)\]'", page.read_text("utf-8"))
        for extra in extras.split(",")
    }
    assert len(named) > 3
    assert named <= set(known)


def test_every_program_that_a_block_starts_is_known() -> None:
    programs = {next(word for word in each.words if "=" not in word) for each in commands()}
    known = {"lightning-efficient", "make", "pip", "python", "ls", "wandb", "srun", "for", "do", "done", "git", "cd"}
    known |= {
        ".venv/bin/python",
        ".venv-oldest/bin/python",
        "issues",
        "tensorboard",
        "kill",
        "docker",
        "open",
        "uv",
        "jupyter",
    }
    assert programs <= known
