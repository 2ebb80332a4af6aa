"""A pruned backbone in an ``ImageClassifier``: taken from its file, and kept in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks.gradual_pruning import GradualPruning
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules import ImageClassifier
from lightning_efficient.nn.backbones import create_backbone
from lightning_efficient.nn.pruning.pruned_file import save_pruned

WHOLE, NARROW, NARROWER = [8, 8, 16, 16], [6, 6, 9, 7], [4, 4, 6, 5]
IMAGES = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def made(file: Path | None, **options: Any) -> ImageClassifier:
    given: dict[str, Any] = {"backbone": "cifar_resnet18", "num_classes": 3, "in_chans": 1}
    given |= {"backbone_kwargs": {"channels": WHOLE}, "backbone_checkpoint": None if file is None else str(file)}
    return ImageClassifier(**given | options)


def write(file: Path, channels: list[int]) -> Path:
    """Write what pruning would leave of ``WHOLE``, if each layer of a stage lost as many channels."""
    network = create_backbone("cifar_resnet18", False, 3, 1, {"channels": channels})
    return save_pruned(file, network, made_of=None, report={})


def fit(module: LightningModule, folder: Path, *callbacks: Any, epochs: int = 1, **options: Any) -> Path:
    given: dict[str, Any] = {"max_epochs": epochs, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    run = Trainer(**given, callbacks=list(callbacks))
    run.fit(module, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2), **options)
    run.save_checkpoint(folder / "net.ckpt")
    return folder / "net.ckpt"


def widths(module: ImageClassifier) -> list[int]:
    return [layer.out_channels for layer in module.backbone.modules() if isinstance(layer, nn.Conv2d)]


def predicted(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module.eval()(IMAGES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "pruned.pt", NARROW)


def test_what_a_run_has_pruned_is_the_backbone_of_the_next_one(tmp_path: Path) -> None:
    pruning = GradualPruning(0.5, "channels", schedule="one_shot", measure=False, input_shape=IMAGES.shape[1:])
    options: dict[str, Any] = {"backbone": "test_efficientnet", "backbone_kwargs": None}
    fit(made(None, **options), tmp_path, pruning)
    module = made(tmp_path / "pruned.pt", **options)
    assert pruning.pruned is not None
    assert torch.equal(predicted(module), predicted(pruning.pruned))
    assert sum(map(torch.numel, module.parameters())) < sum(map(torch.numel, made(None, **options).parameters()))


def test_what_timm_notes_of_widths_follows_the_file(file: Path) -> None:
    module = made(file)
    assert module.backbone.num_features == NARROW[-1]
    assert [each["num_chs"] for each in module.backbone.feature_info] == [
        each["num_chs"] for each in create_backbone("cifar_resnet18", False, 3, 1, {"channels": NARROW}).feature_info
    ]


@pytest.mark.parametrize("options", [{}, {"channels_last": True}, {"ema_decay": 0.5}], ids=["plain", "last", "ema"])
def test_a_checkpoint_needs_the_file_no_more(options: Any, file: Path, tmp_path: Path) -> None:
    module = made(file, **options)
    checkpoint = fit(module, tmp_path)
    file.unlink()
    loaded = ImageClassifier.load_from_checkpoint(checkpoint, weights_only=True)
    assert torch.equal(predicted(loaded), predicted(module))
    assert loaded.backbone.num_features == NARROW[-1]
    again = made(None, **options)
    fit(again, tmp_path / "again", epochs=2, ckpt_path=checkpoint)
    assert widths(again) == widths(module)


def test_a_resumed_run_ends_where_one_that_was_not_interrupted_does(file: Path, tmp_path: Path) -> None:
    whole, first, second = made(file), made(file), made(file)
    fit(whole, tmp_path / "whole", epochs=2)
    fit(second, tmp_path / "second", epochs=2, ckpt_path=fit(first, tmp_path / "first"))
    assert torch.equal(predicted(second), predicted(whole))


def test_the_checkpoint_counts_where_the_file_is_that_of_a_smaller_network_by_now(file: Path, tmp_path: Path) -> None:
    module = made(file)
    checkpoint = fit(module, tmp_path)
    write(file, NARROWER)
    loaded = ImageClassifier.load_from_checkpoint(checkpoint, weights_only=True)
    assert widths(loaded) == widths(module) != widths(made(file))
    assert torch.equal(predicted(loaded), predicted(module))


def test_a_backbone_with_surgery_is_pruned_and_comes_back(tmp_path: Path) -> None:
    surgery = ["SpatialInterpolation"]
    narrow = made(None, surgery=surgery, backbone_kwargs={"channels": NARROW})
    file = save_pruned(tmp_path / "pruned.pt", narrow.backbone, made_of=None, report={})
    module = made(file, surgery=surgery)
    assert torch.equal(predicted(module), predicted(narrow))
    checkpoint = fit(module, tmp_path)
    file.unlink()
    assert torch.equal(
        predicted(ImageClassifier.load_from_checkpoint(checkpoint, weights_only=True)), predicted(module)
    )
    save_pruned(file, narrow.backbone, made_of=None, report={})
    with pytest.raises(ConfigurationError, match=r"cheap_conv.* which ResNet lacks"):
        made(file)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_classes": 5}, r"'fc.weight' has shape \(3, 7\) there and \(5, 16\)"),
        ({"in_chans": 3}, r"'conv1.weight' has shape .* there and \(8, 3, 3, 3\)"),
        ({"backbone_kwargs": {"channels": [4, 4, 8, 8]}}, r"'conv1.weight' has shape .* cannot be made smaller"),
        ({"backbone": "resnet10t", "backbone_kwargs": None}, r"has 'conv1.weight', which ResNet lacks"),
    ],
    ids=["classes", "channels_of_images", "narrower", "architecture"],
)
def test_a_file_of_another_network_is_refused(options: Any, match: str, file: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"^model.backbone_checkpoint: .*pruned.pt.*{match}") as caught:
        made(file, **options)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_whole_network_is_not_that_of_a_pruned_one(file: Path, tmp_path: Path) -> None:
    checkpoint = fit(made(None), tmp_path)
    with pytest.raises(ConfigurationError, match=r"^model.backbone_checkpoint is of a pruned network and") as caught:
        fit(made(file), tmp_path, epochs=2, ckpt_path=checkpoint)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_pruned_network_is_not_that_of_another_one(file: Path, tmp_path: Path) -> None:
    checkpoint = fit(made(file), tmp_path)
    with pytest.raises(ConfigurationError, match=r"^model.backbone is not what the checkpoint's was pruned from: '"):
        fit(made(None, backbone_kwargs={"channels": [4, 4, 8, 8]}), tmp_path, epochs=2, ckpt_path=checkpoint)
