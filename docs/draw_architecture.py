"""Draw which folder of the package imports which, read from its sources: ``python docs/draw_architecture.py``.

Imports within functions count too, those for type checkers do not.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

PACKAGE = Path(__file__).resolve().parents[1] / "lightning_efficient"
PICTURE = Path(__file__).parent / "images" / "architecture.png"
LEVELS = (
    ("cli",),
    ("modules", "callbacks", "datamodules"),
    ("inference", "reporting", "profiling"),
    ("losses", "metrics", "nn"),
    ("functional",),
)
"""From the top; no folder imports one above it."""
SHIFTS = (-0.3, -0.55, 0.45, -0.35, 0.75)


def folders() -> list[str]:
    """Return the folders of the package, sorted."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def arrows() -> Counter[tuple[str, str]]:
    """Count the imports from one folder of the package into another; files of the root are left out."""
    counts: Counter[tuple[str, str]] = Counter()
    known = set(folders())
    for file in PACKAGE.rglob("*.py"):
        source = file.relative_to(PACKAGE).parts[0]
        if source not in known:
            continue
        for module in _imported(ast.parse(file.read_text(encoding="utf-8")), file):
            parts = module.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1 and parts[1] in known and parts[1] != source:
                counts[source, parts[1]] += 1
    return counts


def _imported(tree: ast.AST, file: Path) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == PACKAGE.name:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif node.module is not None:
                yield node.module
        else:
            yield from _imported(node, file)


def main() -> None:
    from make_pictures import small

    found = arrows()
    place = {
        # shifted, so that arrows past a box do not run through it
        folder: (10 * (number + 0.5) / len(row) + SHIFTS[level], 1.7 * (len(LEVELS) - 1 - level))
        for level, row in enumerate(LEVELS)
        for number, folder in enumerate(row)
    }
    sizes = {folder: len(list((PACKAGE / folder).rglob("*.py"))) for folder in folders()}
    most = max(found.values())
    figure, axes = plt.subplots(figsize=(10, 7))
    for number, ((source, target), count) in enumerate(sorted(found.items())):
        (x, y), (to_x, to_y) = place[source], place[target]
        color = f"C{folders().index(source) % 10}"
        beside = y == to_y
        start, end = ((x, y), (to_x, to_y)) if beside else ((x, y - 0.3), (to_x, to_y + 0.3))
        style = f"arc3,rad={0.35 if beside else 0.05 if abs(x - to_x) > 1 else 0.22}"
        axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=9, color=color, alpha=0.7, connectionstyle=style,
                linewidth=0.6 + 2.2 * count / most, zorder=1,
            )
        )  # fmt: skip
        share = 0.5 if beside else 0.22 + 0.07 * (number % 4)
        dip = 0.12 * abs(to_x - x) if beside else 0.0
        at = start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]) - dip
        under = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(*at, str(count), fontsize=7, color=color, ha="center", va="center", bbox=under, zorder=2)
    for folder, (x, y) in place.items():
        box = FancyBboxPatch(
            (x - 0.8, y - 0.28), 1.6, 0.56, boxstyle="round,pad=0.02", facecolor="white", edgecolor="#3949ab", zorder=3
        )
        axes.add_patch(box)
        axes.text(x, y, f"{folder}\n{sizes[folder]} files", fontsize=9, ha="center", va="center", zorder=4)
    axes.set_xlim(0, 10)
    axes.set_ylim(-0.5, 1.7 * (len(LEVELS) - 1) + 0.5)
    axes.axis("off")
    figure.savefig(PICTURE, dpi=105, bbox_inches="tight")
    plt.close(figure)
    small(PICTURE, PICTURE)


if __name__ == "__main__":
    main()
