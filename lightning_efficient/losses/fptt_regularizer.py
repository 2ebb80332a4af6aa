"""The state that forward propagation through time keeps beside the parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_positive
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.functional.fptt import fptt_gradient_, fptt_restart_, fptt_update_
from lightning_efficient.losses._options import check_weight


class FPTTRegularizer:
    """Keep a running mean and a dual for each parameter, and regularise the steps between them.

    For a training loop of one's own; under a Trainer the callback ``FPTT`` does it. For each part of a sequence::

        loss.backward()
        regularizer.add_gradient()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # if at all: of the sum, as in the released code
        optimizer.step()
        regularizer.update()

    Costs two copies of the parameters, in float32 where they have a lower precision, since the differences kept here
    are about a thousandth of a weight.

    Args:
        named_parameters: Names and parameters; those without ``requires_grad`` are left out.
        alpha: Strength, above 0. With plain SGD ``alpha`` times the learning rate should stay below ½.
        beta: Share of the new parameters in the mean, in ``(0, 1)``.
        proximal_weight: Weight of the quadratic term: 1 for the released image models, 2 for the language models.
        dual_weight: Weight of the linear term: 1 in the released code, ½ in the formula that the paper prints.

    Attributes:
        updates: How often ``update`` was called.

    Raises:
        ConfigurationError: an option outside its range, or no parameter to regularise.

    Reference:
        Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        alpha: float = 0.1,
        beta: float = 0.5,
        proximal_weight: float = 1.0,
        dual_weight: float = 1.0,
    ) -> None:
        check_fptt_options(alpha, beta, proximal_weight, dual_weight)
        self.alpha, self.beta = alpha, beta
        self.weights = {"proximal_weight": proximal_weight, "dual_weight": dual_weight}
        tracked = {name: param for name, param in named_parameters if param.requires_grad}
        if not tracked:
            raise ConfigurationError("there is no parameter that requires a gradient to regularise")
        self.names = list(tracked)
        self.params = list(tracked.values())
        self.means = [at_least_float32(param.detach()).clone() for param in self.params]
        self.duals = [torch.zeros_like(mean) for mean in self.means]
        self.updates = 0

    def add_gradient(self) -> tuple[list[Tensor], list[Tensor]]:
        """Add the regulariser's gradient to that of each parameter that has one.

        Returns:
            The gradients as they now are, and what was added to them.
        """
        groups = zip(self.params, self.means, self.duals, strict=True)
        used = [(param.grad, param, mean, dual) for param, mean, dual in groups if param.grad is not None]
        if not used:
            return [], []
        grads, params, means, duals = map(list, zip(*used, strict=True))
        return grads, fptt_gradient_(grads, params, means, duals, alpha=self.alpha, **self.weights)

    def update(self) -> None:
        """Move means and duals; call it after each step of the optimiser that was really taken."""
        fptt_update_(self.params, self.means, self.duals, alpha=self.alpha, beta=self.beta)
        self.updates += 1

    def restart(self, keep_duals: bool = False) -> None:
        """Put the means into the parameters and forget the duals, as the released code does after each epoch."""
        fptt_restart_(self.params, self.means, self.duals, keep_duals=keep_duals)

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Return the norm of all parameters minus their means, a scalar tensor."""
        return torch.nn.utils.get_total_norm(torch._foreach_sub(self.means, list[Tensor](self.params)))

    def state_dict(self) -> dict[str, Any]:
        """Return copies on the CPU, which a checkpoint can hold."""

        def copied(tensors: list[Tensor]) -> dict[str, Tensor]:
            return {name: value.to("cpu", copy=True) for name, value in zip(self.names, tensors, strict=True)}

        return {"updates": self.updates, "means": copied(self.means), "duals": copied(self.duals)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same parameters.

        Raises:
            ConfigurationError: it belongs to other parameters.
        """
        for own, kind in ((self.means, "means"), (self.duals, "duals")):
            for name, mine in zip(self.names, own, strict=True):
                stored = state[kind].get(name)
                if stored is None or stored.shape != mine.shape:
                    found = "none" if stored is None else f"one of shape {tuple(stored.shape)}"
                    raise ConfigurationError(
                        f"the checkpoint's FPTT state has {found} for {name!r} of shape {tuple(mine.shape)}; it "
                        "belongs to another model or to another choice of parameters"
                    )
                mine.copy_(stored)
        self.updates = state["updates"]


def check_fptt_options(alpha: float, beta: float, proximal_weight: float, dual_weight: float) -> None:
    """Raise ``ConfigurationError`` unless the options of the regulariser are in their ranges."""
    check_positive("alpha", alpha)
    if not 0 < beta < 1:
        raise ConfigurationError(f"beta={beta!r} must lie between 0 and 1; the paper uses 0.5.")
    check_weight("proximal_weight", proximal_weight)
    check_weight("dual_weight", dual_weight)
