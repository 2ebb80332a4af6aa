from __future__ import annotations

import lzma
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.datamodules._token_windows import InOrderSampler, TokenWindows
from lightning_efficient.datamodules._vocabulary import Vocabulary, words_of
from lightning_efficient.datamodules.penn_treebank import PennTreebank
from lightning_efficient.datamodules.wikitext import WikiText
from lightning_efficient.errors import ConfigurationError, DataNotFoundError

TRAIN = " \n = The Cat = \n \n the cat sat on the <unk> mat \n"
VALID = " the dog sat \n"
TEST = " the mat <unk> \n" * 4


def write_wiki(folder: Path, train: str = TRAIN, valid: str = VALID, test: str = TEST) -> WikiText:
    folder.mkdir(exist_ok=True)
    (folder / "wiki.train.tokens").write_text(train, encoding="utf8")
    (folder / "wiki.valid.tokens.xz").write_bytes(lzma.compress(valid.encode("utf8")))
    (folder / "wiki.test.tokens").write_text(test, encoding="utf8")
    return WikiText(str(folder), batch_size=1, window=4)


@given(
    tokens=st.integers(2, 200),
    columns=st.integers(1, 6),
    window=st.integers(1, 12),
    replicas=st.integers(1, 3),
)
def test_windows_join_to_the_text_in_order_on_all_processes(tokens, columns, window, replicas):
    text = torch.arange(tokens, dtype=torch.int32) * 3
    length = (tokens - 1) // (columns * replicas)
    if not length:
        with pytest.raises(ConfigurationError, match=f"{tokens} tokens in {columns * replicas} columns are 0 steps"):
            TokenWindows(text, columns, window, replicas=replicas)
        return
    parts = [TokenWindows(text, columns, window, 1, replicas, rank) for rank in range(replicas)]
    assert {len(part) for part in parts} == {-(-length // window)}
    for number in (0, 1):  # tokens, and next tokens
        columns_of_all = [torch.cat([part[i][number] for i in range(len(part))], dim=1) for part in parts]
        joined = torch.cat(columns_of_all).flatten()
        assert torch.equal(joined, text[number : number + len(joined)].long())
        assert tokens - 1 - len(joined) < columns * replicas
    assert all(part[0][0].shape == (columns, min(window, length)) for part in parts)


@pytest.mark.parametrize(("min_window", "windows"), [(1, 4), (2, 4), (3, 3), (4, 3)])
def test_a_short_last_window_is_left_out_only_below_min_window(min_window, windows):
    part = TokenWindows(torch.arange(15), columns=1, window=4, min_window=min_window)
    assert [part[i][0].shape[1] for i in range(len(part))] == [4, 4, 4, 2][:windows]
    with pytest.raises(IndexError):
        part[windows]


def test_training_leaves_short_windows_out_and_evaluation_does_not(tmp_path):
    write_wiki(tmp_path)
    data = WikiText(str(tmp_path), batch_size=1, window=4, min_window=4)
    data.setup()
    lengths = {
        name: [tokens.shape[1] for tokens, _ in loader]
        for name, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader()))
    }
    assert lengths == {"train": [4, 4, 4], "test": [4, 4, 4, 3]}


def test_a_state_can_be_carried_from_batch_to_batch(tmp_path):
    write_wiki(tmp_path, train=" ".join(f"w{number}" for number in range(100)))
    data = WikiText(str(tmp_path), batch_size=3, window=10)
    with pytest.raises(ConfigurationError, match=r"valid.tokens.xz' has 'the', which the training file has not"):
        data.setup("fit")
    batches = list(data.train_dataloader())
    assert [tuple(tokens.shape) for tokens, _ in batches] == [(3, 10)] * 3 + [(3, 3)]
    for (tokens, following), (later, _) in pairwise(batches):
        assert torch.equal(following[:, :-1], tokens[:, 1:])
        assert torch.equal(following[:, -1], later[:, 0])
        assert tokens.dtype == following.dtype == torch.int64


def test_every_epoch_reads_the_text_in_the_same_order(tmp_path):
    data = write_wiki(tmp_path)
    data.setup("fit")
    loader = data.train_dataloader()
    first, second = ([tokens.tolist() for tokens, _ in loader] for _ in range(2))
    assert first == second
    assert first[0] == [data.vocabulary.encode(words_of(TRAIN)[:4], Path()).tolist()]


def test_words_end_every_line_and_unknown_ones_become_unk(tmp_path):
    data = write_wiki(tmp_path)
    data.setup()
    names = data.vocabulary.names

    def words(split: str) -> list[str]:
        return [names[number] for number in data.datasets[split]]

    expected = "<eos> = The Cat = <eos> <eos> the cat sat on the <unk> mat <eos>"
    assert words("train") == expected.split()
    assert words("val") == ["the", "<unk>", "sat", "<eos>"]
    assert names[0] == "<eos>"
    assert data.vocabulary_size == len(names) == len(set(words("train"))) == 10
    assert data.input_shape == (4,)


