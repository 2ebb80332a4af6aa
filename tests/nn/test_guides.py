"""Guides: their sizes, what they look at, what they leave alone, and how they are built by name."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.cifar_resnet import register_cifar_resnets
from lightning_efficient.nn.guides import (
    GUIDES,
    BothMapsGuide,
    ConstantGuide,
    FeaturesGuide,
    Guide,
    LogitsGuide,
    MapGuide,
    StudentMapGuide,
    build_guide,
    guide_needs,
)
from lightning_efficient.nn.views import ModelViews, ViewTap


@pytest.fixture(scope="module")
def taps() -> tuple[ViewTap, ViewTap]:
    """The teacher and the student of the paper's first table, seen at the third stage."""
    register_cifar_resnets()
    large, small = (timm.create_model(f"cifar_resnet10_{size}", num_classes=100) for size in "ls")
    return tuple(ViewTap(network, features=True, feature_map=True, map_index=-2) for network in (large, small))


def views(seed: int = 0, channels: int = 6, features: int = 5, grad: bool = False) -> ModelViews:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, 3), (4, features), (4, channels, 2, 2))
    return ModelViews(*(torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes))


SMALL = {
    "teacher_features": lambda: FeaturesGuide(5),
    "teacher_map": lambda: MapGuide(6, 5, 16, width=8),
    "student_map": lambda: StudentMapGuide(6, 5, 16, width=8),
    "both_maps": lambda: BothMapsGuide((6, 5), (6, 5), 16, width=8),
    "teacher_logits": lambda: LogitsGuide(3),
    "constant": lambda: ConstantGuide(0.25),
}


def small(source: str) -> Guide:
    torch.manual_seed(0)
    return SMALL[source]()


@pytest.mark.parametrize(
    ("source", "parameters"),
    [
        ("teacher_features", 25_281),
        ("teacher_map", 781_457),
        ("student_map", 688_337),
        ("both_maps", 1_469_393),
        ("constant", 0),
    ],
)
def test_parameters_are_the_published_ones(source: str, parameters: int, taps: tuple[ViewTap, ViewTap]) -> None:
    guide = build_guide(source, *taps, num_classes=100)
    assert type(guide) is GUIDES[source]
    assert sum(parameter.numel() for parameter in guide.parameters()) == parameters


def test_guides_of_imagenet_have_the_published_parameters() -> None:
    def millions(guide: Guide) -> float:
        return round(sum(parameter.numel() for parameter in guide.parameters()) / 1e6, 2)

    assert millions(LogitsGuide(1000)) == 0.13
    assert millions(FeaturesGuide(2048, hidden=(1000, 64, 1000))) == 2.18
    assert millions(FeaturesGuide(1024, hidden=(1000, 64, 1000))) == 1.16


@pytest.mark.parametrize("source", GUIDES)
def test_the_help_is_the_sigmoid_of_the_logit_for_each_sample(source: str) -> None:
    guide = small(source)
    help_given = guide(views(0), views(1))
    assert help_given.shape == (4,)
    assert help_given.dtype is torch.float32
    torch.testing.assert_close(help_given, torch.sigmoid(guide.logit(views(0), views(1))))
    assert ((help_given > 0) & (help_given < 1)).all()


def test_a_features_guide_is_its_formula() -> None:
    guide = FeaturesGuide(5, hidden=(4,), batch_norm=False)
    first, _, last = guide.head
    seen = views()
    inner = torch.relu(seen.features @ first.weight.T + first.bias)
    torch.testing.assert_close(guide(seen), torch.sigmoid(inner @ last.weight[0] + last.bias))


