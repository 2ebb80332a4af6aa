from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.callbacks.disk import DiSK
from lightning_efficient.callbacks.guide_schedule import GuideSchedule
from lightning_efficient.errors import ConfigurationError, NonFiniteLossError
from lightning_efficient.functional import disk as core
from lightning_efficient.functional.phases import Alternation
from lightning_efficient.functional.primal_dual import PrimalDual
from lightning_efficient.functional.schedules import LinearSchedule
from lightning_efficient.nn.backbones import create_backbone

FEATURES, CLASSES, BATCH, TOP, RATE = 6, 4, 16, 2, 0.1
by_step = partial(Alternation, unit="step")
pytestmark = pytest.mark.filterwarnings(
    "ignore:DiSK. the guide is saturated", "ignore:DiSK. the help costs", "ignore:Be aware that when using `ckpt_path`"
)


def network(width: int, seed: int, dropout: float = 0.0, classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, classes))


class Foreign(L.LightningModule):
    """Knows nothing of this package; its loss is no plain cross-entropy, and it has weights beside its network."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = network(8, 0, dropout)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        logits = self(inputs)
        loss = self.scale * nn.functional.cross_entropy(logits, target, label_smoothing=0.2)
        self.log("own", loss)
        return {"loss": loss, "logits": logits, "target": target, "own": loss.detach()}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9, weight_decay=0.01)


def disk(**options: Any) -> DiSK:
    loss = {"top_k": TOP, "budget": 0.1, **options.pop("loss", {})}
    return DiSK(**{"teacher": network(12, 1), "loss_kwargs": loss, **options})


def loader(batches: int = 4, cls: Any = DataLoader, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batches * BATCH, FEATURES, generator=generator)
    target = torch.randint(CLASSES, (len(inputs),), generator=generator)
    return cls(TensorDataset(inputs, target), batch_size=BATCH, **options)


def trainer(*callbacks: Callback, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    return L.Trainer(**{**quiet, **defaults, "callbacks": list(callbacks), **options})


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Watch(Callback):
    """Keep what was before training, and what each step returned and left behind."""

    def __init__(self, callback: DiSK) -> None:
        self.callback = callback
        self.outputs: list[dict[str, Any]] = []
        self.states: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []
        self.rates: list[list[float]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.module = copy.deepcopy(getattr(module, "net", module))
        self.guided = copy.deepcopy(self.callback.guided(module))
        self.keep(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.outputs.append(outputs)
        self.keep(trainer, module)

    def keep(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        guided = self.callback.guided(module)
        own = {id(parameter) for parameter in guided.parameters()}
        momentum = {}
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            if (buffer := optimizer.state[parameter].get("momentum_buffer")) is not None:
                momentum[f"{'guide' if id(parameter) in own else 'own'}.{index}"] = buffer.clone()
        self.states.append((bits(module), bits(guided), momentum))
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def by_hand(student: nn.Sequential, guided: nn.Module, own: Tensor | None, batch: Any) -> Tensor:
    inputs, target = batch
    teacher = network(12, 1).eval()
    with torch.no_grad():
        features = teacher[:-1](inputs)
        wanted = teacher[-1](features)
    logits = student(inputs)
    if own is None:
        own = 1.5 * nn.functional.cross_entropy(logits, target, label_smoothing=0.2)
    guide = guided.guide.head(features).squeeze(1).sigmoid()
    support = core.support_mask(wanted, target, TOP)
    mass = core.teacher_mass(wanted, support, temperature=4.0)
    nll = core.scaffolded_nll(logits, mass, support, guide, temperature=3.5).mean()
    costs = core.help_cost(logits, guide, wanted.argmax(1), max_cost=5.0)
    cost = core.mean_help_cost(costs, logits.argmax(1) != target)
    return 0.1 * own + 0.9 * (14 * nll + core.help_normalizer(guide, TOP).mean()) + (cost - 0.1).relu()


def test_the_modules_own_loss_is_the_supervised_term() -> None:
    module, callback = Foreign(), disk()
    watch = Watch(callback)
    trainer(callback, watch).fit(module, loader(1))
    loss = by_hand(watch.module, watch.guided, None, next(iter(loader(1))))
    loss.backward()
    assert watch.outputs[0]["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in watch.module.named_parameters():
        before = watch.states[0][0][f"net.{name}"]
        wanted = before - RATE * (parameter.grad + 0.01 * before)
        torch.testing.assert_close(bits(module)[f"net.{name}"], wanted, rtol=1e-5, atol=1e-6)
    for name, parameter in watch.guided.named_parameters():
        before = watch.states[0][1][name]
        wanted = before - RATE * (parameter.grad + 0.01 * before)
        torch.testing.assert_close(watch.states[1][1][name], wanted, rtol=1e-5, atol=1e-6)


def test_outputs_keep_what_the_module_returned_and_say_what_the_guide_did() -> None:
    callback = disk()
    watch = Watch(callback)
    run = trainer(callback, watch)
    run.fit(Foreign(), loader(1))
    (outputs,) = watch.outputs
    keys = {"loss", "logits", "target", "own", "guide", "teacher_logits", "help_cost", "residual", "phase"}
    assert set(outputs) == keys
    assert float(run.callback_metrics["own"]) == pytest.approx(float(outputs["own"]))
    assert not any(value.requires_grad for value in outputs.values() if isinstance(value, Tensor))
    inputs, _ = next(iter(loader(1)))
    torch.testing.assert_close(outputs["teacher_logits"], network(12, 1).eval()(inputs))
    assert float(run.callback_metrics["guide/mean"]) == pytest.approx(float(outputs["guide"].mean()))


@pytest.mark.parametrize("guide_lr", [None, 0.02])
def test_each_phase_leaves_the_other_network_bit_for_bit(guide_lr: float | None) -> None:
    callback = disk(phases=by_step(2, 2, 1), guide_lr=guide_lr)
    watch = Watch(callback)
    trainer(callback, watch, max_epochs=3).fit(Foreign(dropout=0.3), loader())
    phases = [outputs["phase"] for outputs in watch.outputs]
    assert phases[:6] == ["guide", "student", "student", "guide", "guide", "student"]
    for phase, before, after in zip(phases, watch.states, watch.states[1:], strict=False):
        rests, moves = (1, 0) if phase == "student" else (0, 1)
        assert same(before[rests], after[rests])
        assert not same(before[moves], after[moves])
        prefix = "guide." if phase == "student" else "own."
        resting = [{n: v for n, v in state[2].items() if n.startswith(prefix)} for state in (before, after)]
        assert same(*resting)
    assert {name.split(".")[0] for name in watch.states[-1][2]} == {"guide", "own"}


def once_more(module: Foreign, batch: Any, outputs: Any) -> tuple[Tensor, Tensor]:
    return module(batch["x"]), batch["y"]


class Returns(Foreign):
    """Takes and returns something else."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["x"], batch["y"]), batch_idx)["loss"]


