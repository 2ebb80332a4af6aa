from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from module_settings import steps, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.parts import SplitBatch
from lightning_efficient.modules.sequence_classifier import SequenceClassifier
from lightning_efficient.typing import Part, SequenceBatch

N, T, F, C = 6, 12, 3, 4
KINDS = ["lstm", "gru", "rnn", "irnn", "tarnn"]


class OwnGRU(nn.GRU):
    """Importable, so that a checkpoint finds it again."""


def tiny(**options: Any) -> SequenceClassifier:
    torch.manual_seed(0)
    return SequenceClassifier(**{"input_size": F, "num_classes": C, "rnn": "gru", "hidden_size": 8} | options)


def batch(samples: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (samples,), generator=generator)
    inputs = torch.randn(samples, T, F, generator=generator)
    inputs[:, :, 0] += labels.view(-1, 1) - 1.5  # something to learn
    return inputs, labels


class Samples(Dataset[SequenceBatch]):
    def __init__(self, samples: int = 48) -> None:
        self.inputs, self.target = batch(samples)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> SequenceBatch:
        return SequenceBatch(self.inputs[index], self.target[index], torch.tensor(index))


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(Samples(), **{"batch_size": 16} | options)


@pytest.fixture(autouse=True)
def _no_trainer() -> Any:
    import warnings

    warnings.filterwarnings("ignore", message=".*self.log.*")


@pytest.mark.parametrize("rnn", KINDS)
def test_it_learns_by_back_propagation_through_time(rnn: str) -> None:
    seed_everything(0, verbose=False)
    module = tiny(rnn=rnn, hidden_size=16, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-2))
    run = trainer(max_epochs=12)
    run.fit(module, loader(shuffle=True), loader())
    assert run.callback_metrics["val/accuracy"] > 0.6
    assert set(run.callback_metrics) == {"train/loss", "val/loss", "val/accuracy"}


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_the_loss_of_part_p_weighs_p_of_k_and_reads_the_last_step(parts: int) -> None:
    module, data = tiny(), batch()
    outputs = steps(module, data, parts)
    whole, _, _ = module.network(data[0])
    for index, (output, part) in enumerate(zip(outputs, SplitBatch.of(data, parts).parts, strict=True)):
        logits = module.head(whole[:, part.stop - 1])
        assert torch.allclose(output["logits"], logits, atol=1e-6)
        expected = (index + 1) / parts * cross_entropy(logits, data[1])
        assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
        assert output["target"] is data[1]
        assert not output["logits"].requires_grad
        assert not output["hiddens"].requires_grad


