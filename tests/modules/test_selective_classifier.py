from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient import functional as LF
from lightning_efficient.callbacks import ExactResume, SelectiveCoverage
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.abstention import answer_score, gamblers_loss
from lightning_efficient.functional.entropy_penalty import entropy_penalty
from lightning_efficient.functional.one_sided import one_sided_costs
from lightning_efficient.inference import AbstainingPredictor, ThresholdFile, calibrate_threshold
from lightning_efficient.inference.threshold_file import hash_checkpoint
from lightning_efficient.modules.selective_classifier import SelectiveClassifier
from lightning_efficient.nn import SelectiveOutputs

FEATURES, CLASSES, BATCH = 6, 4, 16
OBJECTIVES = ("ce", "osp", "selectivenet", "gamblers", "sat")
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def network(classes: int = CLASSES, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, classes)
    )


def classifier(objective: str = "ce", **options: Any) -> SelectiveClassifier:
    torch.manual_seed(0)
    dropout = options.pop("dropout", 0.0)
    defaults = {"in_chans": None, "optimizer": sgd, "warmup_epochs": 0}
    return SelectiveClassifier(**{"backbone": network(dropout=dropout), "objective": objective, **defaults, **options})


def samples(batches: int = 4) -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(batches * BATCH, FEATURES, generator=draw)
    labels = (inputs[:, :CLASSES] + 0.5 * torch.randn(len(inputs), CLASSES, generator=draw)).argmax(1)
    return TensorDataset(inputs, labels, torch.arange(len(inputs)))


