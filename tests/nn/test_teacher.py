"""A teacher: frozen whatever happens around it, invisible to the module that holds it, and recognisable."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, NonFiniteLossError
from lightning_efficient.nn.teacher import Teacher
from lightning_efficient.nn.views import ModelViews


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Holder(nn.Module):
    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.student = nn.Linear(3, 2)
        self.teacher = teacher


def test_the_module_that_holds_it_has_nothing_of_it() -> None:
    holder = Holder(Teacher(network()))
    assert list(holder.state_dict()) == ["student.weight", "student.bias"]
    assert len(list(holder.parameters())) == 2
    holder.train()
    holder.double()
    assert not any(module.training for module in holder.teacher.network.modules())
    assert {parameter.dtype for parameter in holder.teacher.network.parameters()} == {torch.float32}
    assert copy.deepcopy(holder).teacher is holder.teacher


def test_it_stays_as_it_is_even_if_somebody_trains_it(images: Tensor) -> None:
    teacher = Teacher(network().train())
    state = copy.deepcopy(teacher.network.state_dict())
    first = teacher(images).logits
    teacher.network[1].train()
    teacher.network[2].train()
    assert torch.equal(teacher(images).logits, first)
    assert all(torch.equal(state[name], value) for name, value in teacher.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_views_can_enter_a_graph_and_get_no_gradient(images: Tensor) -> None:
    views = Teacher(network(), features=True, feature_map=True, map_module="1")(images)
    assert not any(view.requires_grad or view.is_inference() for view in views)
    weight = torch.ones((), requires_grad=True)
    (weight * views.logits).square().sum().backward()
    assert weight.grad.item() == pytest.approx(2 * views.logits.square().sum().item())


def test_views_and_sizes_are_those_of_its_network(images: Tensor) -> None:
    teacher = Teacher(network(), features=True, feature_map=True, map_module="1")
    assert (teacher.num_classes, teacher.feature_dim, teacher.map_channels) == (2, 4, 4)
    views = teacher(images)
    with torch.no_grad():
        torch.testing.assert_close(views.feature_map, teacher.network[:2](images))
        torch.testing.assert_close(views.features, teacher.network[:5](images))
        torch.testing.assert_close(views.logits, teacher.network(images))


def test_inputs_are_renormalised_to_what_it_was_trained_with() -> None:
    raw = torch.rand(2, 3, 4, 4)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    own_mean, own_std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]

    def normalised(center: list[float], spread: list[float]) -> Tensor:
        return (raw - torch.tensor(center).view(3, 1, 1)) / torch.tensor(spread).view(3, 1, 1)

    teacher = Teacher(nn.Flatten(), renormalize=(mean, std, own_mean, own_std))
    torch.testing.assert_close(teacher(normalised(mean, std)).logits, normalised(own_mean, own_std).flatten(1))
    same = Teacher(nn.Flatten(), renormalize=(mean, std, mean, std))
    assert torch.equal(same(raw).logits, raw.flatten(1))


def test_inputs_are_resized_only_where_they_differ(images: Tensor) -> None:
    teacher = Teacher(nn.Flatten(), image_size=4)
    # the antialiased triangle over 8 pixels, by hand for the first output pixel: weights 3, 3, 1 of 7
    weights = torch.tensor([3.0, 3.0, 1.0]) / 7
    corner = torch.einsum("nchw,h,w->nc", images[:, :, :3, :3], weights, weights)
    torch.testing.assert_close(teacher(images).logits.unflatten(1, (3, 4, 4))[:, :, 0, 0], corner)
    assert torch.equal(Teacher(nn.Flatten(), image_size=8)(images).logits, images.flatten(1))


def test_inputs_take_the_precision_of_the_network(images: Tensor) -> None:
    teacher = Teacher(network())
    expected = teacher(images).logits
    assert torch.equal(teacher(images.double()).logits, expected)
    assert teacher.to("cpu", torch.bfloat16) is teacher
    rounded = teacher(images).logits
    assert rounded.dtype is torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, rtol=0.05, atol=0.05)


def test_inputs_that_are_no_numbers_of_pixels_pass_through() -> None:
    embedding = nn.EmbeddingBag(7, 3)
    tokens = torch.tensor([[0, 6], [1, 2]])
    assert torch.equal(Teacher(embedding)(tokens).logits, embedding(tokens))


def test_its_copy_through_pickle_gives_the_same_views_and_fingerprint(images: Tensor) -> None:
    teacher = Teacher(network(), feature_map=True, map_module="1", renormalize=((0.1,), (1.0,), (0.0,), (0.5,)))
    twin = pickle.loads(pickle.dumps(teacher))
    assert torch.equal(twin(images).feature_map, teacher(images).feature_map)
    assert twin.fingerprint() == teacher.fingerprint()


def test_the_fingerprint_tells_weights_and_options_apart() -> None:
    base = Teacher(network(0)).fingerprint()
    assert Teacher(network(0).train()).fingerprint() == base
    others = [
        Teacher(network(1)),
        Teacher(network(0), features=True),
        Teacher(network(0), image_size=16),
        Teacher(network(0), renormalize=((0.1,), (1.0,), (0.0,), (0.5,))),
        Teacher(network(0)).to("cpu", torch.bfloat16),
        Teacher(nn.Sequential(network(0))),
    ]
    moved = Teacher(network(0))
    moved.network[1].running_mean[0] += 1e-6
    nudged = Teacher(network(0))
    with torch.no_grad():
        nudged.network[5].bias[1] = torch.nextafter(nudged.network[5].bias[1], torch.tensor(10.0))
    prints = {one.fingerprint() for one in (*others, moved, nudged)}
    assert len(prints) == len(others) + 2
    assert base not in prints
    assert len(base) == 64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_reported_with_their_teacher(bad: float) -> None:
    teacher = Teacher(network())
    logits = torch.zeros(5, 2)
    teacher.check_finite(ModelViews(logits), "step 3")
    logits[1] = logits[4, 0] = bad
    message = r"step 3: the teacher \(Sequential\) gives NaN or infinite logits for 2 of 5 samples"
    with pytest.raises(NonFiniteLossError, match=message):
        teacher.check_finite(ModelViews(logits), "step 3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"renormalize": ((0.1,), (1.0,), (0.0,))}, r"must be \(mean, std, mean, std\)"),
        ({"renormalize": ((0.1,), (1.0, 1.0), (0.0,), (1.0,))}, "one value per channel each"),
        ({"renormalize": ((0.1,), (0.0,), (0.0,), (1.0,))}, "deviations above 0"),
        ({"image_size": 0}, "image_size=0 must be a number of pixels"),
        ({"feature_map": True}, "map_module: Sequential declares no feature maps"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Teacher(network(), **options)


def test_another_number_of_channels_is_refused(images: Tensor) -> None:
    two = (0.1, 0.1)
    teacher = Teacher(network(), renormalize=(two, (1.0, 1.0), (0.0, 0.0), (1.0, 1.0)))
    with pytest.raises(ConfigurationError, match="renormalize has 2 channels"):
        teacher(images)


def test_it_says_what_it_is() -> None:
    assert repr(Teacher(network(), image_size=8)) == "Teacher(Sequential, map_index=-1, image_size=8)"
