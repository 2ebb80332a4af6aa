"""The Trainer and the data modules together: resuming, several processes, and Lightning's own loader surgery."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_efficient.datamodules import Digits


class Recorder(L.LightningModule):
    """A model with BatchNorm that remembers every training batch and how many images it validated."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
        self.seen: list[Tensor] = []
        self.validated = 0

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append(images)
        return nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        right = self.net(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", right.float().mean(), on_step=True, sync_dist=True)
        self.validated += len(batch[1])

    def predict_step(self, batch, batch_idx):
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SaveEverywhere(L.Callback):
    """Save inside an epoch, while validating at its end, and after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 7:
            trainer.save_checkpoint(self.folder / "inside-7")

    def on_validation_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"validating-{trainer.global_step}")

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"after-{trainer.global_step}")


def trainer(**options) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet, **options)


def data(**options) -> Digits:
    return Digits(image_size=8, in_chans=1, batch_size=200, **options)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_the_images_of_the_uninterrupted_one(num_workers, tmp_path):
    L.seed_everything(3, verbose=False)
    whole = Recorder()
    trainer(max_epochs=2, callbacks=[SaveEverywhere(tmp_path)]).fit(whole, datamodule=data(num_workers=num_workers))
    assert len(whole.seen) == 10
    for checkpoint in ("inside-7", "validating-5", "after-5"):
        L.seed_everything(99, verbose=False)
        resumed = Recorder()
        trainer(max_epochs=2).fit(resumed, datamodule=data(num_workers=num_workers), ckpt_path=tmp_path / checkpoint)
        remaining = whole.seen[int(checkpoint.split("-")[1]) :]
        assert len(resumed.seen) == len(remaining), checkpoint
        assert all(torch.equal(a, b) for a, b in zip(resumed.seen, remaining, strict=True)), checkpoint


def test_overfitting_repeats_the_same_batches():
    module = Recorder()
    trainer(max_epochs=2, overfit_batches=2).fit(module, datamodule=data())
    first, second = module.seen[:2], module.seen[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_prediction_follows_the_order_of_the_test_images():
    images = data()
    predicted = torch.cat(trainer().predict(Recorder(), datamodule=images))
    assert predicted.tolist() == images.datasets["test"].images.chosen_labels.tolist()


class OddValidation(Digits):
    """101 validation images: with batches of 50, one of two processes would have a third batch to itself."""

    def read(self, split):
        images = super().read(split)
        return images.subset(torch.arange(101).numpy()) if split == "val" else images


class Report(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer, module):
        torch.save({"seen": module.seen, "validated": module.validated}, self.folder / str(trainer.global_rank))


@pytest.mark.slow
def test_two_processes_share_training_and_validate_each_image_once(tmp_path):
    L.seed_everything(3, verbose=False)
    images = OddValidation(image_size=8, in_chans=1, batch_size=200, eval_batch_size=50)
    two = trainer(max_epochs=1, devices=2, strategy="ddp_fork", callbacks=[Report(tmp_path)])
    two.fit(Recorder(), datamodule=images)
    reports = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    assert [report["validated"] for report in reports] == [51, 50]
    drawn = [image for report in reports for batch in report["seen"] for image in batch.flatten(1)]
    assert len(drawn) == 800
    assert len(torch.stack(drawn).unique(dim=0)) == 800
