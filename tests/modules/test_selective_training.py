"""How SelectiveClassifier trains: multipliers, what is kept by sample, the conditions of a Trainer, checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from module_settings import bits, same, trainer
from selective_settings import BATCH, CLASSES, FEATURES, OBJECTIVES, Watch, classifier, loader, network, samples, sgd
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient import functional as LF
from lightning_efficient.callbacks import ExactResume
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference import AbstainingPredictor, ThresholdFile, calibrate_threshold
from lightning_efficient.inference.calibration_file import hash_checkpoint
from lightning_efficient.modules.selective_classifier import SelectiveClassifier

# multipliers


def test_multipliers_ascend_slowly_without_decay_and_stay_at_zero_or_above() -> None:
    module = classifier("osp", objective_kwargs={"dual_rate": 0.5})
    engine = trainer(max_epochs=3)
    engine.fit(module, loader())
    groups = engine.optimizers[0].param_groups
    [up] = [group for group in groups if group.get("maximize")]
    own = [group for group in groups if group["weight_decay"] == 0]
    assert [up["lr"], groups[0]["lr"]] == pytest.approx([0.05, 0.1])
    assert groups[0]["weight_decay"] == 0.01
    assert sum(parameter.numel() for group in own for parameter in group["params"]) == 2 * CLASSES
    assert all(bool((value >= 0).all()) for value in module.objective.parameters())


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=8),
        partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=8, eta_min=0.02),
        partial(torch.optim.lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1),
    ],
)
def test_multipliers_are_slower_than_the_network_whatever_the_schedule(scheduler: Any) -> None:
    rates: list[list[float]] = []

    def watched(groups: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        optimizer.register_step_post_hook(lambda *_: rates.append([group["lr"] for group in optimizer.param_groups]))
        return optimizer

    module = classifier("osp", optimizer=watched, lr_scheduler=scheduler, lr_interval="step")
    trainer(max_epochs=2).fit(module, loader())
    assert len({rate for rate, *_ in rates}) > 3
    for rate, allowances, multipliers in rates:
        assert [allowances, multipliers] == pytest.approx([rate, 0.01 * rate])


def test_a_rate_that_is_a_tensor_is_left_alone() -> None:
    module = classifier("osp", optimizer=partial(torch.optim.AdamW, lr=torch.tensor(0.1)))
    engine = trainer(max_steps=1)
    engine.fit(module, loader())
    assert [float(group["lr"]) for group in engine.optimizers[0].param_groups] == pytest.approx([0.1, 0.1, 0.001])


def test_the_baseline_takes_an_optimiser_with_groups_of_its_own() -> None:
    def split(parameters: Any) -> torch.optim.Optimizer:
        parameters = list(parameters)
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        rest = [parameter for parameter in parameters if parameter.ndim < 2]
        return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}])

    engine = trainer(max_steps=1)
    engine.fit(classifier("gamblers", optimizer=split), loader())
    assert [group["weight_decay"] for group in engine.optimizers[0].param_groups] == [0.05, 0.0]
    with pytest.raises(ConfigurationError, match=r"model\.optimizer cannot take groups of parameters.*dual: fixed"):
        trainer(max_steps=1).fit(classifier("osp", optimizer=split), loader())


def test_a_price_that_starts_without_a_penalty_is_told() -> None:
    with pytest.warns(UserWarning, match="starts with multipliers of 0"):
        classifier("osp", objective_kwargs={"price": 0.5})


@pytest.mark.parametrize("multiplier", [0.0, 1.0])
def test_a_multiplier_never_leaves_a_step_below_zero(multiplier: float) -> None:
    # costs far below the allowance push the multiplier down with each step
    options = {"initial_allowance": 50.0, "initial_multiplier": multiplier, "dual_rate": 10.0}
    module = classifier("osp", objective_kwargs=options)
    seen: list[Tensor] = []

    class Before(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            seen.append(module.objective.multipliers.detach().clone())

    trainer(Before()).fit(module, loader())
    assert all(bool((value == 0).all()) for value in seen)


def test_an_optimiser_that_cannot_ascend_is_refused() -> None:
    class Descent(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 0.1})

    with pytest.raises(ConfigurationError, match=r"Descent has no option 'maximize'.*dual: fixed"):
        trainer().fit(classifier("osp", optimizer=Descent), loader())
    trainer(max_steps=0).fit(classifier("osp", optimizer=Descent, objective_kwargs={"dual": "fixed"}), loader())


# beliefs by sample


def test_self_adaptive_training_takes_the_index_of_a_foreign_loader() -> None:
    module = classifier("sat", objective_kwargs={"momentum": 0.5})
    inputs, labels, _ = samples().tensors
    before = module.train().outputs(inputs[:BATCH]).logits.softmax(1)[torch.arange(BATCH), labels[:BATCH]]
    module = classifier("sat", objective_kwargs={"momentum": 0.5})
    trainer(limit_train_batches=1).fit(module, loader())
    doubt = module.objective.doubt.values
    torch.testing.assert_close(1 - doubt[:BATCH], (0.5 + 0.5 * before).detach())


def test_self_adaptive_training_finds_the_samples_of_our_data_modules_again() -> None:
    data = Digits(image_size=16, in_chans=1, batch_size=32, train_samples=64, augment=True)
    module = SelectiveClassifier(
        "cifar_resnet10_xxxs", 10, 1, "sat", warmup_epochs=0, objective_kwargs={"momentum": 0.9}
    )
    trainer(max_epochs=3, limit_val_batches=0).fit(module, datamodule=data)
    doubt = module.objective.doubt.values
    # keys of augmented images differ from epoch to epoch; the samples are 64
    assert doubt.shape == (64,)
    assert bool((doubt > 0).all())


def test_a_data_module_is_left_as_it_was() -> None:
    data = Digits(image_size=16, in_chans=1, batch_size=32, train_samples=64)
    module = SelectiveClassifier("cifar_resnet10_xxxs", 10, 1, "sat", warmup_epochs=0)
    trainer(limit_val_batches=0).fit(module, datamodule=data)
    assert data.sample_keys is False
    # another loader has more samples than that data module
    inputs, labels = torch.randn(96, 1, 16, 16), torch.randint(10, (96,))
    own = DataLoader(TensorDataset(inputs, labels, torch.arange(96)), batch_size=32)
    trainer().fit(module, own)
    assert module.objective.doubt.values.shape == (96,)


def test_a_batch_that_overflows_is_not_remembered() -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.calls = nn.Linear(FEATURES, CLASSES), 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            return self.head(inputs * (torch.inf if self.calls == 1 else 1))

    module, watch = classifier("sat", backbone=Overflows()), Watch()
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer(watch, max_epochs=2, plugins=[scaler]).fit(module, loader())
    assert not watch.outputs[0]["loss"].isfinite()
    assert all(output["loss"].isfinite() for output in watch.outputs[1:])
    assert bool(module.objective.doubt.values.isfinite().all())


def test_self_adaptive_training_without_an_index_says_what_is_missing() -> None:
    pairs = DataLoader(TensorDataset(*samples().tensors[:2]), batch_size=BATCH)
    with pytest.raises(ConfigurationError, match=r"'sat' needs to know which samples a batch has"):
        trainer().fit(classifier("sat"), pairs)


# Lightning's conditions


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "condition",
    [
        {"precision": "bf16-mixed"},
        {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
        {"ema_decay": 0.9},
    ],
    ids=["bf16", "fp16_scaler", "bf16_true", "clip_norm", "clip_value", "accumulate", "ema"],
)
def test_every_objective_trains_under_the_conditions_of_a_trainer(objective: str, condition: Any) -> None:
    module = classifier(objective, warmup_epochs=1)
    options = dict(condition)
    start = bits(module)
    averaging = [EMAWeightAveraging(decay=options.pop("ema_decay"))] if "ema_decay" in options else []
    engine = trainer(*averaging, max_epochs=3, **options)
    engine.fit(module, loader(), loader())
    moved = [name for name, value in bits(module).items() if not torch.equal(value.float(), start[name].float())]
    assert {name.split(".")[0] for name in moved} >= {"backbone"} | ({"heads"} if objective != "ce" else set())
    assert all(bool(value.isfinite().all()) for value in bits(module).values())
    assert 0 <= float(engine.callback_metrics["val/aurc"]) <= 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_that_stopped_in_mid_epoch_goes_on_bit_for_bit(objective: str, tmp_path: Path) -> None:
    def run(ckpt_path: Path | None) -> SelectiveClassifier:
        seed_everything(0 if ckpt_path is None else 99, verbose=False)
        module = classifier(objective, dropout=0.3, warmup_epochs=1)
        save = ModelCheckpoint(
            tmp_path / str(ckpt_path is None), filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        data = loader(cls=StatefulDataLoader, shuffle=True)
        engine = trainer(save, ExactResume(), max_epochs=4, enable_checkpointing=True)
        engine.fit(module, data, ckpt_path=ckpt_path)
        return module

    whole = run(None)
    for step in (3, 10):  # in the warm-up, and after it
        resumed = run(tmp_path / "True" / f"step={step}.ckpt")
        assert same(bits(whole), bits(resumed))
        if objective == "sat":
            assert torch.equal(whole.objective.doubt.values, resumed.objective.doubt.values)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_checkpoint_holds_all_that_prediction_needs(objective: str, tmp_path: Path) -> None:
    module = SelectiveClassifier("cifar_resnet10_xxxs", 10, 1, objective, warmup_epochs=0)
    data = Digits(image_size=16, in_chans=1, batch_size=32, train_samples=64)
    engine = trainer(limit_val_batches=0)
    engine.fit(module, datamodule=data)
    engine.save_checkpoint(tmp_path / "one.ckpt")
    loaded = SelectiveClassifier.load_from_checkpoint(tmp_path / "one.ckpt").eval()
    images = torch.randn(5, 1, 16, 16)
    for one, other in zip(module.eval().scored(images), loaded.scored(images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_calibrated_checkpoint_predicts_with_the_confidence_of_its_heads(objective: str, tmp_path: Path) -> None:
    module = classifier(objective)
    engine = trainer(max_epochs=2)
    engine.fit(module, loader())
    engine.save_checkpoint(tmp_path / "one.ckpt")
    inputs, labels, _ = samples().tensors
    logits, sure = module.eval().scored(inputs)
    found = calibrate_threshold(sure, logits.argmax(1) != labels, coverage=0.5)
    file = ThresholdFile(found, "val", "0" * 64, hash_checkpoint(tmp_path / "one.ckpt"), score="confidence")
    file.write(ThresholdFile.beside(tmp_path / "one.ckpt"))
    predictor = AbstainingPredictor.from_checkpoint(classifier(objective), tmp_path / "one.ckpt")
    answer = predictor(inputs)
    assert torch.equal(answer.confidence, sure)
    assert int(answer.accepted.sum()) == len(inputs) // 2


def test_weights_of_a_file_are_loaded_before_training_and_never_over_trained_ones(tmp_path: Path) -> None:
    other = network()
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    first = str(tmp_path / "weights.pt")
    module = classifier("osp", backbone_checkpoint=first)
    trainer(max_steps=0).fit(module, loader())
    assert torch.equal(module.backbone[0].weight, other[0].weight)
    engine = trainer()
    engine.fit(module, loader())
    trained = module.backbone[0].weight.detach().clone()
    assert not torch.equal(trained, other[0].weight)
    engine.save_checkpoint(tmp_path / "trained.ckpt")
    trainer(max_steps=0).fit(module, loader())  # a second fit
    assert torch.equal(module.backbone[0].weight, trained)
    resumed = classifier("osp", backbone_checkpoint=first)
    trainer(max_epochs=1).fit(resumed, loader(), ckpt_path=tmp_path / "trained.ckpt")
    assert torch.equal(resumed.backbone[0].weight, trained)
    options = {"backbone": network(), "in_chans": None, "optimizer": sgd}
    loaded = SelectiveClassifier.load_from_checkpoint(tmp_path / "trained.ckpt", **options)
    trainer(max_steps=0).fit(loaded, loader())
    assert torch.equal(loaded.backbone[0].weight, trained)


def test_a_checkpoint_cannot_hold_a_score_that_is_a_function(tmp_path: Path) -> None:
    engine = trainer()
    engine.fit(classifier(score=lambda logits: -logits.var(1)), loader())
    engine.save_checkpoint(tmp_path / "one.ckpt")
    options = {"backbone": network(), "in_chans": None}
    with pytest.raises(ConfigurationError, match=r"model\.score of the checkpoint is the function .*lambda.*'msp'"):
        SelectiveClassifier.load_from_checkpoint(tmp_path / "one.ckpt", **options)
    SelectiveClassifier.load_from_checkpoint(tmp_path / "one.ckpt", score=LF.max_logit, **options)


def test_a_function_may_be_named_by_its_import_path() -> None:
    module = classifier(score="lightning_efficient.functional.max_logit")
    inputs = samples().tensors[0]
    logits, sure = module.eval().scored(inputs)
    torch.testing.assert_close(sure, logits.amax(1))


def test_a_batch_may_lack_classes() -> None:
    inputs = samples().tensors[0]
    single = DataLoader(
        TensorDataset(inputs, torch.zeros(len(inputs), dtype=torch.long), torch.arange(len(inputs))), BATCH
    )
    for objective in OBJECTIVES:
        module = classifier(objective)
        trainer().fit(module, single)
        assert all(bool(value.isfinite().all()) for value in bits(module).values())
