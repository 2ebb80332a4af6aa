"""The promise of exactness, put to the test: channels of zeros go, and the output stays."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.pruning.members import ChannelGroup, group_masks
from lightning_efficient.nn.pruning.shrink import cut_channels

_CHANGES = "the output changes where channels of zeros are removed"
_MOST_FOR_DOUBLE = 60_000_000


class Judge:
    """Finds out which groups of channels can be removed exactly, on a copy of a network with weights of its own.

    A new network has zeros where a trained one has none, such as biases and running means, so the weights are random;
    batch normalisation takes the statistics of its own input, so that no signal fades away.

    Args:
        network: A private copy, in evaluation mode, on the CPU and without hooks.
        example: A batch for it.
        seed: Of all random numbers; the global ones are left alone.
    """

    def __init__(self, network: nn.Module, example: Tensor, seed: int = 0) -> None:
        self._random = torch.Generator().manual_seed(seed)
        count = sum(parameter.numel() for parameter in network.parameters())
        attempts = [(torch.float64, 1e-8, True), (torch.float32, 1e-4, True), (torch.float32, 1e-4, False)]
        problem = ""
        for dtype, tolerance, draw in attempts[count > _MOST_FOR_DOUBLE :]:
            self._network, self._tolerance, self._example = copy.deepcopy(network).to(dtype), tolerance, example
            if example.is_floating_point():
                self._example = torch.randn(example.shape, generator=self._random).to(dtype)
            try:
                if draw:
                    self._draw_weights()
                if all(bool(output.isfinite().all()) for output in self._outputs(self._network)):
                    return
                problem = "its outputs are not finite"
            except Exception as error:  # whatever a forward may raise for other weights or another dtype
                problem = one_line(error)
        raise ConfigurationError(f"network: {type(network).__name__} cannot be tested on random inputs: {problem}")

    def exact(self, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], dict[str, str]]:
        """Return the groups that can be removed exactly, all together, and why each of the others cannot."""
        kept, refused = self._solve(list(groups))
        # once more with other channels, where luck may have helped
        while kept and self._trouble(kept) is not None:
            again, more = self._solve(kept)
            refused |= more
            if not more:
                break
            kept = again
        return kept, refused

    def _solve(self, groups: list[ChannelGroup]) -> tuple[list[ChannelGroup], dict[str, str]]:
        trouble = self._trouble(groups) if groups else None
        if trouble is None:
            return groups, {}
        if len(groups) == 1:
            return [], {groups[0].name: trouble}
        half = len(groups) // 2
        kept, refused = self._solve(groups[:half])
        others, more = self._solve(groups[half:])
        refused |= more
        if not kept or not others or self._trouble(kept + others) is None:
            return kept + others, refused
        for group in others:  # each half is exact, and both are not
            if (trouble := self._trouble([*kept, group])) is None:
                kept = [*kept, group]
            else:
                refused[group.name] = trouble
        return kept, refused

    def _trouble(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Return what goes wrong without a random half of the channels of each group."""
        keep = []
        network = copy.deepcopy(self._network)
        parameters = dict(network.named_parameters())
        for group in groups:
            vector = torch.zeros(group.size, dtype=torch.bool)
            vector[torch.randperm(group.size, generator=self._random)[: (group.size + 1) // 2]] = True
            keep.append((group, vector))
            written = ChannelGroup(group.name, group.size, tuple(each for each in group.members if each.side == "out"))
            with torch.no_grad():
                for name, mask in group_masks(written, vector).items():
                    parameters[name].mul_(mask)
        try:
            before = self._outputs(network)
            cut_channels(network, keep)
            after = self._outputs(network)
        except Exception as error:
            return f"the network does not run without some of them: {one_line(error, 100)}"
        if [each.shape for each in before] != [each.shape for each in after]:
            return "they are an output of the network"
        for old, new in zip(before, after, strict=True):
            scale = old.abs().max().clamp_min(torch.finfo(old.dtype).tiny) if old.numel() else 1.0
            if not bool(((old - new).abs() <= self._tolerance * scale).all()):
                return _CHANGES
        return None

    def _outputs(self, network: nn.Module) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            leaves = tree_leaves(network(self._example))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    def _draw_weights(self) -> None:
        def uniform(value: Tensor) -> Tensor:
            return torch.rand(value.shape, generator=self._random).to(value) + 0.5

        def normal(value: Tensor, deviation: float) -> Tensor:
            return torch.randn(value.shape, generator=self._random).to(value) * deviation

        def normalise(layer: _NormBase, inputs: tuple[Tensor, ...]) -> None:
            if layer.running_mean is None or layer.running_var is None or inputs[0].ndim < 2:
                return
            values = inputs[0].detach().transpose(0, 1).flatten(1)
            spread = values.var(1, correction=0)
            layer.running_mean.copy_(values.mean(1) * 0.8 + normal(layer.running_mean, 0.1) * spread.sqrt())
            layer.running_var.copy_(spread.clamp_min(1e-3 * float(spread.mean().clamp_min(1e-20))))

        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                if not parameter.is_floating_point():
                    continue
                if parameter.ndim > 1:
                    drawn = normal(parameter, (1.5 / max(1, parameter[0].numel())) ** 0.5)
                else:
                    drawn = normal(parameter, 0.2) if "bias" in name.rpartition(".")[2] else uniform(parameter)
                parameter.copy_(drawn)
        norms = [each for each in self._network.modules() if isinstance(each, _NormBase)]
        hooks = [each.register_forward_pre_hook(normalise) for each in norms]
        try:
            self._outputs(self._network)
        finally:
            for hook in hooks:
                hook.remove()


def check_runs(network: nn.Module, example: Tensor) -> None:
    """Raise unless a network runs on an example."""
    try:
        with torch.no_grad():
            network(example)
    except Exception as error:
        shape = tuple(example.shape)
        raise ConfigurationError(
            f"example: {type(network).__name__} does not run on a batch of shape {shape}: {one_line(error)}"
        ) from error


def one_line(error: Exception, most: int = 160) -> str:
    """Return the message of an error on one line of no more than ``most`` characters."""
    return " ".join(str(error).split())[:most] or type(error).__name__
