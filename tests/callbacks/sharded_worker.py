"""A module in shards (FSDP2) on two CPU processes: ``python sharded_worker.py FOLDER``.

Writes ``FOLDER/0.pt`` and ``FOLDER/1.pt``, what each process found. A script of its own, since a process that has taken
gradients cannot be forked safely; forked, since a second start would import everything again.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks import Constraint, ExactResume, FiniteLoss, SelectiveCoverage, from_forward
from lightning_efficient.callbacks.energy_meter import EnergyMeter
from lightning_efficient.errors import NonFiniteLossError
from lightning_efficient.profiling.energy import EnergyReading

SAMPLES, BATCH = 40, 4
"""Five batches an epoch for each of two processes, in training and in validation."""


class Net(L.LightningModule):
    """A network with dropout, in shards."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 4))

    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Counter:
    """One joule a reading on the first rank, two on the second."""

    def __init__(self, rank: int) -> None:
        self.joules = 1.0 + rank

    def available(self) -> None:
        return None

    def begin(self, key: str) -> None:
        pass

    def end(self, key: str) -> EnergyReading:
        return EnergyReading(self.joules, 0.5, {"cpu:0": self.joules})


class Spoil(L.Callback):
    """Put a NaN into the shard of the second process only."""

    def on_train_epoch_end(self, trainer: L.Trainer, module: Net) -> None:
        module.net.reshard()  # the last forward pass left it whole
        if trainer.global_rank == 1:
            module.net[0].weight.to_local().data.view(-1)[0] = torch.nan


def data(**options: Any) -> DataLoader:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(SAMPLES, 4, generator=draw), torch.randint(4, (SAMPLES,), generator=draw)
    return DataLoader(TensorDataset(x, y), batch_size=BATCH, **options)


def fit(folder: Path, *callbacks: L.Callback, resume: Path | None = None) -> dict[str, Tensor]:
    """Train for two epochs and return the whole weights."""
    L.seed_everything(0, verbose=False)  # the order in which Lightning's sampler draws follows from it
    if resume is not None:
        torch.manual_seed(99)
    module = Net()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=2,
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data(), data(generator=torch.Generator()), ckpt_path=resume)
    module.net.reshard()
    weights = dict(module.named_parameters())
    assert all(weight.to_local().numel() < weight.numel() for weight in weights.values())
    return {name: weight.full_tensor().detach() for name, weight in weights.items()}


def spoilt(folder: Path) -> str:
    try:
        fit(folder, Spoil(), FiniteLoss(), ModelCheckpoint(folder / "spoilt", save_on_train_epoch_end=True))
    except NonFiniteLossError as error:
        return str(error)
    return "no error"


def work(rank: int, folder: Path) -> dict[str, Any]:
    coverage = SelectiveCoverage(predictions=from_forward)
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    observers = [coverage, FiniteLoss(), ExactResume(), EnergyMeter(counter=Counter(rank))]
    constraint = Constraint("train_loss", at_most=0.1)
    return {
        "without": fit(folder / "without"),
        "observed": fit(folder / "observed", *observers, save),
        "confidence_and_loss": coverage.confidence_and_loss(),
        "resumed": fit(
            folder / "resumed", ExactResume(), EnergyMeter(counter=Counter(rank)), resume=folder / "epoch=0.ckpt"
        ),
        "constrained": fit(folder / "constrained", constraint),
        "multiplier": constraint.dual.multiplier,
        # the last, since it leaves the other process in the middle of a save if it fails
        "spoilt": spoilt(folder),
    }


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {**shared, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                torch.save(work(rank, folder), folder / f"{rank}.pt")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
