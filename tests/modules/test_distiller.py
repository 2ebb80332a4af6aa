from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.callbacks.guide_schedule import GuideSchedule
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError, NonFiniteLossError
from lightning_efficient.functional import disk as core
from lightning_efficient.functional.distillation import decoupled_kl, distillation_kl
from lightning_efficient.functional.phases import Alternation
from lightning_efficient.functional.primal_dual import PrimalDual
from lightning_efficient.functional.schedules import LinearSchedule
from lightning_efficient.modules.distiller import Distiller
from lightning_efficient.nn.backbones import create_backbone

FEATURES, CLASSES, BATCH, TOP = 6, 4, 16, 2
RATE = 0.1
sgd = partial(torch.optim.SGD, lr=RATE, momentum=0.9, weight_decay=0.01)
by_step = partial(Alternation, unit="step")


def network(width: int, seed: int, dropout: float = 0.0, classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def distiller(**options: Any) -> Distiller:
    defaults: dict[str, Any] = {"in_chans": None, "optimizer": sgd}
    if options.get("objective", "disk") == "disk":
        defaults["objective_kwargs"] = {"top_k": TOP, "budget": 0.1}
    dropout = options.pop("dropout", 0.0)
    return Distiller(**{"student": network(8, 0, dropout), "teacher": network(12, 1), **defaults, **options})


def loader(batches: int = 4, cls: Any = DataLoader, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batches * BATCH, FEATURES, generator=generator)
    return cls(
        TensorDataset(inputs, torch.randint(CLASSES, (len(inputs),), generator=generator)), batch_size=BATCH, **options
    )


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    return Trainer(**{**quiet, **defaults, "callbacks": list(callbacks), **options})


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Watch(Callback):
    """Keep what was before training and what each step returned and left behind."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.states: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []

    def on_train_start(self, trainer: Trainer, module: Distiller) -> None:
        self.student, self.objective = copy.deepcopy(module.student), copy.deepcopy(module.objective)
        self.keep(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: Distiller, outputs: Any, batch: Any, index: int) -> None:
        self.outputs.append(outputs)
        self.keep(trainer, module)

    def keep(self, trainer: Trainer, module: Distiller) -> None:
        optimizer = trainer.optimizers[0]
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        momentum = {
            names[id(p)]: optimizer.state[p]["momentum_buffer"].clone()
            for p in optimizer.state
            if optimizer.state[p].get("momentum_buffer") is not None
        }
        assert module.objective is not None
        self.states.append((bits(module.student), bits(module.objective), momentum))


def hand_loss(name: str, student: nn.Sequential, teacher: nn.Sequential, objective: nn.Module, batch: Any) -> Tensor:
    inputs, target = batch
    features = student[:-1](inputs)
    logits = student[-1](features)
    with torch.no_grad():
        wanted_features = teacher[:-1](inputs)
        wanted = teacher[-1](wanted_features)
    supervised = nn.functional.cross_entropy(logits, target)
    if name == "ce":
        return supervised
    if name == "kd":
        return 0.1 * supervised + 0.9 * distillation_kl(logits, wanted, student_temperature=4.0).mean()
    if name == "dkd":
        about_target, others = decoupled_kl(logits, wanted, target, temperature=4.0)
        return supervised + (about_target + 8 * others).mean()
    if name == "feature":
        return supervised + (objective.projector(features) - wanted_features).square().mean()
    guide = objective.guide.head(wanted_features).squeeze(1).sigmoid()
    support = core.support_mask(wanted, target, TOP)
    mass = core.teacher_mass(wanted, support, temperature=4.0)
    nll = core.scaffolded_nll(logits, mass, support, guide, temperature=3.5).mean()
    costs = core.help_cost(logits, guide, wanted.argmax(1), max_cost=5.0)
    cost = core.mean_help_cost(costs, logits.argmax(1) != target)
    scaffold = 14 * nll + core.help_normalizer(guide, TOP).mean()
    return 0.1 * supervised + 0.9 * scaffold + (cost - 0.1).relu()


@pytest.mark.parametrize("objective", ["ce", "kd", "dkd", "feature", "disk"])
def test_a_step_is_that_of_the_loss_written_by_hand(objective: Any) -> None:
    module, watch = distiller(objective=objective), Watch()
    trainer(watch).fit(module, loader(1))
    student, beside = watch.student, watch.objective
    loss = hand_loss(objective, student, network(12, 1).eval(), beside, next(iter(loader(1))))
    loss.backward()
    parameters = [*student.parameters(), *beside.parameters()]
    sgd(parameters).step()
    assert float(watch.outputs[0]["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert module.objective is not None
    found = [*module.student.parameters(), *module.objective.parameters()]
    for one, other in zip(found, parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", ["ce", "kd", "dkd", "feature", "disk"])
def test_each_objective_lowers_its_loss(objective: Any) -> None:
    watch = Watch()
    trainer(watch, max_epochs=8).fit(distiller(objective=objective, guide="teacher_logits"), loader())
    losses = [float(outputs["loss"]) for outputs in watch.outputs]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_each_phase_leaves_the_other_network_bit_for_bit() -> None:
    watch = Watch()
    trainer(watch, max_epochs=3).fit(distiller(phases=by_step(2, 2, 1), dropout=0.2), loader())
    phases = [outputs["phase"] for outputs in watch.outputs]
    assert phases[:5] == ["guide", "student", "student", "guide", "guide"]
    for phase, before, after in zip(phases, watch.states, watch.states[1:], strict=False):
        rests, moves = (1, 0) if phase == "student" else (0, 1)
        assert same(before[rests], after[rests])
        assert not same(before[moves], after[moves])
        prefix = "objective." if phase == "student" else "student."
        resting = [{n: v for n, v in state[2].items() if n.startswith(prefix)} for state in (before, after)]
        assert same(*resting)
    assert {name.split(".")[0] for name in watch.states[-1][2]} == {"student", "objective"}


def test_without_phases_each_step_trains_both() -> None:
    watch = Watch()
    trainer(watch).fit(distiller(), loader(2))
    for before, after in zip(watch.states, watch.states[1:], strict=False):
        assert not same(before[0], after[0])
        assert not same(before[1], after[1])
    assert [outputs["phase"] for outputs in watch.outputs] == ["joint", "joint"]


def test_outputs_are_what_the_networks_say_of_the_batch() -> None:
    watch, batch = Watch(), next(iter(loader(1)))
    trainer(watch).fit(distiller(phases=by_step(1, 1, 1)), loader(1))
    (outputs,) = watch.outputs
    teacher, student = network(12, 1).eval(), watch.student.eval()
    torch.testing.assert_close(outputs["teacher_logits"], teacher(batch[0]))
    torch.testing.assert_close(outputs["logits"], student(batch[0]))  # in eval mode while the guide trains
    guide = watch.objective.guide.train().head(teacher[:-1](batch[0])).squeeze(1).sigmoid()
    torch.testing.assert_close(outputs["guide"], guide)
    assert not any(value.requires_grad for value in outputs.values() if isinstance(value, Tensor))
    torch.testing.assert_close(outputs["residual"], outputs["help_cost"] - 0.1)


def test_the_teacher_stays_as_it_was_and_is_part_of_nothing(tmp_path: Path) -> None:
    class Precious(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("the teacher was copied")

    teacher = Precious(*network(12, 1, dropout=0.5)).train()
    before = bits(teacher)
    module = distiller(teacher=teacher)
    run = trainer(EMAWeightAveraging(decay=0.5), max_epochs=2)
    run.fit(module, loader())
    assert same(before, bits(teacher))
    assert not any(part.training for part in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    run.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for weights in (module.state_dict(), stored["state_dict"], stored["current_model_state"]):
        assert {name.split(".")[0] for name in weights} == {"student", "objective"}
    assert {"teacher", "student", "optimizer"}.isdisjoint(stored["hyper_parameters"])
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert held.isdisjoint(id(p) for p in teacher.parameters())
    copied = copy.deepcopy(module)
    assert copied._teacher is module._teacher
    assert copied._recipe.given is teacher
    assert id(teacher) not in {id(part) for part in module.modules()}


def test_a_moving_average_beside_it_is_that_of_the_student() -> None:
    class Students(Watch):
        def on_train_end(self, trainer: Trainer, module: Distiller) -> None:
            self.last = self.states[-1]

    watch, module = Students(), distiller(phases=by_step(1, 1))
    trainer(watch, EMAWeightAveraging(decay=0.75)).fit(module, loader(3), loader(1))
    name = "0.weight"
    states = [state[0][name] for state in watch.states]
    average = states[1]  # the first update copies
    for state in states[2:]:
        average = 0.75 * average + 0.25 * state
    torch.testing.assert_close(module.student.state_dict()[name], average)


def resumable(*more: Callback, ckpt_path: Path | None = None, ema: bool = False) -> tuple[Distiller, GuideSchedule]:
    seed_everything(0 if ckpt_path is None else 99, verbose=False)
    module = distiller(dropout=0.3, phases=by_step(2, 1, 1), guide_optimizer={"lr": 0.03})
    if ckpt_path is not None:
        module.student.load_state_dict(network(8, 5).state_dict())
    schedule = GuideSchedule(PrimalDual(0.5, initial=1.0), LinearSchedule(0.3, 0.1), interval="step")
    data = loader(cls=StatefulDataLoader, shuffle=True)
    averages = [EMAWeightAveraging(decay=0.5)] if ema else []
    run = trainer(schedule, *averages, ExactResume(), *more, max_epochs=3, enable_checkpointing=bool(more))
    run.fit(module, data, loader(1), ckpt_path=ckpt_path)
    return module, schedule


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:Checkpoint directory")
@pytest.mark.parametrize("ema", [False, True])
def test_a_run_resumed_in_mid_epoch_ends_with_the_same_bits(ema: bool, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, schedule = resumable(save, ema=ema)
    assert schedule.dual is not None
    for step in (2, 5, 7):
        resumed, again = resumable(ckpt_path=tmp_path / f"step={step}.ckpt", ema=ema)
        assert same(bits(whole), bits(resumed)), step
        assert again.dual is not None
        assert again.dual.state_dict() == schedule.dual.state_dict()
    assert schedule.dual.updates == 1 + 3


def named(tmp_path: Path, **options: Any) -> Distiller:
    torch.manual_seed(4)
    teacher = tmp_path / "teacher.pt"
    torch.save(create_backbone("test_efficientnet", num_classes=10, in_chans=1).state_dict(), teacher)
    defaults = {"num_classes": 10, "in_chans": 1, "teacher_checkpoint": str(teacher), "optimizer": sgd}
    disk = {"objective_kwargs": {"top_k": 3}} if options.get("objective", "disk") == "disk" else {}
    return Distiller("test_resnet", "test_efficientnet", **{**defaults, **disk, **options})


def digits(**options: Any) -> Digits:
    return Digits(**{"in_chans": 1, "image_size": 16, "batch_size": 16, "train_samples": 32, **options})


def test_a_checkpoint_gives_the_student_alone_without_the_files_of_its_teacher(tmp_path: Path) -> None:
    module = named(tmp_path)
    run = trainer(limit_val_batches=1)
    run.fit(module, datamodule=digits())
    run.save_checkpoint(tmp_path / "a.ckpt")
    module.export_student(str(tmp_path / "student.pt"))
    (tmp_path / "teacher.pt").unlink()
    loaded = Distiller.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    images = torch.randn(3, 1, 16, 16)
    wanted = module.eval()(images)
    assert torch.equal(loaded(images), wanted)
    assert {name.split(".")[0] for name in loaded.state_dict()} == {"student"}
    exported = timm.create_model("test_resnet", checkpoint_path=tmp_path / "student.pt", num_classes=10, in_chans=1)
    assert torch.equal(exported.eval()(images), wanted)
    (tested,) = trainer(limit_test_batches=1).test(loaded, datamodule=digits(), verbose=False)
    assert 0 <= tested["test/accuracy"] <= 1


def test_modules_given_as_objects_need_only_the_student_to_load(tmp_path: Path) -> None:
    module, run = distiller(), trainer()
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Distiller.load_from_checkpoint(tmp_path / "a.ckpt", student=network(8, 7), weights_only=True)
    assert same(bits(loaded.student), bits(module.student))


def test_a_teacher_is_trained_once_and_then_read(tmp_path: Path) -> None:
    results, listings = [], []
    for _ in range(2):
        seed_everything(0, verbose=False)
        folder = str(tmp_path / "kept")
        module = named(tmp_path, objective="kd", teacher_checkpoint=None, teacher_epochs=2, teacher_folder=folder)
        trainer(limit_val_batches=0).fit(module, datamodule=digits())
        assert module._teacher is not None
        results.append((bits(module._teacher.network), bits(module.student)))
        listings.append([(path, path.stat().st_mtime_ns) for path in (tmp_path / "kept").iterdir()])
    assert len(listings[0]) == 1
    assert listings[0] == listings[1]
    assert all(same(*pair) for pair in zip(*results, strict=True))
    untrained = create_backbone("test_efficientnet", num_classes=10, in_chans=1)
    assert not torch.equal(results[0][0]["conv_stem.weight"], bits(untrained)["conv_stem.weight"])


@pytest.mark.parametrize("reason", [OSError, KeyboardInterrupt])
def test_training_of_a_teacher_that_is_stopped_leaves_no_file(reason: type[BaseException], tmp_path: Path) -> None:
    class Fails(Digits):
        def train_dataloader(self) -> Any:
            yield next(iter(super().train_dataloader()))
            raise reason("stopped")

    module = named(tmp_path, teacher_checkpoint=None, teacher_epochs=1, teacher_folder=str(tmp_path / "kept"))
    data = Fails(in_chans=1, image_size=16, batch_size=16, train_samples=32)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises((OSError, KeyboardInterrupt, SystemExit)):
        trainer().fit(module, datamodule=data)
    signal.signal(signal.SIGINT, handler)  # Lightning ignores further interrupts
    assert not (tmp_path / "kept").exists()


def test_a_student_starts_from_its_checkpoint(tmp_path: Path) -> None:
    torch.save(network(8, 6).state_dict(), tmp_path / "student.pt")
    watch = Watch()
    module = distiller(student_checkpoint=str(tmp_path / "student.pt"))
    run = trainer(watch)
    run.fit(module, loader(1))
    assert same(watch.states[0][0], bits(network(8, 6)))
    trained = bits(module.student)
    run.save_checkpoint(tmp_path / "a.ckpt")
    student = network(8, 0)
    given = {"student": student, "teacher": network(12, 1), "optimizer": sgd, "weights_only": True}
    loaded = Distiller.load_from_checkpoint(tmp_path / "a.ckpt", **given)
    for goes_on in (module, loaded):
        watch = Watch()
        trainer(watch).fit(goes_on, loader(1))
        assert same(watch.states[0][0], trained)


def test_the_guide_has_a_rate_of_its_own_and_the_schedule_moves_both() -> None:
    module = distiller(
        guide_optimizer={"lr": 0.02, "weight_decay": 0.0},
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        lr_interval="step",
    )
    run = trainer()
    run.fit(module, loader(3))
    student, beside = run.optimizers[0].param_groups
    assert [student["lr"], beside["lr"]] == pytest.approx([RATE / 8, 0.02 / 8])
    assert [student["weight_decay"], beside["weight_decay"]] == [0.01, 0.0]
    assert module.objective is not None
    assert {id(p) for p in beside["params"]} == {id(p) for p in module.objective.parameters()}


def test_gradients_accumulate_within_a_phase() -> None:
    watch = Watch()
    trainer(watch, accumulate_grad_batches=2).fit(distiller(phases=by_step(1, 1)), loader(6))
    assert [outputs["phase"] for outputs in watch.outputs] == ["student"] * 2 + ["guide"] * 2 + ["student"] * 2
    moved = [[not same(a[i], b[i]) for i in (0, 1)] for a, b in zip(watch.states, watch.states[1:], strict=False)]
    assert [one[1] for one in moved] == [False, False, True, True, False, False]  # buffers move in each batch
    weights = [state[0]["0.weight"] for state in watch.states]
    changed = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert changed == [False, True, False, False, False, True]


def test_clipping_is_by_the_norm_of_those_whose_turn_it_is() -> None:
    watch = Watch()
    plain = partial(torch.optim.SGD, lr=1.0)
    module = distiller(phases=by_step(1, 1), optimizer=plain)
    trainer(watch, gradient_clip_val=1e-3).fit(module, loader(4))
    for phase, before, after in zip(watch.outputs, watch.states, watch.states[1:], strict=False):
        index = 0 if phase["phase"] == "student" else 1
        network = module.student if index == 0 else module.objective
        assert network is not None
        names = [name for name, _ in network.named_parameters()]
        step = sum(float((after[index][name] - before[index][name]).square().sum()) for name in names) ** 0.5
        assert step == pytest.approx(1e-3, rel=1e-2)


def scaler() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (lambda: {"precision": "bf16-mixed"}, 0.03),
        (lambda: {"plugins": [scaler()]}, 0.01),
        (lambda: {"precision": "bf16-true"}, 0.1),
    ],
    ids=["bf16-mixed", "fp16", "bf16-true"],
)
def test_low_precision_comes_close(options: Callable[[], dict[str, Any]], tolerance: float) -> None:
    plain, watch = Watch(), Watch()
    trainer(plain).fit(distiller(phases=by_step(1, 1)), loader())
    half = options()
    dtype = torch.bfloat16 if half.get("precision") == "bf16-true" else torch.float32
    data = [(inputs.to(dtype), target) for inputs, target in loader()]
    trainer(watch, **half).fit(distiller(phases=by_step(1, 1)), DataLoader(data, batch_size=None))
    for one, other in zip(plain.states[-1][:2], watch.states[-1][:2], strict=True):
        names = [name for name in one if "num_batches" not in name]
        distances = [float((one[name] - other[name].float()).abs().max()) for name in names]
        assert 0 < max(distances) < tolerance
    assert {outputs["guide"].dtype for outputs in watch.outputs} == {torch.float32}


@pytest.mark.parametrize("size", [None, 48])
def test_the_teacher_sees_images_as_it_was_trained_with_them(size: int | None, tmp_path: Path) -> None:
    torch.manual_seed(2)
    # a network of timm whose images have other means and deviations than those of the student
    options = {"pretrained_cfg_overlay": {"mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7)}}
    teacher = create_backbone("test_efficientnet", num_classes=CLASSES, options=options)
    torch.save(teacher.state_dict(), tmp_path / "t.pt")
    module = Distiller(
        "test_resnet",
        "test_efficientnet",
        num_classes=CLASSES,
        objective="kd",
        teacher_checkpoint=str(tmp_path / "t.pt"),
        teacher_kwargs=options,
        teacher_image_size=size,
        optimizer=sgd,
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 32, 32, generator=generator)
    own = [torch.tensor(module.data_config[name]).view(3, 1, 1) for name in ("mean", "std")]
    data = DataLoader(TensorDataset((pixels - own[0]) / own[1], torch.arange(4)), batch_size=4)
    watch = Watch()
    trainer(watch).fit(module, data)
    wanted = (pixels - torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    if size is not None:
        wanted = nn.functional.interpolate(wanted, size=(size, size), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(watch.outputs[0]["teacher_logits"], teacher.eval()(wanted), rtol=1e-3, atol=1e-3)


def test_a_cached_teacher_gives_the_same_student_and_is_asked_once_per_sample(tmp_path: Path) -> None:
    results, asked = [], []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        seed_everything(0, verbose=False)
        module = named(tmp_path, teacher_cache=cache)
        seen: list[int] = []

        class Count(Watch):
            def on_train_start(self, trainer: Trainer, module: Distiller, seen: list[int] = seen) -> None:
                assert module._teacher is not None
                module._teacher.network.register_forward_hook(lambda net, args, out: seen.append(len(args[0])))
                super().on_train_start(trainer, module)

        watch = Count()
        run = trainer(watch, max_epochs=3, limit_val_batches=0)
        run.fit(module, datamodule=digits(augment=False, train_samples=48))
        results.append((bits(module.student), [out["teacher_logits"] for out in watch.outputs]))
        asked.append(sum(seen))
    assert asked[0] == 3 * 48
    assert asked[1] <= 48 + 16
    assert asked[2] <= 16  # the first batch tells how large its outputs are
    assert same(results[1][0], results[2][0])
    for name, value in results[0][0].items():  # sums of other batches differ in their last bits
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-2, atol=1e-3)


def refused(error: type[Exception], words: str, build: Callable[[], Any], data: Any = None) -> None:
    options = {"datamodule": data} if isinstance(data, LightningDataModule) else {"train_dataloaders": data or loader()}
    with pytest.raises(error, match=words) as caught:
        trainer(limit_val_batches=0).fit(build(), **options)
    assert "\n" not in str(caught.value)


def broken(tmp_path: Path) -> nn.Module:
    teacher = network(12, 1)
    nn.init.constant_(teacher[-1].bias, float("nan"))
    return teacher


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "classes": ({"teacher": network(12, 1, classes=3)}, r"model.teacher has 3 classes and the student 4"),
    "given classes": ({"num_classes": 5}, r"num_classes is 5, but the student has 4 classes; set .* to 4"),
    "objective": ({"objective": "dikd"}, r"model.objective.*'dikd'.*Did you mean 'dkd'"),
    "guide": ({"guide": "teacher_feature"}, r"guide.*'teacher_feature'.*Did you mean 'teacher_features'"),
    "option": ({"objective_kwargs": {"topk": 2}}, r"'disk' has no option 'topk'.*Did you mean 'top_k'"),
    "budget": ({"objective_kwargs": {"top_k": 2, "budget": -1.0}}, r"budget=-1.0 must be"),
    "top_k": ({"objective_kwargs": {"top_k": 9}}, r"top_k is 9, but there are 4 classes; set top_k to 4 or less"),
    "guide option": ({"guide_kwargs": {"widths": 3}}, r"guide 'teacher_features' has no option 'widths'"),
    "no teacher": ({"teacher": None}, r"model.teacher is not given; give one, or set model.objective to ce"),
    "epochs": ({"teacher_epochs": -1}, r"model.teacher_epochs is -1; it must be 0 or more"),
    "no data": ({"teacher_epochs": 1}, r"model.teacher_epochs trains the teacher on a data module"),
    "kwargs": ({"teacher_kwargs": {"drop_rate": 0.1}}, r"model.teacher is a Sequential"),
    "cache": ({"teacher_cache": "x"}, r"model.teacher_cache needs samples with keys, and NoneType gives none"),
    "no name": ({"student": nn.Sequential(nn.Conv2d(1, 1, 1))}, r"model.num_classes is not given"),
    "optimizer": (
        {"guide_optimizer": {"weight_deca": 0}},
        r"SGD has no option 'weight_deca'.*Did you mean 'weight_decay'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_is_said_in_one_sentence(case: str) -> None:
    options, words = CASES[case]
    refused(ConfigurationError, words, lambda: distiller(**options))


def test_a_teacher_by_name_needs_weights_of_its_own_architecture(tmp_path: Path) -> None:
    words = r"teacher test_efficientnet has no trained weights; give model.teacher_checkpoint, set"
    refused(ConfigurationError, words, lambda: named(tmp_path, teacher_checkpoint=None), digits())
    torch.save(network(8, 0).state_dict(), tmp_path / "other.pt")
    words = r"model.teacher_checkpoint: .*other.pt"
    refused(ConfigurationError, words, lambda: named(tmp_path, teacher_checkpoint=str(tmp_path / "other.pt")), digits())


def test_a_cache_needs_a_data_module_that_gives_keys(tmp_path: Path) -> None:
    class Foreign(LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return loader()

    words = "model.teacher_cache needs samples with keys, and Foreign gives none"
    refused(ConfigurationError, words, lambda: distiller(teacher_cache=str(tmp_path)), Foreign())


def test_a_teacher_that_is_not_finite_is_named(tmp_path: Path) -> None:
    words = r"batch 0 of epoch 0: the teacher \(Sequential\) gives NaN or infinite logits for 16 of 16"
    refused(NonFiniteLossError, words, lambda: distiller(teacher=broken(tmp_path)))


def test_sharded_strategies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, run = distiller(), trainer()
    module.trainer = run
    monkeypatch.setattr(type(run), "strategy", FSDPStrategy.__new__(FSDPStrategy), raising=False)
    with pytest.raises(ConfigurationError, match="Distiller works on one device and with DDP; FSDPStrategy shards"):
        module.setup("fit")


def test_a_compiled_student_trains_as_it_does_without() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    alone = nn.Sequential(nn.Linear(2, 2))
    alone.compile(backend=compiler)
    alone(torch.ones(1, 2))
    if not graphs:
        pytest.skip(f"torch {torch.__version__} compiles no nn.Sequential in place")
    graphs.clear()
    plain, compiled = distiller(phases=by_step(1, 1)), distiller(phases=by_step(1, 1))
    compiled.student.compile(backend=compiler)
    for module in (plain, compiled):
        torch.manual_seed(5)
        trainer().fit(module, loader())
    assert graphs
    assert same(bits(plain), bits(compiled))
