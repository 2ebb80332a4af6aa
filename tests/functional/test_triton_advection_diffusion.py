"""The Triton kernels in Triton's interpreter, in a process of its own because the switch is read at import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_efficient.functional import _triton_advection_diffusion as kernels

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCHEME = """
import itertools
import torch
from torch import Tensor
from lightning_efficient.functional import _triton_advection_diffusion as kernels

def formula(initial, u, v, diffusion_x, diffusion_y, source, previous, steps, dt, spacing):
    # level by level as it is published, with nothing hoisted, in float64
    dx, dy = spacing
    bx, by, ax, ay = diffusion_x * dt / dx**2, diffusion_y * dt / dy**2, u * dt / dx, v * dt / dy
    du, dv = (u.roll(dx, 2) - u.roll(-dx, 2)) / (2 * dx), (v.roll(dy, 3) - v.roll(-dy, 3)) / (2 * dy)
    for _ in range(steps):
        up, down, left, right = (initial.roll(by_, dim) for by_, dim in ((dx, 2), (-dx, 2), (dy, 3), (-dy, 3)))
        total = (1 - 2 * bx - 2 * by) * previous - 2 * dt * (du + dv) * initial
        total = total + (2 * bx - ax) * up + (2 * bx + ax) * down + (2 * by - ay) * left + (2 * by + ay) * right
        total = total if source is None else total + 2 * dt * source
        previous, initial = initial, total / (1 + 2 * bx + 2 * by)
    return initial

def inputs(shape, diffusion, source, seed=0):
    torch.manual_seed(seed)
    learned = [torch.rand(shape), torch.rand(shape)]
    chosen = {"learned": learned, "constant": [0.3, 1], "mixed": [learned[0], 0.5], "none": [0.0, 0.0]}[diffusion]
    initial, u, v, forcing, previous = torch.randn(5, *shape)
    return [initial, u, v, *chosen, forcing if source else None, previous]

def run(solve, values, dtype, *scheme):
    leaves = {id(value): value.detach().to(dtype).requires_grad_() for value in values if isinstance(value, Tensor)}
    values = [leaves.get(id(value), value) for value in values]
    output = solve(*values, *scheme)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    return output, torch.autograd.grad((output * weights).sum(), [x for x in values if isinstance(x, Tensor)])

def compare(values, *scheme):
    found, expected = run(kernels.solve, values, torch.float32, *scheme), run(formula, values, torch.float64, *scheme)
    assert found[0].dtype == torch.float32 and kernels.runs(values[0])
    for one, other in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * other.detach().abs().max().item())
"""

PARITY = """
for diffusion, steps in itertools.product(("learned", "constant"), (1, 2, 3, 4)):
    compare(inputs((1, 2, 4, 5), diffusion, True), steps, 0.2, (1, 1))
for diffusion in ("learned", "constant", "mixed", "none"):
    compare(inputs((1, 2, 4, 5), diffusion, False), 3, 0.2, (1, 1))
for shape, spacing, dt in (
    ((1, 2, 5, 7), (2, 1), 0.2),
    ((2, 1, 6, 3), (1, 2), 0.05),
    ((1, 2, 1, 1), (1, 1), 0.2),  # every neighbour is the cell itself
    ((1, 2, 1, 6), (2, 2), 1),
    ((1, 2, 7, 1), (1, 1), 0.2),
    ((1, 1, 2, 3), (5, 4), 0.2),  # further than the plane is wide
    ((1, 1, 33, 31), (1, 1), 0.2),
):
    for diffusion, steps in (("learned", 3), ("constant", 4)):
        compare(inputs(shape, diffusion, True), steps, dt, spacing)
"""

LAYOUTS = """
values = inputs((2, 3, 4, 5), "learned", True)
plain = run(kernels.solve, values, torch.float32, 3, 0.2, (1, 1))
strided = [value.to(memory_format=torch.channels_last) for value in values]
for one, other in zip(plain[1], run(kernels.solve, strided, torch.float32, 3, 0.2, (1, 1))[1], strict=True):
    assert torch.equal(one, other)

