"""Rows leave a network at its exits: what later layers then see, what comes back, and where exits can be."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import cascade_choice
from lightning_efficient.functional.routing import query_score
from lightning_efficient.nn._exit_heads import ExitHead
from lightning_efficient.nn.backbones import create_backbone
from lightning_efficient.nn.early_exits import EarlyExitNetwork
from lightning_efficient.nn.model_cascade import ModelCascade
from lightning_efficient.profiling import count_macs

INF = float("inf")
ROWS, CLASSES = 9, 5
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
BACKBONES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "cifar_resnet10_xxxs": ({}, (3, 16, 16)),
    "mobilenetv3_small_050": ({}, (3, 32, 32)),
    "vit_tiny_patch16_224": (VIT, (3, 32, 32)),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1, 1), "num_heads": (1, 1, 2)},
        (3, 32, 32),
    ),
}


def exits_in(name: str = "cifar_resnet10_xxxs", exits: Any = 2, **options: Any) -> tuple[EarlyExitNetwork, Tensor]:
    torch.manual_seed(0)
    kwargs, shape = BACKBONES[name]
    network = EarlyExitNetwork(create_backbone(name, num_classes=CLASSES, options=kwargs), exits, **options).eval()
    return network, torch.randn(ROWS, *shape)


def some_thresholds(network: EarlyExitNetwork | ModelCascade, inputs: Tensor, share: float = 0.4) -> list[float]:
    """Thresholds at which each exit lets some rows go, none of them at a row's own score."""
    with torch.no_grad():
        scores = [query_score(each) for each in network(inputs)[:, :-1].unbind(1)]
    return [float(each.double().quantile(share)) for each in scores]


def rows_seen_by(network: nn.Module, names: list[str]) -> dict[str, list[int]]:
    modules, seen = dict(network.named_modules()), {name: [] for name in names}
    for name in names:
        modules[name].register_forward_pre_hook(lambda module, args, name=name: seen[name].append(len(args[0])))
    return seen


# what leaves


@pytest.mark.parametrize("name", BACKBONES)
def test_each_row_gets_the_answer_of_the_first_exit_that_is_sure(name: str) -> None:
    network, inputs = exits_in(name)
    thresholds = some_thresholds(network, inputs)
    with torch.no_grad():
        every, answers = network(inputs), network.route(inputs, thresholds)
    scores = torch.stack([query_score(each) for each in every.unbind(1)], 1)
    assert torch.equal(answers.source, cascade_choice(scores[:, :-1], thresholds))
    assert len(answers.source.unique()) >= 2
    rows = torch.arange(ROWS)
    torch.testing.assert_close(answers.logits, every[rows, answers.source], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(answers.query_score, scores[rows, answers.source], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_where_no_row_leaves_the_answers_are_those_of_the_network_to_the_bit(name: str) -> None:
    network, inputs = exits_in(name)
    with torch.no_grad():
        alone = network.backbone(inputs)
        answers = network.route(inputs, [-INF] * 2)
        every = network(inputs)
    assert torch.equal(answers.logits, alone)
    assert torch.equal(every[:, -1], alone)
    assert torch.equal(network.last(inputs), alone)
    assert answers.source.tolist() == [2] * ROWS


def test_later_layers_see_only_the_rows_that_are_left() -> None:
    network, inputs = exits_in(exits=["layer1", "layer3"])
    thresholds = some_thresholds(network, inputs)
    seen = rows_seen_by(network.backbone, ["layer1", "layer2", "layer3", "layer4", "fc"])
    with torch.no_grad():
        source = network.route(inputs, thresholds).source
    after_one, after_two = int((source > 0).sum()), int((source > 1).sum())
    assert ROWS > after_one > after_two > 0
    assert seen == {
        "layer1": [ROWS],
        "layer2": [after_one],
        "layer3": [after_one],
        "layer4": [after_two],
        "fc": [after_two],
    }


@pytest.mark.parametrize(("thresholds", "ran"), [([INF, INF], ["layer1"]), ([-INF, INF], ["layer1", "layer2"])])
def test_where_all_rows_leave_the_rest_does_not_run(thresholds: list[float], ran: list[str]) -> None:
    network, inputs = exits_in(exits=["layer1", "layer2"])
    names = ["layer1", "layer2", "layer3", "layer4"]
    seen = rows_seen_by(network.backbone, names)
    with torch.no_grad():
        answers = network.route(inputs, thresholds)
        every = network(inputs)
    assert answers.source.tolist() == [len(ran) - 1] * ROWS
    assert torch.equal(answers.logits, every[:, len(ran) - 1])
    assert [len(seen[name]) for name in names] == [2 if name in ran else 1 for name in names]


@given(shares=st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), min_size=2, max_size=2), rows=st.integers(1, ROWS))
@settings(max_examples=20, deadline=None)
def test_any_thresholds_give_every_row_one_answer_in_its_place(shares: list[float], rows: int) -> None:
    network, inputs = exits_in()
    limits = [some_thresholds(network, inputs, share)[k] for k, share in enumerate(shares)]
    with torch.no_grad():
        every, answers = network(inputs[:rows]), network.route(inputs[:rows], limits)
    torch.testing.assert_close(answers.logits, every[torch.arange(rows), answers.source], atol=1e-6, rtol=1e-5)


