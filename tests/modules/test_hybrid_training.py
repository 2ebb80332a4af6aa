"""How HybridClassifier trains: whose turn it is, on which samples, and what the thresholds are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hybrid_settings import (
    CLASSES,
    FEATURES,
    STAGES,
    TRAIN,
    Rows,
    Watch,
    bits,
    data,
    hybrid,
    network,
    same,
    trainer,
)
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.functional.routing import query_threshold
from lightning_efficient.functional.threshold_path import threshold_path
from lightning_efficient.modules.hybrid_classifier import HybridClassifier

HELD_OUT = round(0.4 * TRAIN)


def held_out() -> set[int]:
    place = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))
    return set((place < HELD_OUT).nonzero().flatten().tolist())


def training_inputs() -> Tensor:
    samples = data()
    samples.setup("fit")
    return samples.datasets["train"].inputs


def indices(rows: Tensor) -> list[int]:
    """Return which training sample each row is."""
    equal = (rows.unsqueeze(1) == training_inputs()).all(2)
    assert bool((equal.sum(1) == 1).all())
    return equal.int().argmax(1).tolist()


# whose turn it is


def test_a_stage_changes_the_weights_statistics_and_momentum_of_its_own_part_alone() -> None:
    watch = Watch()
    order = [{"base": 1}, {"router": 1}, {"global": 1}, {"base": 1}]
    trainer(watch, max_epochs=4, limit_val_batches=0).fit(hybrid(stages=order), datamodule=data())
    assert [watch.changed(epoch) for epoch in range(4)] == [{"base"}, {"router"}, {"global"}, {"base"}]
    assert [watch.moved(epoch) for epoch in range(4)] == [{"base"}, {"router"}, {"global"}, {"base"}]


def test_the_joint_stage_trains_base_and_router_and_leaves_the_global_model() -> None:
    watch = Watch()
    module = hybrid(stages=[*STAGES, {"joint": 1}])
    assert module.joint_guide is not None
    guide = bits(module.joint_guide)
    trainer(watch, max_epochs=4, limit_val_batches=0).fit(module, datamodule=data())
    assert watch.changed(3) == watch.moved(3) == {"base", "router"}
    assert not same(guide, bits(module.joint_guide))


def test_a_network_that_has_no_stage_is_frozen() -> None:
    module = hybrid(stages=[{"router": 1}])
    learning = {name.split(".")[0] for name, each in module.named_parameters() if each.requires_grad}
    assert learning == {"router"}


@pytest.mark.parametrize("router", ["msp", "entropy"])
def test_a_score_has_nothing_to_learn_and_gets_a_threshold_all_the_same(router: str) -> None:
    watch, module = Watch(), hybrid(router=router)
    trainer(watch).fit(module, datamodule=data())
    assert [watch.changed(epoch) for epoch in range(3)] == [{"base"}, {"global"}, set()]
    assert bool(module.threshold.isfinite())
    alone = hybrid(router=router, stages=[{"router": 1}])
    trainer(max_epochs=1).fit(alone, datamodule=data())
    assert bool(alone.threshold.isfinite())


@pytest.mark.parametrize("router", ["gain", "proxy", "paper"])
def test_each_learned_router_learns(router: str) -> None:
    watch = Watch()
    trainer(watch).fit(hybrid(router=router), datamodule=data())
    assert watch.changed(2) == {"router"}


def test_each_stage_has_the_schedule_from_its_beginning_and_the_router_its_own_rate() -> None:
    watch = Watch()
    module = hybrid(stages=[{"base": 2}, {"global": 1}, {"router": 1}], router_optimizer={"lr": 0.01})
    trainer(watch, max_epochs=4, limit_val_batches=0).fit(module, datamodule=data())
    factor = [
        (1 + torch.cos(torch.tensor(torch.pi * step / steps))) / 2 for steps in (8, 4, 4) for step in range(steps)
    ]
    assert [rates["base"] for rates in watch.rates] == pytest.approx([0.1 * float(each) for each in factor])
    assert [rates["router"] for rates in watch.rates] == pytest.approx([0.01 * float(each) for each in factor])


def test_a_router_alone_learns_as_long_as_the_run() -> None:
    watch = Watch()
    trainer(watch, max_epochs=2, limit_val_batches=0).fit(hybrid(stages=None), datamodule=data())
    factor = [(1 + torch.cos(torch.tensor(torch.pi * step / 8))) / 2 for step in range(8)]
    assert [rates["router"] for rates in watch.rates] == pytest.approx([0.1 * float(each) for each in factor])


# from which samples


def test_networks_never_see_what_is_held_out_and_the_router_sees_that_alone() -> None:
    base, best = Rows(network()), Rows(network(16))
    module = hybrid(base=base, global_model=best)
    watch = Watch()
    trainer(watch, limit_val_batches=0).fit(module, datamodule=data())
    aside = held_out()
    assert len(aside) == HELD_OUT
    everything = set(range(TRAIN))
    for part in (base, best):
        learned = [index for training, rows in part.seen if training for index in indices(rows)]
        asked = [index for training, rows in part.seen if not training for index in indices(rows)]
        assert sorted(learned) == sorted(everything - aside)
        assert sorted(asked) == sorted(aside)
    assert {int(key) for keys in watch.keys[2] for key in keys} == everything
    assert sum(len(each["target"]) for each in watch.outputs[2]) == HELD_OUT


def test_the_hashes_of_the_training_samples_are_theirs() -> None:
    from lightning_efficient.inference.sample_hashes import hash_samples

    module = hybrid(stages=[{"base": 1}, {"router": 2}])
    trainer().fit(module, datamodule=data())
    found = module.training_samples
    assert found is not None
    expected = hash_samples(training_inputs())
    assert sorted(found.tolist()) == sorted(expected.tolist())  # once, whatever the number of epochs


def test_out_of_fold_the_router_hears_copies_that_did_not_learn_the_sample() -> None:
    module = hybrid(base=Rows(network()), global_model=Rows(network(16)), router_data="out_of_fold", folds=3)
    said: list[tuple[Tensor, Tensor]] = []
    learn = module.router.loss

    def listen(logits: Tensor, features: Any, base_correct: Tensor, global_correct: Tensor) -> Tensor:
        said.append((logits.clone(), base_correct))
        return learn(logits, features, base_correct, global_correct)

    module.router.loss = listen  # type: ignore[method-assign]
    watch = Watch()
    trainer(watch, limit_val_batches=0).fit(module, datamodule=data())
    place = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))
    for name, whole in (("base", module.base), ("global", module.global_model)):
        for number, copy in enumerate(module.folds[name]):
            learned = {index for training, rows in copy.seen if training for index in indices(rows)}
            asked = [index for training, rows in copy.seen if not training for index in indices(rows)]
            others = set((place % 3 == number).nonzero().flatten().tolist())
            assert sorted(asked) == sorted(others)
            assert learned == set(range(TRAIN)) - others
        assert {index for training, rows in whole.seen if training for index in indices(rows)} == set(range(TRAIN))
    keys = torch.cat(list(watch.keys[2]))
    expected = torch.empty(TRAIN, CLASSES)
    inputs = training_inputs()
    with torch.no_grad():
        for number, copy in enumerate(module.folds["base"]):
            own = place[keys] % 3 == number
            expected[own] = copy.network.eval()(inputs[keys[own]])
    torch.testing.assert_close(torch.cat([logits for logits, _ in said]), expected)


def test_copies_are_no_part_of_what_is_loaded_to_predict(tmp_path: Path) -> None:
    module = hybrid(router_data="out_of_fold", folds=2)
    engine = trainer()
    engine.fit(module, datamodule=data())
    engine.save_checkpoint(tmp_path / "one.ckpt")
    fresh = hybrid(router_data="out_of_fold", folds=2)
    trainer().test(fresh, datamodule=data(), ckpt_path=tmp_path / "one.ckpt", verbose=False, weights_only=False)
    assert same({name: value for name, value in bits(module).items() if not name.startswith("folds.")}, bits(fresh))
    torch.manual_seed(1)
    loaded = HybridClassifier.load_from_checkpoint(
        tmp_path / "one.ckpt", base=network(), global_model=network(16), weights_only=False
    )
    assert same(bits(loaded), bits(fresh))


def test_every_sample_is_everybodys_where_that_is_said() -> None:
    base = Rows(network())
    watch = Watch()
    trainer(watch, limit_val_batches=0).fit(hybrid(base=base, router_data="all"), datamodule=data())
    for mode in (True, False):
        rows = [index for training, rows in base.seen if training is mode for index in indices(rows)]
        assert sorted(rows) == list(range(TRAIN))


def test_a_data_module_is_left_as_it_was() -> None:
    samples = data()
    trainer().fit(hybrid(), datamodule=samples)
    assert samples.sample_keys is False


# what is computed once


@pytest.mark.parametrize("router_data", ["all", "held_out"])
def test_outputs_are_computed_once_and_used_again_by_a_second_run(router_data: str, tmp_path: Path) -> None:
    def run(folder: Path | None) -> tuple[HybridClassifier, int, int]:
        torch.manual_seed(5)
        base, best = Rows(network()), Rows(network(16))
        options = {"router_data": router_data, "stages": [{"router": 3}]}
        module = hybrid(base=base, global_model=best, outputs_folder=folder and str(folder), **options)
        seed_everything(1, verbose=False)
        trainer(limit_val_batches=0).fit(module, datamodule=data())
        return module, len(base.seen), len(best.seen)

    each_time, *calls = run(None)
    assert calls == [12, 12]
    once, *calls = run(tmp_path / "outputs")
    assert calls == [4, 4]
    again, *calls = run(tmp_path / "outputs")
    assert calls == [1, 1]  # of the first batch, to know their shapes
    assert same(bits(once), bits(again))
    for name, value in bits(each_time).items():
        torch.testing.assert_close(bits(once)[name], value)


def test_outputs_of_other_weights_are_not_used(tmp_path: Path) -> None:
    first = hybrid(stages=[{"router": 1}], outputs_folder=str(tmp_path))
    trainer(max_epochs=1, limit_val_batches=0).fit(first, datamodule=data())
    base = Rows(network())  # the same weights under other names, and other ones
    nn.init.zeros_(base.network[4].weight)
    second = hybrid(base=base, stages=[{"router": 1}], outputs_folder=str(tmp_path))
    trainer(max_epochs=1, limit_val_batches=0).fit(second, datamodule=data())
    assert len(base.seen) == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_outputs_are_computed_anew_after_a_network_has_learned_again(tmp_path: Path) -> None:
    base = Rows(network())
    order = [{"router": 1}, {"base": 1}, {"router": 2}]
    module = hybrid(base=base, stages=order, router_data="all", reweight=False, outputs_folder=str(tmp_path))
    trainer(max_epochs=4, limit_val_batches=0).fit(module, datamodule=data())
    assert [training for training, _ in base.seen] == [False] * 4 + [True] * 4 + [False] * 4


# alternation and joint training


def test_after_a_router_a_network_weighs_the_samples_it_gets_twice() -> None:
    module = hybrid(stages=[{"router": 1}, {"base": 1}, {"global": 1}], router_data="all")
    module.threshold.fill_(0.0)
    inputs, scores = torch.randn(5, FEATURES), torch.tensor([-1.0, 0.0, 0.5, torch.nan, torch.inf])
    module.router.forward = lambda *_: scores  # type: ignore[method-assign]
    base, best = (module._weight(stage, inputs) for stage in module.plan.stages[1:])
    assert base is not None
    assert best is not None
    assert base.tolist() == [2, 2, 1, 1, 1]
    assert best.tolist() == [1, 1, 2, 2, 2]


def test_the_weighted_loss_is_that_of_the_step() -> None:
    order = [{"router": 1}, {"base": 1}]
    found: list[tuple[float, float]] = []

    class Compare(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            self.weight = module._weight(module.plan.at(trainer.current_epoch), batch[0])

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if trainer.current_epoch == 1:
                losses = F.cross_entropy(outputs["logits"], batch[1], reduction="none")
                found.append((outputs["loss"].item(), (losses * self.weight).mean().item()))
                assert set(self.weight.tolist()) == {1.0, 2.0}

    module = hybrid(router="msp", stages=order, router_data="all", target_coverage=0.5)
    trainer(Compare(), max_epochs=2, limit_val_batches=0).fit(module, datamodule=data())
    assert len(found) == 4
    assert [one for one, _ in found] == pytest.approx([other for _, other in found])


@pytest.mark.parametrize(("reweight", "stages"), [(False, [{"router": 1}, {"base": 1}]), (True, STAGES)])
def test_samples_have_one_weight_without_reweighting_and_before_a_router(reweight: bool, stages: Any) -> None:
    module = hybrid(stages=stages, reweight=reweight, router_data="all")
    module.threshold.fill_(0.0)
    assert module._weight(module.plan.stages[-1 if not reweight else 1], torch.randn(3, FEATURES)) is None


# thresholds


class Scores(Callback):
    """Compute the router's scores of its samples beside the module, as they are at each step."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if module._now.name != "router":
            return
        if index == 0:
            self.scores = []
        router = module.router.training
        module.router.eval()
        with torch.no_grad():
            self.scores.append(module.router(*module.base_outputs(batch[0])))
        module.router.train(router)


@pytest.mark.parametrize("validation", [0, 1.0])
def test_thresholds_are_settled_before_the_checkpoint_of_their_epoch(validation: float, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module, watch = hybrid(router_data="all", target_coverage=0.6), Scores()
    module.on_train_batch_start = _after(module.on_train_batch_start, watch)  # type: ignore[method-assign]
    run = trainer(save, enable_checkpointing=True, limit_val_batches=validation, max_epochs=4)
    run.fit(module, datamodule=data())
    kept = [torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=False)["state_dict"] for epoch in range(4)]
    assert [bool(each["threshold"].isnan()) for each in kept] == [True, True, False, False]
    scores = torch.cat(watch.scores)
    assert len(scores) == TRAIN
    assert float(kept[3]["threshold"]) == pytest.approx(query_threshold(scores, 0.6))
    torch.testing.assert_close(kept[3]["threshold_path"], threshold_path(scores, 101).float())
    assert not torch.equal(kept[2]["threshold"], kept[3]["threshold"])


def _after(method: Any, watch: Scores) -> Any:
    module = method.__self__

    def both(batch: Any, index: int) -> None:
        method(batch, index)
        watch.on_train_batch_start(None, module, batch, index)

    return both
