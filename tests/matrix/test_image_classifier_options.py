"""The options of ``ImageClassifier`` in a whole run: they train, resume bit for bit, and do what they say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from matrix_settings import classifier, differing, digits, trainer, weights
from torch import Tensor, nn

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.modules import ImageClassifier

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "channels_last": ({"channels_last": True}, {}),
    "ema": ({"ema_decay": 0.9}, {}),
    "mixing": ({"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}, {}),
    "bce": ({"loss": "bce", "mixup": 0.4}, {}),
    "scheduler": (
        {"lr_scheduler": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6), "lr_interval": "step"},
        {},
    ),
    "all_in_bf16": (
        {"channels_last": True, "ema_decay": 0.9, "mixup": 0.4, "cutmix": 1.0},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
    ),
}


def train(
    options: dict[str, Any], *callbacks: Callback, ckpt_path: Path | None = None, **trainer_options: Any
) -> tuple[ImageClassifier, dict[str, Tensor]]:
    L.seed_everything(0 if ckpt_path is None else 99, verbose=False)
    module = classifier(**options)
    # timm mixes pairs, and a batch of 15 leaves one image over
    data = digits(batch_size=15)
    trainer(Path(), *callbacks, **trainer_options).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, weights(module)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    options, of_trainer = OPTIONS[name]
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    _, whole = train(options, ExactResume(), save, **of_trainer)
    _, resumed = train(options, ExactResume(), ckpt_path=tmp_path / "epoch=0.ckpt", **of_trainer)
    assert all(value.isfinite().all() for value in whole.values())
    assert not differing(whole, resumed)


@pytest.mark.parametrize("option", ["channels_last", "ema", "mixing", "bce", "scheduler"])
def test_the_option_changes_training_only_where_it_should(option: str) -> None:
    module, trained = train(OPTIONS[option][0])
    _, plain = train({})
    same = {name: torch.allclose(trained[name], plain[name], atol=1e-4) for name in plain}
    assert all(same.values()) == (option == "channels_last")
    if option == "channels_last":
        assert module.backbone.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)


class WeightsInUse(Callback):
    """Average the weights of each step by hand, and compare with those that validation uses."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.distances: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: ImageClassifier, *args: Any) -> None:
        for name, value in module.named_parameters():
            before = self.average.get(name)
            now = value.detach().clone()
            self.average[name] = now if before is None else self.decay * before + (1 - self.decay) * now

    def on_validation_batch_end(self, trainer: L.Trainer, module: ImageClassifier, *args: Any) -> None:
        if not trainer.sanity_checking:
            gaps = [(value - self.average[name]).abs().max() for name, value in module.named_parameters()]
            self.distances.append(float(max(gaps)))


def test_validation_and_checkpoints_use_the_moving_average(tmp_path: Path) -> None:
    watch = WeightsInUse(decay=0.5)
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    train({"ema_decay": 0.5}, watch, save)
    assert len(watch.distances) == 4
    assert max(watch.distances) < 1e-6
    stored = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    for name, value in watch.average.items():
        torch.testing.assert_close(stored[name], value, atol=1e-6, rtol=0)


def test_a_compiled_backbone_trains_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = nn.Module.compile
    calls: list[nn.Module] = []

    def without_code_generation(module: nn.Module, *args: Any, **options: Any) -> None:
        calls.append(module)
        compile_module(module, *args, **{**options, "backend": "eager"})

    _, plain = train({}, max_epochs=1)
    monkeypatch.setattr(nn.Module, "compile", without_code_generation)
    module, compiled = train({"compile": True}, max_epochs=1)
    assert calls == [module.backbone]
    assert not differing(plain, compiled)
