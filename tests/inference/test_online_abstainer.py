"""The stateful rule replays the released code's runs, takes late labels, and goes on from a state dict bit for bit."""

from __future__ import annotations

import copy
import io
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.online_abstention import ABSTAIN
from lightning_efficient.inference.online_abstainer import OnlineAbstainer

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "online_abstention.npz")
CASES = sorted({key.split("__")[0] for key in GOLDEN.files} - {"onl"})
EXPERTS = 18


def array(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[key]))


def abstainer_with(experts: int = EXPERTS, seed: int = 0, **options) -> OnlineAbstainer:
    return OnlineAbstainer(experts, generator=torch.Generator().manual_seed(seed), **options)


def stream(rounds: int, experts: int = EXPERTS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What experts say, and the truth, which the last expert never misses."""
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randint(ABSTAIN, 3, (rounds, experts), generator=generator)
    labels = torch.randint(3, (rounds,), generator=generator)
    predictions[:, -1] = torch.where(predictions[:, -1] == ABSTAIN, ABSTAIN, labels)
    return predictions, labels


def state_of(abstainer: OnlineAbstainer) -> list:
    return [value.tolist() for value in abstainer.buffers()] + [abstainer.pending]


def run(abstainer: OnlineAbstainer, predictions: Tensor, labels: Tensor, delay: int = 0) -> list[int]:
    """Decide all rounds; labels come ``delay`` rounds late."""
    actions, due = [], []
    for number, said in enumerate(predictions):
        action, token = abstainer.decide(said)
        actions.append(action)
        if action == ABSTAIN:
            due.append((number + delay, token, int(labels[number])))
        while due and due[0][0] <= number:
            _, token, label = due.pop(0)
            abstainer.feedback(token, label)
    return actions


@pytest.mark.parametrize("case", CASES)
def test_the_released_runs_are_replayed(case: str) -> None:
    order, coins, draws = (array(f"{case}__{name}").tolist() for name in ("order", "coins", "draws"))
    abstainer = OnlineAbstainer(
        EXPERTS,
        explore="sqrt" if "_Ts_" in case else array(f"{case}__p")[0].item(),
        tolerance=float(case.rpartition("th")[2]),
        feedback="all" if "_s2_" in case else "explore",
    )
    actions = []
    for sample, coin, draw in zip(order, coins, draws, strict=True):
        action, token = abstainer.decide(array("onl__expert_pred")[sample], coin=bool(coin), expert=draw)
        actions.append(action)
        if action == ABSTAIN:
            abstainer.feedback(token, int(array("onl__labels")[sample]))
    assert actions == array(f"{case}__pred").tolist()
    weights = array(f"{case}__final_W")
    torch.testing.assert_close(abstainer.probabilities, weights / weights.sum(), rtol=1e-10, atol=0)
    assert abstainer.observed_errors.tolist() == array(f"{case}__obs_err").tolist()
    assert abstainer.feedback_count.item() == array(f"{case}__ctr").item()
    assert abstainer.alive.sum().item() == array(f"{case}__stats")[9].item()


def test_a_seed_decides_all_draws() -> None:
    predictions, labels = stream(200)
    runs = [run(abstainer_with(seed=seed), predictions, labels) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_without_a_generator_the_global_seed_decides() -> None:
    predictions, labels = stream(100)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(run(OnlineAbstainer(EXPERTS, explore=0.3), predictions, labels))
    assert runs[0] == runs[1] != runs[2]


def test_the_global_generator_is_left_alone_by_decisions() -> None:
    abstainer, (predictions, labels) = OnlineAbstainer(EXPERTS), stream(50)
    before = torch.get_rng_state()
    run(abstainer, predictions, labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_coin_abstains_as_often_as_asked_where_no_expert_does() -> None:
    abstainer = abstainer_with(2, explore=0.2)
    actions = [abstainer.decide(torch.tensor([0, 1])).action for _ in range(3000)]
    assert actions.count(ABSTAIN) / 3000 == pytest.approx(0.2, abs=0.03)  # four standard deviations
    assert actions.count(0) / 3000 == pytest.approx(0.4, abs=0.04)


def test_experts_that_abstain_lose_weight_without_any_label() -> None:
    abstainer = abstainer_with(2, explore=0.0, eta=0.25)
    for _ in range(2):
        abstainer.decide(torch.tensor([ABSTAIN, 1]), coin=False, expert=1)
    assert abstainer.pending == []
    assert abstainer.probabilities.tolist() == pytest.approx([0.5625 / 1.5625, 1 / 1.5625], rel=1e-14)


def test_only_labels_of_the_coin_erase_unless_all_are_used() -> None:
    predictions = torch.tensor([ABSTAIN, 1])
    for feedback, coin, erased in (("explore", False, 0), ("explore", True, 1), ("all", False, 1), ("all", True, 1)):
        abstainer = abstainer_with(2, feedback=feedback)
        token = abstainer.decide(predictions, coin=coin, expert=0).token
        abstainer.feedback(token, label=0)
        assert (~abstainer.alive).sum().item() == abstainer.feedback_count.item() == erased, (feedback, coin)
        assert abstainer.pending == []


def test_a_stream_goes_on_for_ever_without_labels() -> None:
    abstainer, (predictions, _) = abstainer_with(max_pending=5), stream(300)
    actions = [abstainer.decide(said).action for said in predictions]
    assert abstainer.pending == [number + 1 for number, action in enumerate(actions) if action == ABSTAIN][-5:]
    assert abstainer.alive.all()
    with pytest.raises(ConfigurationError, match="one of the last max_pending=5"):
        abstainer.feedback(1 + actions.index(ABSTAIN), 0)


def test_a_label_is_compared_with_what_was_said_in_its_own_round() -> None:
    abstainer, said = abstainer_with(2), torch.tensor([0, 1])
    token = abstainer.decide(said, coin=True).token
    said.copy_(torch.tensor([1, 0]))  # a caller may use its buffer again
    abstainer.decide(said, coin=True)
    abstainer.feedback(token, label=0)
    assert abstainer.alive.tolist() == [True, False]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), feedback=st.sampled_from(["explore", "all"]))
def test_without_tolerance_labels_in_any_order_leave_the_same_experts(seed: int, feedback: str) -> None:
    predictions, labels = stream(40, experts=6, seed=seed)
    late, prompt = (abstainer_with(6, feedback=feedback, explore=0.3) for _ in range(2))
    draws = torch.randint(6, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    tokens = []
    for number, (said, draw) in enumerate(zip(predictions, draws, strict=True)):
        coin = number % 3 == 0
        action, token = late.decide(said, coin=coin, expert=draw)
        assert prompt.decide(said, coin=coin, expert=draw) == (action, token)
        if action == ABSTAIN:
            prompt.feedback(token, int(labels[number]))
            tokens.append(token)
    random.Random(seed).shuffle(tokens)
    for token in tokens:
        late.feedback(token, int(labels[token - 1]))
    assert late.alive.tolist() == prompt.alive.tolist()
    assert late.alive[-1], "the expert without mistakes was erased"
    assert late.observed_errors.tolist() == prompt.observed_errors.tolist()
    torch.testing.assert_close(late.probabilities, prompt.probabilities, rtol=1e-12, atol=0)


@pytest.mark.parametrize("late", [False, True])
def test_a_label_that_would_erase_the_last_expert_is_ignored(late: bool) -> None:
    abstainer = abstainer_with(3, eta=0.25)
    abstainer.feedback(abstainer.decide(torch.tensor([0, 1, 1]), coin=True).token, label=1)
    before = [abstainer.alive.tolist(), abstainer.observed_errors.tolist(), abstainer.feedback_count.item()]
    token = abstainer.decide(torch.tensor([ABSTAIN, 1, 2]), coin=True).token
    if late:
        abstainer.decide(torch.tensor([1, ABSTAIN, 1]), coin=True)
    abstainer.feedback(token, label=0)
    assert [abstainer.alive.tolist(), abstainer.observed_errors.tolist(), abstainer.feedback_count.item()] == before
    assert abstainer.probabilities.tolist() == pytest.approx([0, 3 / 7, 4 / 7] if late else [0, 0.5, 0.5], rel=1e-14)


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_a_stream_goes_on_from_a_state_dict_bit_for_bit(tolerance: float) -> None:
    options = {"explore": 0.2, "tolerance": tolerance, "feedback": "all"}
    predictions, labels = stream(200)
    unbroken = abstainer_with(**options)
    run(unbroken, predictions[:120], labels[:120])
    waiting = [unbroken.decide(said, coin=True).token for said in predictions[:3]]
    file = io.BytesIO()
    torch.save(unbroken.state_dict(), file)
    file.seek(0)
    resumed = abstainer_with(seed=99, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert state_of(resumed) == state_of(unbroken)
    for one in (unbroken, resumed):
        for token, label in zip(waiting, labels.tolist(), strict=False):
            one.feedback(token, label)
    assert run(resumed, predictions[120:], labels[120:]) == run(unbroken, predictions[120:], labels[120:])
    assert state_of(resumed) == state_of(unbroken)


def test_a_state_dict_is_not_changed_by_what_comes_later() -> None:
    abstainer, (predictions, labels) = abstainer_with(explore=0.3), stream(60)
    run(abstainer, predictions, labels, delay=10)
    state = copy.deepcopy(abstainer.state_dict())
    kept = abstainer.state_dict()["_extra_state"]
    run(abstainer, predictions, labels)
    assert kept["pending"].keys() == state["_extra_state"]["pending"].keys()
    assert torch.equal(kept["generator"], state["_extra_state"]["generator"])


def test_a_copy_draws_on_its_own() -> None:
    predictions, labels = stream(80)
    first = abstainer_with()
    second = copy.deepcopy(first)
    assert run(first, predictions, labels) == run(second, predictions, labels)


def test_decisions_under_inference_mode_can_be_learned_from_outside_of_it() -> None:
    abstainer, (predictions, labels) = abstainer_with(explore=0.5), stream(20)
    with torch.inference_mode():
        tokens = [abstainer(said).token for said in predictions]
    for token in list(abstainer.pending):
        abstainer.feedback(token, int(labels[tokens.index(token)]))
    abstainer.decide(predictions[0])
    abstainer.load_state_dict(abstainer_with(explore=0.5).state_dict())
    assert abstainer.round.item() == 0


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_keep_their_digits_where_the_module_is_cast(cast: torch.dtype) -> None:
    abstainer, (predictions, labels) = abstainer_with(), stream(50)
    run(abstainer, predictions, labels)
    before = abstainer.log_weights.clone()
    module = torch.nn.Sequential(abstainer).to(cast)
    assert torch.equal(module[0].log_weights, before)
    assert module[0].log_weights.dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_predictions_may_have_any_signed_integer_dtype(dtype: torch.dtype) -> None:
    said = torch.tensor([ABSTAIN, 2], dtype=dtype)
    assert abstainer_with(2).decide(said, coin=False, expert=1).action == 2
    assert abstainer_with(2).decide(said, coin=False, expert=0).action == ABSTAIN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts=0 must be at least 1."),
        ({"num_experts": 2, "max_pending": 0}, "max_pending=0 must be at least 1."),
        ({"num_experts": 2, "explore": 10.0}, "explore=10.0 is outside [0, 1]"),
        ({"num_experts": 2, "eta": 1.0}, "eta=1.0 is outside [0, 1)."),
        ({"num_experts": 2, "tolerance": -0.1}, "tolerance=-0.1 is outside [0, 1]"),
        ({"num_experts": 2, "feedback": "explored"}, "feedback='explored' is not one of ['explore', 'all']"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        OnlineAbstainer(**options)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([0, 1, 2], "expert_predictions has the shape (3,); give one of each expert, (2,)."),
        ([[0, 1]], "expert_predictions has the shape (1, 2)"),
        ([0.0, 1.0], "expert_predictions has the dtype torch.float32; give integers."),
        ([True, False], "expert_predictions has the dtype torch.bool"),
        ([0, -2], "expert_predictions has -2; give classes, 0 or more, or -1 to abstain."),
    ],
)
def test_predictions_that_are_none_are_refused_and_the_round_does_not_count(
    predictions: Sequence, message: str
) -> None:
    abstainer = abstainer_with(2)
    before = abstainer.generator.get_state()
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        abstainer.decide(torch.tensor(predictions))
    assert abstainer.round.item() == 0
    assert torch.equal(abstainer.generator.get_state(), before)


@pytest.mark.parametrize("expert", [-1, 2])
def test_an_expert_that_does_not_exist_is_refused(expert: int) -> None:
    with pytest.raises(ConfigurationError, match=f"expert={expert} is not one of the 2 experts"):
        abstainer_with(2).decide(torch.tensor([0, 1]), coin=False, expert=expert)


def test_a_label_is_taken_once_and_only_after_an_abstention() -> None:
    abstainer = abstainer_with(2)
    answered = abstainer.decide(torch.tensor([0, 1]), coin=False, expert=0).token
    abstained = abstainer.decide(torch.tensor([0, 1]), coin=True).token
    with pytest.raises(ConfigurationError, match="label=-1 must be a class"):
        abstainer.feedback(abstained, ABSTAIN)
    abstainer.feedback(abstained, 0)
    for token in (answered, abstained, 77):
        with pytest.raises(ConfigurationError, match=f"token={token} waits for no label"):
            abstainer.feedback(token, 0)
    assert abstainer.feedback_count.item() == 1


def test_several_processes_are_refused_unless_each_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigurationError, match="per_rank=False serves one stream, and 2 processes run"):
        abstainer_with(2).decide(torch.tensor([0, 1]))
    assert abstainer_with(2, per_rank=True).decide(torch.tensor([0, 1])).token == 1
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert abstainer_with(2).decide(torch.tensor([0, 1])).token == 1


def test_options_are_shown() -> None:
    shown = "OnlineAbstainer(num_experts=2, explore='sqrt', eta=None, tolerance=0.0, feedback='explore')"
    assert repr(abstainer_with(2)) == shown
