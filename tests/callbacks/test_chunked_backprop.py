from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from part_settings import BATCHES, CLIP, FEATURES, Foreign, build, by_hand, distance, loader, scaler, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import FPTT, ChunkedBackprop, ExactResume
from lightning_efficient.errors import ConfigurationError, NonFiniteLossError
from lightning_efficient.typing import Part

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:Checkpoint directory")

by_norm = partial(nn.utils.clip_grad_norm_, max_norm=CLIP)
by_value = partial(nn.utils.clip_grad_value_, clip_value=0.01)


@pytest.mark.parametrize("parts", [1, 3, 5, 12])
def test_training_equals_a_loop_over_the_parts(parts: int) -> None:
    module, callback = build(), ChunkedBackprop(parts)
    run = trainer(callback, gradient_clip_val=CLIP)
    run.fit(module, loader())
    assert distance(module, by_hand(parts, clip=by_norm)) < 1e-7
    assert callback.updates == module.clipped == len(module.seen) == parts * BATCHES
    assert run.global_step == module.scheduled == BATCHES
    assert [length for _, length, _ in module.seen[:parts]] == [len(x) for x in torch.arange(12).tensor_split(parts)]
    assert [state for _, _, state in module.seen[:parts]] == [None] + [False] * (parts - 1)


def test_part_length_is_what_truncated_bptt_steps_was() -> None:
    module = build()
    trainer(ChunkedBackprop(part_length=5)).fit(module, loader())
    assert [length for _, length, _ in module.seen] == [5, 5, 2] * BATCHES


def test_clipping_by_value_acts_on_each_part() -> None:
    module = build()
    trainer(ChunkedBackprop(4), gradient_clip_val=0.01, gradient_clip_algorithm="value").fit(module, loader())
    assert distance(module, by_hand(4, clip=by_value)) < 1e-7


def test_bf16_and_a_gradient_scaler_come_close() -> None:
    for options, tolerance in (({"precision": "bf16-mixed"}, 2e-3), ({"plugins": [scaler()]}, 2e-4)):
        module = build()
        trainer(ChunkedBackprop(4), gradient_clip_val=CLIP, **options).fit(module, loader())
        assert 0 < distance(module, by_hand(4, clip=by_norm)) < tolerance


def test_a_step_that_the_scaler_skips_is_not_counted_and_the_state_goes_on() -> None:
    module, callback, plugin = build(), ChunkedBackprop(4), scaler()
    module.poison[7] = float("inf")
    trainer(callback, plugins=[plugin]).fit(module, loader())
    assert callback.updates == 4 * BATCHES - 1
    assert plugin.scaler.get_scale() == 128
    assert all(param.isfinite().all() for param in module.parameters())


def test_the_module_has_its_own_methods_back_whatever_happened() -> None:
    module = build()
    module.poison[3] = float("nan")
    with pytest.raises(NonFiniteLossError):
        trainer(ChunkedBackprop(4)).fit(module, loader())
    assert "training_step" not in vars(module)
    assert "optimizer_step" not in vars(module)
    module.poison.clear()
    callback = ChunkedBackprop(4)
    trainer(callback).fit(module, loader())
    assert {"training_step", "optimizer_step"}.isdisjoint(vars(module))
    assert type(pickle.loads(pickle.dumps(callback))) is type(copy.deepcopy(callback)) is ChunkedBackprop


def test_the_part_with_a_nan_is_named_before_it_touches_the_weights() -> None:
    data = list(loader())
    data[1][0][2, 5] = torch.nan
    module, callback = build(), ChunkedBackprop(4)
    with pytest.raises(
        NonFiniteLossError, match=r"nan in part 2 of 4 \(time steps 3 to 5\) at step 1 .*batch 1\)"
    ) as e:
        trainer(callback).fit(module, DataLoader(data, batch_size=None))
    assert "the batch itself holds NaN" in str(e.value)
    assert callback.updates == 5
    assert all(param.isfinite().all() for param in module.parameters())


def test_looking_for_nan_can_be_switched_off() -> None:
    module = build()
    module.poison[3] = float("nan")
    trainer(ChunkedBackprop(4, check_finite=False)).fit(module, loader())
    assert not all(param.isfinite().all() for param in module.parameters())


class Terminal(Foreign):
    """One label per sequence."""

    def training_step(self, batch: Any, batch_idx: int, hiddens: Tensor | None) -> dict[str, Any]:
        inputs, target = batch
        output, hiddens = self.rnn(inputs, hiddens)
        loss = nn.functional.cross_entropy(self.head(output[:, -1]), target)
        self.seen.append(float(loss))
        return {"loss": loss, "hiddens": hiddens}

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.gradients = [None if p.grad is None else p.grad.clone() for p in self.parameters()]


