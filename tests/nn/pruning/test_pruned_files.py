"""Pruned networks in files, and networks made to fit the weights of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks_for_pruning import images, random_keep, timm_network
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.pruning.channel_groups import find_channel_groups
from lightning_efficient.nn.pruning.pruned_file import is_pruned_file, load_pruned, read_report, save_pruned
from lightning_efficient.nn.pruning.shrink import remove_channels, resize_layers

NAME = "mobilenetv3_small_050"
MADE_OF = {"name": NAME, "num_classes": 5}


@pytest.fixture(scope="module")
def pruned() -> Any:
    network = timm_network(NAME)
    groups = find_channel_groups(network, images())
    return remove_channels(network, groups, random_keep(groups))


@pytest.fixture
def file(tmp_path: Path, pruned: nn.Module) -> Path:
    return save_pruned(tmp_path / "runs" / "pruned.pt", pruned, made_of=MADE_OF, report={"kept": [0.5, {"a": None}]})


def test_a_fresh_network_fits_the_weights_of_a_pruned_one(pruned: Any) -> None:
    network: Any = timm.create_model(NAME, num_classes=5).eval()
    resize_layers(network, pruned.state_dict())
    network.load_state_dict(pruned.state_dict())
    assert torch.equal(network(images()), pruned(images()))
    assert network.num_features == pruned.num_features
    assert network.head_hidden_size == pruned.head_hidden_size
    assert network.feature_info == pruned.feature_info
    assert repr(network) == repr(pruned)


def test_it_needs_no_torch_pruning(pruned: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    assert torch.equal(load_pruned(file).eval()(images()), pruned(images()))


@pytest.mark.parametrize(
    ("network", "other", "message"),
    [
        (nn.LayerNorm(4), nn.LayerNorm(3), r"'1.weight' has shape \(3,\) there and \(4,\) in the network"),
        (nn.Embedding(4, 4), nn.Embedding(4, 3), "its Embedding cannot be made smaller like that"),
        (nn.Linear(4, 4), nn.Linear(4, 5), r"'1.weight' has shape \(5, 4\)"),
        (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), r"\(4, 4, 1, 1\)"),
        (nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(2, 2, 1), "its Conv2d cannot be made smaller"),
        (nn.Linear(4, 4), nn.Linear(4, 4, bias=False), "state has no '1.bias', which Sequential needs"),
    ],
    ids=["layer norm", "embedding", "larger", "kernel", "grouped", "missing"],
)
def test_what_cannot_fit_is_named_and_the_network_stays(network: nn.Module, other: nn.Module, message: str) -> None:
    whole = nn.Sequential(nn.Linear(3, 4), network)
    before = repr(whole)
    state = nn.Sequential(nn.Linear(3, 2), other).state_dict()
    with pytest.raises(ConfigurationError, match=message):
        resize_layers(whole, state)
    assert repr(whole) == before
    assert whole[0].weight.shape == (4, 3)


def test_a_layer_whose_weights_contradict_each_other_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be made smaller"):
        resize_layers(nn.Linear(4, 4), {"weight": torch.zeros(2, 4), "bias": torch.zeros(3)})


def test_a_classifier_of_fewer_classes_is_no_pruned_one() -> None:
    few, many = (timm.create_model("resnet10t", num_classes=classes) for classes in (3, 5))
    with pytest.raises(ConfigurationError, match=r"'fc.weight' has shape \(3, 512\) there and \(5, 512\)"):
        resize_layers(many, few.state_dict())


def test_a_file_gives_the_network_back(pruned: Any, file: Path) -> None:
    random = torch.get_rng_state()
    network: Any = load_pruned(file)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(network.eval()(images()), pruned(images()))
    assert (network.num_features, network.feature_info) == (pruned.num_features, pruned.feature_info)
    network.reset_classifier(3)
    assert network(images()).shape == (2, 3)
    assert read_report(file) == {"kept": [0.5, {"a": None}]}
    assert is_pruned_file(file)
    assert [each.name for each in file.parent.iterdir()] == ["pruned.pt"]


def test_a_given_network_is_filled_in_place(pruned: Any, file: Path) -> None:
    network = timm.create_model(NAME, num_classes=5).eval()
    assert load_pruned(file, network) is network
    assert torch.equal(network(images()), pruned(images()))


def test_half_precision_stays(pruned: Any, tmp_path: Path) -> None:
    file = save_pruned(tmp_path / "half.pt", timm.create_model(NAME).half(), made_of={"name": NAME}, report={})
    assert {each.dtype for each in load_pruned(file).parameters()} == {torch.half}


def test_a_network_that_timm_does_not_make_needs_one(tmp_path: Path) -> None:
    file = save_pruned(tmp_path / "own.pt", nn.Linear(2, 3), made_of=None, report={})
    with pytest.raises(ConfigurationError, match="does not say how its network is made; give one as network="):
        load_pruned(file)
    assert load_pruned(file, nn.Linear(2, 4)).out_features == 3
    with pytest.raises(ConfigurationError, match="does not fit Linear: 'weight' has shape"):
        load_pruned(file, nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="has 'bias', which Linear lacks"):
        load_pruned(file, nn.Linear(2, 4, bias=False))


def test_pretrained_weights_are_not_fetched_again(tmp_path: Path) -> None:
    made_of = {"name": NAME, "kwargs": {"checkpoint_path": "elsewhere.pt", "drop_rate": 0.1}}
    file = save_pruned(tmp_path / "a.pt", timm.create_model(NAME), made_of=made_of, report={})
    assert load_pruned(file).drop_rate == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report": {"a": [1, torch.ones(2)]}}, r"report\['a'\]\[1\] is a Tensor; only numbers"),
        ({"made_of": {"name": NAME, "kwargs": {"act": nn.ReLU}}}, r"made_of\['kwargs'\]\['act'\] is a type"),
        ({"made_of": {"nam": NAME}}, "made_of: 'nam' is not one of .* Did you mean 'name'"),
        ({"made_of": {"num_classes": 3}}, "made_of: 'name' is ''; give str"),
        ({"made_of": {"name": NAME, "in_chans": "3"}}, "made_of: 'in_chans' is '3'; give int"),
    ],
    ids=["report", "kwargs", "key", "no name", "channels"],
)
def test_what_is_no_plain_data_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        save_pruned(tmp_path / "a.pt", nn.Linear(2, 2), **{"made_of": None, "report": {}, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file: .* cannot be written \("):
        save_pruned(tmp_path / "file" / "a.pt", nn.Linear(2, 2), made_of=None, report={})


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code of the file ran",))


def content(**changes: Any) -> dict[str, Any]:
    kept = {"kind": "lightning_efficient.pruned_network", "schema": 1, "made_of": MADE_OF, "report": {}, "notes": {}}
    return {**kept, "state_dict": {}, **changes}


@pytest.mark.parametrize(
    ("stored", "message", "kind"),
    [
        ({"weight": torch.ones(2)}, "is no pruned network; save_pruned writes one", False),
        ([1, 2], "is no pruned network", False),
        (content(schema=2, version="99"), "of version 99 of lightning-efficient", True),
        (content(state_dict=[1]), "is damaged: it has no 'state_dict'", True),
        (content(notes=None), "is damaged: it has no 'notes'", True),
        (content(), "does not fit MobileNetV3: state has no 'conv_stem.weight'", True),
        (content(made_of={"name": "mobilenet_v9"}), "cannot be made: .*unknown timm model", True),
        (content(made_of={"name": NAME, "kwargs": {"checkpoint_path": "x"}}), "has 'checkpoint_path', which", True),
        (content(made_of={"name": NAME, "kwargs": {"nonsense": 1}}), "cannot be made: .*cannot be built", True),
        (content(report=Evil()), "could run code", False),
    ],
    ids=["weights", "list", "newer", "state", "notes", "empty", "name", "checkpoint", "nonsense", "code"],
)
def test_another_file_is_refused_in_one_line(
    stored: Any, message: str, kind: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.pt"
    torch.save(stored, file)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_pruned(file)
    assert "\n" not in str(caught.value)
    assert is_pruned_file(file) is kind
    assert "code of the file ran" not in capfd.readouterr().out


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ConfigurationError, match="is no checkpoint, or it is damaged"):
        load_pruned(file)
    assert not is_pruned_file(file)


def test_where_there_is_no_file_there_is_no_pruned_network(tmp_path: Path) -> None:
    assert not is_pruned_file(tmp_path / "none.pt")
    with pytest.raises(ConfigurationError, match="there is no checkpoint"):
        load_pruned(tmp_path / "none.pt")
