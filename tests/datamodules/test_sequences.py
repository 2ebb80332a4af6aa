"""What all sequence data modules share: keyed randomness, held-out groups, exact resuming and processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.datamodules._keyed_draws import add_normal, keyed_generator, uniform
from lightning_efficient.datamodules._splits import cut_by_class, cut_by_group
from lightning_efficient.datamodules.adding_problem import AddingProblem
from lightning_efficient.datamodules.sequential_images import SequentialImages
from lightning_efficient.datamodules.wikitext import WikiText
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.typing import SequenceBatch

KINDS = ("fresh", "labelled", "text")


class Recorder(L.LightningModule):
    """Remembers the inputs of every training batch, and how many rows it validated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        return self.weight * batch[0].float().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch[0])

    def predict_step(self, batch, batch_idx):
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SaveEverywhere(L.Callback):
    """Save inside an epoch, while validating at its end, and after it."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step in (2, 7):
            trainer.save_checkpoint(f"inside-{trainer.global_step}")

    def on_validation_end(self, trainer, module):
        trainer.save_checkpoint(f"validating-{trainer.global_step}")

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(f"after-{trainer.global_step}")


class Report(L.Callback):
    def on_fit_end(self, trainer, module):
        torch.save({"seen": module.seen, "validated": module.validated}, f"report-{trainer.global_rank}")


def trainer(**options) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet, **options)


def data(kind: str, batch_size: int = 4, **options) -> L.LightningDataModule:
    """Five batches of four an epoch, of each kind of data module."""
    if kind == "fresh":
        return AddingProblem(6, batch_size=batch_size, train_samples=20, val_samples=9, test_samples=7, **options)
    if kind == "labelled":
        return SequentialImages("Digits", batch_size=batch_size, train_samples=20, **options)
    folder = Path("text")
    folder.mkdir(exist_ok=True)
    for part, size in (("train", 197), ("valid", 90), ("test", 50)):
        (folder / f"wiki.{part}.tokens").write_text(" ".join(f"w{number % 197}" for number in range(size)))
    return WikiText(str(folder), batch_size=batch_size, window=10, **options)


def epochs(module: L.LightningDataModule, count: int = 1) -> list[Tensor]:
    module.setup("fit")
    loader = module.train_dataloader()
    return [batch[0] for _ in range(count) for batch in loader]


def all_equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_sees_the_batches_of_the_uninterrupted_one(kind, num_workers):
    L.seed_everything(3, verbose=False)
    whole = Recorder()
    trainer(max_epochs=2, callbacks=[SaveEverywhere()]).fit(whole, datamodule=data(kind, num_workers=num_workers))
    assert len(whole.seen) == 10
    for checkpoint in ("inside-2", "validating-5", "after-5", "inside-7"):
        L.seed_everything(99, verbose=False)
        resumed = Recorder()
        trainer(max_epochs=2).fit(resumed, datamodule=data(kind, num_workers=num_workers), ckpt_path=checkpoint)
        assert all_equal(resumed.seen, whole.seen[int(checkpoint.split("-")[1]) :]), checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_workers_do_not_change_the_batches(kind):
    torch.manual_seed(1)
    alone = epochs(data(kind), 2)
    torch.manual_seed(1)
    assert all_equal(epochs(data(kind, num_workers=2), 2), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_data_leaves_the_global_random_states_alone(kind):
    module = data(kind)
    torch.manual_seed(4)
    np.random.seed(4)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    module.setup()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("kind", KINDS)
def test_data_sets_can_be_sent_to_spawned_workers(kind):
    module = data(kind)
    module.setup()
    module.trainer = trainer()  # must not travel along
    sets = [loader.dataset for loader in (module.train_dataloader(), module.val_dataloader())]
    assert all(len(pickle.dumps(each)) < 200_000 for each in sets)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_share_training_and_validate_each_sample_once(kind):
    L.seed_everything(3, verbose=False)
    two = trainer(max_epochs=1, devices=2, strategy="ddp_fork", callbacks=[Report()])
    two.fit(Recorder(), datamodule=data(kind, batch_size=2, eval_batch_size=2))
    reports = [torch.load(f"report-{rank}") for rank in (0, 1)]
    alone = data(kind, batch_size=4, eval_batch_size=4)
    L.seed_everything(3, verbose=False)
    if kind == "fresh":
        alone.setup()
    expected = epochs(alone)
    validated = [batch[0] for batch in alone.val_dataloader()]
    for name, whole in (("seen", expected), ("validated", validated)):
        dealt = torch.cat([batch.flatten() for report in reports for batch in report[name]])
        assert len(dealt) == sum(batch.numel() for batch in whole), name
        assert torch.equal(dealt.sort()[0], torch.cat([batch.flatten() for batch in whole]).sort()[0]), name
    # One process with the doubled batch sees, step by step, what the two see together.
    for step, batch in enumerate(expected):
        together = torch.cat([report["seen"][step] for report in reports])
        assert torch.equal(together.flatten(1).sum(1).sort()[0], batch.flatten(1).sum(1).sort()[0])


@pytest.mark.parametrize("kind", KINDS)
def test_overfitting_repeats_the_same_batches(kind):
    module = Recorder()
    trainer(max_epochs=2, overfit_batches=2).fit(module, datamodule=data(kind))
    assert len(module.seen) == 4
    assert all_equal(module.seen[:2], module.seen[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_follows_the_order_of_the_test_part(kind):
    module = data(kind)
    predicted = trainer().predict(Recorder(), datamodule=module)
    assert all_equal(predicted, [batch[1] for batch in module.test_dataloader()])


def test_batches_of_labelled_sequences_name_their_samples():
    module = SequentialImages("Digits")
    module.setup("fit")
    dataset = module.datasets["train"]
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, SequenceBatch)
    assert (batch.inputs.dtype, batch.target.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)
    again = dataset.__getitems__(batch.index.tolist())
    assert torch.equal(again.inputs, batch.inputs)
    assert torch.equal(again.target, batch.target)
    one = dataset[int(batch.index[2])]
    assert torch.equal(one.inputs, batch.inputs[2])
    assert one.target == batch.target[2]


def test_train_samples_shrink_training_only_and_keep_the_normalisation():
    few, all_of_them = (SequentialImages("Digits", train_samples=count) for count in (100, None))
    few.setup()
    all_of_them.setup()
    assert [len(part) for part in few.datasets.values()] == [100, 300, 300]
    assert torch.equal(few.datasets["val"][0].inputs, all_of_them.datasets["val"][0].inputs)
    assert set(few.datasets["train"].target.tolist()) == set(range(10))


def test_a_loader_before_setup_says_what_to_call():
    with pytest.raises(ConfigurationError, match=r"the val samples are not loaded; call prepare_data\(\) and setup"):
        data("fresh").val_dataloader()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"eval_batch_size": -3}, "eval_batch_size is -3"),
        ({"num_workers": -2}, "num_workers is -2"),
    ],
)
def test_a_useless_option_is_refused_in_one_line(kind, options, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        data(kind, **options)
    assert "\n" not in str(caught.value)


def test_numbers_of_a_sample_do_not_depend_on_its_batch():
    keys = [5, 2**63, 0, 7 * 10**12]
    together = uniform(3, 0, keys, 9)
    assert torch.equal(together, torch.cat([uniform(3, 0, [key], 9) for key in keys]))
    assert torch.equal(uniform(3, 0, keys[:2], 20)[:, :9], together[:2])


def test_seeds_streams_and_keys_share_no_numbers():
    draws = [uniform(seed, stream, [key], 50) for seed in (0, 1) for stream in (0, 1) for key in (0, 1)]
    assert len(torch.cat(draws).unique(dim=0)) == 8
    assert torch.cat(draws).unique().numel() == 400


def test_numbers_are_uniform_and_normal():
    draws = uniform(0, 0, range(1000), 100)
    assert 0 <= draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    torch.testing.assert_close(draws.mean(), torch.tensor(0.5), atol=4e-3, rtol=0)
    torch.testing.assert_close(draws.var(), torch.tensor(1 / 12), atol=2e-3, rtol=0)
    noise = add_normal(torch.full((500, 20, 10), 7.0), 2.0, 0, 0, range(500))
    torch.testing.assert_close(noise.mean(), torch.tensor(7.0), atol=2e-2, rtol=0)
    torch.testing.assert_close(noise.std(), torch.tensor(2.0), atol=2e-2, rtol=0)


def test_the_keyed_numbers_are_the_same_on_every_machine():
    raw = keyed_generator(seed=1, stream=2, key=3).bit_generator.random_raw(2)
    assert raw.tolist() == [1707957822286293403, 7654304315491484782]


def test_held_out_groups_are_whole_and_follow_the_seed():
    groups = np.repeat([3, 1, 8, 5, 9], [4, 1, 3, 2, 6])
    kept, held_out = cut_by_group(groups, 2, seed=0, option="val_subjects")
    assert sorted([*kept, *held_out]) == list(range(16))
    assert len(set(groups[held_out])) == 2
    assert not set(groups[kept]) & set(groups[held_out])
    choices = {tuple(cut_by_group(groups, 2, seed, "val_subjects")[1]) for seed in range(10)}
    assert len(choices) > 3
    assert tuple(held_out) in choices


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (0, "val_subjects holds out 0 of 3 groups"),
        (3, "val_subjects holds out 3 of 3 groups of the training part; both parts need at least one"),
        ([], "val_subjects holds out 0 of 3 groups"),
        ([1, 7], r"val_subjects names 7, which is not in the training part; choose from \[1, 2, 3\]"),
    ],
)
def test_groups_that_cannot_be_held_out_are_refused(held_out, message):
    with pytest.raises(ConfigurationError, match=message):
        cut_by_group(np.array([1, 1, 2, 3]), held_out, 0, "val_subjects")


def test_a_fraction_that_leaves_a_part_empty_is_refused():
    with pytest.raises(ConfigurationError, match=r"val_fraction 0\.01 of 4 training images holds out 0; .* one image"):
        cut_by_class(np.arange(4), 0.01, 0, "images")