class LossesSeen(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        self.values.append(float(loss))


def test_linear_weights_make_the_last_part_count_most() -> None:
    module, watch = build(Terminal), LossesSeen()
    data = [(torch.randn(4, 12, FEATURES), torch.tensor([0, 1, 2, 3]))]
    trainer(ChunkedBackprop(3, part_weights="linear"), watch).fit(module, DataLoader(data, batch_size=None))
    assert watch.values == pytest.approx([loss * (p + 1) / 3 for p, loss in enumerate(module.seen)])


class TakesPart(Foreign):
    def training_step(
        self, batch: Any, batch_idx: int, hiddens: Tensor | None = None, part: Part | None = None
    ) -> dict[str, Any]:
        self.parts = [*getattr(self, "parts", []), part]
        return super().training_step(batch, batch_idx, hiddens)


def test_a_training_step_that_takes_part_is_told_and_weighs_itself() -> None:
    module = build(TakesPart)
    trainer(ChunkedBackprop(part_length=5)).fit(module, loader(batches=1))
    assert module.parts == [Part(0, 3, 0, 5, 12), Part(1, 3, 5, 10, 12), Part(2, 3, 10, 12, 12)]
    with pytest.raises(ConfigurationError, match="part_weights is 'linear', but TakesPart weighs its parts itself"):
        trainer(ChunkedBackprop(3, part_weights="linear")).fit(module, loader())


class Spy(Foreign):
    """Keeps the states it is given."""

    def training_step(self, batch: Any, batch_idx: int, hiddens: Tensor | None) -> dict[str, Any]:
        self.given = [*getattr(self, "given", []), None if hiddens is None else hiddens.clone()]
        outputs = super().training_step(batch, batch_idx, hiddens)
        self.left = [*getattr(self, "left", []), outputs["hiddens"].detach().clone()]
        return outputs


def test_a_carried_state_crosses_batches_and_not_epochs() -> None:
    module = build(Spy)
    trainer(ChunkedBackprop(2, carry=True), max_epochs=2).fit(module, loader())
    for epoch in (0, 2 * BATCHES):
        assert module.given[epoch] is None
        for step in range(epoch + 1, epoch + 2 * BATCHES):
            assert torch.equal(module.given[step], module.left[step - 1])


def test_without_carry_each_batch_starts_anew() -> None:
    module = build(Spy)
    trainer(ChunkedBackprop(2)).fit(module, loader())
    assert [given is None for given in module.given] == [True, False] * BATCHES


def test_a_carried_state_of_another_batch_size_is_refused() -> None:
    data = DataLoader(Subset(loader().dataset, range(14)), batch_size=6)
    with pytest.raises(ConfigurationError, match="batch 2 has 2 sequences, and the state carried over belongs to 6"):
        trainer(ChunkedBackprop(2, carry=True)).fit(build(), data)


@pytest.mark.parametrize("carry", [False, True])
def test_a_resumed_run_ends_with_the_same_weights(carry: bool, tmp_path: Path) -> None:
    def run(*more: Callback, ckpt_path: Path | None = None) -> Foreign:
        module = build()
        callbacks = [ChunkedBackprop(3, carry=carry), ExactResume(), *more]
        data = loader(cls=StatefulDataLoader)
        trainer(*callbacks, max_epochs=2, enable_checkpointing=bool(more)).fit(module, data, ckpt_path=ckpt_path)
        return module

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(save)
    for step in (3, 5, 7):  # 5 is the last batch of an epoch
        path = tmp_path / f"step={step}.ckpt"
        state = torch.load(path, weights_only=True)["callbacks"]["ChunkedBackprop[chunked]"]
        assert state["updates"] == 3 * step
        assert ("carried" in state) == carry
        assert distance(whole, run(ckpt_path=path)) == 0


def test_updates_are_logged_beside_the_batches(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer(ChunkedBackprop(3, name="tbptt"), logger=logger, log_every_n_steps=1).fit(build(), loader())
    text = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    rows = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in text[1:]]
    assert [float(row["tbptt/updates"]) for row in rows] == [3, 6, 9, 12, 15]
    assert [int(row["step"]) for row in rows] == list(range(BATCHES))


class NoHiddens(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(*batch, None)[0]


class ReturnsNoHiddens(Foreign):
    def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> Tensor:
        return self.loss(*batch, hiddens)[0]


class Manual(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Fused(Foreign):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE_OF_FUSED, fused=True)


RATE_OF_FUSED = 0.1


@pytest.mark.parametrize("callback", [ChunkedBackprop(3), FPTT(3)], ids=["ChunkedBackprop", "FPTT"])
@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Foreign, {"accumulate_grad_batches": 2}, "got accumulate_grad_batches=2, set accumulate_grad_batches=1"),
        (
            Foreign,
            {"callbacks": [GradientAccumulationScheduler({0: 1, 4: 2})]},
            "got a GradientAccumulationScheduler, set accumulate_grad_batches=1",
        ),
        (NoHiddens, {}, r"NoHiddens needs\n    def training_step\(self, batch, batch_idx, hiddens=None\):"),
        (ReturnsNoHiddens, {}, r'return \{"loss": loss, "hiddens": hiddens\}; it returned Tensor'),
        (Manual, {}, "Manual steps its optimisers itself; remove automatic_optimization=False"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    callback: ChunkedBackprop, module: type[Foreign], options: dict[str, Any], message: str
) -> None:
    module_under_test = build(module)
    before = [param.detach().clone() for param in module_under_test.parameters()]
    with pytest.raises(ConfigurationError, match=message) as error:
        trainer(copy.deepcopy(callback), **options).fit(module_under_test, loader())
    assert type(callback).__name__ in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, module_under_test.parameters(), strict=True))


