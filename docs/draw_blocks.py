"""Draw what the efficient blocks do, with the blocks themselves on a real digit: ``python docs/draw_blocks.py``.

Needs nothing but the project and takes seconds. Every map in the pictures was computed by the layers; only boxes and
arrows are drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from make_pictures import small
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_efficient.functional.advection_diffusion import advection_diffusion
from lightning_efficient.nn import GlobalLayer, SpatialInterpolation
from lightning_efficient.nn.timm_blocks import facts_of, run_chain

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    for name, draw in {"global_layer": global_layer, "spatial_interpolation": spatial_interpolation}.items():
        figure = draw()
        path = IMAGES / f"{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(figure)
        small(path, path)


def digit(size: int) -> Tensor:
    """Return a handwritten three on a map of ``size`` pixels, shape (1, 1, size, size)."""
    image = torch.tensor(load_digits().images[3], dtype=torch.float32)[None, None] / 16
    return nn.functional.interpolate(image, size=(size, size), mode="bilinear")


def global_layer() -> Any:
    """Draw the evolution of a digit under each part of the equation, and how far one pixel looks."""
    steps, size = (0, 1, 4, 10, 40), 32
    start, rest = digit(size), torch.zeros(1, 1, size, size)
    flow = torch.full_like(rest, 0.8)
    parts = {
        "diffusion\n(D = 1)": ((rest, rest), (1.0, 1.0)),
        "advection\n(u = v = 0.8)": ((flow, flow), (0.0, 0.0)),
        "both": ((flow, flow), (1.0, 1.0)),
    }
    figure, axes = plt.subplots(4, len(steps), figsize=(8.6, 7.4))
    for number, (row, (name, (velocity, diffusion))) in enumerate(zip(axes, parts.items(), strict=False)):
        for axis, count in zip(row, steps, strict=True):
            state = advection_diffusion(start, velocity, diffusion, steps=count, dt=0.2) if count else start
            show(axis, state, f"K = {count}" if number == 0 else "")
        row[0].set_ylabel(name)
    axes[3, 0].axis("off")
    axes[3, 0].text(
        1.0,
        0.5,
        "input pixels that\nreach one output\npixel (k = 3)",
        ha="right",
        va="center",
        transform=axes[3, 0].transAxes,
    )
    for axis, count in zip(axes[3, 1:], steps[1:], strict=True):
        seen = reach(count, size)
        show(axis, seen.float()[None, None], "")
        axis.set_xlabel(f"K = {count}: {int(seen.sum())} of {size * size}", fontsize=8)
    figure.suptitle("GlobalLayer: K explicit steps of an advection-diffusion equation, channel by channel", fontsize=11)
    return figure


def reach(steps: int, size: int) -> Tensor:
    """Return which input pixels have a gradient at the centre of the output, shape (size, size), bool."""
    torch.manual_seed(0)
    layer = GlobalLayer(1, steps=steps).double().eval()
    inputs = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    for norm in (each for each in layer.modules() if isinstance(each, nn.BatchNorm2d)):
        # small coefficients above zero: every ReLU is open, so that no path is closed by chance
        nn.init.constant_(norm.weight, 0.05)
        nn.init.constant_(norm.bias, 0.5)
    nn.init.constant_(layer.norm.bias, 10.0)
    layer(inputs)[0, 0, size // 2, size // 2].backward()
    assert inputs.grad is not None
    return inputs.grad[0, 0] != 0


def spatial_interpolation() -> Any:
    """Draw the two paths of an interpolated block with the maps that go through them."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_large_100").eval()
    block: Any = network.blocks[1][1]
    layer = SpatialInterpolation(block).eval()
    image = digit(64).repeat(1, 3, 1, 1)
    with torch.no_grad():
        inputs = network.blocks[1][0](network.blocks[0](network.bn1(network.conv_stem(image))))
        low = nn.functional.avg_pool2d(inputs, 2)
        facts = facts_of(block)
        assert facts is not None
        heavy = run_chain(block, facts.chain, low)
        back = nn.functional.interpolate(heavy, size=inputs.shape[2:], mode="bilinear", align_corners=False)
        cheap = layer.cheap_norm(layer.cheap_conv(inputs))
        output = layer(inputs)
        torch.testing.assert_close(output, inputs + back + cheap)
    figure = plt.figure(figsize=(9.2, 4.4))
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set(xlim=(0, 92), ylim=(0, 44))
    sheet.axis("off")
    side, channel = inputs.shape[-1], int(inputs[0].std((1, 2)).argmax())
    places = {
        "X": (4, 15, 13, inputs, f"input X, {side} x {side}"),
        "Xs": (25, 29, 7, low, f"S: mean of 2 x 2,\n{side // 2} x {side // 2}"),
        "Z": (49, 29, 7, heavy, f"Z, {side // 2} x {side // 2}"),
        "L": (63, 26, 13, back, f"L = U(Z), {side} x {side}"),
        "G": (41, 2, 13, cheap, "G: depthwise 3 x 3 + BatchNorm"),
        "Y": (79, 12, 13, output, "Y = X + L + G"),
    }
    for left, bottom, width, maps, title in places.values():
        axis = figure.add_axes((left / 92, bottom / 44, width / 92, width / 44))
        show(axis, maps[:, channel : channel + 1], "")
        sheet.text(left + width / 2, bottom + width + 0.6, title, ha="center", va="bottom", fontsize=8)
    layers = "the block's own layers:\nexpand, depthwise,\nproject\n(a quarter of the pixels)"
    frame = {"boxstyle": "round,pad=0.5", "fc": "#dfe7f5", "ec": "#3f51b5"}
    sheet.text(40.5, 32.5, layers, ha="center", va="center", fontsize=7.5, bbox=frame)
    arrows = (
        ((17, 24), (25, 31)),
        ((32, 32.5), (34.2, 32.5)),
        ((46.8, 32.5), (49, 32.5)),
        ((56, 32.5), (63, 32.5)),
        ((17, 18), (41, 9)),
        ((76, 30), (81, 27)),
        ((54, 9), (79, 15)),
        ((17, 21), (79, 19.5)),
    )
    for start, end in arrows:
        sheet.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.35"})
    sheet.text(48, 21.2, "shortcut", fontsize=8, color="0.35")
    return figure


def show(axis: Any, maps: Tensor, title: str) -> None:
    """Draw the first map of a batch."""
    image: np.ndarray[Any, Any] = maps[0, 0].detach().numpy()
    low, high = (0, 1) if set(np.unique(image)) <= {0, 1} else np.quantile(image, [0.01, 0.99])
    axis.imshow(image, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    if title:
        axis.set_title(title, fontsize=9)


if __name__ == "__main__":
    main()
