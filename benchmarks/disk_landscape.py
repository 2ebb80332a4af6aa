"""Where a student that is too simple for its task can get stuck, with plain distillation and with help.

The task: tell whether a point of [0, 9] lies in [2, 3] or [5, 7]. The teacher knows both intervals; the student has
one, [a, a + w], with soft ends: the logit of "inside" is ``8 (σ(β (x - a)) σ(β (a + w - x)) - ½)``. The best it can do
is to take [5, 7] and give up [2, 3]; covering both, or [2, 3] alone, is worse. The points of [2, 3], of [5, 7], between
them and elsewhere count 0.13, 0.33, 0.17 and 0.37, so that with hard ends these three choices are right on 87, 83 and
67 % of the points.

The losses are the exact averages over the points, at temperature 1, on a grid of ``a`` and ``w``: KD, and the
scaffolded loss of DiSK where a guide gives the help g on [2, 3] and none elsewhere. Counted are the minima inside the
grid, lower than all eight neighbours, for several steepnesses β of the ends. Nothing is trained. Writes
``results/disk_landscape.json`` and ``docs/images/disk_landscape.png``, the surfaces at β = 1.75 with and without help.

Published (Kag, Acar, Gangrade, Saligrama, 2023): KD has three minima here, and DiSK only the best one.

Run: ``python benchmarks/disk_landscape.py [--steepness 1.5 1.75 2 3] [--help-given 0 0.2 0.5 1]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import save, table
from torch import Tensor

from lightning_efficient.functional.disk import scaffolded_nll, support_mask, teacher_mass
from lightning_efficient.functional.distillation import distillation_kl

STARTS = torch.arange(35, dtype=torch.float64) / 4
WIDTHS = torch.arange(1, 37, dtype=torch.float64) / 4
SHARPNESS, CERTAINTY = 8.0, 40.0
DRAWN, FULL_HELP = 1.75, 1.0
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "disk_landscape.png"


class Points(NamedTuple):
    """Points of [0, 9], their classes, where help is given, and what each counts in an average."""

    position: Tensor
    inside: Tensor
    helped: Tensor
    share: Tensor


class Minimum(NamedTuple):
    """A student that no neighbour is better than, its loss in nats, and on how many of the points it is right."""

    start: float
    width: float
    loss: float
    accuracy: float


def points(per_unit: int = 20) -> Points:
    position = (torch.arange(9 * per_unit, dtype=torch.float64) + 0.5) / per_unit
    first, second = (position > 2) & (position < 3), (position > 5) & (position < 7)
    between = (position > 3) & (position < 5)
    region = 1 * first + 2 * second + 3 * between
    share = torch.tensor([0.37, 0.13, 0.33, 0.17], dtype=torch.float64) / region.bincount()
    return Points(position, first | second, first, share[region])


def student_logits(steepness: float, data: Points) -> Tensor:
    """Return the logits of all students of the grid at all points, shape ``(starts, widths, points, 2)``."""
    start, width, position = STARTS[:, None, None], WIDTHS[None, :, None], data.position
    ends = torch.sigmoid(steepness * (position - start)) * torch.sigmoid(steepness * (start + width - position))
    logit = SHARPNESS * (ends - 0.5)
    return torch.stack([torch.zeros_like(logit), logit], dim=-1)


def surfaces(steepness: float, help_given: Sequence[float], data: Points) -> dict[str, Tensor]:
    """Return the loss of every student, shape ``(starts, widths)``, for KD and for each amount of help."""
    logits = student_logits(steepness, data)
    shape, rows = logits.shape[:3], logits.flatten(0, 2)
    label = data.inside.long()
    teacher = (CERTAINTY * torch.nn.functional.one_hot(label).double()).expand(*shape, 2).flatten(0, 2)

    def average(losses: Tensor) -> Tensor:
        return (losses.view(shape) * data.share).sum(2)

    support = support_mask(teacher, label.expand(shape).flatten(), top_k=2)
    mass = teacher_mass(teacher, support, temperature=1.0)
    found = {"KD": average(distillation_kl(rows, teacher, student_temperature=1.0))}
    for amount in help_given:
        guide = (amount * data.helped).expand(shape).flatten()
        found[name_of(amount)] = average(scaffolded_nll(rows, mass, support, guide, temperature=1.0))
    return found


def name_of(amount: float) -> str:
    return f"g = {amount:g}"


def minima(surface: Tensor, accuracy: Tensor) -> list[Minimum]:
    """Return the points inside the grid that are lower than their eight neighbours."""
    windows = surface.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)
    neighbours = torch.cat([windows[..., :4], windows[..., 5:]], dim=2)
    places = (surface[1:-1, 1:-1] < neighbours.amin(2)).nonzero() + 1
    return [
        Minimum(STARTS[i].item(), WIDTHS[j].item(), surface[i, j].item(), accuracy[i, j].item())
        for i, j in places.tolist()
    ]


def accuracies(steepness: float, data: Points) -> Tensor:
    """Return on how many of the points each student is right, shape ``(starts, widths)``."""
    right = (student_logits(steepness, data).diff(dim=-1).squeeze(-1) > 0) == data.inside
    return (right * data.share).sum(2)


def study(steepnesses: Sequence[float], help_given: Sequence[float]) -> dict[str, dict[str, list[Minimum]]]:
    data = points()
    return {
        f"{steepness:g}": {
            name: minima(surface, accuracies(steepness, data))
            for name, surface in surfaces(steepness, help_given, data).items()
        }
        for steepness in steepnesses
    }


def report(found: Mapping[str, Mapping[str, Sequence[Minimum]]]) -> None:
    names = list(next(iter(found.values())))
    rows = [[f"β = {steepness}", *(len(each[name]) for name in names)] for steepness, each in found.items()]
    table("number of minima", ["", *names], rows)


def draw(target: Path) -> None:
    from matplotlib.figure import Figure

    sys.path.append(str(PICTURE.parents[1]))
    from make_pictures import small

    data = points()
    found = surfaces(DRAWN, [FULL_HELP], data)
    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.8}
    titles = ("KD", "DiSK, full help on [2, 3]")
    for axes, surface, title in zip(panels, found.values(), titles, strict=True):
        low, high = surface.min().item(), surface.max().item()
        levels = [low + (high - low) * (step / 12) ** 2 for step in range(13)]
        filled = axes.contourf(STARTS, WIDTHS, surface.T, levels, cmap="viridis_r")
        axes.contour(STARTS, WIDTHS, surface.T, levels, colors="white", linewidths=0.5)
        for one in minima(surface, accuracies(DRAWN, data)):
            axes.plot(one.start, one.width, "o", color="C3", mec="white", ms=8)
            label = f"{one.accuracy:.0%} right"
            axes.annotate(label, (one.start, one.width), (8, 5), textcoords="offset points", bbox=box)
        axes.set(xlabel="start a of the student's interval", title=title)
        figure.colorbar(filled, ax=axes, label="loss, nats", format="%.2f")
    panels[0].set_ylabel("width w")
    figure.savefig(target, dpi=110)
    small(target, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steepness", type=float, nargs="+", default=[1.5, 1.75, 2.0, 3.0])
    parser.add_argument("--help-given", type=float, nargs="+", default=[0.0, 0.2, 0.5, 1.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = study(arguments.steepness, arguments.help_given)
    told_apart = {
        steepness: {name: [one._asdict() for one in places] for name, places in each.items()}
        for steepness, each in found.items()
    }
    record: dict[str, Any] = {"grid": {"starts": STARTS.tolist(), "widths": WIDTHS.tolist()}, "minima": told_apart}
    save("disk_landscape", record)
    report(found)
    draw(PICTURE)


if __name__ == "__main__":
    main()