def test_a_last_line_without_its_end_is_ended_too():
    assert words_of("a b") == ["a", "b", "<eos>"]
    assert words_of("a\r\nb\r\n") == ["a", "<eos>", "b", "<eos>"]
    assert words_of("") == []


def test_the_vocabulary_is_read_when_a_model_asks_for_its_size(tmp_path):
    data = write_wiki(tmp_path)
    assert data.vocabulary_size == 10
    assert set(data.datasets) == {"train"}


def test_characters_are_read_as_they_are_with_a_name_for_new_ones(tmp_path):
    write_wiki(tmp_path, train="abba \n", valid="abc\n", test="b")
    data = WikiText(str(tmp_path), level="character", batch_size=1)
    data.setup("validate")
    assert data.vocabulary.names == ["a", "b", " ", "\n", "<unk>"]
    assert data.datasets["train"].tolist() == [0, 1, 1, 0, 2, 3]
    assert data.datasets["val"].tolist() == [0, 1, 4, 3]


def test_unknown_words_without_unk_are_refused():
    with pytest.raises(ConfigurationError, match=r"'x.txt' has 'c', which .* there is no '<unk>'"):
        Vocabulary(["a", "b"]).encode(["a", "c"], Path("x.txt"))


def test_equally_frequent_tokens_are_numbered_by_appearance():
    assert Vocabulary(["b", "a", "c", "a"]).names == ["a", "b", "c"]


def write_ptb(folder: Path, pattern: str, *texts: str) -> None:
    for part, text in zip(("train", "valid", "test"), texts, strict=True):
        (folder / pattern.format(part)).write_text(text)


def test_penn_treebank_prefers_its_character_files_at_that_level(tmp_path):
    write_ptb(tmp_path, "ptb.{}.txt", " a bc \n", " <unk> a \n", " a \n")
    plain = PennTreebank(str(tmp_path), level="character", batch_size=1)
    plain.setup("fit")
    assert [plain.vocabulary.names[number] for number in plain.datasets["train"]] == list(" a bc \n")
    write_ptb(tmp_path, "ptb.char.{}.txt", "a _ b c\n", "a\n", "b\n")
    prepared = PennTreebank(str(tmp_path), level="character", batch_size=1)
    prepared.setup()
    assert [prepared.vocabulary.names[number] for number in prepared.datasets["train"]] == [*"a_bc", "<eos>"]
    words = PennTreebank(str(tmp_path), batch_size=1)
    assert words.vocabulary.names == ["a", "bc", "<eos>"]
    assert (words.window, words.input_shape) == (300, (300,))


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (WikiText, "wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens"),
        (PennTreebank, "ptb.train.txt, ptb.valid.txt, ptb.test.txt"),
    ],
)
def test_missing_files_are_named_with_the_option(data, names, tmp_path):
    for step in (lambda: data(str(tmp_path)).prepare_data(), lambda: data(str(tmp_path)).vocabulary_size):
        with pytest.raises(DataNotFoundError, match=f"point --data.root at a folder that holds {names}, plain or .xz"):
            step()


def test_one_missing_part_is_found_before_training(tmp_path):
    data = write_wiki(tmp_path)
    (tmp_path / "wiki.test.tokens").unlink()
    with pytest.raises(DataNotFoundError, match=r"'wiki.test.tokens' is not in"):
        data.prepare_data()


@pytest.mark.parametrize(
    ("name", "content"), [("wiki.valid.tokens.xz", b"no xz"), ("wiki.train.tokens", "caf\xe9".encode("latin1"))]
)
def test_a_damaged_file_is_reported_in_one_line(tmp_path, name, content):
    data = write_wiki(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{name}' is incomplete or damaged") as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"min_window": 0}, "min_window is 0; it must be at least 1"),
        ({"window": 5, "min_window": 6}, "min_window is 6; it must be at most window, 5"),
        ({"level": "letter"}, "level is 'letter'; choose 'word' or 'character'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        WikiText("anywhere", **options)


def test_more_columns_than_tokens_are_refused(tmp_path):
    write_wiki(tmp_path)
    data = WikiText(str(tmp_path), batch_size=20)
    data.setup("fit")
    with pytest.raises(ConfigurationError, match="15 tokens in 20 columns are 0 steps each, but a window has at least"):
        data.train_dataloader()


@pytest.mark.parametrize("drawn", [0, 1, 4, 5])
def test_the_sampler_goes_on_where_its_loader_was(drawn):
    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(range(5), batch_size=None, sampler=InOrderSampler(5))

    original = loader()
    iterator = iter(original)
    assert [next(iterator) for _ in range(drawn)] == list(range(drawn))
    resumed = loader()
    resumed.load_state_dict(original.state_dict())
    assert list(resumed) == (list(range(drawn, 5)) or list(range(5)))