def test_a_fused_optimiser_with_a_gradient_scaler_is_refused_and_without_one_works() -> None:
    with pytest.raises(ConfigurationError, match="fused optimiser hides from a gradient scaler"):
        trainer(ChunkedBackprop(3), plugins=[scaler()]).fit(build(Fused), loader())
    callback = ChunkedBackprop(3)
    trainer(callback).fit(build(Fused), loader())
    assert callback.updates == 3 * BATCHES


def test_sharded_strategies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run, callback = trainer(ChunkedBackprop(3)), ChunkedBackprop(3)
    monkeypatch.setattr(type(run), "strategy", FSDPStrategy.__new__(FSDPStrategy), raising=False)
    with pytest.raises(ConfigurationError, match="works on one device and with DDP; FSDPStrategy shards"):
        callback.setup(run, build(), "fit")


def test_short_sequences_are_refused_with_their_batch() -> None:
    with pytest.raises(ConfigurationError, match="ChunkedBackprop: batch 0: sequences of 5 time steps cannot be cut"):
        trainer(ChunkedBackprop(8)).fit(build(), loader(time=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "ChunkedBackprop: give exactly one of parts"),
        ({"parts": 0}, "ChunkedBackprop: parts is 0"),
        ({"parts": 3, "time_dim": 2}, "time_dim is 2; it must be 0 or 1"),
        ({"parts": 3, "part_weights": "linaer"}, "Did you mean 'linear'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ChunkedBackprop(**options)


def test_two_that_cut_alike_share_the_loop_and_two_that_do_not_are_refused() -> None:
    module, one, two = build(), ChunkedBackprop(3), ChunkedBackprop(3, name="second")
    trainer(one, two).fit(module, loader())
    assert one.updates == two.updates == len(module.seen) == 3 * BATCHES
    with pytest.raises(ConfigurationError, match=r"differ in parts \(3 and 4\)"):
        trainer(ChunkedBackprop(3), FPTT(4)).fit(build(), loader())


class OwnOptimizerStep(Foreign):
    """Warm-up in ``optimizer_step``, as many modules have it."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.steps = getattr(self, "steps", 0) + 1


def test_an_optimizer_step_of_ones_own_is_called_for_each_part() -> None:
    module = build(OwnOptimizerStep)
    trainer(ChunkedBackprop(3)).fit(module, loader())
    assert module.steps == 3 * BATCHES


def test_a_compiled_module_trains_to_the_same_weights() -> None:
    module = build()
    original = module.loss
    module.loss = torch.compile(original, backend="eager")
    trainer(ChunkedBackprop(4), gradient_clip_val=CLIP).fit(module, loader())
    assert distance(module, by_hand(4, clip=by_norm)) < 1e-7
    whole = build()
    whole.log = lambda *args, **kwargs: None  # Dynamo does not trace Lightning's logging
    compiled = torch.compile(whole, backend="eager")
    trainer(ChunkedBackprop(4), gradient_clip_val=CLIP).fit(compiled, loader())
    assert distance(whole, by_hand(4, clip=by_norm)) < 1e-7
    assert whole.training_step.__name__ == "training_step"


def test_time_may_come_first() -> None:
    class TimeFirst(Foreign):
        def loss(self, inputs: Tensor, target: Tensor, hiddens: Any) -> tuple[Tensor, Tensor]:
            return super().loss(inputs.transpose(0, 1), target.transpose(0, 1), hiddens)

    data = [tuple(part.transpose(0, 1) for part in batch) for batch in loader()]
    module = build(TimeFirst)
    trainer(ChunkedBackprop(4, time_dim=0)).fit(module, DataLoader(data, batch_size=None))
    assert distance(module, by_hand(4)) < 1e-7
