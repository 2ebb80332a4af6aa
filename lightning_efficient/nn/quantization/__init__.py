"""Networks in 8 bits: weights alone, after training with calibration data, or while they train."""

from __future__ import annotations

from lightning_efficient.nn.quantization.aware import (
    AwareNetwork,
    convert_aware,
    prepare_aware,
    set_fake_quantization,
    set_observers,
)
from lightning_efficient.nn.quantization.compiled import compile_quantized
from lightning_efficient.nn.quantization.files import load_quantized, save_quantized, size_on_disk
from lightning_efficient.nn.quantization.result import SCHEMES, Quantized
from lightning_efficient.nn.quantization.static import quantize_static
from lightning_efficient.nn.quantization.weight_only import quantize_weights

__all__ = [
    "SCHEMES",
    "AwareNetwork",
    "Quantized",
    "compile_quantized",
    "convert_aware",
    "load_quantized",
    "prepare_aware",
    "quantize_static",
    "quantize_weights",
    "save_quantized",
    "set_fake_quantization",
    "set_observers",
    "size_on_disk",
]
