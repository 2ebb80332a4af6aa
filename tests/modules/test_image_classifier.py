from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient import functional as LF
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules import ImageClassifier
from lightning_efficient.modules.image_classifier import _mix

TINY = "test_resnet"


def tiny(**options: Any) -> ImageClassifier:
    return ImageClassifier(**{"backbone": TINY, "num_classes": 10, "in_chans": 1} | options)


def digits(**options: Any) -> Digits:
    return Digits(**{"in_chans": 1, "image_size": 32, "batch_size": 64} | options)


def trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "limit_train_batches": 4,
        "limit_val_batches": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**defaults | options)


def loader(images: Tensor, labels: Tensor, batch_size: int = 4) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def test_it_learns_the_digits() -> None:
    seed_everything(0, verbose=False)
    module = tiny(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3))
    run = trainer(max_epochs=4, limit_train_batches=1.0, limit_val_batches=1.0)
    run.fit(module, datamodule=digits(batch_size=32))
    assert run.callback_metrics["val/accuracy"] > 0.6


def test_its_metrics_are_those_of_all_samples() -> None:
    module, data = tiny(), digits()
    run = trainer(limit_test_batches=1.0)
    (logged,) = run.test(module, datamodule=data, verbose=False)
    images, labels = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        logits = module.eval()(images)
    errors = (logits.argmax(1) != labels).float()
    summary = LF.risk_coverage_summary(LF.confidence(logits), errors)
    assert logged["test/accuracy"] == pytest.approx(1 - float(errors.mean()), abs=1e-6)
    assert logged["test/loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)
    assert logged["test/aurc"] == pytest.approx(float(LF.aurc(summary)), abs=2e-2)  # 1,000 bins
    assert 0 <= logged["test/calibration_error"] <= 1


def test_steps_return_loss_logits_and_target() -> None:
    batch = torch.randn(3, 1, 32, 32), torch.tensor([0, 1, 2])
    seen: list[dict[str, Tensor]] = []

    class Keep(ImageClassifier):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(outputs)

    run = trainer(limit_train_batches=1, limit_val_batches=0)
    run.fit(Keep(TINY, num_classes=10, in_chans=1), loader(*batch))
    (outputs,) = seen
    assert set(outputs) == {"loss", "logits", "target"}
    assert outputs["logits"].shape == (3, 10)
    # with their graph, so that a callback may add to the loss
    assert outputs["logits"].requires_grad
    assert outputs["target"].tolist() == [0, 1, 2]


def test_predictions_come_with_their_confidence() -> None:
    module = tiny().eval()
    images = torch.randn(4, 1, 32, 32)
    (output,) = trainer().predict(module, loader(images, torch.zeros(4, dtype=torch.long)))
    with torch.no_grad():
        logits = module(images)
    assert torch.equal(output["prediction"], logits.argmax(1))
    assert torch.allclose(output["confidence"], logits.softmax(1).amax(1))


def test_an_unknown_backbone_names_the_closest_models() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown timm model 'mobilnetv3_small_050'.*'mobilenetv3_small_050'"):
        ImageClassifier("mobilnetv3_small_050")


def test_an_option_that_the_backbone_does_not_take_is_named() -> None:
    with pytest.raises(
        ConfigurationError, match=r"model.backbone_kwargs: test_resnet cannot be built with .*dropp_rate"
    ):
        tiny(backbone_kwargs={"dropp_rate": 0.1})


def test_too_few_classes_for_the_data_are_told_before_training() -> None:
    with pytest.raises(
        ConfigurationError, match=r"num_classes is 5, but Digits has 10 classes; set model.num_classes to 10"
    ):
        trainer().fit(tiny(num_classes=5), datamodule=digits())


def test_labels_outside_the_classes_are_told() -> None:
    data = loader(torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 12]))
    with pytest.raises(ConfigurationError, match=r"labels must be 0 to 9, but a batch has labels from 0 to 12"):
        trainer().fit(tiny(), data)


