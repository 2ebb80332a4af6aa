"""Put the random number generators into the checkpoint, so that a resumed run equals the uninterrupted one."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils._pytree import tree_leaves
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from lightning_efficient._lightning_compat import train_loaders_given_to_fit
from lightning_efficient._trainer import gather_objects
from lightning_efficient.rng import RngState, capture_rng, restore_rng
from lightning_efficient.typing import Batch


class ExactResume(Callback):
    """Save and restore the state of every random number generator, per rank.

    Lightning's checkpoints hold weights, optimisers and loops, but no random state, so dropout, shuffling and
    augmentation take other values after a resume. With this callback a killed and resumed run ends with the same
    weights, bit for bit: from a checkpoint at the end of an epoch with any data loader, and from one in mid-epoch
    with torchdata's ``StatefulDataLoader``. Validation no longer moves the random state of training.

    Costs the states in each checkpoint, and a reading of them before each validation.

    Not covered with loaders of other kinds than our data modules have: ``persistent_workers`` (their generators outlive
    the epoch and cannot be read), random transforms in worker processes when the checkpoint is from mid-epoch, and a
    step checkpoint on the very batch after which validation ends the epoch. Not covered at all: the checkpoint that an
    exception leaves behind (it was taken inside a step), a run that ends by ``max_steps`` and has no validation
    (Lightning 2.6 resumes it with one batch more in the epoch that was over), operators without a deterministic
    implementation, and a resume on another number of processes, for which it warns and restores nothing.
    """

    def __init__(self) -> None:
        self._epochs_seen = 0
        self._before_validation: RngState | None = None
        self._restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the random states back before the loaders are made, since making them draws seeds."""
        self._epochs_seen = 0
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        if self._restored and len(self._restored["per_rank"]) != trainer.world_size:
            rank_zero_warn(
                f"ExactResume: the checkpoint was written by {len(self._restored['per_rank'])} process(es) and this "
                f"run has {trainer.world_size}; the random state is not restored"
            )
            self._restored = None
        if self._restored:
            restore_rng(self._restored["per_rank"][trainer.global_rank])
            _reseed(train_loaders_given_to_fit(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo what making the data iterator drew, where the uninterrupted run did not draw it."""
        # Lightning has just made a data iterator, and making one draws seeds. Where a new epoch begins with it, the
        # uninterrupted run drew the same seeds after the checkpoint, so the draws stay. Where the old epoch goes on
        # (its seeds were drawn before the checkpoint) or only has to be closed, they are undone.
        saved, self._restored = self._restored, None
        if saved and trainer.fit_loop.restarting and (trainer.enable_validation or not saved["epoch_is_over"]):
            self._before_validation = saved["per_rank"][trainer.global_rank]
            restore_rng(self._before_validation)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the order of an epoch follow from the random state at its start."""
        # Like DataLoader, unlike StatefulDataLoader: its order hangs on a generator of its own, which Lightning does
        # not restore after an epoch.
        if self._epochs_seen:
            _reseed(tree_leaves(trainer.train_dataloader))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Remember the random states where validation may come next."""
        self._before_validation = capture_rng() if _validation_may_follow(trainer, batch_idx) else None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the random states back to before validation."""
        if self._before_validation is not None and not trainer.sanity_checking:
            restore_rng(self._before_validation)
            self._before_validation = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epochs of this fit."""
        self._epochs_seen += 1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the random states of all ranks into the checkpoint."""
        per_rank = gather_objects(trainer, capture_rng())
        checkpoint["callbacks"][self.state_key] = {"per_rank": per_rank, "epoch_is_over": trainer.is_last_batch}
        if trainer.is_last_batch:
            # a finished iterator restored would give an epoch without a batch: Lightning stops asking at the last
            # batch, so torchdata does not know that it has ended
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the random states out of the checkpoint; ``on_fit_start`` restores them."""
        self._restored = checkpoint["callbacks"].get(self.state_key)
        # strategies that shard the parameters load a checkpoint after that hook
        if trainer.strategy.restore_checkpoint_after_setup:
            self._restore(trainer)


def _validation_may_follow(trainer: Trainer, batch_idx: int) -> bool:
    every = trainer.val_check_batch
    if every is None or trainer.check_val_every_n_epoch is None:  # by time, or by steps across epochs
        return trainer.enable_validation
    return trainer.enable_validation and (trainer.is_last_batch or (batch_idx + 1) % every == 0)


def _reseed(loaders: list[Any]) -> None:
    for loader in loaders:
        owns_its_generator = isinstance(loader, StatefulDataLoader) and loader.generator is None
        if owns_its_generator and isinstance(loader.sampler, RandomSampler):
            loader.sampler.generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
