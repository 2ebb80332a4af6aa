from __future__ import annotations

import json
import pickle
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import apply, carry_out, interpolate, is_residual, recipe_of, replace, stage
from lightning_efficient.nn.surgery._architecture import architecture_of
from lightning_efficient.nn.surgery.meta import meta_copy


def bare(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def cut(model: nn.Module, number: int) -> Any:
    return replace(model, is_residual & stage(number), "SpatialInterpolation")


def followed(recipe: Any) -> Any:
    return json.loads(json.dumps(recipe))


@pytest.mark.parametrize(
    ("made_on", "applied_to"),
    [
        ("resnet18", "resnet34"),
        ("resnet50", "resnet50d"),
        ("efficientnet_b0", "tf_efficientnet_b0"),
        ("mobilenetv3_small_050", "mobilenetv3_small_075"),
        ("mobilenetv3_small_050", "resnet18"),
    ],
)
def test_a_recipe_of_another_architecture_is_refused_before_anything_changes(made_on: str, applied_to: str) -> None:
    recipe, model = interpolate(bare(made_on)).recipe, bare(applied_to)
    before = list(model.modules())
    kind = type(bare(made_on)).__name__
    with pytest.raises(ConfigurationError, match=rf"recipe: it was made on another architecture \({kind} ") as raised:
        apply(model, recipe)
    assert "\n" not in str(raised.value)
    assert list(model.modules()) == before
    assert recipe_of(model) is None


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenetv3_small_050", "densenet121"])
def test_the_classifier_and_the_regularisers_do_not_count(name: str) -> None:
    known = architecture_of(bare(name))
    options: list[dict[str, Any]] = [{"num_classes": 3}, {"num_classes": 0}, {"drop_rate": 0.2}]
    options += [{"drop_path_rate": 0.1}] if name != "densenet121" else []
    assert [architecture_of(bare(name, **each)) for each in options] == [known] * len(options)
    assert architecture_of(bare(name, in_chans=1)) != known


def test_copies_of_all_kinds_have_the_same_fingerprint() -> None:
    model = timm.create_model("mobilenetv3_small_050")
    known = architecture_of(model)
    copies = [meta_copy(model), deepcopy(model), pickle.loads(pickle.dumps(model)), deepcopy(model).double().eval()]
    copies.append(timm.layers.convert_sync_batchnorm(deepcopy(model)))
    assert [architecture_of(copy) for copy in copies] == [known] * 5
    copy = meta_copy(model)
    assert interpolate(copy).recipe["architecture"] == known


def test_a_module_that_is_no_model_of_timm_has_a_fingerprint() -> None:
    lazy = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    recipe = carry_out(lazy, [{"op": "delete", "names": ["1"]}]).recipe
    assert recipe["architecture"]["type"] == "Sequential"
    with pytest.raises(ConfigurationError, match="made on another architecture"):
        apply(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), recipe)


def test_a_model_keeps_what_it_was_before_the_first_surgery() -> None:
    model = bare("mobilenetv3_small_050")
    original = architecture_of(model)
    first = cut(model, 1)
    between = architecture_of(model)
    second = cut(model, 2)
    assert between != original
    assert first.recipe["architecture"] == original
    assert second.recipe["architecture"] == between
    for same in (model, deepcopy(model)):
        assert recipe_of(same)["architecture"] == original  # type: ignore[index]
    second.undo()
    first.undo()
    assert architecture_of(model) == original
    assert not any("surgery" in name for name in model.__dict__)


def test_the_rest_of_a_recipe_follows_on_a_model_that_has_its_beginning() -> None:
    model, other = bare("mobilenetv3_small_050"), bare("mobilenetv3_small_050")
    cut(model, 1)
    second = cut(model, 2)
    whole = followed(recipe_of(model))
    done = len(cut(other, 1).steps)
    apply(other, {**whole, "steps": whole["steps"][done:]}, trusted=False)
    assert str(other) == str(model)
    assert recipe_of(other) == whole
    third = bare("mobilenetv3_small_050")
    cut(third, 1)
    apply(third, followed(second.recipe))
    assert recipe_of(third) == whole


def test_a_recipe_of_a_later_surgery_needs_the_earlier_one() -> None:
    model = bare("mobilenetv3_small_050")
    cut(model, 1)
    with pytest.raises(ConfigurationError, match="made on another architecture"):
        apply(bare("mobilenetv3_small_050"), cut(model, 2).recipe)


def test_an_older_recipe_without_the_fingerprint_is_carried_out() -> None:
    model, other = bare("mobilenetv3_small_050"), bare("mobilenetv3_small_050")
    recipe = interpolate(model).recipe
    apply(other, {key: value for key, value in recipe.items() if key != "architecture"})
    assert recipe_of(other) == recipe


def test_a_model_from_before_fingerprints_goes_on_without() -> None:
    model = bare("mobilenetv3_small_050")
    cut(model, 1)
    del model.__dict__["_surgery_architecture"]
    second = cut(model, 2)
    assert "architecture" not in recipe_of(model)  # type: ignore[operator]
    assert "architecture" in second.recipe


@pytest.mark.parametrize("wrong", [None, "ResNet", {"type": "ResNet"}, {"type": "ResNet", "hash": 3}])
def test_a_fingerprint_in_no_known_form_is_told(wrong: Any) -> None:
    recipe = interpolate(bare("resnet18")).recipe
    with pytest.raises(ConfigurationError, match=r"recipe: architecture=.* must be a mapping with 'type' and 'hash'"):
        apply(bare("resnet18"), {**recipe, "architecture": wrong})
