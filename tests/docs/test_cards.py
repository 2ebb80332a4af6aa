"""The method cards are complete, of one form, and their figures are those of the studies."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from doc_blocks import DOCS, ROOT, blocks_of

CARDS = sorted(path for path in (DOCS / "methods").glob("*.md") if path.name != "index.md")


@pytest.fixture(scope="module")
def make_cards() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), str(ROOT / "benchmarks"), *sys.path])
        import make_cards

        return make_cards


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_the_figures_of_a_card_are_those_of_the_studies(page: Path, make_cards: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    assert make_cards.filled(text) == text, "run python docs/make_cards.py"


def test_a_figure_that_was_changed_by_hand_is_found(make_cards: ModuleType) -> None:
    text = (DOCS / "methods" / "fptt.md").read_text(encoding="utf-8")
    number = make_cards.spread(make_cards.rows_of("fptt")[0]["pairs"]["method"])
    assert number in text
    assert make_cards.filled(text.replace(number, "99.99")) == text


@pytest.mark.parametrize("page", CARDS, ids=lambda page: page.stem)
def test_a_card_says_all_that_a_reader_asks(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert [name for name in headings if name != "Published"] == ["Use", "Cost", "Figures", "Citation"]
    for part in ("\n> ", "\n**When**: ", "\n**When not**: "):
        assert part in text
    assert any(block.language == "python" for block in blocks_of(page))
    assert "```bibtex" in text or "Nothing to cite" in text
    assert len(text.splitlines()) < 130


def test_the_index_names_every_card_once_in_the_order_of_the_generator(make_cards: ModuleType) -> None:
    assert sorted(f"{card.file}.md" for card in make_cards.METHODS) == [page.name for page in CARDS]
    text = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    places = [text.index(f"]({card.file}.md)") for card in make_cards.METHODS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("gains", "word"),
    [([(2, 1)], "yes"), ([(-2, 1)], "no"), ([(2, 1), (-2, 1)], "depends"), ([(1, 2)], "level")],
    ids=["yes", "no", "depends", "level"],
)
def test_the_word_of_the_index_follows_the_rule(
    gains: list[tuple[float, float]], word: str, make_cards: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"gain": gain, "spread": spread, "better": "higher", "baseline": "other"} for gain, spread in gains]
    monkeypatch.setattr(make_cards, "rows_of", lambda method: rows)
    assert make_cards.verdict("any")[0] == word
    flipped = [row | {"gain": -row["gain"], "better": "lower"} for row in rows]
    monkeypatch.setattr(make_cards, "rows_of", lambda method: flipped)
    assert make_cards.verdict("any")[0] == word
