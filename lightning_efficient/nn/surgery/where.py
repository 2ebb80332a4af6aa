"""Which blocks of a network are meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery._stages import stage_of
from lightning_efficient.nn.surgery._takeover import named_originals
from lightning_efficient.nn.surgery.meta import output_sizes
from lightning_efficient.nn.timm_blocks import facts_of

Test: TypeAlias = Callable[[str, nn.Module], bool]
"""``(name, module)`` to whether that module is meant."""


class Where:
    """A condition on a module and its name; ``&``, ``|`` and ``~`` combine conditions.

    Args:
        bind: From a model to a test of its modules.

    Example:
        >>> ends = Where(lambda model: lambda name, module: name.endswith("1")) & nn.ReLU
        >>> [name for name, _ in matches(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Tanh()), ends)]
        ['1']
    """

    def __init__(self, bind: Callable[[nn.Module], Test]) -> None:
        self.bind = bind

    def __and__(self, other: Condition) -> Where:
        return _combined(self, other, lambda one, two: one and two)

    def __or__(self, other: Condition) -> Where:
        return _combined(self, other, lambda one, two: one or two)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Where:
        def bind(model: nn.Module) -> Test:
            test = self.bind(model)
            return lambda name, module: not test(name, module)

        return Where(bind)


Condition: TypeAlias = Where | type[nn.Module] | str | re.Pattern[str] | Test
"""A :class:`Where`, a type, a pattern of names, a regular expression, or a test ``(name, module)``."""


def where_of(condition: Condition) -> Where:
    """Return a condition as a :class:`Where`.

    Args:
        condition: A type means modules of exactly this type, no subclasses. In a string ``*`` stands for anything
            within one part of a name and ``**`` for any number of parts. A regular expression must match the
            whole name.

    Raises:
        ConfigurationError: something else.

    Example:
        >>> test = where_of("blocks.*.0").bind(nn.ReLU())
        >>> test("blocks.3.0", nn.ReLU()), test("blocks.3.0.conv.0", nn.ReLU())
        (True, False)
    """
    if isinstance(condition, Where):
        return condition
    if isinstance(condition, type):
        kind = condition
        return Where(lambda model: lambda name, module: type(module) is kind)
    if isinstance(condition, str):
        condition = _glob(condition)
    if isinstance(condition, re.Pattern):
        pattern = condition
        return Where(lambda model: lambda name, module: pattern.fullmatch(name) is not None)
    if not callable(condition):
        raise ConfigurationError(
            f"where={condition!r} is no type, pattern of names, regular expression or function of (name, module)"
        )
    function = condition
    return Where(lambda model: function)


def matches(model: nn.Module, condition: Condition) -> list[tuple[str, nn.Module]]:
    """Return the modules that are meant, in the order of the model.

    Each module comes once, where several parents share it, too. What lies inside a match is left out, and so is what an
    earlier surgery put in.
    """
    test, found = where_of(condition).bind(model), list[tuple[str, nn.Module]]()
    for name, module in named_originals(model):
        if not any(not outer or name.startswith(f"{outer}.") for outer, _ in found) and test(name, module):
            found.append((name, module))
    return found


def min_resolution(size: int, example: Sequence[int] = (1, 3, 224, 224)) -> Where:
    """Mean modules whose output is a map of at least ``size`` rows and columns.

    Args:
        size: Smallest height and width.
        example: Shape ``(N, C, H, W)`` of the network's input.
    """

    def bind(model: nn.Module) -> Test:
        sizes = output_sizes(model, example)
        return lambda name, module: min(sizes.get(name, (0, 0))) >= size

    return Where(bind)


def stage(*numbers: int) -> Where:
    """Mean what lies inside the stages of these numbers, as timm counts them in names.

    Known are ``blocks.N``, ``stages.N``, ``layerN`` and ``features.denseblockN``.
    """
    return Where(lambda model: lambda name, module: stage_of(name) in numbers)


def _residual(name: str, module: nn.Module) -> bool:
    facts = facts_of(module)
    return facts is not None and facts.has_skip


def _stride1(name: str, module: nn.Module) -> bool:
    facts = facts_of(module)
    return facts is not None and facts.stride == 1


is_residual = Where(lambda model: _residual)
"""Blocks of timm that add their input as it is; see :func:`~lightning_efficient.nn.timm_blocks.facts_of`."""

stride1 = Where(lambda model: _stride1)
"""Blocks of timm that keep height and width."""


def _combined(one: Condition, other: Condition, join: Callable[[bool, bool], bool]) -> Where:
    first, second = where_of(one), where_of(other)

    def bind(model: nn.Module) -> Test:
        tests = first.bind(model), second.bind(model)
        return lambda name, module: join(bool(tests[0](name, module)), bool(tests[1](name, module)))

    return Where(bind)


def _glob(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    meaning = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts))
