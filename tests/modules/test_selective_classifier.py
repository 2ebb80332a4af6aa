from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from module_settings import bits, same, trainer
from selective_settings import BATCH, CLASSES, FEATURES, OBJECTIVES, Watch, classifier, loader, network, samples, sgd
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient import functional as LF
from lightning_efficient.callbacks import SelectiveCoverage
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.abstention import answer_score, gamblers_loss
from lightning_efficient.functional.entropy_penalty import entropy_penalty
from lightning_efficient.functional.one_sided import one_sided_costs
from lightning_efficient.nn import SelectiveOutputs

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
