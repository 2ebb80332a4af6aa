"""A resumed run equals the uninterrupted one in every bit, for the loaders and moments that are promised."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_efficient.callbacks import ExactResume
from lightning_efficient.rng import capture_rng, restore_rng

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed", "ignore:Checkpoint directory"
)


class Noisy(Dataset):
    """Forty samples, augmented with the random numbers of Python, NumPy and torch."""

    def __init__(self, augment: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(40, 5, generator=generator)
        self.y = torch.randint(0, 3, (40,), generator=generator)
        self.augment = augment

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = random.random() + np.random.rand() + torch.rand(()).item() if self.augment else 0.0
        return self.x[index] + 0.1 * noise, self.y[index]


class Net(L.LightningModule):
    """Dropout and Adam; validation draws random numbers too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0] + torch.rand_like(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def run(
    folder: Path,
    loader: type[DataLoader] = DataLoader,
    workers: int = 0,
    validate: bool = True,
    augment: bool = True,
    callbacks: tuple[L.Callback, ...] = (ExactResume,),
    save: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Tensor:
    """Train from the checkpoint, with another seed, or from the start; return the weights."""
    L.seed_everything(1 if ckpt_path is None else 2, verbose=False)
    module = Net()
    checkpoints = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **(save or {}))
    trainer = L.Trainer(
        **{"max_epochs": 3, "accelerator": "cpu", "logger": False, "default_root_dir": folder, **options},
        callbacks=[*(callback() for callback in callbacks), checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train = loader(Noisy(augment), batch_size=4, shuffle=True, num_workers=workers)
    validation = loader(Noisy(augment), batch_size=4, num_workers=workers) if validate else None
    trainer.fit(module, train, validation, ckpt_path=ckpt_path)
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def differing_resumes(folder: Path, **options: Any) -> list[str]:
    """Train, resume from every checkpoint of that run, and name those from which other weights came out."""
    whole = run(folder / "whole", **options)
    found = sorted((folder / "whole").glob("*.ckpt"))
    assert found
    return [one.name for one in found if not torch.equal(whole, run(folder / "again", ckpt_path=one, **options))]


AT_EPOCH_END: dict[str, dict[str, Any]] = {
    "after_validation": {},
    "while_validating": {"save": {"save_on_train_epoch_end": False}},
    "without_validation": {"validate": False},
    "after_the_last_step": {"validate": False, "save": {"every_n_train_steps": 10}},
    "max_steps": {"max_epochs": -1, "max_steps": 20},
}
MID_EPOCH: dict[str, dict[str, Any]] = {
    "between": {"save": {"every_n_train_steps": 7}},
    "between_without_validation": {"save": {"every_n_train_steps": 7}, "validate": False},
    "while_validating": {"save": {"save_on_train_epoch_end": False}, "val_check_interval": 0.5},
}


# starting workers takes most of the time: with them, the moments that differ for the loader
IN_PROCESS = [(0, moment) for moment in AT_EPOCH_END]
BY_WORKERS = [(2, "after_validation"), pytest.param(2, "max_steps", marks=pytest.mark.study)]


@pytest.mark.parametrize(("workers", "moment"), [*IN_PROCESS, *BY_WORKERS])
@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_at_the_end_of_an_epoch_with_any_loader(loader: Any, workers: int, moment: str, tmp_path: Path) -> None:
    assert not differing_resumes(tmp_path, loader=loader, workers=workers, **AT_EPOCH_END[moment])


@pytest.mark.parametrize(("workers", "moment"), [*((0, moment) for moment in MID_EPOCH), (2, "while_validating")])
def test_in_mid_epoch_with_a_stateful_loader(workers: int, moment: str, tmp_path: Path) -> None:
    # random transforms in the workers of somebody else's loader are a documented limit
    options = {"loader": StatefulDataLoader, "workers": workers, "augment": workers == 0, **MID_EPOCH[moment]}
    assert not differing_resumes(tmp_path, **options)


def test_without_the_callback_a_resumed_run_goes_another_way(tmp_path: Path) -> None:
    assert differing_resumes(tmp_path, callbacks=())


def test_validation_does_not_move_the_random_state_of_training(tmp_path: Path) -> None:
    with_it = run(tmp_path / "with", validate=True, num_sanity_val_steps=0)
    assert torch.equal(with_it, run(tmp_path / "without", validate=False))
    assert not torch.equal(with_it, run(tmp_path / "bare", validate=True, num_sanity_val_steps=0, callbacks=()))


def test_a_checkpoint_of_more_processes_restores_nothing_and_says_so(tmp_path: Path) -> None:
    run(tmp_path, max_epochs=1)
    saved = torch.load(tmp_path / "step=10.ckpt", weights_only=True)
    saved["callbacks"]["ExactResume"]["per_rank"] *= 2
    torch.save(saved, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match=r"written by 2 process\(es\) and this run has 1"):
        run(tmp_path, ckpt_path=tmp_path / "two.ckpt")


def test_a_checkpoint_without_random_states_can_be_resumed(tmp_path: Path) -> None:
    run(tmp_path, max_epochs=1, callbacks=())
    assert run(tmp_path, ckpt_path=tmp_path / "step=10.ckpt").isfinite().all()


def test_the_random_states_survive_a_checkpoint_that_runs_no_code(tmp_path: Path) -> None:
    random.gauss(0, 1)
    np.random.standard_normal(3)
    state = capture_rng()
    draws = [random.gauss(0, 1), np.random.standard_normal(), torch.rand(1).item()]
    torch.save(state, tmp_path / "state.pt")
    restore_rng(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [random.gauss(0, 1), np.random.standard_normal(), torch.rand(1).item()] == draws
