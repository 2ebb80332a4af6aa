"""A recurrent module of somebody else, its data, and plain-torch training in parts to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

TIME, BATCH, BATCHES, FEATURES, CLASSES, HIDDEN = 12, 6, 5, 3, 4, 8
RATE, CLIP = 0.05, 0.7


class Foreign(L.LightningModule):
    """Labels for each time step; knows nothing of this package but the argument of Lightning 1.x."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.seen: list[Any] = []
        self.clipped = self.scheduled = 0
        self.poison: dict[int, float] = {}

    def loss(self, inputs: Tensor, target: Tensor, hiddens: Tensor | None) -> tuple[Tensor, Tensor]:
        output, hiddens = self.rnn(inputs, hiddens)
        return nn.functional.cross_entropy(self.head(output).flatten(0, 1), target.flatten()), hiddens

    def training_step(self, batch: Any, batch_idx: int, hiddens: Tensor | None) -> dict[str, Any]:
        loss, after = self.loss(*batch, hiddens)
        self.seen.append((batch_idx, batch[0].shape[1], None if hiddens is None else hiddens.requires_grad))
        self.log("train/loss", loss)
        return {"loss": loss * self.poison.get(len(self.seen), 1.0), "hiddens": after}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=RATE)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.clipped += 1
        super().configure_gradient_clipping(*args, **kwargs)

    def lr_scheduler_step(self, *args: Any) -> None:
        self.scheduled += 1
        super().lr_scheduler_step(*args)


def build(cls: type[L.LightningModule] = Foreign) -> Any:
    torch.manual_seed(0)
    return cls()


def loader(time: int = TIME, batches: int = BATCHES, batch_size: int = BATCH, cls: Any = DataLoader) -> DataLoader:
    """Sequences in order, labels that are noise."""
    generator = torch.Generator().manual_seed(1)
    size = batches * batch_size
    inputs = torch.randn(size, time, FEATURES, generator=generator)
    target = torch.randint(0, CLASSES, (size, time), generator=generator)
    return cls(TensorDataset(inputs, target), batch_size=batch_size)


def trainer(*callbacks: Callback, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False}
    options["callbacks"] = [*callbacks, *options.get("callbacks", [])]
    return L.Trainer(**{**quiet, **defaults, **options})


def scaler() -> MixedPrecision:
    # Trainer(precision="16-mixed") turns into bf16 on a CPU; the plugin does not
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))


def by_hand(
    parts: int,
    data: DataLoader | None = None,
    *,
    clip: Callable[[list[nn.Parameter]], Any] | None = None,
    alpha: float = 0.0,
    beta: float = 0.5,
    epochs: int = 1,
) -> nn.Module:
    """Train as the released scripts do: the regulariser is in the loss, and each part is a step."""
    module = build()
    params = list(module.parameters())
    optimizer = torch.optim.SGD(params, lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    means, duals = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    for _ in range(epochs):
        for inputs, target in data or loader():
            hiddens = None
            for x, y in zip(inputs.tensor_split(parts, 1), target.tensor_split(parts, 1), strict=True):
                loss, hiddens = module.loss(x, y, hiddens)
                hiddens = hiddens.detach()
                for param, mean, dual in zip(params, means, duals, strict=True):
                    loss = loss + (alpha / 2 * (param - mean).square() - param * dual).sum()
                optimizer.zero_grad()
                loss.backward()
                if clip is not None:
                    clip(params)
                optimizer.step()
                if alpha:
                    with torch.no_grad():
                        for param, mean, dual in zip(params, means, duals, strict=True):
                            dual -= alpha * (param - mean)
                            mean.copy_((1 - beta) * mean + beta * param - beta / alpha * dual)
            schedule.step()
        if alpha:
            with torch.no_grad():
                for param, mean, dual in zip(params, means, duals, strict=True):
                    param.copy_(mean)
                    dual.zero_()
    return module


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
