"""Which processor a time was taken on."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")


def processor_of(device: torch.device) -> str:
    """Return the name of the processor behind a device; of a CPU its marketing name where the system tells it.

    Example:
        >>> bool(processor_of(torch.device("cpu")))
        True
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


@cache
def _cpu() -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