def test_a_map_guide_is_its_formula() -> None:
    guide = small("teacher_map").eval()
    inner = views().feature_map
    for place in (0, 3, 6):
        convolution, norm = guide.tower[place], guide.tower[place + 1]
        assert convolution.bias is None
        normed = nn.functional.conv2d(inner, convolution.weight, padding=convolution.kernel_size[0] // 2)
        normed = normed / (1 + norm.eps) ** 0.5
        inner = normed * torch.sigmoid(normed)
    projected = guide.tower[-1](inner.mean((2, 3)))
    hidden, norm, _, output = guide.head
    logit = output(torch.relu(hidden(projected) / (1 + norm.eps) ** 0.5)).squeeze(1)
    torch.testing.assert_close(guide.logit(views(), None), logit)


@pytest.mark.parametrize("source", [source for source in GUIDES if source != "constant"])
def test_only_the_views_in_needs_are_looked_at(source: str) -> None:
    guide = small(source).eval()
    teacher, student = views(0), views(1)
    before = guide.logit(teacher, student)
    fields = {"teacher_features": (0, "features"), "teacher_map": (0, "feature_map"), "student_map": (1, "feature_map")}
    for need, (whose, field) in fields.items():
        pair = [teacher, student]
        pair[whose] = pair[whose]._replace(**{field: getattr(pair[whose], field) + 1})
        changed = not torch.equal(before, guide.logit(*pair))
        assert changed == (need in guide.needs), need
        pair[whose] = pair[whose]._replace(**{field: None})
        if need in guide.needs:
            with pytest.raises(ValueError, match=f"needs the {field} of the"):
                guide(*pair)
        else:
            guide(*pair)


@pytest.mark.parametrize("source", [source for source in GUIDES if source != "constant"])
def test_gradients_reach_the_guide_and_neither_network(source: str) -> None:
    guide, teacher, student = small(source), views(0, grad=True), views(1, grad=True)
    guide(teacher, student).sum().backward()
    assert all(parameter.grad is not None for parameter in guide.parameters())
    assert [view.grad for view in (*teacher, *student)] == [None] * 6


@pytest.mark.parametrize("source", [source for source in GUIDES if source != "constant"])
def test_under_mixed_precision_the_help_is_single_precision(source: str) -> None:
    guide = small(source).eval()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = guide(views(0), views(1))
    assert mixed.dtype is torch.float32
    torch.testing.assert_close(mixed, guide(views(0), views(1)), rtol=0.02, atol=0.02)


def test_views_of_another_precision_are_cast() -> None:
    guide = small("teacher_features").eval()
    half = ModelViews(*(view.half() for view in views()))
    torch.testing.assert_close(guide(half), guide(views()), rtol=1e-2, atol=1e-2)
    assert guide.double()(views()).dtype is torch.float64


def test_heads_start_as_released_and_towers_as_pytorch_does() -> None:
    torch.manual_seed(0)
    guide = MapGuide(64, 400, 300, output_bias=-1.0)
    hidden, output = guide.head[0], guide.head[-1]
    bound = (6 / (400 + 300)) ** 0.5
    assert hidden.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert hidden.weight.abs().max() <= bound
    assert torch.equal(hidden.bias, torch.full((300,), 0.01))
    assert output.bias.item() == -1
    projection = guide.tower[-1]
    assert projection.weight.abs().max().item() == pytest.approx(1 / 256**0.5, rel=1e-3)
    assert projection.bias.abs().max().item() == pytest.approx(1 / 256**0.5, rel=0.05)


def test_a_low_output_bias_starts_with_little_help() -> None:
    for guide in (FeaturesGuide(5, output_bias=-20.0), LogitsGuide(3, output_bias=-20.0)):
        assert guide(views()).max() < 1e-6


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_a_constant_guide_returns_its_value_in_every_bit(value: float) -> None:
    guide = ConstantGuide(value)
    assert torch.equal(guide(views()), torch.full((4,), value))
    assert torch.equal(guide.logit(views(), None), torch.logit(torch.full((4,), value)))
    assert guide.state_dict() == {}


def test_needs_are_known_before_the_guide_is_built() -> None:
    assert {source: set(guide_needs(source)) for source in GUIDES} == {
        "teacher_features": {"teacher_features"},
        "teacher_map": {"teacher_map"},
        "student_map": {"student_map"},
        "both_maps": {"teacher_map", "student_map"},
        "teacher_logits": set(),
        "constant": set(),
    }


def test_options_reach_the_guide(taps: tuple[ViewTap, ViewTap]) -> None:
    teacher, _ = taps
    assert build_guide("constant", teacher, None, 100, value=0.5).value == 0.5
    assert build_guide("teacher_map", teacher, None, 100, width=16).tower[0].weight.shape == (16, 128, 1, 1)
    perceptron = build_guide("teacher_features", teacher, None, 100, hidden=[16], batch_norm=False, output_bias=-1.0)
    assert [type(layer) for layer in perceptron.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert perceptron.head[-1].bias.item() == -1


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("teacher_maps", {}, "guide='teacher_maps' is not one of .* Did you mean 'teacher_map'"),
        ("teacher_map", {"widht": 3}, "guide 'teacher_map' has no option 'widht'; .* Did you mean 'width'"),
        ("teacher_map", {"channels": 3}, "has no option 'channels'"),
        ("student_map", {}, "needs the map_channels of the student"),
        ("constant", {"value": 2}, r"value=2 is outside \[0, 1\]"),
        ("teacher_features", {"hidden": (0,)}, r"hidden=\[0\] must be widths"),
    ],
)
def test_what_cannot_be_built_is_refused(
    source: str, options: dict, message: str, taps: tuple[ViewTap, ViewTap]
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_guide(source, taps[0], None, 100, **options)


def test_a_tap_without_the_map_is_refused(taps: tuple[ViewTap, ViewTap]) -> None:
    with pytest.raises(ConfigurationError, match="needs the map_channels of the teacher"):
        build_guide("both_maps", ViewTap(taps[0].network), taps[1], 100)
