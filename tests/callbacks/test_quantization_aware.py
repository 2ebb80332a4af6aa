"""Training with rounded weights and activations, and the integers that come of it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import _quantization_report
from lightning_efficient.callbacks._quantization_costs import FLOAT, Timed, slower, timed
from lightning_efficient.callbacks._quantization_ranges import (
    begin_to_learn,
    give_shapes,
    ranges_are_known,
    read_ranges,
    write_ranges,
)
from lightning_efficient.callbacks.quantization_aware import QuantizationAware
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.checkpoints import load_weights
from lightning_efficient.nn.quantization import AwareNetwork, load_quantized, prepare_aware

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:You're using the WeightAveraging callback",
    "ignore:Checkpoint directory",
    "ignore:The dirpath has changed",
)

STEPS = 3
"""Optimiser steps of an epoch."""


def images(count: int = 24, seed: int = 0) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 6, 6, generator=draw), torch.randint(3, (count,), generator=draw))


class Small(L.LightningModule):
    """Convolution, BatchNorm, dropout and a classifier."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3)
        )
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.seen.append(logits.detach().clone())
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Watch(Callback):
    """Note what is on at each training batch."""

    def __init__(self) -> None:
        self.states: list[tuple[bool, bool]] = []

    def on_before_zero_grad(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self.states.append(flags(module.backbone))


def flags(network: AwareNetwork) -> tuple[bool, bool]:
    """Tell whether a network rounds, and whether its ranges learn."""
    each = [module for module in network.modules() if hasattr(module, "fake_quant_enabled")]
    rounds, learns = ({bool(getattr(module, name)) for module in each} for name in FLAGS)
    assert len(rounds) == len(learns) == 1
    return rounds.pop(), learns.pop()


FLAGS = ("fake_quant_enabled", "observer_enabled")


def trainer(*callbacks: Callback, **options: Any) -> L.Trainer:
    defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    quiet = {
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **quiet, **options})


def aware(**options: Any) -> QuantizationAware:
    return QuantizationAware(**{"input_shape": (1, 6, 6), "measure": False, **options})


def fit(*callbacks: Callback, module: Small | None = None, ckpt_path: Any = None, **options: Any) -> Small:
    module = module or Small()
    L.seed_everything(1, verbose=False)
    train, val = StatefulDataLoader(images(), batch_size=8), DataLoader(images(seed=1), batch_size=8)
    trainer(*callbacks, **options).fit(module, train, val, ckpt_path=ckpt_path)
    return module


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, QuantizationAware, Path]:
    """A whole run: the module, the callback and the folder with a checkpoint of each epoch."""
    folder = tmp_path_factory.mktemp("run")
    callback = aware()
    save = ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    logger = CSVLogger(folder, name="", version="")
    module = fit(callback, save, logger=logger, default_root_dir=folder, log_every_n_steps=1)
    return module, callback, folder


Run = tuple[Small, QuantizationAware, Path]

# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": -0.1}, "begin is -0.1; it must be a share of the steps, 0 <= begin <= 1"),
        ({"begin": float("nan")}, "begin is nan"),
        ({"begin": True}, "begin is True"),
        ({"freeze_ranges": 0}, "freeze_ranges is 0; it must be a share of the steps, 0 < freeze_ranges <= 1"),
        ({"freeze_ranges": 75}, "freeze_ranges is 75"),
        ({"measure": "no"}, "measure='no' must be True or False"),
    ],
    ids=["negative", "nan", "flag", "zero", "percent", "text"],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QuantizationAware(**options)


class Manual(Small):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Compiled(Small):
    def __init__(self) -> None:
        super().__init__()
        self.backbone.compile()


class Whole(Small):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 1, 6, 6)


class Branching(Small):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Chooses()


class Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((1, 2)) * (2 if x.sum() > 0 else 1)


