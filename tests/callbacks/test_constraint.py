"""Constraints on problems whose constrained optimum is known, and what a Trainer may do to them."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from part_settings import distance, scaler, trainer
from part_settings import loader as sequences
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import FPTT, ChunkedBackprop, ExactResume
from lightning_efficient.callbacks.constraint import Constraint
from lightning_efficient.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:Checkpoint directory")

AIM = (3.0, 4.0)


class Pulled(L.LightningModule):
    """Minimise |w - aim|² / 2, which is at w = aim, of norm 5; data only count steps and weigh the norm."""

    def __init__(self, rate: float = 0.1, price: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 0.1]))
        self.rate, self.price = rate, price
        self.losses: list[float] = []
        self.poison: dict[int, float] = {}

    def norm(self, batch: Any) -> Tensor:
        return self.weight.norm() * batch[0].mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = 0.5 * (self.weight - torch.tensor(AIM)).square().sum()
        self.log("size/norm", self.norm(batch) * self.poison.get(self.global_step, 1.0))
        self.log("first", self.weight[0])
        return loss + self.price * self.norm(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/norm", self.norm(batch))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Returning(Pulled):
    """The same with a dict, and the scalar among others."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = 0.5 * (self.weight - torch.tensor(AIM)).square().sum()
        self.log_dict({"size/norm": self.norm(batch), "other": loss})
        return {"loss": loss, "more": 1}


def ones(batches: int = 20, values: Tensor | None = None, cls: Any = DataLoader) -> DataLoader:
    return cls(TensorDataset(torch.ones(batches) if values is None else values), batch_size=1)


def fit(module: L.LightningModule, *callbacks: Callback, data: Any = None, **options: Any) -> L.Trainer:
    run = trainer(*callbacks, **options)
    run.fit(module, data or ones())
    return run


@pytest.mark.parametrize("cls", [Pulled, Returning])
@pytest.mark.parametrize("augmentation", [0.0, 1.0])
def test_training_ends_at_the_constrained_optimum(cls: type[Pulled], augmentation: float) -> None:
    module, constraint = cls(), Constraint("size/norm", at_most=2, augmentation=augmentation)
    fit(module, constraint, max_epochs=12)
    # w = 2 aim / |aim|, where the pull of 5 - 2 is balanced by the multiplier
    assert module.weight.tolist() == pytest.approx([1.2, 1.6], abs=1e-3)
    assert constraint.dual.multiplier == pytest.approx(3, abs=1e-2)
    assert constraint.residual == pytest.approx(0, abs=1e-3)


def test_a_lower_bound_holds_too() -> None:
    module, constraint = Pulled(), Constraint("size/norm", at_least=6)
    fit(module, constraint, max_epochs=12)
    assert module.weight.tolist() == pytest.approx([3.6, 4.8], abs=1e-3)
    assert constraint.dual.multiplier == pytest.approx(1, abs=1e-2)


def test_a_constraint_that_is_met_changes_nothing() -> None:
    free, bound = Pulled(), Pulled()
    constraint = Constraint("size/norm", at_most=100)
    fit(free)
    fit(bound, constraint)
    assert distance(free, bound) == 0
    assert constraint.dual.multiplier == 0
    assert constraint.dual.updates == 20


def test_two_constraints_hold_together() -> None:
    module = Pulled()
    fit(module, Constraint("size/norm", at_most=2), Constraint("first", at_most=0.5), max_epochs=25)
    assert module.weight.tolist() == pytest.approx([0.5, (4 - 0.25) ** 0.5], abs=2e-3)


def by_hand(values: Tensor, window: int = 1, scale: float = 1.0, epoch: int | None = None) -> tuple[Tensor, float]:
    """Descend on the loss plus the penalty, and move the multiplier, in plain torch."""
    weight, multiplier, seen = torch.tensor([0.5, 0.1]), 0.2, []
    for chunk in values.split(window):
        weight.requires_grad_()
        norms = [weight.norm() * value for value in chunk]
        losses = [0.5 * (weight - torch.tensor(AIM)).square().sum() + multiplier * (norm - 1) for norm in norms]
        # Lightning divides by the window even where an epoch ends before it is full
        (grad,) = torch.autograd.grad(sum(losses) / window, weight)
        weight = (weight - 0.1 * grad).detach()
        seen.append(torch.stack(norms).mean().item() - 1)
        if epoch is None or len(seen) == epoch:
            multiplier = max(0.0, multiplier + scale * sum(seen) / len(seen))
            seen = []
    return weight, multiplier


