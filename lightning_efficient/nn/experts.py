"""Several tiny experts behind one stem, of which a gate picks one for each input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional._checks import check_count, is_integer
from lightning_efficient.nn.routers import GainRouter


class ExpertOutputs(NamedTuple):
    """What a network of experts says of a batch, and what a further expert needs to look at it.

    Attributes:
        logits: Class scores of the chosen experts, shape ``(N, C)``.
        features: Their input of the classifier, shape ``(N, D)``.
        gate_probabilities: The gate's softmax, shape ``(N, E)``.
        chosen: The likeliest expert, int64 ``(N,)``.
        runner_up: The second likeliest, int64 ``(N,)``.
        stem: Output of the stem, shape ``(N, S)`` or ``(N, S, H, W)``.
    """

    logits: Tensor
    features: Tensor
    gate_probabilities: Tensor
    chosen: Tensor
    runner_up: Tensor
    stem: Tensor


class ExpertsNetwork(nn.Module):
    """A shared stem, a gate that picks one of several tiny experts for each input, and a shared classifier.

    All experts write into one latent space, which the classifier reads; so the network shows its features as any other
    does. In training every expert sees the whole batch and a straight-through gate picks: forward takes the likeliest
    expert, the gradient is that of its probabilities. Where nothing trains, each expert runs on its own rows only, so
    that a sample costs the stem, the gate, one expert and the classifier. Under ``torch.export`` and ``torch.compile``
    every expert runs, as rows picked by data cannot be traced.

    Args:
        num_classes: Classes ``C``.
        in_chans: Channels of the images, for the default stem.
        num_experts: Number of experts ``E``, 2 or more, for the default experts.
        width: Channels of the default stem, a 3x3 convolution of stride 2; an expert has twice as many, another such
            convolution and the averages over 2x2 cells.
        stem: Module from inputs to what gate and experts look at, shape ``(N, S)`` or ``(N, S, H, W)``; wins over
            ``in_chans``.
        experts: Modules from the stem's output to features ``(N, D)``, of any capacity; win over ``num_experts``.
        stem_channels: Channels ``S`` of the output of ``stem``, where it is given.
        feature_dim: Size ``D`` of the features, where ``experts`` are given.
        gate_cells: The gate looks at the stem's averages over so many cells each way; 1 for a stem without a map.

    Raises:
        ConfigurationError: a number below what is allowed, or ``stem`` or ``experts`` without their size.

    Example:
        >>> network = ExpertsNetwork(num_classes=10, in_chans=1).eval()
        >>> outputs = network.outputs(torch.zeros(4, 1, 16, 16))
        >>> tuple(outputs.logits.shape), tuple(outputs.features.shape), tuple(outputs.gate_probabilities.shape)
        ((4, 10), (4, 64), (4, 3))

    Reference:
        Bengio, Léonard, Courville. Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation. arXiv 1308.3432: the straight-through estimator. Fedus, Zoph, Shazeer. Switch Transformers:
        Scaling to Trillion Parameter Models with Simple and Efficient Sparsity. JMLR 2022: one expert per input.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        num_experts: int = 3,
        width: int = 8,
        *,
        stem: nn.Module | None = None,
        experts: Sequence[nn.Module] | None = None,
        stem_channels: int | None = None,
        feature_dim: int | None = None,
        gate_cells: int = 2,
    ) -> None:
        super().__init__()
        counts = {"num_classes": num_classes, "in_chans": in_chans, "width": width, "gate_cells": gate_cells}
        for option, given in counts.items():
            check_count(option, given)
        if (stem is None) != (stem_channels is None):
            raise ConfigurationError(f"stem_channels={stem_channels!r} goes with stem; give both or neither.")
        if (experts is None) != (feature_dim is None):
            raise ConfigurationError(f"feature_dim={feature_dim!r} goes with experts; give both or neither.")
        count = num_experts if experts is None else len(experts)
        if not is_integer(count) or count < 2:
            option = "num_experts" if experts is None else "the number of experts"
            raise ConfigurationError(f"{option}={count!r} must be an integer of at least 2.")
        channels = width if stem_channels is None else stem_channels
        self.stem = _convolution(in_chans, channels) if stem is None else stem
        self.gate_cells = gate_cells
        self.gate = nn.Linear(channels * gate_cells**2, count)
        made = [_expert(channels, 2 * width) for _ in range(count)] if experts is None else experts
        self.experts = nn.ModuleList(made)
        self.feature_dim = 8 * width if feature_dim is None else feature_dim
        # last, so that whoever looks for the classifier finds it
        self.head = nn.Linear(self.feature_dim, num_classes)

    @property
    def num_experts(self) -> int:
        """Number of experts ``E``."""
        return len(self.experts)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the class scores of the chosen experts, shape ``(N, C)``."""
        return self.outputs(inputs).logits

    def outputs(self, inputs: Tensor) -> ExpertOutputs:
        """Return class scores, features, and what the gate thinks of each expert."""
        stem = self.stem(inputs)
        probabilities = self.gate(self._gate_inputs(stem)).softmax(-1)
        best = probabilities.topk(2).indices
        chosen = best[:, 0]
        if self.training or torch.compiler.is_compiling():
            every = torch.stack([expert(stem) for expert in self.experts], 1)
            picked = torch.zeros_like(probabilities).scatter(1, chosen.unsqueeze(1), 1.0)
            # as a number the one-hot choice, in the gradient the probabilities
            gates = picked + (probabilities - probabilities.detach())
            features = (gates.unsqueeze(2) * every).sum(1)
        else:
            features = self._features(stem, chosen)
        return ExpertOutputs(self.head(features), features, probabilities, chosen, best[:, 1], stem)

    def second(self, outputs: ExpertOutputs, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ask the runner-up about some rows of a batch, without running the stem again.

        Args:
            outputs: What :meth:`outputs` returned for the batch.
            rows: Which, int64 ``(M,)`` or bool ``(N,)``; all by default.

        Returns:
            Class scores ``(M, C)`` and features ``(M, D)``, in the order of ``rows``.
        """
        stem, experts = outputs.stem, outputs.runner_up
        if rows is not None:
            stem, experts = stem[rows], experts[rows]
        features = self._features(stem, experts)
        return self.head(features), features

    def _gate_inputs(self, stem: Tensor) -> Tensor:
        if stem.ndim == 4:
            return F.adaptive_avg_pool2d(stem, self.gate_cells).flatten(1)
        if stem.ndim == 2 and self.gate_cells == 1:
            return stem
        raise ConfigurationError(
            f"gate_cells={self.gate_cells} does not go with a stem of output {tuple(stem.shape)}; give (N, S, H, W), "
            "or (N, S) and gate_cells=1."
        )

    def _features(self, stem: Tensor, experts: Tensor) -> Tensor:
        """Run each expert on its own rows; put the features back in the order of the rows."""
        order, found = [], []
        for number, expert in enumerate(self.experts):
            rows = (experts == number).nonzero().squeeze(1)
            if len(rows):
                order.append(rows)
                # a batch of one expert alone need not be copied
                found.append(expert(stem if len(rows) == len(stem) else stem.index_select(0, rows)))
        if not found:
            return stem.new_zeros(0, self.feature_dim)
        if len(found) == 1:
            return found[0]
        return torch.cat(found).index_select(0, torch.cat(order).argsort())


