from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from part_settings import BATCHES, CLIP, Foreign, build, by_hand, distance, loader, scaler, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import FPTT, ChunkedBackprop, ExactResume
from lightning_efficient.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:Checkpoint directory")

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "fptt.npz")
by_norm = partial(nn.utils.clip_grad_norm_, max_norm=CLIP)
STEPS = 4 * BATCHES


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


class Golden(L.LightningModule):
    """Problems B and C of the golden file as an ordinary module: time comes first, one target per sequence."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem
        self.rnn = nn.LSTM(2, 4)
        self.lin = nn.Linear(4, 1)
        self.double()
        self.load_state_dict({name: array(f"{problem}/0/W/{name}") for name in self.state_dict()})

    def training_step(self, batch: Any, batch_idx: int, hiddens: Any) -> dict[str, Any]:
        inputs, target = batch
        output, hiddens = self.rnn(inputs, hiddens)
        return {"loss": nn.functional.mse_loss(self.lin(output[-1]).squeeze(1), target), "hiddens": hiddens}

    def train_dataloader(self) -> DataLoader:
        batch = (array(f"{self.problem}/x"), array(f"{self.problem}/y"))
        return DataLoader([batch] * {"B": 1, "C": 2}[self.problem], batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.problem == "B":
            return torch.optim.SGD(self.parameters(), lr=0.5)
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Compare(Callback):
    """Compare parameters, means and duals with the golden file after each batch of three parts."""

    def __init__(self, callback: FPTT) -> None:
        self.callback = callback
        self.compared: list[str] = []

    def check(self, module: Golden, moment: str) -> None:
        regularizer = self.callback.regularizer
        groups = {"W": regularizer.params, "Wbar": regularizer.means, "lam": regularizer.duals}
        for kind, tensors in groups.items():
            for name, tensor in zip(regularizer.names, tensors, strict=True):
                golden = array(f"{module.problem}/{moment}/{kind}/{name}")
                torch.testing.assert_close(tensor.detach(), golden, rtol=0, atol=1e-10)
        self.compared.append(moment)

    def on_train_batch_end(self, trainer: L.Trainer, module: Golden, *args: Any) -> None:
        updates = self.callback.updates
        resets = module.problem == "C" and trainer.is_last_batch and updates == 6
        self.check(module, "reset_after_6" if resets else str(updates))


def test_terminal_losses_on_a_trainer_follow_the_released_code() -> None:
    callback = FPTT(3, alpha=0.5, time_dim=0, part_weights="linear", reset="never")
    compare = Compare(callback)
    trainer(callback, compare).fit(Golden("B"))
    assert compare.compared == ["3"]


def test_clipping_adam_and_the_restart_after_an_epoch_follow_the_released_code() -> None:
    callback = FPTT(3, alpha=0.1, beta=0.7, proximal_weight=2.0, time_dim=0)
    compare = Compare(callback)
    # the file has six updates, which are an epoch here, a restart, and three more
    trainer(callback, compare, gradient_clip_val=0.05, max_epochs=-1, max_steps=3).fit(Golden("C"))
    assert compare.compared == ["3", "reset_after_6", "9"]


@pytest.mark.parametrize("beta", [0.5, 0.7])
def test_training_equals_the_regulariser_in_the_loss(beta: float) -> None:
    module, callback = build(), FPTT(4, alpha=0.3, beta=beta)
    trainer(callback, gradient_clip_val=CLIP, max_epochs=2).fit(module, loader())
    assert distance(module, by_hand(4, clip=by_norm, alpha=0.3, beta=beta, epochs=2)) < 1e-6
    assert distance(module, by_hand(4, clip=by_norm, epochs=2)) > 1e-4
    assert callback.updates == 2 * STEPS


def test_without_regulariser_it_is_chunked_backprop() -> None:
    modules = [build(), build()]
    for module, callback in zip(modules, (FPTT(4, regularize=False), ChunkedBackprop(4)), strict=True):
        trainer(callback).fit(module, loader())
    assert distance(*modules) == 0


@pytest.mark.parametrize(
    ("options", "tolerance"), [({"precision": "bf16-mixed"}, 2e-3), ({"plugins": scaler}, 2e-4)], ids=["bf16", "fp16"]
)
def test_mixed_precision_comes_close(options: dict[str, Any], tolerance: float) -> None:
    options = {name: [value()] if callable(value) else value for name, value in options.items()}
    module = build()
    trainer(FPTT(4, alpha=0.3), gradient_clip_val=CLIP, **options).fit(module, loader())
    assert 0 < distance(module, by_hand(4, clip=by_norm, alpha=0.3)) < tolerance


def test_parameters_in_bf16_keep_their_state_in_float32() -> None:
    callback = FPTT(4, reset="never")
    module = build()
    data = [(inputs.bfloat16(), target) for inputs, target in loader()]
    trainer(callback, precision="bf16-true").fit(module, DataLoader(data, batch_size=None))
    assert {tensor.dtype for tensor in callback.regularizer.means} == {torch.float32}
    assert float(callback.regularizer.distance()) > 0


def test_a_skipped_step_moves_neither_means_nor_duals() -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.states: list[list[Tensor]] = []

        def on_before_zero_grad(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
            self.states.append([mean.clone() for mean in callback.regularizer.means])

    module, callback, watch = build(), FPTT(4, reset="never"), Watch()
    module.poison[7] = float("inf")
    trainer(callback, watch, plugins=[scaler()]).fit(module, loader())
    assert callback.updates == callback.regularizer.updates == STEPS - 1
    changed = [
        any(not torch.equal(a, b) for a, b in zip(one, two, strict=True))
        for one, two in zip(watch.states, watch.states[1:], strict=False)
    ]
    assert [index for index, moved in enumerate(changed) if not moved] == [6]
    assert all(param.isfinite().all() for param in module.parameters())


class WeightsAt(Callback):
    def __init__(self) -> None:
        self.validated: list[list[Tensor]] = []

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validated.append([param.detach().clone() for param in module.parameters()])


class Validated(Foreign):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(*batch, None)


@pytest.mark.parametrize("reset", ["epoch", "weights", "never"])
def test_evaluation_after_an_epoch_uses_the_means_unless_told_otherwise(reset: str) -> None:
    module, callback, watch = build(Validated), FPTT(4, alpha=0.3, reset=reset), WeightsAt()
    trainer(callback, watch, num_sanity_val_steps=0).fit(module, loader(), loader(batches=1))
    on_means = all(torch.equal(a, b) for a, b in zip(watch.validated[0], callback.regularizer.means, strict=True))
    assert on_means == (reset != "never")
    assert distance(module, callback_means(module, callback)) == 0 or reset == "never"
    assert any(bool(dual.any()) for dual in callback.regularizer.duals) == (reset != "epoch")


def callback_means(module: Foreign, callback: FPTT) -> Foreign:
    other = build(type(module))
    with torch.no_grad():
        for param, mean in zip(other.parameters(), callback.regularizer.means, strict=True):
            param.copy_(mean)
    return other


def test_an_epoch_cut_short_by_max_steps_ends_on_the_means() -> None:
    module, callback = build(), FPTT(4, alpha=0.3)
    trainer(callback, max_steps=3, max_epochs=-1).fit(module, loader())
    assert callback.updates == 12
    assert distance(module, callback_means(module, callback)) == 0
    assert not any(bool(dual.any()) for dual in callback.regularizer.duals)


@pytest.mark.parametrize("reset", ["epoch", "never"])
@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(reset: str, step: int, tmp_path: Path) -> None:
    def run(*more: Callback, ckpt_path: Path | None = None) -> tuple[Foreign, FPTT]:
        module, callback = build(), FPTT(4, alpha=0.5, reset=reset)
        callbacks = [callback, ExactResume(), *more]
        data = loader(cls=StatefulDataLoader)
        trainer(*callbacks, max_epochs=2, enable_checkpointing=bool(more)).fit(module, data, ckpt_path=ckpt_path)
        return module, callback

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, one = run(save)
    path = tmp_path / f"step={step}.ckpt"
    assert set(torch.load(path, weights_only=True)["callbacks"]["FPTT[fptt]"]) >= {"means", "duals", "updates"}
    resumed, two = run(ckpt_path=path)
    assert distance(whole, resumed) == 0
    assert one.updates == two.updates == 2 * STEPS
    for kind in ("means", "duals"):
        pairs = zip(getattr(one.regularizer, kind), getattr(two.regularizer, kind), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = trainer(FPTT(4))
    run.fit(build(), loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    stored = torch.load(tmp_path / "x.ckpt", weights_only=True)
    stored["callbacks"]["FPTT[fptt]"]["means"] = {}
    torch.save(stored, tmp_path / "y.ckpt")
    again = trainer(FPTT(4), max_epochs=2)
    with pytest.raises(ConfigurationError, match=r"the checkpoint's FPTT state has none for 'rnn.weight_ih_l0'"):
        again.fit(build(), loader(), ckpt_path=tmp_path / "y.ckpt")


def test_norms_are_logged_where_the_logger_asks_for_them(tmp_path: Path) -> None:
    logger, callback = CSVLogger(tmp_path), FPTT(4, alpha=0.5, reset="never")
    trainer(callback, logger=logger, log_every_n_steps=2).fit(build(), loader())
    text = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    rows = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in text[1:]]
    assert [float(row["fptt/updates"]) for row in rows] == [8, 16]
    assert all(0 < float(row["fptt/distance"]) < 1 for row in rows)
    assert all(0 < float(row["fptt/gradient_ratio"]) < 1 for row in rows)


def test_the_logged_ratio_is_of_the_gradients_at_the_last_part() -> None:
    found: list[float] = []

    class Ratio(Callback):
        def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            self.data = [param.grad.clone() for param in module.parameters()]

    class Late(Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
            added = [p.grad - own for p, own in zip(module.parameters(), early.data, strict=True)]
            norms = [math.sqrt(sum(float(x.square().sum()) for x in tensors)) for tensors in (added, early.data)]
            found.append(norms[0] / norms[1])

    early = Ratio()
    run = trainer(early, FPTT(4, alpha=0.5), Late(), log_every_n_steps=1)
    run.fit(build(), loader())
    assert float(run.callback_metrics["fptt/gradient_ratio"]) == pytest.approx(found[-1], rel=1e-4)


def test_a_product_of_alpha_and_rate_out_of_the_stable_range_is_warned_of_once() -> None:
    class Fast(Foreign):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=2.0)

    with pytest.warns(UserWarning, match=r"alpha \(0.5\) times the learning rate \(2\) is above 0.5") as warned:
        trainer(FPTT(4, alpha=0.5, check_finite=False), max_epochs=2).fit(build(Fast), loader())
    assert len([one for one in warned if "times the learning rate" in str(one.message)]) == 1


def test_ema_beside_it_counts_batches_and_leaves_training_alone() -> None:
    alone, beside = build(Validated), build(Validated)
    trainer(FPTT(4)).fit(alone, loader(), loader(batches=1))
    ema = EMAWeightAveraging(decay=0.5)
    watch = WeightsAt()
    trainer(FPTT(4), ema, watch).fit(beside, loader(), loader(batches=1))
    assert distance(alone, beside) > 0  # the average is put in place when training ends
    run = trainer(FPTT(4), EMAWeightAveraging(decay=0.0))
    follows = build(Validated)
    run.fit(follows, loader(), loader(batches=1))
    assert distance(alone, follows) < 1e-7


def test_two_may_regularise_different_parameters() -> None:
    module = build()
    rnn, head = FPTT(4, alpha=0.5, parameters="^rnn"), FPTT(4, alpha=0.1, parameters="^head", name="head")
    trainer(rnn, head).fit(module, loader())
    assert rnn.regularizer.names == [name for name, _ in module.named_parameters() if name.startswith("rnn")]
    assert head.regularizer.names == ["head.weight", "head.bias"]
    together, apart = build(), build()
    trainer(FPTT(4, alpha=0.3)).fit(together, loader())
    trainer(FPTT(4, alpha=0.3, parameters="rnn"), FPTT(4, alpha=0.3, parameters="head", name="b")).fit(apart, loader())
    assert distance(together, apart) == 0


def test_two_that_regularise_the_same_parameter_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"two FPTT callbacks \('fptt' and 'second'\) regularise"):
        trainer(FPTT(4), FPTT(4, name="second")).fit(build(), loader())
    with pytest.raises(ConfigurationError, match="parameters='gru' fits none of the names"):
        trainer(FPTT(4, parameters="gru")).fit(build(), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": 0.0}, "alpha=0.0 must be"), ({"beta": 1.0}, "beta=1.0 must lie"), ({"reset": "epochs"}, "'epoch'")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FPTT(4, **options)


def test_a_second_fit_starts_anew() -> None:
    callback = FPTT(4, alpha=0.3)
    results = []
    for _ in range(2):
        module = build()
        trainer(callback).fit(module, loader())
        results.append(module)
    assert distance(*results) == 0
    assert callback.updates == STEPS