@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_multiplier_moves_once_per_step_by_the_mean_of_its_batches(window: int) -> None:
    values = torch.rand(8, generator=torch.Generator().manual_seed(0)) + 0.5
    module, constraint = Pulled(), Constraint("size/norm", at_most=1, rate=0.3, initial=0.2)
    fit(module, constraint, data=ones(values=values), accumulate_grad_batches=window)
    weight, multiplier = by_hand(values, window, 0.3)
    torch.testing.assert_close(module.weight.detach(), weight)
    assert constraint.dual.multiplier == pytest.approx(multiplier, rel=1e-5)
    assert constraint.dual.updates == -(-8 // window)


def test_or_once_per_epoch_by_the_mean_of_its_steps() -> None:
    values = torch.rand(8, generator=torch.Generator().manual_seed(0)) + 0.5
    module, constraint = Pulled(), Constraint("size/norm", at_most=1, rate=0.3, initial=0.2, every="epoch")
    fit(module, constraint, data=ones(values=values), max_epochs=2)
    weight, multiplier = by_hand(values.repeat(2), 1, 0.3, epoch=8)
    torch.testing.assert_close(module.weight.detach(), weight)
    assert constraint.dual.multiplier == pytest.approx(multiplier, rel=1e-5)
    assert constraint.dual.updates == 2


@pytest.mark.parametrize(("monitor", "every"), [("val/norm", "epoch"), ("size/norm", "epoch"), ("size/norm", "step")])
def test_an_attribute_receives_the_multiplier_of_what_has_no_gradient(monitor: str, every: str) -> None:
    module = Pulled()
    constraint = Constraint(monitor, at_most=2, rate=0.3, every=every, attribute="price")
    run = trainer(constraint, max_epochs=80)
    run.fit(module, ones(5), ones(1))
    assert module.weight.tolist() == pytest.approx([1.2, 1.6], abs=1e-2)
    assert module.price == constraint.dual.multiplier == pytest.approx(3, abs=3e-2)
    assert constraint.dual.updates == (80 if every == "epoch" else 400)


def test_a_value_that_is_not_new_moves_nothing() -> None:
    constraint = Constraint("val/norm", at_most=2, every="epoch", attribute="price")
    trainer(constraint, max_epochs=6, check_val_every_n_epoch=3).fit(Pulled(), ones(5), ones(1))
    assert constraint.dual.updates == 2
    constraint = Constraint("val/norm", at_most=2, every="step", attribute="price")
    trainer(constraint, max_epochs=3).fit(Pulled(), ones(5), ones(1))
    assert constraint.dual.updates == 2  # a value of the last validation finds no further step


def test_an_attribute_moves_with_the_steps_of_the_optimiser_only() -> None:
    constraint = Constraint("size/norm", at_most=2, attribute="price")
    fit(Pulled(), constraint, data=ones(6), accumulate_grad_batches=3)
    assert constraint.dual.updates == 2


@pytest.mark.parametrize("every", ["step", "epoch"])
# from the last batch of an epoch, step 5, Lightning goes on without the validation that follows it
@pytest.mark.parametrize(("form", "step"), [("loss", 3), ("loss", 5), ("loss", 8), ("attribute", 3), ("attribute", 8)])
def test_a_resumed_run_goes_on_bit_for_bit(every: str, form: str, step: int, tmp_path: Path) -> None:
    options = {"loss": {"monitor": "size/norm"}, "attribute": {"monitor": "val/norm", "attribute": "price"}}[form]

    def run(*more: Callback, ckpt_path: Path | None = None) -> tuple[Pulled, Constraint]:
        module, constraint = Pulled(), Constraint(at_most=1, rate=0.3, every=every, **options)
        values = torch.rand(5, generator=torch.Generator().manual_seed(0)) + 0.5
        data = ones(values=values, cls=StatefulDataLoader)
        settings = {"max_epochs": 3, "enable_checkpointing": bool(more), "num_sanity_val_steps": 0}
        trainer(constraint, ExactResume(), *more, **settings).fit(module, data, ones(1), ckpt_path=ckpt_path)
        return module, constraint

    whole, one = run(ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1))
    path = tmp_path / f"step={step}.ckpt"
    torch.load(path, weights_only=True)
    resumed, two = run(ckpt_path=path)
    assert distance(whole, resumed) == 0
    assert one.state_dict() == two.state_dict()
    assert whole.price == resumed.price


@pytest.mark.parametrize(
    ("form", "every", "updates"), [("loss", "epoch", 3), ("attribute", "epoch", 3), ("attribute", "step", 2)]
)
def test_a_checkpoint_of_the_end_of_validation_knows_the_epoch(
    form: str, every: str, updates: int, tmp_path: Path
) -> None:
    options = {"loss": {"monitor": "size/norm"}, "attribute": {"monitor": "val/norm", "attribute": "price"}}[form]

    def run(*more: Callback, ckpt_path: Path | None = None) -> tuple[Pulled, Constraint]:
        module, constraint = Pulled(), Constraint(at_most=1, rate=0.3, every=every, **options)
        settings = {"max_epochs": 3, "enable_checkpointing": bool(more)}
        trainer(constraint, *more, **settings).fit(module, ones(5), ones(1), ckpt_path=ckpt_path)
        return module, constraint

    whole, one = run(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=False))
    resumed, two = run(ckpt_path=tmp_path / "epoch=1.ckpt")
    assert distance(whole, resumed) == 0
    assert one.dual.state_dict() == two.dual.state_dict()
    assert one.dual.updates == updates


