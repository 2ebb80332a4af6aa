"""Train a network as it will compute in 8 bits, and keep the integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_efficient._trainer import (
    average_anew,
    callbacks_of,
    is_rehearsal,
    refuse_manual_optimization,
    refuse_shards,
    sample_shape,
)
from lightning_efficient.callbacks._quantization_network import replace_network
from lightning_efficient.callbacks._quantization_ranges import (
    begin_to_learn,
    ranges_are_known,
    read_ranges,
    write_ranges,
)
from lightning_efficient.callbacks._quantization_report import report_integers
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_flag
from lightning_efficient.nn.main_network import main_network
from lightning_efficient.nn.quantization.aware import AwareNetwork, convert_aware, set_fake_quantization, set_observers
from lightning_efficient.nn.quantization.result import Quantized
from lightning_efficient.typing import Batch

_PRECISIONS = ("32-true", "32", "bf16-mixed", "16-mixed")


class QuantizationAware(Callback):
    """Train with rounded weights and activations, so that the network loses less when it computes in 8 bits.

    Puts a graph with fake quantisation in the place of the module's network, in every stage, and leaves it there. Its
    parameters and state dict have the names of the float network, so a float checkpoint is a starting point, by
    ``model.backbone_checkpoint`` or by ``--ckpt_path``, and a checkpoint of this run is one of the float network too;
    the ranges lie in the callback's state. Validation and testing see the rounding once it has begun, and no range
    learns from them. After the fit the integers are written to ``<run folder>/quantized.pt2`` with
    ``quantization.json``: bytes on disk, and times compiled and not, in turns with the float network's. The graph
    computes in float32, also under mixed precision. A step takes about twice as long.

    Args:
        begin: Share of the optimiser steps after which rounding begins; before, ranges are observed only.
        freeze_ranges: Share of the steps after which the ranges stay as they are.
        network: Dotted name of the network; by default the module's ``backbone``, ``network``, ``model``, ``net`` or
            ``student``, or its only part with weights.
        input_shape: Shape of one sample of the network; by default the data module's, else the module's.
        measure: Whether to time the integers after the fit; compiling takes up to a minute.
        name: First part of the logged names; of another than the first, also the name of the files.

    Attributes:
        quantized: The integers, after a fit and on the first process; they compute on the CPU.

    Raises:
        ConfigurationError: an option outside its range, a network that has no graph, is compiled, or belongs to another
            such callback; a strategy that shards; manual optimisation; a precision other than 32-true or mixed.

    Example:
        >>> QuantizationAware(begin=0.1).freeze_ranges
        0.75

    Reference:
        Jacob et al. Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference.
        CVPR 2018.
    """

    def __init__(
        self,
        begin: float = 0.0,
        freeze_ranges: float = 0.75,
        network: str | None = None,
        input_shape: Sequence[int] | None = None,
        measure: bool = True,
        name: str = "quantization",
    ) -> None:
        for option, value, low in (("begin", begin, "0 <="), ("freeze_ranges", freeze_ranges, "0 <")):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0 <= value <= 1 and (low == "0 <=" or value > 0)):
                raise ConfigurationError(
                    f"QuantizationAware: {option} is {value!r}; it must be a share of the steps, {low} {option} <= 1"
                )
        check_flag("measure", measure)
        self.begin = begin
        self.freeze_ranges = freeze_ranges
        self.network = network
        self.input_shape = input_shape
        self.measure = measure
        self.name = name
        self.quantized: Quantized | None = None
        self._forget()

    def _forget(self) -> None:
        self._place = ""
        self._aware: AwareNetwork | None = None
        self._steps = math.inf
        self._begun: bool | None = None
        self._ranges: dict[str, list[Tensor]] | None = None
        self._learning = False
        self._applied: tuple[bool, bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the networks out of copies, also that of the module whose ``log`` Lightning lends."""
        own = {key: value for key, value in vars(self).items() if key not in ("log", "log_dict")}
        return {**own, "quantized": None, "_aware": None, "_applied": None}

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint: one for each name."""
        return f"{type(self).__qualname__}[{self.name}]"

    # ---- the network

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the graph in the place of the network, unless it is there already."""
        refuse_shards(trainer, "QuantizationAware")
        refuse_manual_optimization(pl_module, "QuantizationAware")
        if (precision := str(trainer.precision)) not in _PRECISIONS:
            raise ConfigurationError(
                f"QuantizationAware: trainer.precision is {precision}; rounding is computed in float32, so it must be "
                "32-true, bf16-mixed or 16-mixed"
            )
        self._forget()
        if stage == "fit":
            self.quantized = None
        self._place = self._name_of(pl_module)
        for other in callbacks_of(trainer, QuantizationAware):
            if other is not self and other._name_of(pl_module) == self._place:
                raise ConfigurationError(
                    f"two QuantizationAware callbacks ({self.name!r} and {other.name!r}) round {self._place!r}; give "
                    "each its own network="
                )
        found = pl_module.get_submodule(self._place)
        if isinstance(found, AwareNetwork):
            self._aware = found
            return
        datamodule = getattr(trainer, "datamodule", None)
        shape = sample_shape(pl_module, datamodule, self.input_shape, "QuantizationAware(input_shape=)")
        self._aware = replace_network(pl_module, self._place, shape, "QuantizationAware")
        set_fake_quantization(self._aware, False)
        if stage == "fit":
            average_anew(trainer, pl_module)

    def _name_of(self, module: LightningModule) -> str:
        return main_network(module, self.network, option="QuantizationAware: network")

    def _network(self, module: LightningModule) -> AwareNetwork:
        network = module.get_submodule(self._place)
        if network is not self._aware:
            raise ConfigurationError(
                f"QuantizationAware: {self._place} was replaced after setup; change the network before fit, or by the "
                "checkpoint's own recipe"
            )
        return self._aware

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know how many steps there will be, and go on with the ranges of a checkpoint."""
        self._steps = float(trainer.estimated_stepping_batches)
        if not 0 <= self._steps < math.inf and (self.begin > 0 or self.freeze_ranges < 1):
            raise ConfigurationError(
                "QuantizationAware: begin and freeze_ranges are shares of the run, and this one has no end; set "
                "trainer.max_epochs or max_steps, or begin=0 and freeze_ranges=1"
            )
        self._put_back(pl_module)
        begin_to_learn(self._network(pl_module))
        self._applied = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Round and observe as the step asks for."""
        progress = min(1.0, trainer.global_step / max(1.0, self._steps))
        wanted = progress >= self.begin, progress < self.freeze_ranges
        if wanted != self._applied:
            network = self._network(pl_module)
            self._begun = wanted[0]
            set_fake_quantization(network, wanted[0])
            set_observers(network, wanted[1])
            self._applied = wanted
        self._learning = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the ranges before weight averaging can take them for weights."""
        self._keep()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the ranges; weight averaging swaps them for its own."""
        self._keep()
        self._applied = None

    # ---- evaluation

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Round as training does, by the ranges of training."""
        self._evaluate(pl_module, batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Round by the ranges of the checkpoint."""
        self._evaluate(pl_module, batch_idx)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Round by the ranges of the checkpoint."""
        self._evaluate(pl_module, batch_idx)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it where a checkpoint has no ranges."""
        self._tell_float(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it where a checkpoint has no ranges."""
        self._tell_float(pl_module)

    def _tell_float(self, module: LightningModule) -> None:
        if self._ranges is None and not ranges_are_known(self._network(module)):
            rank_zero_info("QuantizationAware: these weights come without ranges, so nothing is rounded")

    def _evaluate(self, module: LightningModule, batch_idx: int) -> None:
        if batch_idx == 0:
            self._put_back(module)
            self._applied = None

    def _put_back(self, module: LightningModule) -> None:
        network = self._network(module)
        if self._ranges is not None:
            write_ranges(network, self._ranges, "QuantizationAware")
        if self._begun is not None:
            set_fake_quantization(network, self._begun)
        network.train(network.training)  # Lightning sets the flag alone after a validation

    def _keep(self) -> None:
        self._look()
        self._learning = False

    def _look(self) -> None:
        if self._learning and self._aware is not None:
            self._ranges = read_ranges(self._aware)

    # ---- the end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn the network into integers, measure and write them."""
        self._put_back(pl_module)
        network = self._network(pl_module)
        if not self._begun or not ranges_are_known(network):
            rank_zero_warn(
                f"QuantizationAware: rounding begins at {self.begin:g} of the steps, which this run did not reach; "
                "there are no integers"
            )
            return
        if trainer.is_global_zero:
            self.quantized = convert_aware(network)
            if not is_rehearsal(trainer):
                report_integers(trainer, self.name, network, self.quantized, measure=self.measure)

    def state_dict(self) -> dict[str, Any]:
        """Return the ranges, and whether rounding has begun."""
        self._look()
        return {} if self._ranges is None else {"begun": bool(self._begun), "ranges": self._ranges}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the ranges of a checkpoint."""
        self._begun, self._ranges = state_dict["begun"], state_dict["ranges"]
