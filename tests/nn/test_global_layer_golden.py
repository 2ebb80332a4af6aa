"""The Global layer against arrays that its authors' code printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.models._efficientnet_blocks as mobile
import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.global_layer import GlobalLayer

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "blocks.npz")
META: dict[str, dict[str, Any]] = json.loads(bytes(GOLDEN["meta_json"]))
CASES = sorted({name.split("/")[0] for name in GOLDEN.files} - {"meta_json"})
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def of(case: str, what: str) -> dict[str, Tensor]:
    start = f"{case}/{what}/"
    return {name.removeprefix(start): torch.tensor(GOLDEN[name]) for name in GOLDEN.files if name.startswith(start)}


def build(case: str) -> GlobalLayer:
    """Turn the options of the released class into ours."""
    meta, args = META[case], META[case]["args"]
    init: nn.Module | None = None
    channels = meta["C"]
    if args.get("cell_type") == "BasicBlock":
        init = BasicBlock(channels, channels)
    elif args.get("cell_type") == "InvertedResidualCell":
        init = mobile.InvertedResidual(channels, args["out_chs"], stride=args["stride"], exp_ratio=args["exp_ratio"])
        channels = args["out_chs"]
    silu = args.get("use_silu") or args.get("act_layer") == "SiLU"
    return GlobalLayer(
        channels,
        init,
        steps=args["K"],
        dt=args.get("dt", 0.2),
        spacing=(args.get("dx", 1), args.get("dy", 1)),
        diffusion=(args.get("cDx", 1.0), args.get("cDy", 1.0)) if args.get("constant_Dxy") else "learned",
        velocity=args.get("custom_uv", "depthwise"),
        tied=args.get("use_dot", False),
        kernel_size=args.get("dw_kernel_size", 3),
        coeff_eps="channels" if args.get("use_diff_eps", True) else 1e-5,
        act="silu" if silu else nn.ReLU,
        source=not args.get("no_f", False),
        residual=args.get("use_res", False),
        velocity_from="source" if args.get("use_f_for_g") else "initial",
        previous="initial" if args.get("init_h0_h") else "source",
        bias=args.get("old_style", False),
    )


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float, scale: Tensor | None = None) -> None:
    most = (theirs if scale is None else scale).abs().max().item()
    assert (ours.detach().double() - theirs).abs().max().item() <= tolerance * most


def test_all_settings_of_the_file_are_here() -> None:
    assert len(CASES) >= 9
    assert {key for case in CASES for key in META[case]["args"]} >= {"use_dot", "no_f", "custom_uv", "old_style", "cDx"}


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_epsilons_are_the_released_ones(case: str) -> None:
    layer = build(case)
    assert sum(each.numel() for each in layer.parameters()) == META[case]["nparams"]
    modules, keys = dict(layer.named_modules()), layer.released_keys()
    eps = {theirs.rpartition(".")[0]: modules[ours.rpartition(".")[0]] for ours, theirs in keys.items()}
    assert {name: each.eps for name, each in eps.items() if isinstance(each, nn.BatchNorm2d)} == META[case]["eps"]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_values_gradients_and_statistics_are_the_authors(case: str, mode: str, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    layer = build(case).to(dtype).train(mode == "train")
    layer.load_released(of(case, "w"))
    states: list[Tensor] = []
    layer.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    inputs = torch.tensor(GOLDEN[f"{case}/x"]).to(dtype).requires_grad_()
    outputs = layer(inputs)
    outputs.backward(torch.tensor(GOLDEN[f"{case}/gy"]).to(dtype))

    assert outputs.dtype == dtype
    assert_close(states[0], torch.tensor(GOLDEN[f"{case}/HK_{mode}"]), tolerance)
    assert_close(outputs, torch.tensor(GOLDEN[f"{case}/y_{mode}"]), tolerance)
    assert inputs.grad is not None
    assert_close(inputs.grad, torch.tensor(GOLDEN[f"{case}/gx_{mode}"]), tolerance)
    keys, theirs = layer.released_keys(), of(case, f"gw_{mode}")
    gradients = {keys[name]: each.grad for name, each in layer.named_parameters()}
    assert set(gradients) == set(theirs)
    largest = torch.cat([each.flatten() for each in theirs.values()])
    for name, gradient in gradients.items():
        assert gradient is not None
        # a bias before BatchNorm has no gradient while training: what is left is rounding
        vanishes = theirs[name].abs().max() < 1e-12
        assert_close(gradient, theirs[name], tolerance, largest if vanishes else None)
    if mode == "train":
        buffers = {keys[name]: each for name, each in layer.named_buffers()}
        for name, value in of(case, "buf_after_train").items():
            assert_close(buffers[name], value.double(), tolerance)


@pytest.mark.parametrize(
    ("option", "value"),
    [("coeff_eps", 1e-5), ("source", False), ("dt", 0.1), ("spacing", (1, 2)), ("diffusion", 0.3), ("steps", 5)],
)
def test_the_comparison_notices_another_setting(option: str, value: Any) -> None:
    case = "default_k4"
    layer = GlobalLayer(3, **{"steps": 4, option: value}).double().eval()
    names = layer.released_keys()
    layer.load_released({name: each for name, each in of(case, "w").items() if name in names.values()})
    off = layer(torch.tensor(GOLDEN[f"{case}/x"])) - torch.tensor(GOLDEN[f"{case}/y_eval"])
    assert off.abs().max() > 1e-3


def test_a_released_state_must_fit() -> None:
    state = of("default_k1", "w")
    with pytest.raises(ConfigurationError, match=r"state_dict lacks 'convg1.weight' and 0 more. Did you mean"):
        GlobalLayer(3).load_released({name: each for name, each in state.items() if name != "convg1.weight"})
    with pytest.raises(ConfigurationError, match=r"has 'bnDx.bias' and 11 more that this layer lacks; build it with"):
        GlobalLayer(3, diffusion=1.0).load_released(state)
