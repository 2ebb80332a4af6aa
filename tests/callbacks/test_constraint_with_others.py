"""Several callbacks that replace methods of one module: what they do together, and what they leave behind."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from part_settings import distance, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks import FPTT, ChunkedBackprop
from lightning_efficient.callbacks._borrowed_step import BorrowedMethods
from lightning_efficient.callbacks.constraint import Constraint
from lightning_efficient.callbacks.disk import DiSK
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.phases import Alternation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

STEPS, RATE, PRICE = 6, 0.1, 0.7


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the time and the files of DiSK's histograms."""
    monkeypatch.setattr(DiSK, "_draw", lambda *args: None)


class Sorter(L.LightningModule):
    """Labels of whole sequences; serves as a module for each of the callbacks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 4)

    def training_step(self, batch: Any, batch_idx: int, hiddens: Any = None) -> dict[str, Any]:
        output, hiddens = self.rnn(batch[0], hiddens)
        logits = self.head(output[:, -1])
        self.log("norm", self.head.weight.norm())
        loss = nn.functional.cross_entropy(logits, batch[1])
        return {"loss": loss, "hiddens": hiddens, "logits": logits, "target": batch[1]}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4 * STEPS, 6, 3, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.arange(4).repeat(STEPS)), batch_size=4)


def constraint(price: float = 0.0) -> Constraint:
    return Constraint("norm", at_most=0.5, initial=price)


def disk(**options: Any) -> DiSK:
    torch.manual_seed(1)
    loss = {"top_k": 4, **options.pop("loss_kwargs", {})}
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(18, 4))
    return DiSK(teacher, guide="teacher_logits", loss_kwargs=loss, **options)


MAKERS: dict[str, Callable[[], Callback]] = {
    "Constraint": constraint,
    "DiSK": disk,
    "FPTT": functools.partial(FPTT, 3),
    "ChunkedBackprop": functools.partial(ChunkedBackprop, 3),
}
PAIRS = [
    ("Constraint", "FPTT"),
    ("Constraint", "ChunkedBackprop"),
    ("Constraint", "DiSK"),
    ("FPTT", "ChunkedBackprop"),
]
BOTH_ORDERS = [order for pair in PAIRS for order in (pair, pair[::-1])]


class Failing(Callback):
    """Raises in a given hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._fail)

    def _fail(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on purpose")


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def leftovers(module: L.LightningModule) -> set[str]:
    return {name for name, value in vars(module).items() if callable(value)} & set(dir(type(module)))


@pytest.mark.parametrize("hook", ["", "setup", "on_train_batch_end", "on_train_end"])
@pytest.mark.parametrize("names", BOTH_ORDERS, ids="-".join)
def test_the_module_is_clean_and_trains_again_however_training_ended(names: tuple[str, str], hook: str) -> None:
    module, callbacks = Sorter(), [MAKERS[name]() for name in names]
    before, start = leftovers(module), weights(module)
    if hook:
        # between the two: one of them was there already, or gone already, and the other was not
        with pytest.raises(RuntimeError, match="on purpose"):
            trainer(callbacks[0], Failing(hook), callbacks[1], limit_train_batches=2).fit(module, data())
    else:
        trainer(*callbacks, limit_train_batches=2).fit(module, data())
    assert leftovers(module) == before == set()
    assert not module._state_dict_hooks
    assert [name for name, _ in module.named_children()] == ["rnn", "head"]
    assert list(inspect.signature(module.training_step).parameters) == ["batch", "batch_idx", "hiddens"]
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), start, strict=True):
            parameter.copy_(value)
    fresh = Sorter()
    for each, used in ((module, callbacks), (fresh, [MAKERS[name]() for name in names])):
        torch.manual_seed(2)  # for the guide
        trainer(*used, limit_train_batches=2).fit(each, data())
        assert leftovers(each) == set()
    assert all(torch.equal(a, b) for a, b in zip(weights(module), weights(fresh), strict=True))


@pytest.mark.parametrize("make", [functools.partial(FPTT, 3, regularize=False), functools.partial(ChunkedBackprop, 3)])
@pytest.mark.parametrize("first", [True, False])
def test_the_penalty_is_added_to_the_loss_of_each_part(make: Callable[[], Callback], first: bool) -> None:
    # a rate of the multiplier next to nothing keeps it where it is
    module, limit = Sorter(), Constraint("norm", at_most=0.5, initial=PRICE, rate=1e-12)
    trainer(*([limit, make()] if first else [make(), limit])).fit(module, data())
    by_hand = Sorter()
    optimizer = by_hand.configure_optimizers()
    for inputs, target in data():
        state = None
        for part in inputs.tensor_split(3, 1):
            output, state = by_hand.rnn(part, state)
            state = state.detach()
            loss = nn.functional.cross_entropy(by_hand.head(output[:, -1]), target)
            optimizer.zero_grad()
            (loss + PRICE * by_hand.head.weight.norm()).backward()
            optimizer.step()
    assert distance(module, by_hand) < 1e-6
    assert limit.dual.updates == 3 * STEPS