def test_other_batches_and_outputs_are_read_by_functions() -> None:
    data = [{"x": inputs, "y": target} for inputs, target in loader()]
    callback = disk(inputs=lambda batch: batch["x"], predictions=once_more, phases=by_step(1, 1))
    watch, module = Watch(callback), Returns()
    trainer(callback, watch).fit(module, DataLoader(data, batch_size=None))
    plain, other = disk(phases=by_step(1, 1)), Foreign()
    compared = Watch(plain)
    trainer(plain, compared).fit(other, loader())
    one, two = watch.states[1][0], compared.states[1][0]
    for name, _ in other.named_parameters():  # a second forward moves running statistics once more
        torch.testing.assert_close(one[name], two[name])
    for phase, before, after in zip(watch.outputs, watch.states, watch.states[1:], strict=False):
        assert same(before[0], after[0]) == (phase["phase"] == "guide")
    assert torch.equal(watch.outputs[0]["target"], data[0]["y"])


def test_a_checkpoint_is_the_modules_own(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="a")
    module, callback = Foreign(), disk()
    trainer(callback, save, enable_checkpointing=True).fit(module, loader(), loader(1))
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert stored["state_dict"].keys() == Foreign().state_dict().keys()
    assert same(bits(Foreign.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)), bits(module))
    state = stored["callbacks"]["DiSK[guide]"]["weights"]
    assert set(state) == {f"guide.{name}" for name in callback._guided.guide.state_dict()}
    trainer().validate(Foreign(), loader(1), ckpt_path=tmp_path / "a.ckpt", verbose=False)