# one coefficient for each channel, and the forcing as the state before: gradients are summed
values[3], values[5] = torch.rand(1, 3, 1, 1), values[6]
compare(values, 2, 0.2, (1, 1))

# planes do not see each other
changed = [value.clone() for value in values]
for value in (*changed[:3], changed[6]):
    value[1, 2] = 7.0
before, after = (kernels.solve(*x, 3, 0.2, (1, 1)) for x in (values, changed))
same = torch.ones(2, 3, dtype=torch.bool)
same[1, 2] = False
assert torch.equal(before[same], after[same]) and not torch.equal(before, after)

# only what is asked for; half precision in the other maps; nothing to do
values = inputs((1, 2, 3, 3), "constant", False)
velocity = values[1].requires_grad_()
kernels.solve(*values, 2, 0.2, (1, 1)).sum().backward()
assert velocity.grad.abs().sum() > 0 and values[0].grad is None
halves = [value.detach().bfloat16() if isinstance(value, Tensor) else value for value in values[1:]]
wide = [value.float() if isinstance(value, Tensor) else value for value in halves]
assert torch.equal(*(kernels.solve(values[0], *rest, 2, 0.2, (1, 1)) for rest in (halves, wide)))
empty = inputs((0, 2, 3, 3), "learned", True)
assert run(kernels.solve, empty, torch.float32, 2, 0.2, (1, 1))[0].shape == (0, 2, 3, 3)

# once and not twice, and nothing kept but the inputs
values = inputs((1, 2, 3, 3), "learned", True)
values[0].requires_grad_()
kept = []
with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.data_ptr()), x)[1], lambda x: x):
    output = kernels.solve(*values, 2, 0.2, (1, 1))
assert sorted(kept) == sorted(value.data_ptr() for value in values)
slope = torch.autograd.grad(output.square().sum(), values[0], create_graph=True)[0]
try:
    slope.sum().backward()
except RuntimeError as error:
    assert "once_differentiable" in str(error), error
else:
    raise AssertionError("differentiated twice")
"""

# cells stand for threads: between two barriers, what one writes no other may read or write
HAZARDS = """
import numpy
import triton.language as tl
from triton.runtime import interpreter

class Watch:
    def __init__(self, barriers):
        self.barriers, self.program, self.conflicts = barriers, None, set()
        self.scopes = {"cells": {}, "programs": {}}  # address -> who wrote it, who read it

    def note(self, pointers, mask, writes):
        if self.program != builder.grid_idx[0]:
            self.program = builder.grid_idx[0]
            self.scopes["cells"].clear()
        for cell in mask.data.nonzero()[0].tolist():
            for scope, who in (("cells", cell), ("programs", self.program)):
                writers, readers = self.scopes[scope].setdefault(int(pointers.data[cell]), (set(), set()))
                if (writers | readers if writes else writers) - {who}:
                    self.conflicts.add(scope)
                (writers if writes else readers).add(who)

    def barrier(self):
        if self.barriers:
            self.scopes["cells"].clear()

builder = interpreter.interpreter_builder
load, store, execute = builder.create_masked_load, builder.create_masked_store, interpreter.GridExecutor.__call__

def watched(barriers, steps, diffusion):
    found = set()

    def launch(self, *args, **kwargs):
        watch = Watch(barriers)
        builder.create_masked_load = lambda p, m, *rest: (watch.note(p, m, False), load(p, m, *rest))[1]
        builder.create_masked_store = lambda p, v, m, *rest: (watch.note(p, m, True), store(p, v, m, *rest))[1]
        builder.create_barrier = watch.barrier
        execute(self, *args, **kwargs)
        found.update(watch.conflicts)

    interpreter.GridExecutor.__call__ = launch
    run(kernels.solve, inputs((1, 2, 4, 5), diffusion, True), torch.float32, steps, 0.2, (1, 1))
    return found