def test_one_part_is_back_propagation_through_time() -> None:
    module, data = tiny(), batch()
    gradients = []
    for arguments in ((), (None, Part(0, 1, 0, T, T))):
        module.zero_grad()
        loss = module.training_step(data, 0, *arguments)["loss"]
        loss.backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
        assert torch.equal(loss, cross_entropy(module(data[0]), data[1]))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_gradients_stay_within_a_part() -> None:
    module, (inputs, labels) = tiny(), batch()
    inputs.requires_grad_()
    _, second = steps(module, (inputs, labels), 2)
    second["loss"].backward()
    assert not inputs.grad[:, : T // 2].any()
    assert inputs.grad[:, T // 2 :].any()


def padded() -> dict[str, Tensor]:
    inputs, target = batch(4)
    lengths = torch.tensor([12, 3, 6, 5])
    return {"inputs": inputs, "target": target, "lengths": lengths}


def test_sequences_that_end_early_have_their_own_weights_and_then_do_not_count() -> None:
    module, data = tiny(), padded()
    outputs = steps(module, data, 4)
    for index, output in enumerate(outputs):
        losses = []
        for row, count in enumerate((4, 1, 2, 2)):
            if index < count:
                stop = min(3 * index + 3, int(data["lengths"][row]))
                logits = module(data["inputs"][row : row + 1, :stop])
                losses.append((index + 1) / count * cross_entropy(logits, data["target"][row : row + 1]))
        assert output["loss"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    last = [module(data["inputs"][row : row + 1, :length])[0] for row, length in enumerate(data["lengths"].tolist())]
    assert torch.allclose(outputs[-1]["logits"], torch.stack(last), atol=1e-6)


def test_a_part_in_which_all_have_ended_has_no_loss_and_a_gradient_of_zeros() -> None:
    module, data = tiny(), padded() | {"lengths": torch.tensor([2, 3, 1, 3])}
    output = steps(module, data, 4)[2]
    output["loss"].backward()
    assert output["loss"].item() == 0
    assert all(not p.grad.any() for p in module.parameters())


def test_labels_of_every_step_are_averaged_over_valid_steps_without_weights() -> None:
    module = tiny(target="every")
    inputs, target = torch.randn(3, T, F), torch.randint(0, C, (3, T))
    target[0, 1] = -100
    lengths = torch.tensor([12, 7, 4])
    outputs = steps(module, {"inputs": inputs, "target": target, "lengths": lengths}, 3)
    logits = module(inputs, lengths)
    for index, output in enumerate(outputs):
        there = [
            (row, step)
            for row in range(3)
            for step in range(4 * index, 4 * index + 4)
            if step < lengths[row] and target[row, step] >= 0
        ]
        each = [cross_entropy(logits[row, step], target[row, step]) for row, step in there]
        assert output["loss"].item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_labels_to_ignore_do_not_count() -> None:
    module, (inputs, labels) = tiny(ignore_index=9), batch()
    labels[:2] = 9
    loss = module.training_step((inputs, labels), 0)["loss"]
    assert loss.item() == pytest.approx(cross_entropy(module(inputs[2:]), labels[2:]).item(), rel=1e-5)


def test_the_papers_divergence_asks_for_the_prediction_of_the_epoch_before() -> None:
    module = tiny(divergence="paper")
    inputs, labels = batch()
    before: dict[tuple[int, int], Tensor] = {}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for epoch in range(3):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(3):
            split = SplitBatch.of(SequenceBatch(inputs[index], labels[index], index), 3)
            hiddens = None
            for part, piece in zip(split.parts, split, strict=True):
                output = module.training_step(piece, 0, hiddens, part)
                hiddens, share = output["hiddens"], (part.index + 1) / 3
                expected = 0.0
                for row, sample in enumerate(index.tolist()):
                    log_probs = output["logits"][row].log_softmax(0)
                    reference = before.get((sample, part.index), torch.full((C,), 1 / C))
                    expected += share * -float(log_probs[labels[sample]])
                    expected += (1 - share) * -float((reference * log_probs).sum())
                    before[sample, part.index] = log_probs.exp()
                assert output["loss"].item() == pytest.approx(expected / 3, rel=1e-4)
                optimizer.zero_grad()
                output["loss"].backward()
                optimizer.step()


def test_the_released_divergence_is_averaged_over_classes_too() -> None:
    module, data = tiny(divergence="released"), batch()
    for output, share in zip(steps(module, data, 3), (1 / 3, 2 / 3, 1.0), strict=True):
        log_probs = output["logits"].log_softmax(1)
        expected = share * cross_entropy(output["logits"], data[1]) - (1 - share) * (log_probs / C).mean()
        assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_divergence_leaves_whole_sequences_alone() -> None:
    data = SequenceBatch(*batch(), torch.arange(N))
    plain, paper, released = (tiny(divergence=name).training_step(data, 0) for name in (None, "paper", "released"))
    assert plain["loss"].item() == pytest.approx(paper["loss"].item()) == pytest.approx(released["loss"].item())


@pytest.mark.parametrize("divergence", ["paper", "released"])
def test_the_tables_are_in_the_checkpoint_and_stand_moving_averages(tmp_path: Path, divergence: str) -> None:
    module = tiny(divergence=divergence)
    run = trainer(callbacks=[EMAWeightAveraging(decay=0.9)])
    steps(module, next(iter(loader())), 3)
    run.fit(module, loader(), loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = tiny(divergence=divergence)
    again = trainer(callbacks=[EMAWeightAveraging(decay=0.9)])
    again.fit(other, loader(), loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert module.divergence is not None
    assert other.divergence is not None
    assert torch.equal(module.divergence.table.values, other.divergence.table.values)
    assert module.divergence.table.values.any()


def test_its_metrics_are_those_of_all_samples_that_count() -> None:
    module = tiny()
    data = Samples()
    data.target[::5] = -100
    (logged,) = trainer().test(module, DataLoader(data, batch_size=10), verbose=False)
    kept = data.target >= 0
    with torch.no_grad():
        logits = module.eval()(data.inputs[kept])
    assert logged["test/loss"] == pytest.approx(cross_entropy(logits, data.target[kept]).item(), rel=1e-5)
    assert logged["test/accuracy"] == pytest.approx((logits.argmax(1) == data.target[kept]).float().mean().item())


def test_predictions_come_with_their_confidence_for_every_kind_of_batch() -> None:
    module = tiny().eval()
    inputs, labels = batch()
    outputs = [
        module.predict_step(form, 0)
        for form in (
            inputs,
            (inputs, labels),
            SequenceBatch(inputs, labels, labels),
            {"inputs": inputs, "target": labels},
        )
    ]
    assert torch.equal(outputs[0]["prediction"], module(inputs).argmax(1))
    assert torch.allclose(outputs[0]["confidence"], module(inputs).softmax(1).amax(1))
    assert all(torch.equal(output["logits"], outputs[0]["logits"]) for output in outputs)
    assert tiny(target="every").predict_step(inputs, 0)["confidence"].shape == (N, T)


def test_the_second_linear_layer_of_the_released_code() -> None:
    module = tiny(head_size=16)
    assert [tuple(p.shape) for p in module.head.parameters()] == [(16, 8), (16,), (C, 16), (C,)]
    assert len(module.head) == 2


@pytest.mark.parametrize("rnn", ["lstm", OwnGRU])
def test_a_checkpoint_loads_without_its_callables_and_classes(tmp_path: Path, rnn: Any) -> None:
    module = tiny(rnn=rnn, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    run = trainer()
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]
    assert "optimizer" not in stored
    assert isinstance(stored["rnn"], str)
    if rnn is OwnGRU:  # importlib mode of pytest: this file is no importable module
        assert stored["rnn"].endswith("test_sequence_classifier.OwnGRU")
        loaded = SequenceClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, rnn=OwnGRU)
    else:
        loaded = SequenceClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    inputs, _ = batch()
    assert torch.equal(loaded.eval()(inputs), module.eval()(inputs))


def test_the_scheduler_is_stepped_as_asked() -> None:
    module = tiny(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        lr_interval="step",
    )
    run = trainer()
    run.fit(module, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5**3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnn": "gruu"}, "unknown recurrent network 'gruu'.*Did you mean 'gru'"),
        ({"dropout": 1.0}, r"model.dropout is 1.0; it must be in \[0, 1\)"),
        ({"target": "evry"}, "model.target='evry' is not one of.*Did you mean 'every'"),
        ({"divergence": "papr"}, "model.divergence='papr' is not one of.*Did you mean 'paper'"),
        ({"divergence": "paper", "target": "every"}, "one label per sequence, but model.target is 'every'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny(**options)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, (torch.randn(2, T, 5), torch.zeros(2, dtype=torch.long)), r"input_size is 3, .* a batch has \(2, 12, 5\)"),
        ({}, (torch.randn(2, T, F), torch.zeros(2, T, dtype=torch.long)), r"shape \(2,\).*can also be 'every'"),
        ({}, (torch.randn(2, T, F), torch.zeros(2)), r"integers of shape \(2,\), but a batch has float32"),
        ({"target": "every"}, (torch.randn(2, T, F), torch.zeros(2, dtype=torch.long)), "can also be 'last'"),
        ({}, (torch.randn(2, T, F), torch.tensor([0, 4])), "labels must be 0 to 3, but a batch has labels from 0 to 4"),
        ({}, torch.randn(2, T, F), r"a batch of sequences is \(inputs, target\).* this one is a Tensor"),
        ({}, {"inputs": torch.randn(2, T, F)}, r"this one is keys \['inputs'\]"),
    ],
)
def test_batches_that_do_not_fit_are_told(options: dict[str, Any], data: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny(**options).training_step(data, 0)


def test_the_papers_divergence_needs_to_know_the_samples() -> None:
    with pytest.raises(ConfigurationError, match="needs to know which samples a batch has"):
        tiny(divergence="paper").training_step(batch(), 0, None, Part(0, 2, 0, T, 2 * T))


def test_a_divergence_is_for_one_process() -> None:
    class TwoProcesses:
        world_size = 2
        datamodule = None

    module = tiny(divergence="paper")
    module._trainer = TwoProcesses()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="each of 2 processes sees other samples every epoch"):
        module.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "num_classes is 4, but Data has 7; set model.num_classes to 7"),
        ({"num_classes": 7, "input_size": 5}, r"input_size is 5, but Data has 3; set model.input_size to 3"),
    ],
)
def test_too_few_classes_and_other_features_are_told_before_training(options: dict[str, Any], message: str) -> None:
    data = type("Data", (), {"num_classes": 7, "input_size": F})()
    module = tiny(**options)
    module._trainer = type("Trainer", (), {"datamodule": data, "world_size": 1})()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match=message):
        module.setup("fit")


def test_a_compiled_network_keeps_its_keys_and_its_numbers() -> None:
    plain = tiny()
    torch._dynamo.reset()
    compiled = tiny(compile=True)
    assert set(compiled.state_dict()) == set(plain.state_dict())
    for one, other in zip(steps(compiled, batch(), 3), steps(plain, batch(), 3), strict=True):
        assert torch.allclose(one["loss"], other["loss"], atol=1e-5)