def resumable(*more: Callback, ckpt_path: Path | None = None, ema: bool = False) -> tuple[Foreign, DiSK]:
    L.seed_everything(0 if ckpt_path is None else 99, verbose=False)
    module = Foreign(dropout=0.3)
    teacher = network(12, 1)
    torch.manual_seed(0 if ckpt_path is None else 99)
    dual = PrimalDual(0.5, initial=1.0)
    options = {"phases": by_step(2, 1, 1), "guide_lr": 0.03, "multiplier": dual, "interval": "step"}
    callback = disk(teacher=teacher, budget=LinearSchedule(0.3, 0.1), **options)
    averages = [EMAWeightAveraging(decay=0.5)] if ema else []
    run = trainer(callback, *averages, ExactResume(), *more, max_epochs=3, enable_checkpointing=bool(more))
    run.fit(module, loader(cls=StatefulDataLoader, shuffle=True), loader(1), ckpt_path=ckpt_path)
    return module, callback


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:Checkpoint directory")
@pytest.mark.parametrize("ema", [False, True])
def test_a_run_resumed_in_mid_epoch_ends_with_the_same_bits(ema: bool, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, callback = resumable(save, ema=ema)
    for step in (2, 5, 7):
        resumed, again = resumable(ckpt_path=tmp_path / f"step={step}.ckpt", ema=ema)
        assert same(bits(whole), bits(resumed)), step
        assert again.dual.state_dict() == callback.dual.state_dict()
        if not ema:  # else the guide ends on its average, which begins anew
            assert same(bits(callback._guided), bits(again._guided))
    assert callback.dual.updates == 1 + 3


HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name]


def clean(module: L.LightningModule) -> bool:
    fresh = Foreign()
    hooks = all(len(getattr(part, name)) == 0 for part in module.modules() for name in HOOKS)
    names = [name for name, _ in module.named_modules()] == [name for name, _ in fresh.named_modules()]
    borrowed = {"training_step", "configure_optimizers"} & vars(module).keys()
    return hooks and names and not borrowed and module.state_dict().keys() == fresh.state_dict().keys()