class Losses(Callback):
    """Keeps the loss of each step and the norm before it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self.norms.append(float(module.head.weight.detach().norm()))

    def on_before_backward(self, trainer: L.Trainer, module: Any, loss: Tensor) -> None:
        self.losses.append(float(loss.detach()))


@pytest.mark.parametrize(("outside", "share"), [(True, 1.0), (False, 3.0)], ids=["after_disk", "before_disk"])
def test_beside_disk_the_order_says_to_which_loss_the_penalty_is_added(outside: bool, share: float) -> None:
    seen: list[Losses] = []
    for price in (0.0, PRICE):
        limit, watch = Constraint("norm", at_most=0.5, initial=price, rate=1e-12), Losses()
        teaches = disk(loss_kwargs={"supervised_weight": 3.0})
        trainer(*([teaches, limit] if outside else [limit, teaches]), watch, max_steps=1).fit(Sorter(), data())
        seen.append(watch)
    without, with_penalty = seen
    penalty = PRICE * (without.norms[0] - 0.5)
    assert with_penalty.losses[0] - without.losses[0] == pytest.approx(share * penalty, rel=1e-4)


@pytest.mark.parametrize("outside", [True, False], ids=["after_disk", "before_disk"])
def test_steps_of_the_guide_do_not_count(outside: bool) -> None:
    module, limit = Sorter(), constraint(PRICE)
    phases = Alternation(student=1, guide=1, unit="step")
    teaches = disk(phases=phases)
    trainer(*([teaches, limit] if outside else [limit, teaches])).fit(module, data())
    assert limit.dual.updates == STEPS // 2
    assert limit.dual.multiplier > PRICE


@pytest.mark.parametrize("outside", [True, False], ids=["after_disk", "before_disk"])
def test_a_scalar_without_a_graph_is_still_refused_beside_disk(outside: bool) -> None:
    class Detached(Sorter):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.no_grad():
                self.log("detached", self.head.weight.norm())
            return super().training_step(batch, batch_idx)

    limit = Constraint("detached", at_most=0.5)
    with pytest.raises(ConfigurationError, match="'detached' is logged without a gradient"):
        trainer(*([disk(), limit] if outside else [limit, disk()])).fit(Detached(), data())


class Named:
    """A class with methods to borrow, and what became of a call."""

    def path(self, argument: str) -> list[str]:
        return [argument]


def through(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda inner: lambda argument: [name, *inner(argument)]


@given(st.permutations(range(4)), st.booleans())
def test_layers_may_go_in_any_order(order: list[int], own: bool) -> None:
    instance: Any = Named()
    installed = lambda argument: ["own", argument]  # noqa: E731
    if own:
        instance.path = installed
    borrowed = [BorrowedMethods(instance) for _ in order]
    for index, each in enumerate(borrowed):
        each.replace("path", through(str(index)))
    left = list(range(4))
    for index in order:
        assert instance.path("x")[: len(left)] == [str(each) for each in reversed(left)]
        borrowed[index].give_back()
        left.remove(index)
    assert vars(instance) == ({"path": installed} if own else {})


def test_a_layer_under_what_somebody_else_put_there_passes_calls_on() -> None:
    instance: Any = Named()
    borrowed = BorrowedMethods(instance)
    borrowed.replace("path", through("lent"))
    below = instance.path
    instance.path = functools.wraps(below)(lambda argument: ["foreign", *below(argument)])
    foreign = instance.path
    assert instance.path("x") == ["foreign", "lent", "x"]
    borrowed.give_back()
    assert instance.path is foreign
    assert instance.path("x") == ["foreign", "x"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_arguments_that_lightning_looks_for_are_those_of_the_method(count: int) -> None:
    class OneArgument(L.LightningModule):
        def training_step(self, batch: Any) -> Any: ...

    module = OneArgument()
    borrowed = BorrowedMethods(module)
    for _ in range(count):
        borrowed.replace("training_step", lambda inner: lambda *args, **kwargs: inner(*args, **kwargs))
    assert list(inspect.signature(module.training_step).parameters) == ["batch"]
    assert not is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    borrowed.replace("training_step", lambda _: lambda batch, batch_idx: None, keeps_signature=False)
    assert list(inspect.signature(module.training_step).parameters) == ["batch", "batch_idx"]