def test_an_infinite_value_of_a_skipped_step_does_not_move_the_multiplier() -> None:
    module, constraint = Pulled(), Constraint("size/norm", at_most=0.5)
    module.poison = {4: float("inf")}
    # the scaler skips, and global_step goes on
    fit(module, constraint, plugins=[scaler()])
    assert constraint.dual.updates == 19
    assert module.weight.isfinite().all()
    assert 0 < constraint.dual.multiplier < 100


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 1.0}], ids=["bf16", "clip"])
def test_precision_and_clipping_leave_the_optimum_where_it_is(options: dict[str, Any]) -> None:
    module = Pulled()
    fit(module, Constraint("size/norm", at_most=2), max_epochs=12, **options)
    assert module.weight.tolist() == pytest.approx([1.2, 1.6], abs=1e-2)


def test_a_search_along_a_line_moves_the_multiplier_once() -> None:
    class Searching(Pulled):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=5)

    constraint = Constraint("size/norm", at_most=2)
    fit(Searching(), constraint, data=ones(3))
    assert constraint.dual.updates == 3


def test_the_multiplier_falls_back_at_the_beginning_of_each_cycle() -> None:
    constraint = Constraint("size/norm", at_most=2, initial=8.0, rate=1e-9, relax_every=5, relax_for=2)
    fit(Pulled(rate=0.0), constraint, data=ones(7))
    assert constraint.dual.multiplier == pytest.approx(8 / 2**4, rel=1e-6)


def test_a_bound_out_of_reach_is_warned_of_once() -> None:
    with pytest.warns(UserWarning, match=r"'size/norm' still misses its bound of -1 by .* maximum of 0.5") as warned:
        fit(Pulled(), Constraint("size/norm", at_most=-1, maximum=0.5, rate=1.0), max_epochs=3)
    assert len([one for one in warned if "misses its bound" in str(one.message)]) == 1


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_multiplier_and_residual_are_logged(every: str, tmp_path: Path) -> None:
    logger, constraint = CSVLogger(tmp_path), Constraint("size/norm", at_most=0.25, every=every)
    run = fit(Pulled(), constraint, data=ones(2), logger=logger, log_every_n_steps=1)
    text = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    rows = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in text[1:]]
    logged = [row for row in rows if row["constraint/size_norm_multiplier"]]
    assert len(logged) == (2 if every == "step" else 1)
    assert float(logged[-1]["constraint/size_norm_multiplier"]) == pytest.approx(constraint.dual.multiplier)
    assert float(logged[-1]["constraint/size_norm_residual"]) == pytest.approx(constraint.residual)
    assert float(run.callback_metrics["constraint/size_norm_multiplier"]) > 0


def test_the_loss_that_others_see_includes_the_penalty() -> None:
    module = Pulled(rate=0.0)
    fit(module, Constraint("size/norm", at_most=0, initial=2.0, rate=1e-12), data=ones(1))
    weight = torch.tensor([0.5, 0.1])
    assert module.losses[0] == pytest.approx(
        0.5 * float((weight - torch.tensor(AIM)).square().sum()) + 2 * float(weight.norm())
    )