def test_images_with_other_channels_are_told() -> None:
    data = loader(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="in_chans is 1, but the images have 3 channels"):
        trainer().fit(tiny(), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; it must be in \[0, 1\)"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5; it must be between 0 and 1"),
        ({"mixup": -0.1}, "mixup is -0.1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny(**options)


def test_the_backbones_own_number_of_classes_is_kept_by_default() -> None:
    module = ImageClassifier(TINY)
    assert module.num_classes == module.backbone.num_classes == 1000


def test_pretrained_weights_load_from_a_file_through_timm(tmp_path: Path) -> None:
    source = tiny()
    torch.save(source.backbone.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 10, "input_size": (1, 32, 32)}
    seed_everything(7, verbose=False)
    loaded = tiny(pretrained=True, backbone_kwargs={"pretrained_cfg_overlay": overlay})
    state = loaded.backbone.state_dict()
    moved = [name for name, value in source.backbone.state_dict().items() if not torch.equal(value, state[name])]
    assert moved in ([], ["conv1.weight"])  # timm may adapt the first layer to the number of channels


def test_weights_out_of_reach_are_told_in_one_line(tmp_path: Path) -> None:
    overlay = {"file": str(tmp_path / "absent.pth")}
    with pytest.raises(ConfigurationError, match=r"model.pretrained: the weights of test_resnet could not be loaded"):
        tiny(pretrained=True, backbone_kwargs={"pretrained_cfg_overlay": overlay})


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_mixed_targets_are_distributions_even_for_an_odd_batch(loss: Any) -> None:
    module = tiny(mixup=0.4, cutmix=1.0, label_smoothing=0.1, loss=loss)
    labels = torch.tensor([0, 1, 2, 3, 4])
    images, targets = _mix(module.mixing, torch.randn(5, 1, 32, 32), labels)
    assert images.shape == (5, 1, 32, 32)
    assert torch.allclose(targets.sum(1), torch.ones(5))
    assert torch.isfinite(module.train_loss(module(images), targets))


def test_mixing_is_for_training_only() -> None:
    run = trainer()
    run.fit(tiny(mixup=0.4), datamodule=digits())
    assert 0 <= run.callback_metrics["val/accuracy"] <= 1


def test_label_smoothing_enters_the_training_loss() -> None:
    plain, smooth = tiny(), tiny(label_smoothing=0.2)
    logits, target = torch.randn(6, 10), torch.arange(6)
    reference = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.2)
    assert float(smooth.train_loss(logits, target)) == pytest.approx(float(reference), rel=1e-5)
    assert float(plain.train_loss(logits, target)) != pytest.approx(float(reference), rel=1e-3)


def test_channels_last_gives_the_same_numbers() -> None:
    plain, other = tiny().eval(), tiny(channels_last=True).eval()
    other.load_state_dict(plain.state_dict())
    images = torch.randn(2, 1, 32, 32)
    assert any(p.is_contiguous(memory_format=torch.channels_last) for p in other.backbone.parameters() if p.ndim == 4)
    assert torch.allclose(plain(images), other(images), atol=1e-5)


def test_the_moving_average_is_a_callback_of_the_module() -> None:
    run = trainer()
    run.fit(tiny(ema_decay=0.9), datamodule=digits())
    assert [type(callback) for callback in run.callbacks].count(EMAWeightAveraging) == 1


def test_the_scheduler_is_stepped_as_asked() -> None:
    module = tiny(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        lr_interval="step",
    )
    run = trainer(limit_train_batches=3)
    run.fit(module, datamodule=digits())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5**3


def test_a_checkpoint_loads_without_its_callables(tmp_path: Path) -> None:
    module = tiny(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), mixup=0.2)
    run = trainer()
    run.fit(module, datamodule=digits())
    run.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]
    assert "optimizer" not in stored
    assert stored["mixup"] == 0.2
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(loaded.eval()(images), module.eval()(images))


def test_grey_images_get_one_mean_and_one_deviation() -> None:
    config = tiny().data_config
    assert config["input_size"][0] == len(config["mean"]) == len(config["std"]) == 1


def test_a_compiled_backbone_keeps_its_keys_and_its_numbers() -> None:
    plain = tiny().eval()
    torch._dynamo.reset()
    compiled = tiny(compile=True).eval()
    assert set(compiled.state_dict()) == set(plain.state_dict())
    compiled.load_state_dict(plain.state_dict())
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(compiled(images), plain(images), atol=1e-4)
