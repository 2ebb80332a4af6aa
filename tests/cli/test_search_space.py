"""The file that says what a search varies, and the keys in it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_efficient.cli._search_keys import locate, put
from lightning_efficient.cli.config_files import find
from lightning_efficient.cli.search_space import Parameter, load_space, names_of, read_space
from lightning_efficient.errors import ConfigurationError

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "pkg.ImageClassifier",
        "init_args": {
            "backbone": "a",
            "backbone_kwargs": None,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            "surgery": ["SpatialInterpolation"],
        },
    },
    "trainer": {
        "max_epochs": 3,
        "callbacks": [
            {"class_path": "pkg.FiniteLoss"},
            {"class_path": "pkg.GradualPruning", "init_args": {"sparsity": 0.5}},
        ],
    },
}


def write(text: str) -> str:
    Path("space.yaml").write_text(text)
    return "space.yaml"


def test_numbers_may_be_written_with_an_exponent_and_no_point() -> None:
    (parameter,) = load_space(write("model.lr: {low: 1e-4, high: 1e-2, log: true}")).parameters
    assert (parameter.low, parameter.high, parameter.log, parameter.whole) == (1e-4, 1e-2, True, False)


def test_a_list_is_short_for_choices() -> None:
    (parameter,) = load_space(write("model.amsgrad: [true, false]")).parameters
    assert parameter.choices == {True: True, False: False}


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        ([None, ["A"]], ["null", "A"]),
        ([[{"class_path": "x.A", "init_args": {"k": 2}}], ["B", "A"]], ["A(k=2)", "B+A"]),
        ({"off": None, "on": ["A"]}, ["off", "on"]),
        (["a", "b"], ["a", "b"]),
        ([16, 32], [16, 32]),
    ],
    ids=["null", "classes", "labelled", "words", "numbers"],
)
def test_choices_that_are_no_plain_values_have_labels(choices: Any, labels: list[Any]) -> None:
    (parameter,) = read_space({"model.x": {"choices": choices}}).parameters
    assert list(parameter.choices) == labels
    values = list(choices.values() if isinstance(choices, dict) else choices)
    assert [parameter.value(label) for label in labels] == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "it must map config keys to choices or ranges"),
        ("", "it must map config keys to choices or ranges"),
        ("3: [1]", "3 is no key of a config"),
        ("a: {b", "no readable YAML"),
        ("a: [1, 2]\na: [3]", "'a' is given twice"),
        ("a: 3", "a is 3; it must have choices, or low and high"),
        ("a: {choice: [1]}", "it must have choices, or low and high"),
        ("a: {low: 1, hihg: 2}", "a: unknown 'hihg'. Did you mean 'high'?"),
        ("a: {choices: []}", "a: choices is empty"),
        ("a: {choices: 3}", "a: choices is 3; it must be a list, or a mapping"),
        ("a: {choices: {off: null}}", "a: the label False is no text; write it in quotes"),
        ("a: [1, 1]", "a: two choices are called 1"),
        ("a: [1, true]", "a: choices mix numbers with true or false"),
        ("a: {choices: [1], low: 2}", "a has choices, so it cannot have low too"),
        ("a: {low: 1}", "a: high is missing"),
        ("a: {low: 2, high: 2}", "a: low is 2 and high is 2; low must be less than high"),
        ("a: {low: 0, high: 1, log: true}", "a: log is true and low is 0"),
        ("a: {low: x, high: 1}", "a: low is 'x'; it must be a finite number"),
        ("a: {low: 1, high: .inf}", "a: high is inf; it must be a finite number"),
        ("a: {low: 1, high: 2, log: 3}", "a: log is 3; it must be true or false"),
        ("a: {low: 1, high: 9, step: 3}", "a: step is 3; high (9) must be low (1) and some steps"),
        ("a: {low: 1, high: 9, step: 2, log: true}", "a: a range has a step or is logarithmic, not both"),
        ("a: [x]\nb: {choices: [1], when: {c: x}}", "b: when names 'c', which is no key of the space above it"),
        ("a: [xyz]\nb: {choices: [1], when: {a: xyy}}", "b: when a is 'xyy', which is none of its choices. Did you"),
        ("a: {low: 1, high: 2}\nb: {choices: [1], when: {a: 1}}", "b: when names a, which has a range"),
        ("a: [x]\nb: {choices: [1], when: 3}", "b: when is 3; it must map other keys"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_space(write(text))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_space_names_the_closest() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'search/digits'"):
        load_space("search/digit")


def test_a_grid_has_each_combination_once_also_of_keys_that_do_not_always_vary() -> None:
    space = read_space({"a": ["x", "y"], "b": {"low": 1, "high": 3, "when": {"a": "y"}}})
    assert space.grid() == [{"a": "x"}, {"a": "y", "b": 1}, {"a": "y", "b": 2}, {"a": "y", "b": 3}]


def test_a_key_varies_only_when_another_has_one_of_the_values() -> None:
    space = read_space({"a": [1, 2, 3], "b": {"choices": ["p"], "when": {"a": [1, 2]}}})
    assert [space.parameters[1].active({"a": value}) for value in (1, 2, 3)] == [True, True, False]
    assert not space.parameters[1].active({})


def test_a_grid_needs_a_step() -> None:
    with pytest.raises(ConfigurationError, match="a: a grid needs choices, or a range with a step"):
        read_space({"a": {"low": 0.0, "high": 1.0}}).grid()


@given(low=st.integers(-50, 50), steps=st.integers(1, 20), step=st.integers(1, 9))
def test_the_points_of_a_range_go_from_low_to_high(low: int, steps: int, step: int) -> None:
    (parameter,) = read_space({"a": {"low": low, "high": low + steps * step, "step": step}}).parameters
    points = parameter.points()
    assert (points[0], points[-1], len(points)) == (low, low + steps * step, steps + 1)
    assert all(type(point) is int for point in points)


def test_short_names_differ() -> None:
    keys = ["model.init_args.optimizer.init_args.lr", "model.lr_scheduler.lr", "data.image_size"]
    assert list(names_of([Parameter(key, {1: 1}) for key in keys]).values()) == [
        "optimizer.lr",
        "lr_scheduler.lr",
        "image_size",
    ]


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("seed_everything", ("seed_everything",)),
        ("model", ("model",)),
        ("model.class_path", ("model", "class_path")),
        ("model.backbone", ("model", "init_args", "backbone")),
        ("model.init_args.backbone", ("model", "init_args", "backbone")),
        ("model.optimizer.lr", ("model", "init_args", "optimizer", "init_args", "lr")),
        ("model.backbone_kwargs.drop_rate", ("model", "init_args", "backbone_kwargs", "drop_rate")),
        ("model.surgery.SpatialInterpolation.factor", ("model", "init_args", "surgery", 0, "init_args", "factor")),
        ("trainer.callbacks.GradualPruning.sparsity", ("trainer", "callbacks", 1, "init_args", "sparsity")),
        ("trainer.callbacks.1.init_args.sparsity", ("trainer", "callbacks", 1, "init_args", "sparsity")),
    ],
)
def test_a_key_is_found_and_set(key: str, place: tuple[str | int, ...]) -> None:
    assert locate(CONFIG, key) == place
    config = copy.deepcopy(CONFIG)
    put(config, place, "new")
    node: Any = config
    for step in place:
        node = node[step]
    assert node == "new"


def test_a_class_that_is_a_word_keeps_its_name_when_it_gets_an_option() -> None:
    config = copy.deepcopy(CONFIG)
    put(config, locate(config, "model.surgery.SpatialInterpolation.factor"), 4)
    assert config["model"]["init_args"]["surgery"] == [
        {"class_path": "SpatialInterpolation", "init_args": {"factor": 4}}
    ]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("model.backbne", "model.backbne is no key of the config. Did you mean 'model.backbone'"),
        ("model.init_args.backbne", "Did you mean 'model.init_args.backbone'"),
        ("modl.backbone", "Did you mean 'model.backbone'"),
        ("trainer.max_epoch", "Did you mean 'trainer.max_epochs'"),
        ("trainer.callbacks.GradualPrunin.sparsity", "Did you mean 'trainer.callbacks.GradualPruning.sparsity'"),
        ("trainer.callbacks.7.sparsity", "trainer.callbacks.7.sparsity is no key of the config."),
        ("model.optimizer.learning", "model.optimizer.learning is no key of the config."),
        ("seed_everything.x", "seed_everything.x is no key of the config."),
        ("trainer.max_epochs.x", "trainer.max_epochs.x is no key of the config."),
    ],
)
def test_a_key_that_is_not_there_names_the_closest(key: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        locate(CONFIG, key)
    assert says in str(refused.value)


def test_the_shipped_space_has_half_resolution_only_where_blocks_have_residuals() -> None:
    space = load_space("search/digits")
    backbones = space.parameters[0].choices
    assert [space.parameters[-1].active({"model.backbone": name}) for name in backbones] == [True, False, True]
    assert find("search/digits").read_text().startswith("# ")
