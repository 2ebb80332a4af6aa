from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from module_settings import steps, trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules.language_model import LanguageModel

V, N, T = 7, 3, 8


def tiny(**options: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(**{"vocabulary_size": V, "embedding_size": 6, "hidden_size": 6, "dropout": 0.0} | options)


def text(steps: int, streams: int = N) -> Tensor:
    return torch.randint(0, V, (streams, steps + 1), generator=torch.Generator().manual_seed(1))


def windows(tokens: Tensor, width: int = T) -> list[tuple[Tensor, Tensor]]:
    """Windows in order; the last one may be shorter."""
    steps = tokens.shape[1] - 1
    bounds = [(start, min(start + width, steps)) for start in range(0, steps, width)]
    return [(tokens[:, start:stop], tokens[:, start + 1 : stop + 1]) for start, stop in bounds]


def loader(data: list[Any]) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None)  # type: ignore[arg-type]


def nll(module: LanguageModel, tokens: Tensor) -> float:
    with torch.no_grad():
        return cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()


@pytest.fixture(autouse=True)
def _no_trainer() -> None:
    warnings.filterwarnings("ignore", message=".*self.log.*")


@pytest.mark.parametrize("rnn", ["lstm", "gru", "irnn", "tarnn"])
def test_it_learns_a_repeating_text(rnn: str) -> None:
    seed_everything(0, verbose=False)
    tokens = torch.arange(4 * T + 1).remainder(V).expand(N, -1)
    module = tiny(rnn=rnn, hidden_size=12, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-2))
    run = trainer(max_epochs=20)
    # one window: networks that were trained from zeros only may do badly on a state that is carried on and on
    run.fit(module, loader(windows(tokens)), loader(windows(tokens)[:1]))
    assert run.callback_metrics["val/perplexity"] < 1.5
    assert set(run.callback_metrics) == {"train/loss", "val/loss", "val/perplexity"}


def test_losses_of_parts_average_to_the_loss_of_the_window() -> None:
    module, data = tiny(), windows(text(T))[0]
    whole = module.training_step(data, 0)
    outputs = steps(module, data, 4)
    assert sum(output["loss"].item() for output in outputs) / 4 == pytest.approx(whole["loss"].item(), rel=1e-6)
    assert torch.allclose(torch.cat([output["logits"] for output in outputs], 1), whole["logits"], atol=1e-6)
    assert whole["loss"].item() == pytest.approx(nll(module, text(T)), rel=1e-6)


def test_training_starts_from_zeros_unless_a_state_is_given() -> None:
    module = tiny()
    first, second = windows(text(2 * T))
    state = module.training_step(first, 0)["hiddens"]
    fresh, carried = module.training_step(second, 1), module.training_step(second, 1, state)
    assert torch.allclose(fresh["logits"], module(second[0]), atol=1e-6)
    assert torch.allclose(carried["logits"], module(text(2 * T)[:, :-1])[:, T:], atol=1e-6)


@pytest.mark.parametrize("level", ["word", "character"])
def test_evaluation_carries_its_state_and_weighs_by_tokens(level: Any) -> None:
    module, tokens = tiny(level=level), text(2 * T + 3)
    run = trainer()
    for _ in range(2):  # every epoch starts anew
        (logged,) = run.test(module, loader(windows(tokens)), verbose=False)
        expected = nll(module, tokens)
        assert logged["test/loss"] == pytest.approx(expected, rel=1e-5)
        if level == "word":
            assert logged["test/perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
        else:
            assert logged["test/bits_per_character"] == pytest.approx(expected / math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("level", "measure", "value"), [("word", "perplexity", 4.0), ("character", "bits_per_character", 2.0)]
)
def test_four_equally_likely_tokens_are_perplexity_four_and_two_bits(level: Any, measure: str, value: float) -> None:
    module = tiny(vocabulary_size=4, level=level)
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)
    (logged,) = trainer().validate(module, loader(windows(text(20) % 4)), verbose=False)
    assert logged[f"val/{measure}"] == pytest.approx(value, rel=1e-6)


def test_a_known_distribution_gives_the_exponential_of_its_entropy() -> None:
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125])
    module = tiny(vocabulary_size=4)
    torch.nn.init.zeros_(module.head.weight)
    module.head.bias.data = probs.log()
    tokens = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2, 3]])  # next tokens have exactly these frequencies
    (logged,) = trainer().validate(module, loader(windows(tokens, 3)), verbose=False)
    assert logged["val/perplexity"] == pytest.approx(2**1.75, rel=1e-5)


def test_evaluation_with_another_number_of_streams_is_told() -> None:
    data = [*windows(text(T)), *windows(text(T, streams=2))]
    with pytest.raises(ConfigurationError, match="state is of 3 sequences, but the batch has 2"):
        trainer().validate(tiny(), loader(data), verbose=False)


def test_tied_weights_are_one_tensor_with_the_read_outs_scale() -> None:
    module = tiny(tie_weights=True)
    assert module.embedding.weight is module.head.weight
    assert module.embedding.weight.abs().max() <= 6**-0.5
    plain = tiny()
    assert sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in module.parameters()) == V * 6


def test_next_tokens_of_minus_100_and_padding_do_not_count() -> None:
    module, (tokens, target) = tiny(), windows(text(T))[0]
    target = target.clone()
    target[0, 2:] = -100
    lengths = torch.tensor([T, 3, T])
    loss = module.training_step({"inputs": tokens, "target": target, "lengths": lengths}, 0)["loss"]
    logits = module(tokens)
    kept = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), *((2, step) for step in range(T))]
    each = [cross_entropy(logits[row, step], target[row, step]) for row, step in kept]
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_dropout_is_for_training_only() -> None:
    module = tiny(dropout=0.5)
    tokens = windows(text(T))[0][0]
    assert not torch.equal(module(tokens), module(tokens))
    module.eval()
    assert torch.equal(module(tokens), module(tokens))


def test_a_checkpoint_loads_without_its_callables_and_with_tied_weights(tmp_path: Path) -> None:
    module = tiny(tie_weights=True, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    run = trainer()
    run.fit(module, loader(windows(text(T))))
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.embedding.weight is loaded.head.weight
    tokens = text(T)
    assert torch.equal(loaded.eval()(tokens), module.eval()(tokens))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie_weights": True, "hidden_size": 8}, "embedding_size is 6 and the network's outputs are 8 wide"),
        ({"level": "char"}, "model.level='char' is not one of.*Did you mean 'character'"),
        ({"dropout": -0.1}, "model.dropout is -0.1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny(**options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.rand(2, T), torch.zeros(2, T)), r"both integers of shape \(N, T\), but one has float32"),
        ((text(T), text(T - 1)), r"int64 of shape \(3, 9\) and a target of shape \(3, 8\)"),
        ((text(T), text(T) + 1), "vocabulary_size is 7, so tokens must be 0 to 6, but a batch has tokens from 0 to 7"),
    ],
)
def test_batches_that_do_not_fit_are_told(data: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny().training_step(data, 0)


def test_a_smaller_vocabulary_and_another_level_than_the_datas_are_told() -> None:
    data = type("Text", (), {"vocabulary_size": 9, "level": "character"})()
    for options, message in (
        ({}, "has 9; set model.vocabulary_size to 9"),
        ({"vocabulary_size": 9}, "set model.level"),
    ):
        module = tiny(**options)
        module._trainer = type("Trainer", (), {"datamodule": data})()  # type: ignore[assignment]
        with pytest.raises(ConfigurationError, match=message):
            module.setup("fit")
