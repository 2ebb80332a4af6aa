"""HybridClassifier under the conditions of a Trainer: precisions, clipping, accumulation, averages, a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hybrid_settings import STAGES, TRAIN, Watch, bits, data, hybrid, same, trainer
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.modules.hybrid_classifier import HybridClassifier


@pytest.mark.parametrize("router", ["gain", "msp"])
@pytest.mark.parametrize("router_data", ["held_out", "out_of_fold"])
@pytest.mark.parametrize(
    "condition",
    [
        {"precision": "bf16-mixed"},
        {"plugins": "16-mixed"},
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2},
        {"ema": 0.5},
        {"ema": 0.5, "limit_val_batches": 0},
    ],
    ids=str,
)
def test_training_goes_through_all_stages_under(condition: dict[str, Any], router_data: str, router: str) -> None:
    condition = dict(condition)
    if decay := condition.pop("ema", None):
        condition["callbacks"] = [EMAWeightAveraging(decay=decay)]
    if "plugins" in condition:
        condition["plugins"] = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]
    watch = Watch()
    extra = condition.pop("callbacks", [])
    module = hybrid(router=router, stages=[*STAGES, {"base": 1}], router_data=router_data, folds=2)
    trainer(watch, *extra, **{"max_epochs": 4, **condition}).fit(module, datamodule=data())
    learned = {"router"} if router == "gain" else set()
    assert [watch.changed(epoch) for epoch in range(4)] == [{"base"}, {"global"}, learned, {"base"}]
    assert [watch.moved(epoch) for epoch in range(4)] == [{"base"}, {"global"}, learned, {"base"}]
    assert all(bool(value.isfinite().all()) for name, value in bits(module).items() if name != "threshold_path")
    assert not bool(module.threshold_path.isnan().any())


def test_the_clipped_norm_is_that_of_the_part_that_learns() -> None:
    norms: list[Tensor] = []

    def watched(groups: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, lr=0.1)
        every = [each for group in optimizer.param_groups for each in group["params"]]
        optimizer.register_step_post_hook(
            lambda *_: norms.append(torch.stack([each.grad.norm() for each in every if each.grad is not None]).norm())
        )
        return optimizer

    module = hybrid(optimizer=watched)
    trainer(gradient_clip_val=1e-3, limit_val_batches=0).fit(module, datamodule=data())
    assert [float(norm) for norm in norms] == pytest.approx([1e-3] * 12, rel=1e-2)


def test_two_batches_a_step_make_half_the_steps_and_none_over_a_stage() -> None:
    steps: list[set[str]] = []

    def watched(groups: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(groups, lr=0.1)
        optimizer.register_step_post_hook(
            lambda *_: steps.append(
                {
                    group["name"]
                    for group in optimizer.param_groups
                    if any(each.grad is not None for each in group["params"])
                }
            )
        )
        return optimizer

    trainer(accumulate_grad_batches=3, limit_val_batches=0).fit(hybrid(optimizer=watched), datamodule=data())
    assert steps == [{"base"}, {"base"}, {"global"}, {"global"}, {"router"}, {"router"}]


@pytest.mark.parametrize("router_data", ["held_out", "out_of_fold"])
def test_batches_too_small_for_their_part_are_passed_over(router_data: str) -> None:
    module = hybrid(stages=[*STAGES, {"joint": 1}], router_data=router_data)
    trainer(max_epochs=4).fit(module, datamodule=data(batch_size=1))
    assert all(bool(value.isfinite().all()) for value in bits(module.base).values())


def test_two_fits_of_one_module_go_on_from_each_other() -> None:
    watch, module = Watch(), hybrid()
    trainer().fit(module, datamodule=data())
    module.use_routing(object())  # type: ignore[arg-type]
    after = bits(module)
    trainer(watch).fit(module, datamodule=data())
    assert module.routing is None  # it was calibrated for other weights
    assert same(watch.states[0]["base"], {name[5:]: value for name, value in after.items() if name[:5] == "base."})
    assert [watch.changed(epoch) for epoch in range(3)] == [{"base"}, {"global"}, {"router"}]
    found = module.training_samples
    assert found is not None
    assert len(found) == TRAIN


def test_a_rehearsal_goes_through_the_stages_and_leaves_nothing(tmp_path: Path) -> None:
    watch, module = Watch(), hybrid(outputs_folder="outputs")
    trainer(watch, fast_dev_run=3).fit(module, datamodule=data())
    assert watch.changed(0) == {"base", "global", "router"}
    assert list(tmp_path.iterdir()) == []


# resumed


class Draw(Callback):
    """Keep the learning rates of each step by its number."""

    def __init__(self) -> None:
        self.rates: dict[int, list[float]] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.rates[trainer.global_step] = [group["lr"] for group in trainer.optimizers[0].param_groups]


@pytest.mark.parametrize("router_data", ["held_out", "out_of_fold"])
@pytest.mark.parametrize("step", [2, 4, 10, 12, 14, 16, 18])
def test_a_run_that_is_resumed_ends_as_one_that_was_not(step: int, router_data: str, tmp_path: Path) -> None:
    def run(ckpt_path: Path | None) -> tuple[HybridClassifier, Draw]:
        seed_everything(0 if ckpt_path is None else 99, verbose=False)
        module, draw = (
            hybrid(
                dropout=0.2,
                stages=[*STAGES, {"router": 1}, {"base": 1}],
                router_data=router_data,
                folds=2,
                outputs_folder=str(tmp_path / "outputs"),
            ),
            Draw(),
        )
        name = "whole" if ckpt_path is None else "resumed"
        save = ModelCheckpoint(tmp_path / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        engine = trainer(save, draw, ExactResume(), max_epochs=5, enable_checkpointing=True)
        engine.fit(module, datamodule=data(), ckpt_path=ckpt_path, weights_only=False)
        return module, draw

    (whole, rates), (resumed, later) = run(None), run(tmp_path / "whole" / f"step={step}.ckpt")
    assert same(bits(whole), bits(resumed))
    assert bool(resumed.threshold.isfinite())
    assert later.rates == {number: each for number, each in rates.rates.items() if number > step}
    one, other = whole.training_samples, resumed.training_samples
    assert one is not None
    assert other is not None
    assert sorted(one.tolist()) == sorted(other.tolist())


def test_a_checkpoint_of_two_processes_is_taken_up_by_one() -> None:
    module = hybrid()
    half = [
        {"scores": torch.tensor([float(rank)]), "training_samples": torch.tensor([rank]) if rank else None}
        for rank in range(2)
    ]
    module.on_load_checkpoint({"state_dict": {}, "hybrid_classifier": {"scores_epoch": 1, "per_rank": half}})
    assert torch.cat(module._scores).tolist() == [0.0, 1.0]
    found = module.training_samples
    assert found is not None
    assert found.tolist() == [1]


def test_the_optimiser_is_adamw_where_none_is_given() -> None:
    assert type(hybrid(optimizer=None).configure_optimizers()) is torch.optim.AdamW


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path: Path) -> None:
    module = hybrid()
    engine = trainer()
    engine.fit(module, datamodule=data())
    engine.save_checkpoint(tmp_path / "end.ckpt")
    again = hybrid()
    trainer().fit(again, datamodule=data(), ckpt_path=tmp_path / "end.ckpt", weights_only=False)
    assert same(bits(module), bits(again))


def test_a_run_that_ends_before_its_last_stage_is_told() -> None:
    with pytest.warns(UserWarning, match=r"the run ended in the stage global; those left are router, without which"):
        trainer(max_steps=6).fit(hybrid(), datamodule=data())
