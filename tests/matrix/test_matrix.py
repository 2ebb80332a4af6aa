"""Every callback under every condition of ``matrix_settings``."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from pathlib import Path

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matrix_settings import (
    CONDITIONS,
    SETTINGS,
    Foreign,
    ForeignRecurrent,
    Setting,
    differing,
    fit,
    loader,
    trainer,
    weights,
)
from torch import Tensor

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")

every_callback = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
every_condition = pytest.mark.parametrize("condition", CONDITIONS)
every_pair = pytest.mark.parametrize(
    ("setting", "condition"),
    [
        pytest.param(setting, condition, id=f"{name}-{condition}")
        for name, setting in SETTINGS.items()
        for condition in CONDITIONS
        if condition in setting.tried and condition not in setting.refuses
    ],
)


@cache
def weights_without(condition: str) -> dict[str, Tensor]:
    return fit(Path(), **CONDITIONS[condition]())


def assert_trained_alike(setting: Setting, trained: dict[str, Tensor], condition: str = "plain") -> None:
    if setting.observes:
        assert not differing(trained, weights_without(condition))
    else:
        assert all(value.isfinite().all() for value in trained.values())


@pytest.mark.parametrize(
    ("setting", "condition"), [(setting, condition) for setting in SETTINGS.values() for condition in setting.refuses]
)
def test_what_it_does_not_support_is_refused_before_training(setting: Setting, condition: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=setting.cls.__name__):
        setting.fit(tmp_path, setting.make(), **CONDITIONS[condition]())


@every_pair
def test_training_goes_as_without_the_callback_and_a_resumed_run_ends_with_the_same_weights(
    setting: Setting, condition: str, tmp_path: Path
) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = setting.fit(tmp_path, setting.make(), ExactResume(), save, **CONDITIONS[condition]())
    assert_trained_alike(setting, whole, condition)
    torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    resumed = setting.fit(
        tmp_path, setting.make(), ExactResume(), ckpt_path=tmp_path / "epoch=0.ckpt", **CONDITIONS[condition]()
    )
    assert not differing(whole, resumed)


@every_condition
def test_all_that_observe_do_so_together(condition: str, tmp_path: Path) -> None:
    together = [setting.make() for setting in SETTINGS.values() if setting.observes]
    assert not differing(fit(tmp_path, *together, **CONDITIONS[condition]()), weights_without(condition))


@every_callback
def test_it_works_on_a_module_that_knows_nothing_of_it(setting: Setting, tmp_path: Path) -> None:
    trained = []
    for callbacks in ([], [through_the_parser(setting, foreign=True)]):
        L.seed_everything(0, verbose=False)
        module = ForeignRecurrent() if setting.sequences else Foreign()
        if setting.distils and callbacks:
            with pytest.raises(ConfigurationError, match="Foreign has no guide"):
                trainer(tmp_path, *callbacks).fit(module, loader(), loader())
            return
        # a generator of its own, or each validation would draw from the global one
        validation = loader(generator=torch.Generator())
        trainer(tmp_path, *callbacks).fit(module, loader(shuffle=True), validation)
        trained.append(weights(module))
    assert not setting.observes or not differing(*trained)


@every_callback
def test_two_of_a_kind_do_not_disturb_each_other(setting: Setting, tmp_path: Path) -> None:
    if setting.second is None:
        with pytest.raises(ConfigurationError, match=f"two {setting.cls.__name__} callbacks"):
            setting.fit(tmp_path, setting.make(), setting.make(name="second"))
        return
    assert_trained_alike(setting, setting.fit(tmp_path, setting.make(), setting.make(**setting.second)))


def copied(callback: Callback) -> Callback:
    return copy.deepcopy(pickle.loads(pickle.dumps(callback)))


@every_callback
def test_a_copy_is_as_good_before_and_after_a_run(setting: Setting, tmp_path: Path) -> None:
    callback = copied(setting.make())
    assert_trained_alike(setting, setting.fit(tmp_path, callback))
    assert_trained_alike(setting, setting.fit(tmp_path, copied(callback)))


@every_callback
def test_a_rehearsal_writes_no_file(setting: Setting, tmp_path: Path) -> None:
    setting.fit(
        tmp_path,
        setting.make(),
        ModelCheckpoint(tmp_path / "checkpoints"),
        logger=CSVLogger(tmp_path),
        fast_dev_run=True,
    )
    assert list(tmp_path.iterdir()) == []


def through_the_parser(setting: Setting, foreign: bool = False) -> Callback:
    """Build the callback as LightningCLI would, from the YAML that it writes itself."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    path = f"{setting.cls.__module__}.{setting.cls.__qualname__}"
    options = {**setting.options, **(setting.foreign if foreign else {})}
    config = parser.parse_object({"callback": {"class_path": path, "init_args": options}})
    written = parser.dump(config)
    again = parser.parse_string(written)
    assert parser.dump(again) == written
    assert again == config
    return parser.instantiate_classes(again).callback


@every_callback
def test_what_a_config_says_survives_being_written_and_read(setting: Setting) -> None:
    assert type(through_the_parser(setting)) is setting.cls
    assert type(through_the_parser(setting, foreign=True)) is setting.cls