class Fails(Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        raise OSError("stopped")


def test_the_module_comes_back_as_it_was(tmp_path: Path) -> None:
    module, callback = Foreign(), disk(phases=by_step(1, 1))
    before = set(vars(module))
    trainer(callback).fit(module, loader())
    assert clean(module)
    assert set(vars(module)) - before <= {"_hparams"}  # made by Lightning when it is first read
    other = Foreign()
    with pytest.raises(OSError, match="stopped"):
        trainer(callback, Fails()).fit(other, loader())
    assert clean(other)
    trainer(callback).fit(other, loader())  # and again, with the same callback
    assert clean(other)
    plain = Foreign()
    trainer().fit(plain, loader())
    assert clean(plain)


def test_a_method_of_the_instance_is_put_back() -> None:
    module = Foreign()
    own = partial(Foreign.training_step, module)
    module.training_step = own  # type: ignore[method-assign]
    trainer(disk()).fit(module, loader(1))
    assert module.training_step is own


@pytest.mark.parametrize("first", [True, False])
def test_a_moving_average_beside_it_is_that_of_the_module(first: bool, tmp_path: Path) -> None:
    class Precious(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("the teacher was copied")

    teacher = Precious(*network(12, 1))
    callback, average = disk(teacher=teacher, phases=by_step(1, 1)), EMAWeightAveraging(decay=0.75)
    watch, module = Watch(callback), Foreign()
    run = trainer(*([callback, average] if first else [average, callback]), watch)
    run.fit(module, loader(), loader(1))
    states = [state[0] for state in watch.states]
    for name, found in module.named_parameters():
        mean = states[1][name]  # the first update copies
        for state in states[2:]:
            mean = 0.75 * mean + 0.25 * state[name]
        torch.testing.assert_close(found.detach(), mean)
    run.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert stored[key].keys() == Foreign().state_dict().keys()
    assert clean(module)


def scaler() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [(lambda: {"precision": "bf16-mixed"}, 0.05), (lambda: {"plugins": [scaler()]}, 0.02)],
    ids=["bf16", "fp16"],
)
def test_mixed_precision_comes_close(options: Callable[[], dict[str, Any]], tolerance: float) -> None:
    states = []
    for more in ({}, options()):
        callback = disk(phases=by_step(1, 1), guide_lr=0.05)
        watch = Watch(callback)
        trainer(callback, watch, gradient_clip_val=1.0, **more).fit(Foreign(), loader())
        states.append(watch.states[-1])
    for one, other in zip(*(state[:2] for state in states), strict=True):
        names = [name for name in one if "num_batches" not in name]
        assert 0 < max(float((one[name] - other[name]).abs().max()) for name in names) < tolerance


def scheduled(make: Callable[[torch.optim.Optimizer], Any], **more: Any) -> type[Foreign]:
    class Scheduled(Foreign):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), "interval": "step", **more}}

    return Scheduled


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 6, eta_min=0.0),
        lambda optimizer: lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.3),
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.7),
    ],
    ids=["cosine", "step", "multistep", "exponential"],
)
def test_the_guides_own_rate_follows_the_modules_schedule(make: Callable[..., Any]) -> None:
    callback = disk(guide_lr=0.02)
    watch = Watch(callback)
    trainer(callback, watch).fit(scheduled(make)(), loader(6))
    rates = [rate for rate, _ in watch.rates]
    assert [guide for _, guide in watch.rates] == pytest.approx([rate / 5 for rate in rates])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = make(optimizer)
    wanted = [RATE]
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        wanted.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(wanted)


def test_a_plateau_lowers_both_rates() -> None:
    make = partial(lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=10.0, threshold_mode="abs")
    callback = disk(guide_lr=0.02)
    watch = Watch(callback)
    trainer(callback, watch).fit(scheduled(make, monitor="own")(), loader(4))
    assert [guide for _, guide in watch.rates] == pytest.approx([rate / 5 for rate, _ in watch.rates])
    assert watch.rates[-1] == pytest.approx([RATE / 4, 0.02 / 4])


def test_without_a_rate_of_its_own_the_guide_joins_the_first_group() -> None:
    make = partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.5**step)
    callback = disk()
    watch = Watch(callback)
    run = trainer(callback, watch)
    run.fit(scheduled(make)(), loader(3))
    assert watch.rates == [pytest.approx([RATE * 0.5**step]) for step in range(4)]
    assert not same(watch.states[0][1], watch.states[1][1])


def test_an_optimiser_of_the_network_alone_trains_the_guide_too() -> None:
    class Own(Foreign):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net.parameters(), lr=RATE)]

    callback = disk()
    watch = Watch(callback)
    trainer(callback, watch).fit(Own(), loader(2))
    for before, after in zip(watch.states, watch.states[1:], strict=False):
        assert all(not torch.equal(before[1][n], after[1][n]) for n, _ in callback._guided.named_parameters())
        assert torch.equal(before[0]["scale"], after[0]["scale"])
    assert watch.rates[0] == [RATE, RATE]


class Pictures(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0])
        return {"loss": nn.functional.cross_entropy(logits, batch[1]), "logits": logits, "target": batch[1]}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


def test_a_guide_may_watch_a_named_layer_of_the_student() -> None:
    options: dict[str, Any] = {"guide_kwargs": {"student_map_module": "0", "width": 8}, "network": "net"}
    callback = disk(
        teacher=create_backbone("test_resnet", num_classes=CLASSES, in_chans=1), guide="student_map", **options
    )
    watch, module = Watch(callback), Pictures()
    images = torch.randn(BATCH, 1, 16, 16)
    data = DataLoader(TensorDataset(images, torch.arange(BATCH) % CLASSES), batch_size=BATCH)
    trainer(callback, watch).fit(module, data)
    guide = watch.guided.guide
    logit = guide.head(guide.tower(watch.module[0](images))).squeeze(1)
    torch.testing.assert_close(watch.outputs[0]["guide"], logit.sigmoid())
    assert all(len(getattr(part, name)) == 0 for part in module.modules() for name in HOOKS)


