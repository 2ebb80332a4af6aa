"""The checkpoint that ``--ckpt_path best`` or ``last`` means: that of the newest run of the same name."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from lightning_efficient._lightning_compat import check_checkpoint
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.reporting import run_dir

WORDS = ("best", "last")


def resolved(ckpt_path: str | None, trainer: Trainer) -> str | None:
    """Return the file of the newest run beside this one, or what was given where it is another word.

    Raises:
        ConfigurationError: no run has such a checkpoint, or a folder is given and the strategy does not shard.
    """
    # Lightning knows `best` in the process that trained, and takes a `last` that is not there for a fresh start
    if ckpt_path not in WORDS:
        shards = isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy)
        if ckpt_path and Path(ckpt_path).is_dir() and not shards:
            raise ConfigurationError(f"ckpt_path: {ckpt_path!r} is a folder; give the file of a checkpoint in it")
        return ckpt_path
    own = run_dir(trainer)
    runs, folders = (own.parent, "*/") if trainer.loggers else (own, "")
    found = max(
        runs.glob(f"{folders}checkpoints/{ckpt_path}.ckpt"), key=lambda path: path.stat().st_mtime, default=None
    )
    if found is None:
        raise ConfigurationError(
            f"ckpt_path is {ckpt_path!r}, but no run in '{runs}' has checkpoints/{ckpt_path}.ckpt; train first, or "
            "give the path of a checkpoint"
        )
    check_checkpoint(str(found))
    rank_zero_info(f"ckpt_path: {found}")
    return str(found)
