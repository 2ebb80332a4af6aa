import shutil

import pytest
import torch
import torch._inductor.config as inductor
from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization import compile_quantized, quantize_static


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_integers_answer_as_the_simulation_and_settings_are_as_before():
    network, inputs = nn.Sequential(nn.Linear(16, 16), nn.ReLU()), torch.randn(4, 16)
    quantized = quantize_static(network, [inputs])
    run = compile_quantized(quantized.module)
    for _ in range(2):
        assert torch.allclose(run(inputs), quantized.module(inputs), atol=1e-4)
    assert not inductor.freezing


def test_a_missing_compiler_is_named():
    missing = inductor.patch({"cpp.cxx": (None, "no-such-compiler")})
    with missing, pytest.raises(ConfigurationError, match=r"needs a C\+\+ compiler.*no-such-compiler"):
        compile_quantized(nn.Linear(1, 1))
