"""Layers with parameters: recurrent cells that are called like ``torch.nn.GRU``."""

from __future__ import annotations

from lightning_efficient.nn.incremental_rnn import IncrementalRNN
from lightning_efficient.nn.time_adaptive_rnn import TimeAdaptiveRNN

__all__ = ["IncrementalRNN", "TimeAdaptiveRNN"]
