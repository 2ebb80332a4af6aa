"""The masks of a network: how they come about, are applied, and are kept in checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_efficient.callbacks._pruning_plan import PruningPlan, Saliency, Scope
from lightning_efficient.callbacks._pruning_units import Units, pack, unpack
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.pruning import check_sparsity, keep_masks, regrow, saliency, sparsity_of

REMOVED = -1.0
"""Score of what is gone already, below all others."""


@dataclass(frozen=True)
class Target:
    """What a network is pruned to.

    Attributes:
        sparsity: Of all that has no sparsity of its own.
        own: Sparsities by unit.
        scope: Whether ``sparsity`` holds for all of them together or for each.
        max_layer_sparsity: Largest sparsity of any one.
    """

    sparsity: float
    own: Mapping[str, float]
    scope: Scope
    max_layer_sparsity: float

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise if this cannot be reached.

        Raises:
            ConfigurationError: it cannot, or there is nothing to prune; names what stands in the way.
        """
        sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        if self.own:
            check_sparsity(sizes, self.own, max_layer_sparsity=self.max_layer_sparsity)
        if shared := {name: size for name, size in sizes.items() if name not in self.own}:
            check_sparsity(shared, self.sparsity, self.scope, self.max_layer_sparsity)
        elif not any(self.own.values()):
            raise ConfigurationError("layers= leaves nothing to prune; each of its sparsities is 0")

    def masks(self, scores: Mapping[str, Tensor], plan: PruningPlan, number: int) -> dict[str, Tensor]:
        """Return what is kept after a round, in the order of the scores."""
        own = {name: plan.share(number, share) for name, share in self.own.items()}
        shared = {name: each for name, each in scores.items() if name not in own}
        share, most = plan.share(number, self.sparsity), self.max_layer_sparsity
        found = keep_masks({name: scores[name] for name in own}, own, max_layer_sparsity=most) if own else {}
        found |= keep_masks(shared, share, scope=self.scope, max_layer_sparsity=most) if shared else {}
        return {name: found[name] for name in scores}


