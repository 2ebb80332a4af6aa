"""Integer kernels: what makes a quantised network fast."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError

_CUDA_LOGGER = "torch.utils.cpp_extension"


def compile_quantized(module: nn.Module) -> Callable[[Tensor], Any]:
    """Compile a quantised network to the integer kernels of an x86 CPU.

    The first call compiles, which takes from seconds to a minute; so does the first one with another batch size.
    A network of ``quantize_weights`` is fused too, but stays floating point and is rarely faster than its original.

    Args:
        module: ``Quantized.module``, or any network in evaluation mode. Its weights become constants of the code, so
            what is changed in it later has no effect.

    Returns:
        A callable on batches; it computes in inference mode.

    Raises:
        ConfigurationError: there is no C++ compiler, or, at a call, the network does not compile.
    """
    import torch._inductor.config as inductor

    named = inductor.cpp.cxx
    candidates = [each for each in (named if isinstance(named, tuple | list) else (named,)) if each]
    if not any(shutil.which(str(each)) for each in candidates):
        raise ConfigurationError(f"compile_quantized needs a C++ compiler, and there is none: CXX or {candidates}.")
    warnings.filterwarnings("ignore", "To copy construct from a tensor", module=r"torch\._inductor\.mkldnn_lowerings")
    logging.getLogger(_CUDA_LOGGER).addFilter(_about_cuda)
    # one code per batch size: inductor may fail at a strided convolution in 8 bits whose batch size is open
    compiled = torch.compile(module, dynamic=False)
    seen: set[tuple[Any, ...]] = set()

    def run(inputs: Tensor) -> Any:
        # what makes torch compile again; only then freezing must be on, and switching it takes 40 us
        key = inputs.shape, inputs.stride(), inputs.dtype, inputs.is_inference(), torch.get_num_threads()
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            if key in seen:
                return compiled(inputs)
            try:
                with inductor.patch(freezing=True):
                    outputs = compiled(inputs)
            except torch._dynamo.exc.TorchDynamoException as error:  # its subclasses hold what inductor raises
                reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())
                raise ConfigurationError(f"the quantised network does not compile: {reason}") from error
            seen.add(key)
            return outputs

    return run


def _about_cuda(record: logging.LogRecord) -> bool:
    """Drop the note that there is no CUDA, which is of no use where code for a CPU is compiled."""
    return "No CUDA runtime" not in record.getMessage()