def test_gradients_accumulate_within_a_phase() -> None:
    callback = disk(phases=by_step(1, 1))
    watch = Watch(callback)
    trainer(callback, watch, accumulate_grad_batches=2).fit(Foreign(), loader(6))
    assert [outputs["phase"][0] for outputs in watch.outputs] == list("ssggss")
    weights = [state[0]["net.0.weight"] for state in watch.states]
    changed = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert changed == [False, True, False, False, False, True]


def refused(
    words: str, callback: Any, module: L.LightningModule | None = None, kind: type[Exception] = ConfigurationError
) -> None:
    module = module or Foreign()
    before = set(vars(module))
    callbacks = callback if isinstance(callback, list) else [callback]
    with pytest.raises(kind, match=words) as caught:
        trainer(*callbacks).fit(module, loader())
    assert "\n" not in str(caught.value)
    assert {"training_step", "configure_optimizers"}.isdisjoint(set(vars(module)) - before)
    assert not any("of_disk" in name for name, _ in module.named_modules())


class Detached(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        return {**outputs, "logits": outputs["logits"].detach()}


class LossOnly(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"]


class NoTarget(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx)["loss"], "preds": 1}


class Manual(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Two(Foreign):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net.parameters(), lr=1.0), torch.optim.SGD([self.scale], lr=1.0)]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Detached, "the logits of Detached come without their graph, .*; leave out detach()"),
        (
            LossOnly,
            r"training_step of LossOnly returns Tensor; return {'loss', 'logits', 'target'}, or pass predictions",
        ),
        (NoTarget, r"training_step of NoTarget returns the keys \['loss', 'preds'\]; return"),
        (Manual, "DiSK works in automatic optimisation, and Manual steps its optimisers itself"),
        (Two, "Two.configure_optimizers gives 2 optimisers; it must give one"),
    ],
)
def test_modules_that_it_cannot_work_with_are_told_why(kind: type[Foreign], words: str) -> None:
    refused(words, disk(), kind())


@pytest.mark.parametrize(
    "make",
    [
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0),
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),
    ],
)
def test_schedulers_that_cannot_learn_of_another_group_are_refused(make: Callable[..., Any]) -> None:
    name = make.func.__name__  # type: ignore[attr-defined]
    refused(f"DiSK: {name} cannot take up the guide as another group", disk(guide_lr=0.1), scheduled(make)())


def test_teachers_that_cannot_teach_are_refused() -> None:
    refused("classes", disk(teacher=network(12, 1, classes=3)))
    teacher = network(12, 1)
    nn.init.constant_(teacher[-1].bias, float("inf"))
    refused(
        r"step 0: the teacher \(Sequential\) gives NaN or infinite logits",
        disk(teacher=teacher),
        None,
        NonFiniteLossError,
    )
    with pytest.raises(ConfigurationError, match="teacher test_resnet has no trained weights; give teacher_checkpoint"):
        disk(teacher="test_resnet")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guide_lr": 0.0}, "guide_lr is 0.0; it must be above 0"),
        ({"guide": "teacher_maps"}, "Did you mean 'teacher_map'"),
        ({"loss": {"topk": 1}}, "no option 'topk'.*Did you mean 'top_k'"),
        ({"budget": -1.0}, "DiSK: budget becomes -1; it must be 0 or more"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        disk(**options)
    assert "\n" not in str(caught.value)


def test_a_misspelt_part_of_the_module_is_told() -> None:
    refused("DiSK: Foreign has no part network='nett'. Did you mean 'net'", disk(network="nett"))


def test_two_that_have_one_name_are_refused() -> None:
    refused("two guide callbacks are named 'guide'; give each its own name", [disk(), GuideSchedule()])
