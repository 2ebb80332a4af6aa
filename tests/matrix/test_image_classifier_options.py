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

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed", "ignore:Checkpoint directory"
)

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "channels_last": ({"channels_last": True}, {}),
    "ema": ({"ema_decay": 0.9}, {}),
    "mixing": ({"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}, {}),
    "bce": ({"loss": "bce", "mixup": 0.4}, {}),
    "scheduler": (
        {"lr_scheduler": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6), "lr_interval": "step"},
        {},
    ),
    "several_in_bf16": (
        {"ema_decay": 0.9, "mixup": 0.4, "cutmix": 1.0},
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


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_reaches_weights_and_activations(channels_last: bool) -> None:
    found: list[bool] = []

    class Look(Callback):
        def on_fit_start(self, trainer: L.Trainer, module: ImageClassifier) -> None:
            module.backbone.blocks[1].register_forward_hook(lambda layer, inputs, output: found.append(is_last(output)))

    module, _ = train({"channels_last": channels_last}, Look(), max_epochs=1)
    found += [is_last(value) for name, value in module.named_parameters() if name.endswith("conv_exp.weight")]
    assert len(found) > 5
    assert set(found) == {channels_last}


def is_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


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