def loader(batches: int = 4, cls: Any = DataLoader, **options: Any) -> Any:
    return cls(samples(batches), batch_size=BATCH, **options)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    return Trainer(**{**quiet, **defaults, "callbacks": list(callbacks), **options})


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Watch(Callback):
    """Keep the outputs of the steps, and the state after each epoch."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Tensor]] = []
        self.evaluated: list[dict[str, Tensor]] = []
        self.states: list[dict[str, Tensor]] = []
        self.warm: list[bool] = []

    def on_train_start(self, trainer: Trainer, module: SelectiveClassifier) -> None:
        self.states.append(bits(module))

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.outputs.append(outputs)
        self.warm.append(module.warming_up)

    def on_train_epoch_end(self, trainer: Trainer, module: SelectiveClassifier) -> None:
        self.states.append(bits(module))

    def on_validation_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.evaluated.append(outputs)


# what each objective is


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_option_switches_the_objective_on_the_same_network(objective: str) -> None:
    module = classifier(objective)
    watch = Watch()
    trainer(watch, max_epochs=2).fit(module, loader(), loader())
    assert not same(watch.states[0], watch.states[-1])
    assert all(output["loss"].isfinite() for output in watch.outputs)
    assert module(torch.zeros(3, FEATURES)).shape == (3, CLASSES)
    assert watch.evaluated[0].keys() == {"loss", "logits", "target", "confidence"}


def test_the_baseline_is_plain_cross_entropy() -> None:
    ours, theirs = classifier("ce"), network()
    torch.manual_seed(0)
    theirs.load_state_dict(ours.backbone.state_dict())
    optimizer = sgd(theirs.parameters())
    trainer().fit(ours, loader())
    for inputs, labels, _ in loader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(inputs), labels).backward()
        optimizer.step()
    assert same(bits(ours.backbone), bits(theirs))
    assert not list(ours.heads.parameters())


def test_the_loss_is_that_of_the_functional_core() -> None:
    inputs, labels, _ = samples().tensors
    module = classifier("gamblers", objective_kwargs={"payoff": 3.0})
    outputs = module.outputs(inputs)
    expected = gamblers_loss(outputs.logits, outputs.abstain_logit, labels, 3.0).mean()
    torch.testing.assert_close(module.objective(outputs, labels)["loss"], expected)
    module = classifier("osp", objective_kwargs={"price": 2.0, "dual": "fixed", "auxiliary_weight": 0.0})
    outputs = module.outputs(inputs)
    costs = one_sided_costs(outputs.logits, labels)
    expected = costs.miss.sum() + 2 * costs.false_positive.sum()
    torch.testing.assert_close(module.objective(outputs, labels)["loss"], expected)


def test_the_entropy_term_joins_any_objective() -> None:
    for form in ("true", "released"):
        plain, watch_plain = classifier("ce"), Watch()
        trainer(watch_plain, max_steps=1).fit(plain, loader())
        other, watch = classifier("ce", entropy_weight=0.5, entropy_form=form), Watch()
        trainer(watch, max_steps=1).fit(other, loader())
        logits = watch.outputs[0]["logits"]
        expected = watch_plain.outputs[0]["loss"] + 0.5 * entropy_penalty(logits, form)
        torch.testing.assert_close(watch.outputs[0]["loss"], expected.detach())


# confidence


def test_each_objective_is_ranked_by_the_score_that_it_was_published_with() -> None:
    inputs = samples().tensors[0]
    for objective, score in zip(OBJECTIVES, ("msp", "msp", "selector", "abstain_logit", "abstain_logit"), strict=True):
        module = classifier(objective).eval()
        assert module.score == score
        outputs = module.outputs(inputs)
        expected = {
            "msp": lambda outputs=outputs: outputs.logits.softmax(1).amax(1),
            "selector": lambda outputs=outputs: outputs.selection_logit.sigmoid(),
            "abstain_logit": lambda outputs=outputs: (
                -torch.cat([outputs.logits, outputs.abstain_logit[:, None]], 1).softmax(1)[:, -1]
            ),
        }[score]()
        torch.testing.assert_close(module.predict_step(inputs, 0)["confidence"], expected)


@pytest.mark.parametrize("score", ["msp", "margin", "entropy", "energy", "max_logit"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_scores_of_the_logits_go_with_any_objective(objective: str, score: str) -> None:
    module = classifier(objective, score=score).eval()
    inputs = samples().tensors[0]
    logits, sure = module.scored(inputs)
    torch.testing.assert_close(sure, LF.confidence(logits, score))


def test_a_function_is_a_score_too() -> None:
    module = classifier(score=lambda logits: -logits.var(1)).eval()
    logits, sure = module.scored(samples().tensors[0])
    torch.testing.assert_close(sure, -logits.var(1))


def test_validation_measures_the_confidence_of_the_module() -> None:
    module, watch = classifier("gamblers"), Watch()
    coverage = SelectiveCoverage()
    engine = trainer(watch, coverage)
    engine.validate(module, loader(), verbose=False)
    confidence = torch.cat([each["confidence"] for each in watch.evaluated])
    wrong = torch.cat([each["logits"].argmax(1) != each["target"] for each in watch.evaluated])
    torch.testing.assert_close(confidence, answer_score(*module.eval().outputs(samples().tensors[0])[:2]))
    for key in ("val/aurc", "selective/val_aurc"):
        assert float(engine.callback_metrics[key]) == pytest.approx(float(LF.aurc(confidence, wrong)), abs=1e-6)
    assert float(engine.callback_metrics["val/augrc"]) == pytest.approx(float(LF.augrc(confidence, wrong)), abs=1e-6)
    gathered = coverage.confidence_and_loss()
    assert torch.equal(gathered[0], confidence)
    assert torch.equal(gathered[1].bool(), wrong)


def test_bins_that_cannot_hold_the_confidence_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"confidence of SelectiveClassifier goes from -.* bins from 0 to 1"):
        trainer(SelectiveCoverage(bins=100)).validate(classifier("gamblers"), loader(), verbose=False)
    engine = trainer(SelectiveCoverage(bins=100, bin_range=(-1, 0)))
    engine.validate(classifier("gamblers"), loader(), verbose=False)
    assert 0 < float(engine.callback_metrics["selective/val_aurc"]) < 1


def test_a_selector_in_half_precision_is_compared_in_single() -> None:
    module = classifier("selectivenet")
    logit = torch.tensor([9.1, 9.2], dtype=torch.float16)  # one sigmoid apart in float16, two in float32
    outputs = SelectiveOutputs(torch.zeros(2, CLASSES), selection_logit=logit)
    torch.testing.assert_close(module.confidence(outputs), logit.float().sigmoid())
    assert module.confidence(outputs).unique().numel() == 2


# warm-up


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_warm_up_trains_the_network_alone(objective: str) -> None:
    module, watch = classifier(objective, warmup_epochs=2), Watch()
    trainer(watch, max_epochs=3).fit(module, loader())
    start, first, second, third = watch.states
    resting = [name for name in start if not name.startswith("backbone.") and "running" not in name]
    resting = [name for name in resting if "num_batches" not in name]
    assert all(torch.equal(start[name], second[name]) for name in resting)
    assert all(not torch.equal(second[name], third[name]) for name in resting)
    assert not torch.equal(start["backbone.0.weight"], first["backbone.0.weight"])
    assert watch.warm == [True] * 8 + [False] * 4


@pytest.mark.parametrize(
    ("objective", "options", "epochs"),
    [("sat", {}, 6), ("gamblers", {}, 4), ("gamblers", {"objective_kwargs": {"payoff": 4.0}}, 4), ("osp", {}, 0)],
)
def test_warm_up_lasts_the_share_of_the_run_that_its_authors_took(objective: str, options: Any, epochs: int) -> None:
    module, watch = classifier(objective, warmup_epochs=None, **options), Watch()
    trainer(watch, max_epochs=12, limit_train_batches=1).fit(module, loader())
    assert watch.warm == [True] * epochs + [False] * (12 - epochs)


def test_a_run_without_end_needs_the_length_of_the_warm_up() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.warmup_epochs is not given"):
        trainer(max_epochs=-1, max_steps=1).fit(classifier("sat", warmup_epochs=None), loader())


def test_a_run_by_steps_needs_the_length_of_the_warm_up_too() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.warmup_epochs is not given.*share of trainer\.max_epochs"):
        trainer(max_epochs=9, max_steps=3).fit(classifier("sat", warmup_epochs=None), loader())


def test_a_warm_up_as_long_as_the_run_is_told() -> None:
    with pytest.warns(UserWarning, match="the warm-up of 5 epochs lasts as long as the run"):
        trainer(max_epochs=3).fit(classifier("gamblers", warmup_epochs=5), loader())


def test_a_run_that_is_made_longer_keeps_its_warm_up(tmp_path: Path) -> None:
    first, then = Watch(), Watch()
    engine = trainer(first, max_epochs=4)
    engine.fit(classifier("sat", warmup_epochs=None), loader())
    engine.save_checkpoint(tmp_path / "four.ckpt")
    trainer(then, max_epochs=12).fit(classifier("sat", warmup_epochs=None), loader(), ckpt_path=tmp_path / "four.ckpt")
    assert first.warm == [True] * 8 + [False] * 8
    assert then.warm == [False] * 32
    assert not classifier().warming_up  # also asked before any fit


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
    assert len({network for network, *_ in rates}) > 3
    for network, allowances, multipliers in rates:
        assert [allowances, multipliers] == pytest.approx([network, 0.01 * network])


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
    file = ThresholdFile(found, "confidence", "val", "0" * 64, hash_checkpoint(tmp_path / "one.ckpt"))
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


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "opsp"}, r"model\.objective='opsp' is not one of .*Did you mean 'osp'"),
        ({"objective": "gamblers", "objective_kwargs": {"payof": 2}}, r"no option 'payof'.*Did you mean 'payoff'"),
        ({"objective": "gamblers", "objective_kwargs": {"payoff": 9}}, r"payoff"),
        (
            {"objective": "osp", "score": "selector"},
            r"model\.score is 'selector', and objective 'osp' trains no such head",
        ),
        ({"objective": "sat", "score": "mps"}, r"model\.score='mps' is not one of .*Did you mean 'msp'"),
        ({"score": "nowhere.score"}, r"model\.score: there is no function 'nowhere\.score'"),
        ({"score": "os.sep"}, r"model\.score: 'os\.sep' is a str, not a function"),
        ({"entropy_weight": -1.0}, r"model\.entropy_weight is -1"),
        ({"entropy_form": "relased"}, r"model\.entropy_form='relased' is not one of"),
        ({"warmup_epochs": -2}, r"model\.warmup_epochs is -2"),
        ({"num_classes": 7}, r"model\.num_classes is 7, but the backbone has 4 classes"),
        ({"backbone": nn.Conv2d(1, 4, 3)}, r"model\.num_classes is not given"),
    ],
)
def test_mistakes_cost_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        classifier(**options)
    assert "\n" not in str(caught.value)


def test_sharded_parameters_are_refused() -> None:
    module = classifier("osp")
    engine = trainer()
    engine.strategy.__class__ = type("Sharded", (FSDPStrategy,), {})
    module.trainer = engine
    with pytest.raises(ConfigurationError, match="SelectiveClassifier works on one device and with DDP"):
        module.setup("fit")


def test_a_last_batch_of_one_sample_says_what_to_do() -> None:
    odd = DataLoader(TensorDataset(*(tensor[: BATCH + 1] for tensor in samples().tensors)), batch_size=BATCH)
    with pytest.raises(ConfigurationError, match=r"batches of 2 or more.*drop_last"):
        trainer().fit(classifier("selectivenet", backbone=nn.Linear(FEATURES, CLASSES)), odd)
