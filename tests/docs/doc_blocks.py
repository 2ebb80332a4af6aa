"""The fenced blocks of README.md and of the pages of docs/, with what the page says of them.

A comment above a block, ``<!-- not run: REASON -->``, exempts Python from being executed; it is compiled and its
imports resolved all the same. ``<!-- definitions: REASON -->`` runs it without its ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
COMMENT = re.compile(r"<!-- (not run|definitions): ([^\n]+) -->\n\Z")


def name_of(page: Path) -> str:
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block, the output that the page shows for it, and the file that the sentence above it names."""

    page: Path
    line: int
    language: str
    code: str
    shown: str | None = None
    mark: Literal["not run", "definitions"] | None = None
    reason: str = ""
    file: str | None = None

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for fence, following in zip_longest(found, found[1:]):
        adjoins = following is not None and following["language"] == "text"
        shown = following["code"] if adjoins and not text[fence.end() : following.start()].strip() else None
        comment = COMMENT.search(text[: fence.start()])
        above = text[: fence.start()].rstrip().rpartition("\n\n")[2]
        files = re.findall(r"`([\w/-]+\.ya?ml)`", above)
        yield Block(
            page,
            text[: fence.start()].count("\n") + 2,
            fence["language"],
            re.sub(f"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE),
            shown,
            comment[1] if comment else None,  # type: ignore[arg-type]
            comment[2] if comment else "",
            files[-1] if files else None,
        )


def blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


@dataclass(frozen=True)
class Command:
    """A command of a shell block, as words; ``mistake`` where the page shows the error it gives."""

    block: Block
    words: tuple[str, ...]
    mistake: bool = False

    def __str__(self) -> str:
        return f"{name_of(self.block.page)}: {shlex.join(self.words)}"


def commands() -> list[Command]:
    return [command for block in blocks("bash", "console") for command in _commands(block)]


def script(block: Block) -> str:
    """Return what is typed: all of a bash block, of a console the lines after a prompt and what they go on to."""
    code = block.code
    if block.language == "bash":
        return code
    typed = re.findall(r"^\$ ((?:.*\\\n)*.*)$", code, re.MULTILINE)
    return "\n".join(typed) + "\n"


def _commands(block: Block) -> Iterator[Command]:
    wrong = set(re.findall(r"^\$ (.*)\nerror: ", block.code, re.MULTILINE))
    loops = {name: values.split()[0] for name, values in re.findall(r"for (\w+) in ([^;\n]+);", block.code)}
    for line in script(block).replace("\\\n", " ").splitlines():
        text = re.sub(r"\$(\w+)", lambda name: loops.get(name[1], name[0]), line)
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";|&"):
                if words:
                    yield Command(block, tuple(words), line in wrong)
                words = []
            else:
                words.append(word)


def resolve(name: str) -> Any:
    """Import ``package.module.Class``, whatever part of it is the module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)