class Recurrent(L.LightningModule):
    """A module that is trained in parts and logs what the constraint is on."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 4)

    def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> dict[str, Any]:
        output, hiddens = self.rnn(batch[0], hiddens)
        self.log("norm", self.head.weight.norm())
        loss = nn.functional.cross_entropy(self.head(output).flatten(0, 1), batch[1].flatten())
        return {"loss": loss, "hiddens": hiddens}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def clean(module: L.LightningModule) -> bool:
    return not {"training_step", "log", "optimizer_step"} & set(vars(module))


@pytest.mark.parametrize("make", [functools.partial(FPTT, 3), functools.partial(ChunkedBackprop, 3)])
@pytest.mark.parametrize("first", [True, False])
def test_parts_of_a_sequence_are_steps(make: Callable[[], Callback], first: bool) -> None:
    module, constraint = Recurrent(), Constraint("norm", at_most=0.1)
    callbacks = [constraint, make()] if first else [make(), constraint]
    trainer(*callbacks).fit(module, sequences())
    assert constraint.dual.updates == 15
    assert constraint.dual.multiplier > 0
    assert clean(module)


def test_the_module_is_as_it_was_after_training_and_after_an_error() -> None:
    class Failing(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            raise RuntimeError("on purpose")

    for more in ([], [Failing()]):
        module = Pulled()
        constraints = [Constraint("size/norm", at_most=2), Constraint("first", at_most=2)]
        seen: list[Any] = []

        class Look(Callback):
            def on_train_start(self, trainer: L.Trainer, module: L.LightningModule, seen: Any = seen) -> None:
                seen.append(list(inspect.signature(module.training_step).parameters))
                seen.append(trainer.optimizers[0])

        fails = pytest.raises(RuntimeError, match="on purpose") if more else contextlib.nullcontext()
        with fails:
            fit(module, *constraints, Look(), *more)
        assert seen[0] == ["batch", "batch_idx"]
        assert clean(module)
        assert not seen[1]._optimizer_step_post_hooks
        pickle.loads(pickle.dumps(constraints))


def test_a_second_fit_and_a_copy_start_anew() -> None:
    constraint = Constraint("size/norm", at_most=2)
    results = []
    for used in (constraint, constraint, copy.deepcopy(constraint)):
        module = Pulled()
        fit(module, used)
        results.append((module.weight.tolist(), used.dual.multiplier))
    assert results[0] == results[1] == results[2]


def test_what_is_not_logged_is_told_with_what_is() -> None:
    with pytest.raises(ConfigurationError, match=r"monitor='size/nrom' was not logged in training_step, which logged "):
        fit(Pulled(), Constraint("size/nrom", at_most=2))
    with pytest.raises(ConfigurationError, match=r"\['first', 'size/norm'\]. Did you mean 'size/norm'\?"):
        fit(Pulled(), Constraint("size/nrom", at_most=2))
    for epochs in (1, 2):
        run = trainer(Constraint("val/nrm", at_most=2, attribute="price", every="epoch"), max_epochs=epochs)
        with pytest.raises(ConfigurationError, match=r"was not logged in a whole epoch.* Did you mean 'val/norm'"):
            run.fit(Pulled(), ones(), ones(1))


def test_a_value_without_a_gradient_is_refused() -> None:
    class Detached(Pulled):
        def norm(self, batch: Any) -> Tensor:
            return super().norm(batch).detach()

    with pytest.raises(ConfigurationError, match=r"'size/norm' is logged without a gradient.* give attribute="):
        fit(Detached(), Constraint("size/norm", at_most=2))


def test_manual_optimisation_needs_an_attribute() -> None:
    class Manual(Pulled):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()

        def on_train_batch_end(self, *args: Any) -> None:
            pass

    with pytest.raises(ConfigurationError, match="Manual steps its optimisers itself"):
        fit(Manual(), Constraint("size/norm", at_most=2))
    module = Manual()
    fit(module, Constraint("size/norm", at_most=2, attribute="price"), max_epochs=12)
    assert module.weight.tolist() == pytest.approx([1.2, 1.6], abs=1e-2)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("pricee", "'pricee' is not there.* Did you mean 'price'"),
        ("net.price", "no attribute 'net'"),
        ("weight", "of type Parameter; it must be a number"),
    ],
)
def test_an_attribute_that_is_no_number_is_refused(attribute: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(Pulled(), Constraint("val/norm", at_most=2, attribute=attribute))


def test_an_attribute_may_lie_deeper() -> None:
    module = Pulled()
    module.inner = nn.Identity()
    module.inner.price = 1.0
    fit(module, Constraint("size/norm", at_most=0, attribute="inner.price"), data=ones(1))
    assert module.inner.price == pytest.approx(0.1 * 0.26**0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of at_most and at_least; got at_most=None and at_least=None"),
        ({"at_most": 1.0, "at_least": 0.0}, "got at_most=1.0 and at_least=0.0"),
        ({"at_most": float("nan")}, "the bound is nan"),
        ({"at_most": 1.0, "every": "epochs"}, "every='epochs' is not one of .* Did you mean 'epoch'"),
        ({"at_most": 1.0, "rate": 0.0}, "rate=0.0"),
        ({"at_most": 1.0, "initial": 200.0}, "initial=200.0"),
        ({"at_most": 1.0, "attribute": "a", "augmentation": 1.0}, "augmentation=1.0 is a term of the loss"),
        ({"at_most": 1.0, "relax_for": 2}, "relax_for is 2 and relax_every None"),
        ({"at_most": 1.0, "relax_for": 3, "relax_every": 2}, "relax_for is 3 and relax_every 2"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Constraint("x", **options)


def test_a_config_names_it_by_its_class() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    path = f"{Constraint.__module__}.Constraint"
    given = {"class_path": path, "init_args": {"monitor": "x", "at_most": 1, "maximum": float("inf")}}
    written = parser.dump(parser.parse_object({"callback": given}))
    constraint = parser.instantiate_classes(parser.parse_string(written)).callback
    assert (constraint.bound, constraint.dual.maximum) == (1, float("inf"))
