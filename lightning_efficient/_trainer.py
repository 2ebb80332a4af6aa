"""What callbacks ask of a Trainer, among it public attributes that type checkers cannot see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.phases import Alternation, Phase

CallbackT = TypeVar("CallbackT", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[CallbackT]) -> list[CallbackT]:
    """Return the callbacks of one class, in the order in which they are called."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def remove_callbacks(trainer: Trainer, kinds: tuple[type[Callback], ...]) -> None:
    """Take the callbacks of some classes out of a Trainer."""
    kept = [callback for callback in trainer.callbacks if not isinstance(callback, kinds)]  # type: ignore[attr-defined]
    trainer.callbacks = kept  # type: ignore[attr-defined]


def average_anew(trainer: Trainer, module: LightningModule) -> None:
    """Let weight averaging copy a module once more, where it may have done so before something was added to it."""
    for callback in callbacks_of(trainer, WeightAveraging):
        callback.setup(trainer, module, "fit")


def is_rehearsal(trainer: Trainer) -> bool:
    """Tell whether this is a ``fast_dev_run``, which leaves no files behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def sample_shape(
    module: LightningModule,
    datamodule: LightningDataModule | None,
    given: Sequence[int] | None = None,
    option: str = "--input_shape",
) -> tuple[int, ...]:
    """Return the shape of one sample: what is given, else what the data module tells, else what the module tells.

    Raises:
        ConfigurationError: nobody tells; names ``option``.
    """
    if given:
        return tuple(given)
    if (shape := getattr(datamodule, "input_shape", None)) is not None:
        return tuple(shape)
    if (shape := (getattr(module, "data_config", None) or {}).get("input_size")) is not None:
        return tuple(shape)
    if module.example_input_array is not None:
        return tuple(module.example_input_array.shape[1:])  # type: ignore[union-attr]
    raise ConfigurationError(f"{type(module).__name__} does not tell the shape of its input; give {option}")


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """Return the value of each process, in the order of their ranks; it must be picklable.

    A process that fails saves alone, and waiting for the others there would never end: it returns its own only.
    """
    if trainer.world_size == 1 or trainer.interrupted:
        return [value]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def refuse_shards(trainer: Trainer, name: str) -> None:
    """Raise where no process holds whole parameters.

    Raises:
        ConfigurationError: FSDP, DeepSpeed or model parallelism; begins with ``name``.
    """
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise ConfigurationError(
            f"{name} works on one device and with DDP; {type(trainer.strategy).__name__} shards the parameters"
        )


def refuse_manual_optimization(module: LightningModule, name: str) -> None:
    """Raise where a module steps its optimisers itself.

    Raises:
        ConfigurationError: it does; begins with ``name``.
    """
    if not module.automatic_optimization:
        raise ConfigurationError(
            f"{name} works in automatic optimisation, and {type(module).__name__} steps its optimisers itself; "
            "remove automatic_optimization=False"
        )


def take_part(trainer: Trainer, loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Let parameters that a step leaves out take part in it with gradients of zero.

    Processes wait for the gradient of every parameter. ``drop_gradients`` then takes the zeros away before the step.
    """
    if trainer.world_size == 1:
        return loss
    return loss + sum(0.0 * parameter.sum() for parameter in parameters if parameter.requires_grad)


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Forget gradients, so that an optimiser leaves these parameters, their momentum and their decay alone."""
    for parameter in parameters:
        parameter.grad = None


def current_phase(trainer: Trainer, phases: Alternation | None, guide_learns: bool) -> Phase:
    """Return whom the next step trains: a function of the steps or epochs done, so that it resumes exactly."""
    if not guide_learns:
        return "student"
    if phases is None:
        return "joint"
    return phases.phase(trainer.current_epoch if phases.unit == "epoch" else trainer.global_step)
