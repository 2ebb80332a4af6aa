"""Optimisers that hold the parameters of a model under surgery."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class OptimizerUpdate:
    """Puts the parameters of the changed model into an optimiser, in place, and takes that back.

    Args:
        optimizer: Holds parameters of the model as it was.
        latest: From a parameter to what it is now; itself where it did not change.
        cut: From an old tensor, and one of its shape, to the entries that are left of it.
        parameters: Of the model as it is now, by name.
        fresh: New parameters, each with parameters of the block before it: it joins the group of the first that the
            optimiser holds.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        latest: Callable[[Tensor], Tensor],
        cut: Callable[[Tensor, Tensor], Tensor],
        parameters: dict[str, nn.Parameter],
        fresh: Iterable[tuple[nn.Parameter, Sequence[Tensor]]],
    ) -> None:
        self.optimizer, self._latest = optimizer, latest
        self._groups = [(list(group["params"]), group.get("param_names")) for group in optimizer.param_groups]
        self._state = {parameter: optimizer.state[parameter] for parameter in optimizer.state}
        names = {id(parameter): name for name, parameter in parameters.items()}
        home: dict[int, int] = {}
        for index, group in enumerate(optimizer.param_groups):
            kept = []
            for parameter in group["params"]:
                home[id(parameter)] = index
                now = latest(parameter)
                if now is parameter and id(now) in names:
                    kept.append(now)
                    continue
                state = optimizer.state.pop(parameter, None)
                if id(now) in names:
                    kept.append(now)
                    if state is not None:
                        optimizer.state[now] = {key: _moved(value, parameter, cut) for key, value in state.items()}
            group["params"][:] = kept
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, anchors in fresh:
            index = next((home[id(anchor)] for anchor in anchors if id(anchor) in home), -1)
            if index >= 0 and id(parameter) not in held:
                optimizer.param_groups[index]["params"].append(parameter)
                held.add(id(parameter))
        for group in optimizer.param_groups:
            if "param_names" in group:
                group["param_names"] = [names[id(parameter)] for parameter in group["params"]]

    def undo(self) -> None:
        """Put back the parameters from before, with the present states of those that went on under a new tensor."""
        optimizer = self.optimizer
        before = {}
        for parameters, _ in self._groups:
            for parameter in parameters:
                now = self._latest(parameter)
                if now.shape == parameter.shape and now in optimizer.state:
                    before[parameter] = optimizer.state[now]
                elif parameter in self._state:
                    before[parameter] = self._state[parameter]
        optimizer.state.clear()
        optimizer.state.update(before)
        for group, (parameters, names) in zip(optimizer.param_groups, self._groups, strict=True):
            group["params"][:] = parameters
            if names is not None:
                group["param_names"] = names


def warn_of_live_optimizers(parameters: Iterable[Tensor]) -> None:
    """Warn once where some optimiser holds one of these parameters."""
    wanted = {id(each) for each in parameters}
    for thing in gc.get_objects():
        if issubclass(type(thing), Optimizer) and any(
            id(parameter) in wanted for group in getattr(thing, "param_groups", ()) for parameter in group["params"]
        ):
            warnings.warn(
                f"a live {type(thing).__name__} holds parameters from before the surgery and none of the new ones; "
                "give it as optimizer=, or make it after the surgery",
                UserWarning,
                stacklevel=3,
            )
            return


def _moved(value: Any, parameter: Tensor, cut: Callable[[Tensor, Tensor], Tensor]) -> Any:
    # momentum and the like have the shape of their parameter
    if torch.is_tensor(value) and value.shape == parameter.shape:
        return cut(parameter, value)
    return value
