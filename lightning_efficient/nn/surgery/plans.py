"""What a surgery would change, found on a copy without data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from lightning_efficient.nn.surgery import meta
from lightning_efficient.nn.surgery._surgeon import Surgeon, inner_model
from lightning_efficient.nn.surgery._takeover import check_hooks
from lightning_efficient.nn.surgery.result import finished
from lightning_efficient.nn.surgery.steps import Step, check_steps, parameter_count

NOTHING = "-"
"""What stands for the new module where a block goes, and for the old one where one is added."""


@dataclass(frozen=True)
class PlanRow:
    """One block that changes.

    Attributes:
        name: Of the block before; names in a row, with commas, where several become one; empty where one is added.
        new_name: Of what takes its place; empty where nothing does.
        old: Type of the block before; ``"-"`` where one is added.
        new: Type of what takes its place; ``"-"`` where nothing does.
        macs_before: Multiply-accumulate operations per sample.
        macs_after: The same, after.
        params_before: Parameters.
        params_after: The same, after.
    """

    name: str
    new_name: str
    old: str
    new: str
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


@dataclass(frozen=True)
class Plan(Sequence[PlanRow]):
    """What a surgery would change; a sequence of rows, whose ``str`` is a table.

    Attributes:
        rows: One for each block that changes.
        steps: The steps that do it.
        example_shape: Shape of the input that the operations are counted for, per sample.
        macs_before: Multiply-accumulate operations of the whole model.
        macs_after: The same, after.
        params_before: Parameters of the whole model.
        params_after: The same, after.
    """

    rows: tuple[PlanRow, ...]
    steps: tuple[Step, ...]
    example_shape: tuple[int, ...]
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> PlanRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PlanRow]: ...
    def __getitem__(self, index: int | slice) -> PlanRow | Sequence[PlanRow]:
        return self.rows[index]

    def __str__(self) -> str:
        head = ("block", "is", "becomes", "MACs", "after", "params", "after")
        body = [(row.name or row.new_name, row.old, row.new, *_counts(row)) for row in self.rows]
        total = ("whole model", "", "", *_counts(self))
        change = ("", "", "", "", _percent(self.macs_before, self.macs_after), "")
        table = [head, *body, total, (*change, _percent(self.params_before, self.params_after))]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        return "\n".join(_line(row, widths) for row in table)

    def to_dict(self) -> dict[str, Any]:
        """Return rows and totals as plain values, without the steps."""
        totals = {key: value for key, value in self.__dict__.items() if key not in ("rows", "steps", "example_shape")}
        return {"example_shape": list(self.example_shape), "rows": [asdict(row) for row in self.rows], **totals}


def preview(model: nn.Module, steps: Sequence[Step], example: Tensor | Sequence[int] | None = None) -> Plan:
    """Tell what steps would change; the model, its weights and the random states stay as they are.

    The steps are carried out on a copy on the meta device, which has no data, and the operations of both are counted
    by torch's flop counter.

    Args:
        model: The model.
        steps: See :mod:`lightning_efficient.nn.surgery.steps`.
        example: An input or its shape; the input size of timm's configuration by default.

    Raises:
        ConfigurationError: a step does not fit, or nothing says how large an input is.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> print(preview(model, [{"op": "delete", "names": ["0"]}], (1, 4)))
        block        is      becomes  MACs   after  params   after
        0            Linear  -          16       0      20       0
        whole model                     24       8      30      10
                                            -66.7%          -66.7%
    """
    model = inner_model(model)
    shape = meta.example_shape(model, example)
    check_steps(steps)
    for step in steps:
        _check_hooks(model, step)
    with torch.random.fork_rng(devices=[]):
        copy = meta.meta_copy(model)
        before = dict(copy.named_modules(remove_duplicate=False))
        params_before = {name: parameter_count(module) for name, module in before.items()}
        macs_before = meta.block_macs(copy, shape)
        surgeon = Surgeon(copy, copy_blocks=False)
        surgeon.carry_out(steps)
        result = finished(surgeon)
        macs_after = meta.block_macs(result.model, shape)
    after = dict(result.model.named_modules(remove_duplicate=False))
    rows = []
    for step in result.steps:
        for names, new_name in _names(step, params_before, after):
            new = after.get(new_name) if new_name is not None else None
            rows.append(
                PlanRow(
                    name=", ".join(names),
                    new_name="" if new is None or new_name is None else new_name,
                    old=_kinds([before[name] for name in names if name in before]),
                    new=NOTHING if new is None else type(new).__name__,
                    macs_before=sum(macs_before.get(name, 0) for name in names),
                    macs_after=0 if new is None else macs_after.get(new_name or "", 0),
                    params_before=sum(params_before.get(name, 0) for name in names),
                    params_after=0 if new is None else parameter_count(new),
                )
            )
    totals = macs_before.get("", 0), macs_after.get("", 0), params_before[""], parameter_count(result.model)
    return Plan(tuple(rows), tuple(steps), shape, *totals)


def _names(
    step: Step, before: Mapping[str, int], after: Mapping[str, nn.Module]
) -> Iterator[tuple[Sequence[str], str | None]]:
    """Yield the names of what a step changes, before and after."""
    if step["op"] == "replace":
        yield [step["name"]], step["name"]
    elif step["op"] == "merge":
        yield step["names"], step["names"][0]
    elif step["op"] == "append":
        yield [], f"{step['name']}.{step['child']}".lstrip(".")
    elif step["op"] == "delete":
        yield from (([name], None) for name in step["names"])
    else:
        for name, count in before.items():
            part = name.startswith("features.") and name.count(".") == 1
            if part and name in after and count != parameter_count(after[name]):
                yield [name], name


def _kinds(blocks: list[nn.Module]) -> str:
    kinds = [type(block).__name__ for block in blocks]
    if len(kinds) < 2:
        return kinds[0] if kinds else NOTHING
    return " + ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def _check_hooks(model: nn.Module, step: Step) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    names = step.get("names", [step.get("name")]) if step.get("op") in ("replace", "merge", "delete") else []
    for name in names:
        if name in modules:
            check_hooks(name, modules[name], itself=step["op"] != "replace", what="changed")


def _counts(row: PlanRow | Plan) -> tuple[str, ...]:
    return tuple(f"{n:,}" for n in (row.macs_before, row.macs_after, row.params_before, row.params_after))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = list(zip(row, widths, strict=True))
    words = [cell.ljust(width) for cell, width in cells[:3]]
    return "  ".join([*words, *(cell.rjust(width) for cell, width in cells[3:])]).rstrip()


def _percent(before: int, after: int) -> str:
    return f"{100 * (after - before) / before:+.1f}%" if before else ""