for steps, diffusion in itertools.product((1, 2, 3), ("learned", "constant")):
    assert watched(True, steps, diffusion) == set()
    assert watched(False, steps, diffusion) == {"cells"}
zero = interpreter.TensorHandle(numpy.zeros(1, numpy.int32), tl.int32)
builder.create_get_program_id = lambda axis: zero
assert watched(True, 2, "learned") == {"programs"}  # all of them work on the first plane
"""

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_efficient.functional import _triton_advection_diffusion as kernels

for kernel in (kernels._run_steps, kernels._run_back):
    for learned, block in ((True, 1), (True, 1024), (False, 1024), (True, 4096)):
        numbers = dict.fromkeys(("height", "width", "steps", "levels", "dx", "dy"), "i32") | {"dt": "fp32"}
        fixed = {"X_MAP": learned, "Y_MAP": learned, "SOURCE": learned, "BLOCK": block}
        if not learned:
            numbers |= {"diffusion_x": "fp32", "diffusion_y": "fp32"}
            fixed |= dict.fromkeys({"source", "to_source", "to_diffusion_x", "to_diffusion_y"} & {*kernel.arg_names})
        types = {name: "constexpr" if name in fixed else numbers.get(name, "*fp32") for name in kernel.arg_names}
        source = ASTSource(kernel, types, fixed)
        done = compile(source, target=GPUTarget("cuda", 90, 32), options=kernels._threads(block))
        code = done.asm["ptx"]
        ahead = "ld.global.nc" in code or "cp.async" in code
        print(kernel.__name__, code.count("bar.sync"), ahead, done.metadata.shared)
"""
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (torch for the CPU)"
)


def interpreted(script: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCHEME + script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@needs_triton
def test_values_and_gradients_are_those_of_the_formula_in_float64():
    interpreted(PARITY)


@pytest.mark.slow
@needs_triton
def test_layouts_shapes_and_saved_tensors_are_as_promised():
    interpreted(LAYOUTS)


@pytest.mark.study
@pytest.mark.slow
@needs_triton
def test_no_cell_touches_what_another_wrote_since_the_last_barrier():
    interpreted(HAZARDS)


@pytest.mark.study
@pytest.mark.slow
@needs_triton
def test_compiler_keeps_the_barriers_and_loads_nothing_ahead_of_them(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["_run_steps 1 False 0"] * 4 + ["_run_back 4 False 0"] * 4


@pytest.mark.study
@pytest.mark.slow
@needs_triton
def test_study_for_a_gpu_runs_as_a_toy_on_the_cpu():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, FOLDER / "global_layer_cuda.py", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for diffusion in ("learned", "constant"):
        assert f"[1, 2, 4, 5], 2 steps, {diffusion} diffusion" in " ".join(done.stdout.split())
    assert [done.stdout.count(name) for name in ("│ reference", "│ fused", "│ triton")] == [2, 2, 2]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes tensors of the CPU")
def test_tensors_of_the_cpu_are_refused():
    assert not kernels.runs(torch.zeros(1, 2, 3, 3))


@needs_triton
@pytest.mark.parametrize(
    ("size", "dtype", "taken"),
    [
        ((64, 64), torch.float32, True),
        ((65, 64), torch.float32, False),
        ((1, 4096), torch.float32, True),
        ((8, 8), torch.float64, False),
        ((8, 8), torch.bfloat16, False),
    ],
)
def test_planes_of_up_to_4096_cells_in_float32_are_taken(monkeypatch, size, dtype, taken):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.runs(torch.zeros(2, 3, *size, dtype=dtype)) is taken


def test_without_triton_nothing_is_taken(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "triton", None)
    assert not kernels.runs(torch.zeros(1, 2, 3, 3))