def test_a_single_row_and_no_row_are_answered_too() -> None:
    network, inputs = exits_in()
    with torch.no_grad():
        assert network.route(inputs[:1], [INF, INF]).source.tolist() == [0]
        assert network.route(inputs[:1], [-INF, -INF]).source.tolist() == [2]
        empty = network.route(inputs[:0], [0.0, 0.0])
    assert [tuple(each.shape) for each in empty] == [(0, CLASSES), (0,), (0,)]
    assert empty.source.dtype == torch.int64


def test_a_row_whose_score_is_not_finite_never_leaves() -> None:
    network, inputs = exits_in()
    inputs[2] = torch.nan
    with torch.no_grad():
        assert network.route(inputs, [INF, INF]).source.tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0]


def test_a_score_may_be_a_function_of_the_confidence() -> None:
    network, inputs = exits_in()
    with torch.no_grad():
        named = network.route(inputs, [-0.25, -0.25], "msp")
        own = network.route(inputs, [-0.25, -0.25], lambda logits: logits.softmax(1).amax(1))
    assert torch.equal(named.source, own.source)


def test_channels_last_stays_channels_last_after_rows_have_left() -> None:
    network, inputs = exits_in(exits=["layer1"])
    network.to(memory_format=torch.channels_last)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    orders: list[bool] = []
    network.backbone.layer2.register_forward_pre_hook(
        lambda module, args: orders.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        answers = network.route(inputs, some_thresholds(network, inputs))
        every = network(inputs)
    assert 0 < int((answers.source == 0).sum()) < ROWS
    assert orders == [True, True, True]
    torch.testing.assert_close(answers.logits, every[torch.arange(ROWS), answers.source], atol=1e-5, rtol=1e-5)


def test_autocast_routes_with_scores_in_float32() -> None:
    network, inputs = exits_in()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        every = network(inputs)
        answers = network.route(inputs, some_thresholds(network, inputs))
    assert answers.query_score.dtype == torch.float32
    want = every[torch.arange(ROWS), answers.source]
    torch.testing.assert_close(answers.logits.float(), want.float(), atol=0.02, rtol=0.02)


# training


def test_every_exit_teaches_the_layers_before_it_and_no_other() -> None:
    network, inputs = exits_in(exits=["layer1", "layer2"])
    network.train()(inputs)[:, 0].sum().backward()
    assert network.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(not each.grad.any() for each in network.backbone.layer2.parameters())
    assert next(network.heads[1].parameters()).grad.abs().sum() == 0


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        network, inputs = exits_in("vit_tiny_patch16_224")
        network.backbone.set_grad_checkpointing(checkpointed)
        network.train()(inputs).square().sum().backward()
        gradients.append([each.grad for each in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("head", ["norm", "linear", "hidden"])
def test_heads_of_each_kind_see_maps_tokens_and_vectors(head: Any) -> None:
    made = ExitHead(6, CLASSES, head, hidden_width=4).eval()
    torch.manual_seed(0)
    maps = torch.randn(3, 6, 2, 5)
    tokens = maps.flatten(2).transpose(1, 2)
    want = made(maps.mean((2, 3)))
    assert want.shape == (3, CLASSES)
    torch.testing.assert_close(made(maps), want)
    torch.testing.assert_close(made(tokens), want)
    torch.testing.assert_close(made(maps.permute(0, 2, 3, 1)), want)


def test_a_class_token_is_looked_at_alone() -> None:
    head = ExitHead(4, CLASSES, "linear", class_token=True)
    tokens = torch.randn(2, 5, 4)
    torch.testing.assert_close(head(tokens), head.classifier(tokens[:, 0]))
    network, _ = exits_in("vit_tiny_patch16_224")
    assert [each.class_token for each in network.heads] == [True, True]


def test_a_square_map_with_as_many_rows_as_channels_is_read_as_the_network_says() -> None:
    tensor = torch.randn(2, 4, 4, 4)
    first, last = ExitHead(4, 2, "linear"), ExitHead(4, 2, "linear", channels_last=True)
    torch.testing.assert_close(first.pooled(tensor), tensor.mean((2, 3)))
    torch.testing.assert_close(last.pooled(tensor), tensor.mean((1, 2)))


# copies, files, other uses


def test_copies_and_pickles_route_alike_and_weights_keep_their_names() -> None:
    network, inputs = exits_in()
    names = {f"backbone.{name}" for name in network.backbone.state_dict()}
    assert names == {name for name in network.state_dict() if not name.startswith("heads.")}
    limits = some_thresholds(network, inputs)
    other, _ = exits_in()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        want = network.route(inputs, limits)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), other):
            got = twin.route(inputs, limits)
            assert torch.equal(got.logits, want.logits)
            assert torch.equal(got.source, want.source)


def test_the_network_knows_nothing_of_exits_after_a_forward_also_one_that_failed() -> None:
    network, inputs = exits_in()
    network.route(inputs, [INF, INF])
    with pytest.raises(RuntimeError):
        network(inputs[:, :1])
    assert not any(module._forward_hooks for module in network.backbone.modules())


def test_what_is_left_out_is_not_counted() -> None:
    network, inputs = exits_in(exits=["layer1", "layer2"])

    class UpTo(nn.Module):
        def __init__(self, stage: int) -> None:
            super().__init__()
            self.network, self.stage = network, stage

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network.up_to(inputs, self.stage)

    whole = count_macs(network, inputs)
    parts = [count_macs(UpTo(stage), inputs).macs for stage in range(3)]
    by_module = whole.by_module
    layers = [by_module[f"backbone.{name}"] for name in ("conv1", "layer1", "layer2")]
    heads = [by_module[f"heads.{k}"] for k in range(2)]
    assert parts == [sum(layers[:2]) + heads[0], sum(layers) + sum(heads), whole.macs]
    with torch.no_grad():
        every = network(inputs)
        for stage in range(3):
            assert torch.equal(network.up_to(inputs, stage), every[:, stage])


# places


def test_places_are_all_stages_but_the_last_or_as_asked() -> None:
    assert exits_in(exits=None)[0].exits == ("act1", "layer1", "layer2", "layer3")
    assert exits_in(exits=1)[0].exits == ("layer2",)
    assert exits_in(exits=[1, "layer2.0", -2])[0].exits == ("layer1", "layer2.0", "layer3")
    assert exits_in("vit_tiny_patch16_224", exits=3)[0].exits == ("blocks.0", "blocks.1", "blocks.2")


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (["layer11"], r"exits: ResNet has no module 'layer11'\. Did you mean 'layer1"),
        ([7], "exits: 7 is out of range, as ResNet declares 5 feature stages"),
        ([1, "layer1"], "exits holds 'layer1' more than once"),
        ([], r"exits=\[\] must be a list of at least one place"),
        ("layer1", "exits='layer1' must be a list"),
        (0, "exits=0 must be 1 to 4"),
        (5, "exits=5 must be 1 to 4"),
        (["layer1", "maxpool"], "nothing in 'maxpool', a Identity, says how many channels it has"),
    ],
)
def test_an_impossible_place_is_told_in_one_line(exits: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        exits_in(exits=exits)
    assert "\n" not in str(caught.value)


def test_exits_in_another_order_than_the_forward_are_told_when_they_run() -> None:
    network, inputs = exits_in(exits=["layer2", "layer1"])
    with pytest.raises(
        ConfigurationError, match="'layer1' runs before 'layer2'; give them in the order of the forward"
    ):
        network(inputs)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(inputs + self.branch(inputs))


def test_rows_cannot_leave_inside_a_block() -> None:
    torch.manual_seed(0)
    network, inputs = EarlyExitNetwork(Residual(), ["branch"]).eval(), torch.randn(ROWS, 4)
    with pytest.raises(RuntimeError, match="must match the size"):
        network.route(inputs, some_thresholds(network, inputs))
    # one row would spread over all in the sum of the block, and nobody would notice
    with pytest.raises(
        ConfigurationError, match="1 rows went on and 9 came to the end, as an exit lies inside a block"
    ):
        network.route(inputs, some_thresholds(network, inputs, 0.95))


class Twice(nn.Module):
    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.in_place = in_place

    def forward(self, inputs: Tensor) -> Tensor:
        if self.in_place:
            return self.last(self.first(inputs).relu_())
        return self.last(self.first(self.first(inputs)))


def test_a_layer_that_runs_twice_or_never_or_is_overwritten_is_no_place() -> None:
    inputs = torch.randn(2, 4)
    with pytest.raises(ConfigurationError, match="'first' runs more than once"):
        EarlyExitNetwork(Twice(), ["first"])(inputs)
    with pytest.raises(ConfigurationError, match="'unused' does not run"):
        EarlyExitNetwork(Twice(), ["unused"])(inputs)
    with pytest.raises(ConfigurationError, match="the output of 'first' is changed in place"):
        EarlyExitNetwork(Twice(in_place=True), ["first"])(inputs)


def test_other_mistakes_are_told_in_one_line() -> None:
    network, inputs = exits_in()
    with pytest.raises(ConfigurationError, match="thresholds has 1 values; give 2"):
        network.route(inputs, [0.0])
    with pytest.raises(RuntimeError, match=r"call eval\(\) first"):
        network.train().route(inputs, [0.0, 0.0])
    with pytest.raises(ConfigurationError, match="stage=3 must be 0 to 2"):
        network.up_to(inputs, 3)
    with pytest.raises(ConfigurationError, match=r"head='linaer' is not one of .*Did you mean 'linear'"):
        exits_in(head="linaer")
    with pytest.raises(ConfigurationError, match="num_classes=4, but ResNet has 5 classes"):
        exits_in(num_classes=4)
    with pytest.raises(ConfigurationError, match="declares no feature stages"):
        EarlyExitNetwork(Twice())
    with pytest.raises(ConfigurationError, match="needs two samples or more in training"):
        exits_in(head="hidden", hidden_width=4)[0].train()(inputs[:1])


# several networks


def cascade() -> tuple[ModelCascade, Tensor]:
    torch.manual_seed(0)
    return ModelCascade([nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), nn.Linear(4, 3)]).eval(), (
        torch.randn(ROWS, 4)
    )