class Pruner:
    """Masks of the parameters of one network.

    Args:
        units: What can be removed.
        path: Dotted name of the network in its module.
        plan: The rounds.
        target: What they lead to.
        kind: The saliency.
        seed: Of random saliency.
    """

    def __init__(self, units: Units, path: str, plan: PruningPlan, target: Target, kind: Saliency, seed: int) -> None:
        self.units, self.plan, self.target, self.kind = units, plan, target, kind
        self.round = 0
        self.keep = {name: torch.ones(shape, dtype=torch.bool) for name, shape in units.shapes.items()}
        self.masks: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.path = path
        self._prefix = f"{path}." if path else ""
        self._accumulated: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def sparsity(self) -> float:
        """Share of the weights or channels that is gone."""
        return sparsity_of(self.keep)

    @property
    def entries(self) -> int:
        """Parameters of the network that are left."""
        gone = sum(mask.numel() - int(mask.sum()) for mask in self.masks.values())
        return sum({id(each): each.numel() for each in self.parameters.values()}.values()) - gone

    def bind(self, module: nn.Module) -> None:
        """Find the parameters in the module, and have the masks beside them."""
        network = module.get_submodule(self.path)
        self.parameters = dict(network.named_parameters(remove_duplicate=False))
        weights = {name.rpartition(".")[0]: each for name, each in self.parameters.items() if name.endswith("weight")}
        for name, mask in self.keep.items():
            self.keep[name] = mask.to(weights[name].device if name in weights else mask.device)
        for name, value in self._accumulated.items():
            self._accumulated[name] = value.to(self.parameters[name].device)
        self._set_masks()

    def let_go(self) -> None:
        """Forget the parameters."""
        self.parameters, self._dense = {}, {}

    def touched(self) -> dict[int, str]:
        """Return the parameters that may be masked: their ids and names."""
        may = {name: torch.zeros_like(mask) for name, mask in self.keep.items() if self.target.own.get(name, 1)}
        return {id(self.parameters[name]): f"{self._prefix}{name}" for name in self.units.masks(may, self._shapes())}

    def read_gradients(self, accumulate: bool, dense: bool) -> None:
        """Take from the gradients of a step what the saliency and regrowth need."""
        weights = {name: self.parameters[name] for name in self.units.weights}
        gradients = {name: each.grad for name, each in weights.items() if each.grad is not None}
        self._dense = {name: each.detach().clone() for name, each in gradients.items()} if dense else {}
        if accumulate and self.kind == "first_order" and gradients:
            # without waiting for the device
            finite = torch.stack([each.isfinite().all() for each in gradients.values()]).all()
            for name, gradient in gradients.items():
                value = saliency(weights[name], gradient, "first_order")
                value = torch.where(finite.to(value.device), value, 0)
                self._accumulated[name] = self._accumulated[name] + value if name in self._accumulated else value

    def mask_gradients(self) -> None:
        """Set the gradients of what is removed to zero."""
        for name, mask in self.masks.items():
            if (gradient := self.parameters[name].grad) is not None:
                gradient.masked_fill_(~mask, 0)

    @torch.no_grad()
    def apply(self, others: Iterable[Mapping[str, Tensor]] = ()) -> None:
        """Set the weights that are removed to zero, also in state dicts of the module."""
        for name, mask in self.masks.items():
            self.parameters[name].masked_fill_(~mask, 0)
            for other in others:
                if (value := other.get(f"{self._prefix}{name}")) is not None:
                    value.masked_fill_(~mask.to(value.device), 0)

    @torch.no_grad()
    def prune(self, number: int, optimizer: Optimizer) -> None:
        """Find the masks of a round; what regrows does so without a past in the optimiser."""
        scores = self.units.scores(self._saliencies(), self.keep)
        scores = {name: each.masked_fill(~self.keep[name].to(each.device), REMOVED) for name, each in scores.items()}
        self.keep = self.target.masks(scores, self.plan, number)
        if self._dense:
            self._regrow(scores, optimizer)
        self.round, self._accumulated, self._dense = number, {}, {}
        self._set_masks()

    def state_dict(self) -> dict[str, Any]:
        """Return masks as bits, and all that the next round depends on."""
        return {
            "round": self.round,
            "keep": {name: pack(mask) for name, mask in self.keep.items()},
            "shapes": {name: list(mask.shape) for name, mask in self.keep.items()},
            "saliency": {name: value.cpu() for name, value in self._accumulated.items()},
            "generator": self._generator.get_state(),
        }

    def named_masks(self) -> dict[str, Tensor]:
        """Return the masks by the names of the parameters in the module."""
        return {f"{self._prefix}{name}": mask for name, mask in self.masks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the masks of a checkpoint.

        Raises:
            ConfigurationError: they do not fit the network.
        """
        theirs = {name: tuple(shape) for name, shape in state["shapes"].items()}
        if theirs != self.units.shapes:
            name = min(name for name, _ in theirs.items() ^ self.units.shapes.items())
            raise ConfigurationError(
                f"the checkpoint's masks do not fit the network: {name!r} is {_described(theirs.get(name))} there and "
                f"{_described(self.units.shapes.get(name))} here; resume with the same network and options, or remove "
                "the callback to train on without masks"
            )
        self.round = state["round"]
        self.keep = {name: unpack(bits, theirs[name]) for name, bits in state["keep"].items()}
        self._accumulated = dict(state["saliency"]) if self.kind == "first_order" else {}
        self._generator.set_state(state["generator"])

    def _saliencies(self) -> dict[str, Tensor]:
        if self.kind != "first_order":
            return {
                name: saliency(self.parameters[name], kind=self.kind, generator=self._generator)
                for name in self.units.weights
            }
        return {
            name: self._accumulated.get(name, torch.zeros_like(self.parameters[name], dtype=torch.float32))
            for name in self.units.weights
        }

    def _regrow(self, scores: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        for name, mask in self.keep.items():
            weight = next(iter(self.units.masks({name: mask}, self._shapes())))
            if weight not in self._dense or not self.target.own.get(name, 1):
                continue
            count = round(self.plan.regrowth * int(mask.sum()))
            self.keep[name] = regrow(mask, scores[name], self._dense[weight], count)
            grown = self.keep[name] & ~mask
            for value in optimizer.state.get(self.parameters[weight], {}).values():
                if isinstance(value, Tensor) and value.shape == grown.shape:
                    value.masked_fill_(grown, 0)
            self.parameters[weight].masked_fill_(grown, 0)

    def _set_masks(self) -> None:
        removes = {name: mask for name, mask in self.keep.items() if self.target.own.get(name, 1)} if self.round else {}
        self.masks = self.units.masks(removes, self._shapes())
        for name, mask in self.masks.items():
            self.masks[name] = mask.to(self.parameters[name].device)

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: each.shape for name, each in self.parameters.items()}


def _described(shape: tuple[int, ...] | None) -> str:
    return "not pruned" if shape is None else f"of shape {shape}"