@pytest.mark.parametrize(
    ("module", "options", "of_trainer", "message"),
    [
        (Manual, {}, {}, "QuantizationAware works in automatic optimisation"),
        (Compiled, {}, {}, "backbone is compiled by torch.compile"),
        (Whole, {"network": ""}, {}, "network='' is the whole Whole"),
        (Small, {"network": "backbon"}, {}, "network is 'backbon'.* Did you mean 'backbone'?"),
        (Small, {"input_shape": None}, {}, "does not tell the shape of its input; give QuantizationAware"),
        (Branching, {}, {}, "QuantizationAware: backbone: the network cannot be quantised"),
        (Small, {}, {"precision": "bf16-true"}, "trainer.precision is bf16-true"),
        (Small, {"begin": 0.1}, {"max_epochs": -1}, "this one has no end"),
    ],
    ids=["manual", "compiled", "whole", "unknown", "shapeless", "branching", "precision", "endless"],
)
def test_what_cannot_work_is_refused_before_training(
    module: Callable[[], Small], options: dict[str, Any], of_trainer: dict[str, Any], message: str
) -> None:
    watch = Watch()
    with pytest.raises(ConfigurationError, match=message):
        fit(aware(**options), watch, module=module(), **of_trainer)
    assert watch.states == []


def test_two_on_one_network_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"two QuantizationAware callbacks \('quantization' and 'second'\)"):
        fit(aware(), aware(name="second", network="backbone"))


class Features(Small):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = TwoParts()

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone.forward_head(self.backbone.forward_features(x))


class TwoParts(nn.Module):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 36
        self.head = nn.Linear(36, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_a_module_that_calls_a_part_of_the_network_is_told_that_the_graph_has_none() -> None:
    module = Features()
    with pytest.raises(ConfigurationError, match=r"backbone is a graph of forward alone, .* calls forward_features"):
        fit(aware(), module=module)
    assert module.backbone.num_features == 36


# ---- training


@pytest.mark.parametrize(
    ("begin", "freeze", "expected"),
    [
        (0.0, 1.0, [(True, True)] * 6),
        (0.5, 1.0, [(False, True)] * 3 + [(True, True)] * 3),
        (0.0, 0.5, [(True, True)] * 3 + [(True, False)] * 3),
        (0.3, 0.6, [(False, True)] * 2 + [(True, True)] * 2 + [(True, False)] * 2),
    ],
    ids=["always", "late", "frozen", "both"],
)
def test_rounding_begins_and_ranges_freeze_at_their_shares_of_the_steps(
    begin: float, freeze: float, expected: list[tuple[bool, bool]]
) -> None:
    watch = Watch()
    fit(aware(begin=begin, freeze_ranges=freeze), watch)
    assert watch.states == expected


def test_ranges_move_until_they_are_frozen_and_never_in_validation() -> None:
    found: dict[str, Any] = {}

    class Look(Callback):
        def _note(self, key: str, module: Any) -> None:
            found[key] = read_ranges(module.backbone)

        def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
            self._note(f"before {trainer.global_step}", module)

        def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
            self._note(f"after {trainer.global_step}", module)

    fit(aware(freeze_ranges=0.7), Look(), max_epochs=3, num_sanity_val_steps=0)

    def alike(one: str, other: str) -> bool:
        pairs = [(found[one][name], found[other][name]) for name in found[one]]
        return all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))

    assert all(alike(f"before {step}", f"after {step}") for step in (3, 6, 9))
    assert not alike("after 3", "before 6")
    assert not alike("after 6", "before 9")  # 0.7 of nine steps is in the third epoch
    assert alike("after 9", "before 9")


