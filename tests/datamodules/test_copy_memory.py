from __future__ import annotations

import math

import pytest
import torch

from lightning_efficient.datamodules.copy_memory import CopyMemory, paused_symbols
from lightning_efficient.errors import ConfigurationError


def test_symbols_are_shown_once_and_asked_for_after_the_delimiter():
    draws = torch.tensor([[0.0, 0.99, 0.125, 0.249, 0.25, 0.5, 0.51, 0.875, 0.8749, 0.3]])
    inputs, target = paused_symbols(draws, steps=23)
    symbols = [1, 8, 2, 2, 3, 5, 5, 8, 7, 3]
    assert inputs.argmax(-1)[0].tolist() == [*symbols, 0, 0, 9, *[0] * 10]
    assert inputs.sum(-1).eq(1).all()
    assert target[0].tolist() == [*[0] * 13, *symbols]
    assert (inputs.dtype, target.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("length", [1, 7, 100])
def test_the_delimiter_comes_eleven_steps_before_the_end(length):
    data = CopyMemory(length, batch_size=16)
    data.setup("fit")
    inputs, target = next(iter(data.train_dataloader()))
    assert inputs.shape == (16, length + 20, 10) == (16, *data.input_shape)
    assert target.shape == (16, length + 20)
    tokens = inputs.argmax(-1)
    assert tokens[:, length + 20 - 11].eq(9).all()
    assert tokens.eq(9).sum() == 16
    assert torch.equal(tokens[:, :10], target[:, -10:])


def test_symbols_are_uniform_and_the_baseline_is_that_of_guessing():
    data = CopyMemory(5, test_samples=4_000)
    data.setup("test")
    _, target = data.datasets["test"].__getitems__(range(4_000))
    shares = torch.bincount(target[:, -10:].flatten(), minlength=9) / 40_000
    torch.testing.assert_close(shares[1:], torch.full((8,), 1 / 8), atol=0.006, rtol=0)
    assert shares[0] == 0
    assert (data.num_classes, data.input_size) == (9, 10)
    assert data.baseline_loss == pytest.approx(10 * math.log(8) / 25)


def test_a_batch_is_what_its_samples_are_one_by_one():
    data = CopyMemory(4)
    data.setup("fit")
    dataset = data.datasets["train"]
    keys = [7, 2**50 + 3, 12_801]
    singles = [dataset[key] for key in keys]
    for number, whole in enumerate(dataset.__getitems__(keys)):
        assert torch.equal(whole, torch.stack([each[number] for each in singles]))


def test_without_a_step_between_it_is_refused():
    with pytest.raises(ConfigurationError, match="length is 0; it must be at least 1"):
        CopyMemory(0)