def test_each_network_is_asked_once_about_the_rows_that_are_left() -> None:
    network, inputs = cascade()
    limits = some_thresholds(network, inputs)
    seen = rows_seen_by(network, ["models.0", "models.1", "models.2"])
    with torch.no_grad():
        answers = network.route(inputs, limits)
        counts = {name: list(rows) for name, rows in seen.items()}
        every = network(inputs)
    left = [int((answers.source >= stage).sum()) for stage in range(3)]
    assert ROWS == left[0] > left[1] > left[2] > 0
    assert counts == {f"models.{stage}": [rows] for stage, rows in enumerate(left)}
    torch.testing.assert_close(answers.logits, every[torch.arange(ROWS), answers.source])


def test_a_network_for_which_no_row_is_left_is_not_asked() -> None:
    network, inputs = cascade()
    seen = rows_seen_by(network, ["models.1", "models.2"])
    assert network.route(inputs, [INF, -INF]).source.tolist() == [0] * ROWS
    assert network.route(inputs[:0], [INF, -INF]).logits.shape == (0, 3)
    assert seen == {"models.1": [], "models.2": []}


def test_networks_of_other_classes_are_no_cascade() -> None:
    with pytest.raises(ConfigurationError, match=r"models\[1\], a Linear, has 4 classes where 3 are expected"):
        ModelCascade([nn.Linear(4, 3), nn.Linear(4, 4)])
    with pytest.raises(ConfigurationError, match="models has 1 networks"):
        ModelCascade([nn.Linear(4, 3)])
    with pytest.raises(ConfigurationError, match="num_classes is not given"):
        ModelCascade([nn.ReLU(), nn.ReLU()])
    with pytest.raises(ConfigurationError, match="fits has 1 entries for 2 models"):
        ModelCascade([nn.Linear(4, 3), nn.Linear(4, 3)], fits=[nn.Identity()])