def test_validation_rounds_once_training_does() -> None:
    found: list[tuple[bool, bool]] = []

    class Look(Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            found.append((trainer.global_step, *flags(module.backbone)))

    fit(aware(begin=0.5), Look(), num_sanity_val_steps=1)
    assert found == [(0, False, False)] + [(3, False, False)] * 3 + [(6, True, False)] * 3


def test_batch_norm_and_dropout_train_again_after_a_validation() -> None:
    counts: list[int] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            counts.append(int(module.state_dict()["backbone.1.num_batches_tracked"]))

    fit(aware(), Look())
    assert counts == [1, 2, 3, 4, 5, 6]


def test_parameters_and_state_dict_are_those_of_the_float_network(run: Run) -> None:
    module, _, folder = run
    plain = Small()
    assert isinstance(module.backbone, AwareNetwork)
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert weights(module).keys() == weights(plain).keys()
    stored = torch.load(folder / "checkpoints/epoch=1.ckpt", weights_only=True)["state_dict"]
    plain.load_state_dict(stored)
    assert same(weights(plain), weights(module))


def test_the_gradient_passes_the_rounding(run: Run) -> None:
    before, after = weights(Small()), weights(run[0])
    assert all(not torch.equal(before[name], after[name]) for name in before)


# ---- checkpoints


@pytest.mark.parametrize("averaged", [False, True], ids=["weights", "averaged"])
@pytest.mark.parametrize("options", [{}, {"begin": 0.6, "freeze_ranges": 0.4}], ids=["from_the_start", "late"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(averaged: bool, options: dict[str, Any], tmp_path: Path) -> None:
    def once(ckpt_path: Path | None = None) -> tuple[Small, QuantizationAware]:
        callback = aware(**options)
        more = [EMAWeightAveraging(decay=0.5)] if averaged else []
        save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        module = fit(callback, save, *more, module=Undropped(), ckpt_path=ckpt_path)
        return module, callback

    whole, first = once()
    resumed, second = once(tmp_path / "step=2.ckpt")
    assert same(weights(whole), weights(resumed))
    ours, theirs = (read_ranges(module.backbone) for module in (whole, resumed))
    assert all(torch.equal(a, b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True))
    assert whole.seen[-1].isfinite().all()
    assert torch.equal(whole.seen[-1], resumed.seen[-1])
    inputs = images(seed=5).tensors[0]
    assert first.quantized is not None
    assert second.quantized is not None
    assert torch.equal(first.quantized.module(inputs), second.quantized.module(inputs))


class Undropped(Small):
    """Without dropout, whose random numbers a resumed run here would draw anew."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone[4] = nn.Identity()


def test_a_checkpoint_is_tested_as_it_was_validated(run: Run) -> None:
    module, _, folder = run
    fresh = Small()
    data = DataLoader(images(seed=1), batch_size=8)
    trainer(aware()).test(fresh, data, ckpt_path=folder / "checkpoints/epoch=1.ckpt", verbose=False)
    assert torch.equal(torch.cat(fresh.seen), torch.cat(module.seen[-STEPS:]))
    plain = Small()
    trainer().test(plain, data, ckpt_path=folder / "checkpoints/epoch=1.ckpt", verbose=False)
    difference = (torch.cat(plain.seen) - torch.cat(fresh.seen)).abs().max()
    assert 0 < difference < 0.2


def test_the_module_tests_as_it_is_after_a_fit_also_with_another_callback(run: Run) -> None:
    module, _, _ = run
    before = torch.cat(module.seen[-STEPS:])
    data = DataLoader(images(seed=1), batch_size=8)
    trainer(aware()).test(module, data, verbose=False)
    assert torch.equal(torch.cat(module.seen[-STEPS:]), before)


def test_a_float_checkpoint_is_evaluated_without_rounding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = fit(ModelCheckpoint(tmp_path, filename="float"))
    expected = torch.cat(module.seen[-STEPS:])
    fresh = Small()
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        data = DataLoader(images(seed=1), batch_size=8)
        trainer(aware()).test(fresh, data, ckpt_path=tmp_path / "float.ckpt", verbose=False)
    torch.testing.assert_close(torch.cat(fresh.seen), expected)
    assert "these weights come without ranges, so nothing is rounded" in caplog.text


def test_a_run_goes_on_from_a_float_checkpoint(tmp_path: Path) -> None:
    fit(ModelCheckpoint(tmp_path, filename="float"))
    callback = aware()
    fit(callback, ckpt_path=tmp_path / "float.ckpt", max_epochs=3)
    assert callback.quantized is not None


def test_float_weights_are_loaded_strictly_into_the_graph(tmp_path: Path) -> None:
    plain, module = Small(), Small()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    torch.save(plain.state_dict(), tmp_path / "float.pt")
    data = DataLoader(images(), batch_size=8)
    trainer(aware(), limit_test_batches=1).test(module, data, verbose=False)
    load_weights(module.backbone, tmp_path / "float.pt", option="x")
    assert same(weights(plain), weights(module))
    with pytest.raises(RuntimeError, match="Missing key"):
        module.backbone.load_state_dict({"0.weight": plain.backbone[0].weight})


def test_a_second_fit_goes_on_with_the_same_graph() -> None:
    module = fit(aware(), max_epochs=1)
    graph, before = module.backbone, read_ranges(module.backbone)
    callback = aware(freeze_ranges=1)
    fit(callback, module=module, max_epochs=1)
    assert module.backbone is graph
    after = read_ranges(module.backbone)
    assert any(not torch.equal(before[name][1], after[name][1]) for name in before)
    assert callback.quantized is not None


# ---- the end


def test_the_integers_answer_as_the_rounded_network(run: Run) -> None:
    module, callback, folder = run
    inputs = images(seed=7).tensors[0]
    with torch.no_grad():
        rounded, integers = module.eval()(inputs), callback.quantized.module(inputs)
    assert (rounded - integers).abs().max() < 0.05
    assert (rounded.argmax(1) == integers.argmax(1)).all()
    assert torch.equal(load_quantized(folder / "quantized.pt2")(inputs), integers)
    assert callback.quantized.quantized == ("0", "5")


def test_the_run_folder_tells_sizes_and_layers(run: Run) -> None:
    _, _, folder = run
    content = json.loads((folder / "quantization.json").read_text())
    assert (content["scheme"], content["file"], content["quantized"]) == ("aware", "quantized.pt2", ["0", "5"])
    assert content["input_shape"] == [1, 6, 6]
    assert content["size"]["int8"]["bytes"] == (folder / "quantized.pt2").stat().st_size
    assert 0 < content["size"]["float"]["compressed"] < content["size"]["float"]["bytes"]
    assert content["latency"] == []
    assert "quantization/int8_bytes" in (folder / "metrics.csv").read_text()


def test_measured_times_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quantization_report, "compile_quantized", lambda module: module)
    monkeypatch.setattr(_quantization_report, "timed", partial(timed, min_run_time_s=0.001))
    fit(aware(measure=True, name="other"), logger=CSVLogger(tmp_path, name="", version=""), max_epochs=1)
    content = json.loads((tmp_path / "other.json").read_text())
    assert content["file"] == "other.pt2"
    assert [(row["name"], row["compiled"]) for row in content["latency"]] == [
        ("float", False),
        ("int8", False),
        ("float", True),
        ("int8", True),
    ]
    assert (tmp_path / "other.csv").read_text().startswith("network,compiled,ms")
    assert "other/compiled_speed_up" in (tmp_path / "metrics.csv").read_text()


def test_a_rehearsal_converts_and_writes_nothing(tmp_path: Path) -> None:
    callback = aware()
    fit(callback, logger=CSVLogger(tmp_path), fast_dev_run=True)
    assert callback.quantized is not None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_never_rounds_says_so() -> None:
    callback = aware(begin=0.9)
    with pytest.warns(UserWarning, match=r"rounding begins at 0\.9 of the steps, which this run did not reach"):
        fit(callback, max_epochs=2)
    assert callback.quantized is None


def pickled(callback: Any) -> Any:
    return pickle.loads(pickle.dumps(callback))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deep", "pickle"])
def test_copies_leave_the_networks_behind(copied: Callable[[Any], Any], run: Run) -> None:
    again = copied(run[1])
    assert again.quantized is None
    assert (again.begin, again.freeze_ranges, again.state_key) == (0.0, 0.75, "QuantizationAware[quantization]")


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                raise KeyboardInterrupt

        def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / "interrupted.ckpt")

    stopped = aware()
    with pytest.raises(SystemExit):
        fit(stopped, Stop(), module=Undropped())
    callback = aware()
    module = fit(callback, module=Undropped(), ckpt_path=tmp_path / "interrupted.ckpt")
    whole = fit(aware(), module=Undropped())
    assert same(weights(whole), weights(module))


# ---- ranges


def graph() -> AwareNetwork:
    network = Small().backbone
    prepared = prepare_aware(network, torch.zeros(2, 1, 6, 6))
    give_shapes(prepared, torch.randn(2, 1, 6, 6))
    return prepared


def test_shapes_are_given_without_values() -> None:
    prepared = graph()
    assert not ranges_are_known(prepared)
    ranges = read_ranges(prepared)
    assert {tuple(low.shape) for low, _ in ranges.values()} == {(), (3,), (4,)}
    assert all(bool((low > high).all()) for low, high in ranges.values())
    begin_to_learn(prepared)
    assert not ranges_are_known(prepared)
    prepared(torch.randn(2, 1, 6, 6))
    assert ranges_are_known(prepared)


def test_scales_follow_the_ranges_that_are_put_back() -> None:
    prepared = graph()
    begin_to_learn(prepared)
    inputs = torch.randn(8, 1, 6, 6)
    prepared(inputs)
    kept, expected = read_ranges(prepared), prepared.eval()(inputs)
    for module in prepared.modules():  # what averaging does to integers
        if hasattr(module, "zero_point"):
            module.zero_point.zero_()
            module.scale.mul_(3)
    assert not torch.allclose(prepared(inputs), expected, atol=1e-3)
    write_ranges(prepared, kept, "x")
    assert torch.equal(prepared(inputs), expected)


def test_ranges_of_another_network_are_refused() -> None:
    kept = read_ranges(graph())
    kept.popitem()
    with pytest.raises(ConfigurationError, match="x: the checkpoint has 4 ranges of another network than this one"):
        write_ranges(graph(), kept, "x")


# ---- costs


def test_networks_are_timed_beside_the_float_one() -> None:
    small, large = nn.Linear(4, 4), nn.Sequential(*(nn.Linear(4, 4) for _ in range(60)))
    rows, problem = timed(
        {FLOAT: large, "int8": small}, torch.zeros(1, 4), batch_sizes=(1, 3), threads=1, min_run_time_s=0.01
    )
    assert problem is None
    assert [(row.name, row.batch_size, row.compiled) for row in rows] == [
        (FLOAT, 1, False),
        ("int8", 1, False),
        (FLOAT, 3, False),
        ("int8", 3, False),
    ]
    for row in rows:
        assert row.low <= row.speed_up <= row.high
        assert (row.speed_up == 1) == (row.name == FLOAT)
    assert slower(rows) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [(ConfigurationError("no compiler"), "no compiler"), (RuntimeError(), "torch.compile failed: RuntimeError")],
    ids=["missing", "broken"],
)
def test_what_cannot_be_compiled_is_still_timed(error: Exception, line: str) -> None:
    def refuse(module: nn.Module) -> Any:
        raise error

    rows, problem = timed({FLOAT: nn.Identity()}, torch.zeros(1, 4), min_run_time_s=0.001, compiler=refuse)
    assert [row.compiled for row in rows] == [False]
    assert problem is not None
    assert line in problem


def test_a_network_that_is_slower_is_named() -> None:
    rows = [Timed("int8", mode, 1, 2.0, ratio, ratio, ratio, ratio, 9) for mode, ratio in ((False, 0.4), (True, 0.5))]
    assert slower(rows[:1]) == ["int8 is slower than float here (batch 1, eager): 0.40x its speed"]
    assert slower(rows) == ["int8 is slower than float here (batch 1, compiled): 0.50x its speed"]
