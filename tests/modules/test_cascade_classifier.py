"""CascadeClassifier: what learns, first weights, sizes of images, checkpoints, prediction network by network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cascade_settings import CLASSES, Watch, loader, network, samples, sgd
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from module_settings import bits, same, trainer
from torch import nn
from torch.nn import functional as F
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.cascade import cascade_choice
from lightning_efficient.modules.cascade_classifier import CascadeClassifier

INF = float("inf")


def classifier(**options: Any) -> CascadeClassifier:
    torch.manual_seed(0)
    models = [network(width=2), network(width=4), network(width=8)]
    defaults = {"in_chans": None, "optimizer": sgd, "latency_batch_size": 0}
    return CascadeClassifier(**{"models": models, **defaults, **options})


def test_each_network_learns_from_its_own_loss_alone() -> None:
    inputs, labels = samples().tensors
    module = classifier(model_weights=[1.0, 2.0, 1.0]).eval()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.training_step((inputs, labels), 0)["loss"].backward()
    got = module.network.models[1][7].weight.grad
    alone = classifier().network.models[1].eval()
    (2 * F.cross_entropy(alone(inputs), labels)).backward()
    torch.testing.assert_close(got, alone[7].weight.grad)


def test_a_network_of_weight_0_stays_as_it_is() -> None:
    module = classifier(model_weights=[1.0, 0.0, 1.0])
    before = [bits(each) for each in module.network.models]
    trainer(max_epochs=2).fit(module, loader())
    assert [same(old, bits(each)) for old, each in zip(before, module.network.models, strict=True)] == [
        False,
        True,
        False,
    ]


def test_costs_add_up_over_the_networks_and_steps_tell_all_answers() -> None:
    module, watch = classifier(), Watch()
    trainer(watch).validate(module, loader(), verbose=False)
    own = [6 * width + 2 * width * width + width * CLASSES for width in (2, 4, 8)]
    assert module.stage_costs == (own[0], own[0] + own[1], sum(own))
    inputs = samples().tensors[0]
    with torch.no_grad():
        logits = [each(inputs) for each in module.eval().network.models]
    assert torch.equal(watch.all("stage_predictions"), torch.stack([each.argmax(1) for each in logits], 1))
    torch.testing.assert_close(watch.all("query_score")[:, 1], -logits[1].softmax(1).amax(1))
    torch.testing.assert_close(watch.all("logits"), logits[2])


def test_prediction_asks_each_network_about_what_is_left() -> None:
    inputs = samples().tensors[0]
    module = classifier(models=[network(width=8) for _ in range(3)]).eval()
    with torch.no_grad():
        every = module.network(inputs)
    scores = -every.softmax(2).amax(2)[:, :2]
    module.set_thresholds([float(each.double().quantile(0.3)) for each in scores.unbind(1)])
    seen: list[int] = []
    for each in module.network.models:
        each.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with torch.no_grad():
        said = module.predict_step(inputs, 0)
    choice = cascade_choice(scores, module.thresholds)
    assert len(seen) == 3
    assert seen == [int((choice >= stage).sum()) for stage in range(3)]
    assert said["source"] == [module.stage_names[stage] for stage in choice]
    assert torch.equal(said["prediction"], every[torch.arange(len(inputs)), choice].argmax(1))


def test_each_network_sees_images_of_its_own_size() -> None:
    small = {"name": "cifar_resnet10_xxxs", "image_size": 8}
    module = CascadeClassifier([small, "cifar_resnet10_xxxs"], 10, 1).eval()
    sizes: list[tuple[int, ...]] = []
    for each in module.network.models:
        each.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[-2:])))
    module(torch.zeros(2, 1, 16, 16))
    module.network(torch.zeros(2, 1, 16, 16))
    assert sizes == [(16, 16), (8, 8), (16, 16)]
    assert module.stage_names == ("cifar_resnet10_xxxs_1", "cifar_resnet10_xxxs_2")


def test_images_normalised_for_the_data_are_shown_as_a_pretrained_network_wants_them(tmp_path: Path) -> None:
    plain = CascadeClassifier(["cifar_resnet10_xxxs", "cifar_resnet10_xxxs"], 10, 1)
    torch.save(plain.network.models[0].state_dict(), tmp_path / "weights.pt")
    loaded = {"name": "cifar_resnet10_xxxs", "checkpoint": str(tmp_path / "weights.pt")}
    module = CascadeClassifier([loaded, "cifar_resnet10_xxxs"], 10, 1, latency_batch_size=0)
    data = Digits(image_size=16, in_chans=1, batch_size=64)
    data.mean, data.std = (0.25,), (0.5,)
    trainer().test(module, datamodule=data, verbose=False)
    wanted = module.data_config
    pixels = torch.rand(2, 1, 16, 16)
    shown = module.network.fits[0]((pixels - 0.25) / 0.5)
    torch.testing.assert_close(shown, (pixels - wanted["mean"][0]) / wanted["std"][0])
    assert torch.equal(module.network.fits[1](pixels), pixels)  # it learns from the data as they are


@pytest.mark.parametrize("run", ["fit", "test"])
def test_first_weights_are_loaded_for_training_and_for_evaluation_alone(run: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = network(width=2)
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    module = classifier(
        models=[{"name": network(width=2), "checkpoint": str(tmp_path / "weights.pt")}, network(width=4)]
    )
    engine = trainer(max_steps=0)
    engine.fit(module, loader()) if run == "fit" else engine.test(module, loader(), verbose=False)
    assert same(bits(other), bits(module.network.models[0]))
    trainer().fit(module, loader())
    trained = bits(module)
    trainer(max_steps=0).fit(module, loader())  # a second fit
    assert same(trained, bits(module))


def test_a_run_that_is_resumed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None) -> CascadeClassifier:
        seed_everything(0 if ckpt_path is None else 99, verbose=False)
        module = classifier()
        save = ModelCheckpoint(
            tmp_path / str(ckpt_path is None), filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        engine = trainer(save, ExactResume(), max_epochs=3, enable_checkpointing=True)
        engine.fit(module, loader(cls=StatefulDataLoader, shuffle=True), ckpt_path=ckpt_path)
        return module

    assert same(bits(run(None)), bits(run(tmp_path / "True" / "step=6.ckpt")))


def test_a_checkpoint_holds_all_that_prediction_needs(tmp_path: Path) -> None:
    module = CascadeClassifier(["cifar_resnet10_xxxs", "cifar_resnet10_xxs"], 10, 1, thresholds=-0.15)
    engine = trainer(limit_val_batches=1)
    engine.fit(module, datamodule=Digits(image_size=16, in_chans=1, batch_size=32, train_samples=64))
    engine.save_checkpoint(tmp_path / "one.ckpt")
    loaded = CascadeClassifier.load_from_checkpoint(tmp_path / "one.ckpt").eval()
    images = torch.randn(8, 1, 16, 16)
    for one, other in zip(module.eval().route(images), loaded.route(images), strict=True):
        assert torch.equal(one, other)
    assert loaded.stage_names == ("cifar_resnet10_xxxs", "cifar_resnet10_xxs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": [network()]}, "models has 1 networks"),
        ({"models": [network(3), network(4)]}, r"models\[1\], a Sequential, has 4 classes where 3 are expected"),
        ({"models": ["cifar_resnet10_xxxs", "cifar_resnet11"]}, r"unknown timm model 'cifar_resnet11'.*Did you mean"),
        ({"models": [{"name": network(), "size": 3}, network()]}, r"model\.models\[0\] has the unknown entry 'size'"),
        ({"models": [{"imagesize": 3}, network()]}, r"model\.models\[0\] is \{'imagesize': 3\}; give the name"),
        ({"models": [3, network()]}, r"model\.models\[0\] is 3; give the name of a timm model"),
        ({"model_weights": [1.0]}, r"model\.model_weights is \[1\.0\]; give 3 numbers"),
        ({"models": [{"name": network(), "image_size": 0}, network()]}, "image_size=0 must be a number of pixels"),
        ({"thresholds": [0.0, 0.0, 0.0]}, "give 2 numbers, one for each stage but the last"),
    ],
)
def test_an_impossible_option_is_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        classifier(**options)
    assert "\n" not in str(caught.value)


def test_a_network_may_be_any_module() -> None:
    module = classifier(models=[nn.Linear(6, CLASSES), network()], thresholds=INF).eval()
    assert module.stage_names == ("Linear", "Sequential")
    assert set(module.predict_step(samples().tensors[0], 0)["source"]) == {"Linear"}