class ExpertsRouter(GainRouter):
    """Predict whether the chosen expert, the runner-up and the global model are right.

    ``choose`` picks among the three by what they cost; as a query score it has what the global model gains over the
    chosen expert.

    Args:
        num_classes: Classes ``C``, 2 or more.
        feature_dim: Size ``D`` of the features; 0 to look at the logits alone.
        hidden: Hidden units.
        dropout: Probability of dropping an input of the hidden layer in training.
        top_k: How many of the largest probabilities are compared.
        skip: Whether the chosen expert's log-odds are added to its output.

    Example:
        >>> router = ExpertsRouter(num_classes=3).eval()
        >>> router.probabilities(torch.zeros(2, 3)).shape, router(torch.zeros(2, 3)).shape
        (torch.Size([2, 3]), torch.Size([2]))
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 0,
        *,
        hidden: int = 32,
        dropout: float = 0.2,
        top_k: int = 10,
        skip: bool = True,
    ) -> None:
        super().__init__(num_classes, feature_dim, actions=3, hidden=hidden, dropout=dropout, top_k=top_k, skip=skip)

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return by how much the global model is likelier right than the chosen expert, shape ``(N,)``."""
        right = self.probabilities(logits, features)
        return right[:, -1] - right[:, 0]

    def query_logit(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the difference of the log-odds, shape ``(N,)``: 0 where the query score is 0."""
        right = self.correct_logits(logits, features)
        return right[:, -1] - right[:, 0]


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _expert(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_convolution(inputs, outputs), nn.AdaptiveAvgPool2d(2), nn.Flatten())
