"""The page of results: its tables, what is below the published gain and why, and the picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from _reproduce_claims import METHODS
from _reproduce_published import SOURCES, WHY
from _reproduce_rows import Row, deviation
from _reproduce_studies import reproduces

MINUS = "\N{MINUS SIGN}"

HEAD = """# Results

Every method of this package beside its baseline: the same network, data, budget and seeds, and the figure that was
published for it. This page is written by `python benchmarks/reproduce.py`; do not edit it.

```bash
make reproduce                                                # all of it on a CPU: hours; what is on disk is kept
python benchmarks/reproduce.py --profile cpu --only disk kd   # some methods, named as in the brackets of the headings
python benchmarks/reproduce.py --profile smoke                # every row at toy size, to see that it runs
```

**How to read it.** *Difference* is the method minus its baseline, seed by seed, mean ± standard deviation; of what is
marked ↓, less is better. *Published* is what a paper reports for method and baseline, and their difference. *Gap* is
how far our difference is beyond the published one in the good direction; **below zero** ours does not reach the
published gain. Published figures are of larger data, networks and budgets than a CPU has time for, so no gap here
proves or refutes a paper; it says what you can expect of this package on tasks of this size. Why ours is smaller, as
far as we know, stands [below](#where-ours-is-below-the-published-gain). Options were chosen on validation data or a
seed of their own, never on the test part.
"""

PICTURE_TEXT = """
![Gains of ours and published ones, in points](images/results.png)

Gains in points, to the right where the method is better: ours with the standard deviation over seeds, and the
published one as a diamond. Rows of other units are in the tables only.
"""


def page(rows: Sequence[Row], lost: Mapping[str, str], seeds: int, gpu: Sequence[Row] = ()) -> str:
    """Return the page.

    Args:
        rows: What was found on a CPU.
        lost: By the key of a claim without a row, why there is none.
        seeds: How many there should be.
        gpu: What was found on a GPU.
    """
    parts = [HEAD, _summary(rows, seeds), PICTURE_TEXT, _tables(rows), _below(rows)]
    if gpu:
        parts += ["\n## On a GPU, with all images\n", _tables(gpu, "###"), _below(gpu, "###")]
    else:
        parts.append(
            "\n## On a GPU\n\n`python benchmarks/reproduce.py --profile gpu` trains on all of FashionMNIST and "
            "CIFAR-10. It has not been run: no figure on this page is of a GPU.\n"
        )
    if lost:
        told = "".join(f"| {key} | {reason} |\n" for key, reason in lost.items())
        parts.append(f"\n## Rows without results\n\n| row | why |\n| --- | --- |\n{told}")
    parts += [_records([*rows, *gpu]), _sources([*rows, *gpu])]
    return "\n".join("".join(parts).splitlines()) + "\n"


def _summary(rows: Sequence[Row], seeds: int) -> str:
    compared = [row for row in rows if row.gap is not None]
    reached = [row for row in compared if row.reached]
    better = [row for row in rows if (row.gain > 0) == (row.claim.better == "higher") and row.gain]
    clear = [row for row in better if row.count > 1 and abs(row.gain) > row.spread]
    few = sorted({row.claim.study for row in rows if row.pairs.over == "seeds" and row.count < seeds})
    text = (
        f"\n**In short.** {len(rows)} rows; in {len(better)} the method is better than its baseline on average, in "
        f"{len(clear)} by more than a standard deviation of the differences. Of {len(compared)} rows with a published "
        f"gain {len(reached)} reach it.\n"
    )
    if few:
        named = ", ".join(f"`{name}`" for name in few)
        text += f"\nOf fewer than {seeds} seeds, as the column *n* says: {named}.\n"
    return text


def _tables(rows: Sequence[Row], heading: str = "##") -> str:
    text = ""
    for method, name in METHODS.items():
        own = [row for row in rows if row.claim.method == method]
        if own:
            text += f"\n{heading} {name} (`{method}`)\n\n{_table(own)}"
    return text


def _table(rows: Sequence[Row]) -> str:
    head = (
        "| | over | task | what | method | baseline | difference | n | published: method, baseline, gain; data; source "
        "| gap | study |\n| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | --- |\n"
    )
    return head + "".join(f"| {' | '.join(cells(row))} |\n" for row in rows)


def cells(row: Row) -> list[str]:
    """Return a row's cells as the page shows them."""
    claim, published = row.claim, row.claim.published
    means = [spread(values, claim.decimals) for values in (row.pairs.method, row.pairs.baseline)]
    figure = "none published for this"
    if published is not None:
        levels = [f"{value:g}" for value in (published.method, published.baseline) if value is not None]
        figure = (
            f"{', '.join([*levels, signed(published.gain, claim.decimals)])}; {published.data}; *{published.source}*"
        )
    over = "" if row.pairs.over == "seeds" or row.count == 1 else f" {row.pairs.over}"
    gap = "" if row.gap is None else signed(row.gap, claim.decimals)
    gain = signed(row.gain, claim.decimals)
    return [
        claim.variant,
        claim.baseline,
        claim.task,
        f"{claim.measure}{' ↓' if claim.better == 'lower' else ''}",
        *means,
        f"{gain} ± {size(row.spread, claim.decimals)}" if row.count > 1 else gain,
        f"{row.count}{over}",
        figure,
        gap if row.reached in (None, True) else f"**{gap}**",
        f"`{claim.study}`",
    ]


def size(value: float, decimals: int = 2) -> str:
    """Write a number without its sign."""
    return f"{abs(value):,.{decimals}f}"


def signed(value: float, decimals: int = 2) -> str:
    return f"{MINUS if value < 0 else '+'}{size(value, decimals)}"


def spread(values: Sequence[float], decimals: int) -> str:
    mean = sum(values) / len(values)
    text = size(mean, decimals) if mean >= 0 else signed(mean, decimals)
    return f"{text} ± {size(deviation(values), decimals)}" if len(values) > 1 else text


def _below(rows: Sequence[Row], heading: str = "##") -> str:
    text = ""
    for method, name in METHODS.items():
        compared = [row for row in rows if row.claim.method == method and row.gap is not None]
        below = [row for row in compared if not row.reached]
        if not below:
            continue
        told = "; ".join(
            f"{row.claim.variant} over {row.claim.baseline} on {row.claim.task} "
            f"{signed(row.gain, row.claim.decimals)}, published {signed(row.claim.published.gain, row.claim.decimals)}"
            f"{', within its spread' if row.gap is not None and -row.gap <= row.spread else ''}"
            for row in below
            if row.claim.published is not None
        )
        text += f"\n**{name}**: below the published gain in {len(below)} of {len(compared)} rows ({told}). "
        text += f"{WHY.get(method, 'We do not know why.')}\n"
    return f"\n{heading} Where ours is below the published gain\n{text}" if text else ""


def _records(rows: Sequence[Row]) -> str:
    text = (
        "\n## Commands, versions, machine\n\nEach study writes `benchmarks/results/<study>.json`, with every single "
        "value; `python benchmarks/reproduce.py --profile cpu --only METHOD --again` runs those of a method. `FOLDER` "
        "holds the images as torchvision lays them out.\n\n"
        "| study | command that makes it anew | versions | machine | date |\n| --- | --- | --- | --- | --- |\n"
    )
    by_study = {row.claim.study: row for row in sorted(rows, key=lambda row: row.count)}
    for study, row in sorted(by_study.items()):
        found, seeds = row.environment, row.count
        versions = ", ".join(f"{name} {found[name]}" for name in ("lightning-efficient", "torch", "lightning", "timm"))
        machine = f"{found['cpu']}, {found['cores']} cores, {found['threads']} thread{'s' * (found['threads'] != 1)}"
        text += (
            f"| `{study}` | `{reproduces(study, seeds)}` | Python {found['python']}, {versions} | {machine} "
            f"| {' and '.join(row.dates)} |\n"
        )
    return text


def _sources(rows: Sequence[Row]) -> str:
    used = {row.claim.published.source for row in rows if row.claim.published is not None}
    lines = "".join(f"- *{name}*: {text}.\n" for name, text in SOURCES.items() if name in used)
    return (
        "\n## Sources of the published figures\n\nNot all papers could be read in full; a figure is here only where "
        f"its table, poster or log was.\n\n{lines}"
    )


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw the gains of the rows that are in points and have a published one; to the right is better."""
    from matplotlib.figure import Figure

    sys.path.append(str(Path(__file__).resolve().parents[1] / "docs"))
    from make_pictures import small

    shown = [row for row in rows if row.gap is not None and row.claim.measure.endswith(", %")]
    figure = Figure(figsize=(9.6, 1.1 + 0.185 * len(shown)), dpi=85, layout="constrained")
    axes = figure.add_subplot()
    colors = {method: f"C{place % 10}" for place, method in enumerate(METHODS)}
    for place, row in enumerate(shown):
        sign = 1 if row.claim.better == "higher" else -1
        published = sign * row.claim.published.gain if row.claim.published else 0.0
        axes.plot([sign * row.gain, published], [place, place], color="#dee2e6", linewidth=1, zorder=1)
        axes.errorbar(
            sign * row.gain, place, xerr=row.spread, fmt="o", markersize=4.5, capsize=2, linewidth=1,
            color=colors[row.claim.method], zorder=3, label="ours" if not place else None,
        )  # fmt: skip
        axes.plot(published, place, "D", color="#343a40", fillstyle="none", markersize=5, linestyle="",
                  label=None if place else "published", zorder=2)  # fmt: skip
    names = [f"{row.claim.variant} over {row.claim.baseline} · {row.claim.task}" for row in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7.5)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.axvline(0, color="#868e96", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=5, linscale=1.2)
    ticks = [-50, -20, -5, -2, 0, 2, 5, 20, 50]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xlabel("gain in points (linear up to 5)")
    axes.grid(axis="x", color="#f1f3f5")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(file)
    small(file, file)
