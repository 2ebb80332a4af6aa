from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery import carry_out, interpolate, is_residual, replace, stage

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small(**options: Any) -> Any:
    return timm.create_model("mobilenetv3_small_050", **options).eval()


class Half(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        low = self.body(nn.functional.avg_pool2d(x, 2))
        return nn.functional.interpolate(low, x.shape[-2:])


def half(name: str, block: nn.Module) -> nn.Module:
    return Half(block)


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
@pytest.mark.parametrize("copy_blocks", [True, False])
def test_a_hook_on_a_block_moves_to_what_takes_its_place(kind: str, copy_blocks: bool) -> None:
    model, shapes = small(), []

    def hook(module: nn.Module, inputs: Any, *output: Any) -> None:
        shapes.append((type(module).__name__, tuple((output or inputs[0:1])[0].shape[-2:])))

    handle = getattr(model.blocks[1][1], f"register_{kind}_hook")(hook)
    with pytest.warns(UserWarning, match=r"hooks on blocks\.1\.1 were moved to the Half in its place"):
        result = replace(model, is_residual & stage(1), half, copy_blocks=copy_blocks)
    model(IMAGES)
    assert shapes == [("Half", (8, 8))]
    result.undo()
    model(IMAGES)
    assert shapes[1:] == [("InvertedResidual", (8, 8))]
    with pytest.warns(UserWarning, match="were moved"):
        replace(model, is_residual & stage(1), half, copy_blocks=copy_blocks)
    handle.remove()
    model(IMAGES)
    assert len(shapes) == 2


@pytest.mark.parametrize("operation", ["replace", "delete", "merge"])
def test_a_hook_inside_a_block_is_in_the_way(operation: str) -> None:
    model = small()
    model.blocks[2][1].conv_dw.register_forward_hook(lambda module, inputs, output: None)
    names = ["blocks.2.1", "blocks.2.2"]
    step: dict[str, Any] = {"op": operation, "names": names, "make": lambda name, blocks: nn.Sequential(*blocks)}
    if operation == "replace":
        step = {"op": operation, "name": names[0], "make": half}
    if operation == "delete":
        del step["make"]
    with pytest.raises(ConfigurationError, match=r"blocks\.2\.1\.conv_dw carries a hook"):
        carry_out(model, [step])


def test_a_deleted_block_may_carry_no_hook_itself() -> None:
    model = small()
    model.blocks[2][1].register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ConfigurationError, match=r"blocks\.2\.1 carries a hook.*once blocks\.2\.1 is deleted"):
        carry_out(model, [{"op": "delete", "names": ["blocks.2.1"]}])


def test_taps_inside_blocks_are_refused() -> None:
    model = timm.create_model("mobilenetv3_large_100", features_only=True, feature_location="expansion")
    with pytest.raises(ConfigurationError, match=r"conv_pw carries a hook \(a user's, or features_only's"):
        interpolate(model)


def test_spectral_normalisation_is_no_hook_of_a_user() -> None:
    model = nn.Sequential(nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(4, 4))))
    assert carry_out(model, [{"op": "replace", "name": "0", "make": lambda name, block: nn.Sequential(block)}]).names


def test_where_the_block_stays_its_hooks_stay() -> None:
    model, calls = small(), []
    model.blocks[1][1].register_forward_hook(lambda module, inputs, output: calls.append(1))
    with pytest.raises(ConfigurationError, match="make returned None"):
        replace(model, is_residual & stage(1), lambda name, block: None)
    model(IMAGES)
    assert calls == [1]
