"""A NaN stops training with its place and cause, and reaches neither the weights nor a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks import FiniteLoss
from lightning_efficient.errors import NonFiniteLossError


class Net(L.LightningModule):
    """Linear, so that a large learning rate explodes; keeps its weights before each step."""

    def __init__(self, lr: float = 0.1, low_precision_loss: bool = False) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.lr = lr
        self.low_precision_loss = low_precision_loss
        self.before: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.before.append(self.net.weight.detach().clone())
        logits = self.net(batch[0])
        return logits.square().mean().half() if self.low_precision_loss else logits.square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch[0] * torch.nan).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


def batches(broken: int | None = None, value: float = torch.nan, scale: float = 1.0) -> DataLoader:
    """Five batches of two samples; one value of batch ``broken`` is not finite."""
    x = scale * torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    if broken is not None:
        x[2 * broken, 1] = value
    return DataLoader(TensorDataset(x), batch_size=2)


def fit(folder: Path, module: Net, train: DataLoader, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        callbacks=[FiniteLoss(), *callbacks],
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **options},
    )
    trainer.fit(module, train, batches() if options.get("limit_val_batches") else None)
    return trainer


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.mark.parametrize(("value", "shown"), [(torch.nan, "nan"), (torch.inf, "inf")])
def test_a_broken_batch_is_named_and_the_weights_stay(tmp_path: Path, value: float, shown: str) -> None:
    module = Net()
    message = rf"loss is {shown} at step 3 \(epoch 0, batch 3\); the batch itself holds NaN or infinite values"
    with pytest.raises(NonFiniteLossError, match=message):
        fit(tmp_path, module, batches(broken=3, value=value))
    assert torch.equal(module.net.weight, module.before[3])
    assert module.net.weight.isfinite().all()


def test_a_loss_that_explodes_blames_the_learning_rate_and_names_the_last_checkpoint(tmp_path: Path) -> None:
    module = Net(lr=1e15)
    with pytest.raises(NonFiniteLossError, match="batch is finite, so try a lower learning rate") as raised:
        fit(tmp_path, module, batches(), every_step(tmp_path))
    last = max(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert str(raised.value).endswith(f"last good checkpoint: {last}")
    saved = torch.load(last, weights_only=True)["state_dict"]["net.weight"]
    assert saved.isfinite().all()
    assert torch.equal(saved, module.before[-1])


def test_weights_that_a_finite_loss_has_spoilt_are_never_written(tmp_path: Path) -> None:
    # the first loss is finite, and its step takes the weights to infinity
    with pytest.raises(NonFiniteLossError, match=r"weights hold NaN or infinite values at step 1 .* none yet"):
        fit(tmp_path, Net(lr=1e38), batches(scale=100.0), every_step(tmp_path))
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_newest_checkpoint_is_named_not_the_best(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, filename="best", monitor="step", mode="min", every_n_train_steps=1, save_last=True)
    with pytest.raises(NonFiniteLossError, match=r"last good checkpoint: \S+last\.ckpt"):
        fit(tmp_path, Net(), batches(broken=3), best)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_accumulated_gradients_are_not_applied(tmp_path: Path) -> None:
    module = Net()
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(epoch 0, batch 3\)"):
        fit(tmp_path, module, batches(broken=3), accumulate_grad_batches=2)
    assert torch.equal(module.net.weight, module.before[2])
    assert torch.equal(module.net.weight, module.before[3])


def test_a_loss_scale_does_not_make_a_finite_loss_infinite(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    module = Net(lr=1e-3, low_precision_loss=True)
    fit(tmp_path, module, batches(), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert len(module.before) == 10


def test_a_nan_in_validation_does_not_stop_training(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Net(), batches(), limit_val_batches=1.0)
    assert trainer.global_step == 10
    assert trainer.callback_metrics["val_loss"].isnan()
