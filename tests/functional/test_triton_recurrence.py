"""The Triton kernel in Triton's interpreter, in a process of its own because the switch is read at import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from lightning_efficient.nn import TimeAdaptiveRNN

PROBE = """
import torch
from lightning_efficient.functional import _triton_recurrence
from lightning_efficient.nn import IncrementalRNN, TimeAdaptiveRNN

calls, launch = [], _triton_recurrence.forward
_triton_recurrence.forward = lambda *args: (calls.append(1), launch(*args))
for kind in (TimeAdaptiveRNN, IncrementalRNN):
    for activation in ("relu", "tanh", "sigmoid"):
        torch.manual_seed(0)
        options = {"activation": activation, "max_length": 3, "step_size": 0.1}
        plain = kind(2, 16, **options)
        kernel = kind(2, 16, implementation="triton", **options)
        kernel.load_state_dict(plain.state_dict())
        x, hx, lengths = torch.randn(4, 18, 2), torch.randn(1, 18, 16), [4] * 10 + [2] * 8
        results = [rnn(x, hx, lengths=lengths) for rnn in (plain, kernel)]
        for output, state in results:
            (output.square().sum() + state.sum()).backward()
        gradients = [[parameter.grad for parameter in rnn.parameters()] for rnn in (plain, kernel)]
        for one, other in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
assert len(calls) == 12, calls  # two segments each
print("equal")
"""


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_efficient.functional import _triton_recurrence

types = dict.fromkeys(("drive", "output", "state", "weight", "sizes"), "*fp32") | {"pull_factor": "fp32"}
types |= dict.fromkeys(("steps", "rows", "drive_step", "output_step"), "i32")
fixed = {"HIDDEN": 128, "GATED": True, "ACTIVATION": 1, "BLOCK": 16}
source = ASTSource(_triton_recurrence._kernel(), types | dict.fromkeys(fixed, "constexpr"), fixed)
print(compile(source, target=GPUTarget("cuda", 90, 32), options={"num_stages": 1}).metadata.shared)
"""
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (torch for the CPU)"
)


@pytest.mark.study
@pytest.mark.slow
@needs_triton
def test_kernel_compiles_and_takes_the_shared_memory_that_is_asked_for(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4 * 128 * (128 + 16)


@pytest.mark.slow
@needs_triton
def test_kernel_equals_the_loop_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes tensors of the CPU")
def test_on_the_cpu_the_kernel_is_not_used():
    torch.manual_seed(0)
    rnn, x = TimeAdaptiveRNN(2, 16, implementation="triton"), torch.randn(4, 3, 2)
    output = rnn(x)[0]
    rnn.implementation = "fused"
    assert torch.equal(output, rnn(x)[0])
