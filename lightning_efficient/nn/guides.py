"""Guides: small networks that say, for each sample, how much help the student gets from the teacher in training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_choice, check_fraction
from lightning_efficient.functional._precision import at_least_float32
from lightning_efficient.nn.views import ModelViews

Pair = tuple[int, int]


class ViewSizes(Protocol):
    """Who knows the sizes of a network's views: a ``ViewTap`` or a ``Teacher``."""

    num_classes: int | None
    feature_dim: int | None
    map_channels: int | None


class Guide(nn.Module):
    """Base of the guides: views of teacher and student in, help ``g`` out.

    A subclass says in ``needs`` which views it wants beside the teacher's logits, of ``"teacher_features"``,
    ``"teacher_map"`` and ``"student_map"``, and computes ``logit``. Gradients never flow from a guide into teacher or
    student. The guide is used in training only.

    Reference:
        Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge. ICLR 2023.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def logit(self, teacher: ModelViews, student: ModelViews | None) -> Tensor:
        """Return the log-odds of the help, shape ``(N,)``.

        Args:
            teacher: Views of the teacher, with those in ``needs``.
            student: Views of the student; ``None`` where ``needs`` has none of them.
        """
        raise NotImplementedError

    def forward(self, teacher: ModelViews, student: ModelViews | None = None) -> Tensor:
        """Return the help ``g`` in ``(0, 1)``, shape ``(N,)``, float32 or float64."""
        logit = self.logit(teacher, student)
        return torch.sigmoid(at_least_float32(logit))

    def _watched(self, views: ModelViews | None, kind: str, whose: str) -> Tensor:
        value = None if views is None else getattr(views, kind)
        if value is None:
            raise ValueError(f"{type(self).__name__} needs the {kind} of the {whose}, and the views have none")
        return value.detach().to(next(self.parameters()).dtype)


class LogitsGuide(Guide):
    """A perceptron on the teacher's logits, for teachers of which nothing else is known.

    Args:
        num_classes: Classes ``C``.
        hidden: Hidden widths; ``None`` for ``(64, C)``, as in the released ImageNet experiments.
        batch_norm: Whether batch normalisation follows each hidden layer.
        output_bias: Bias of the output before training; ``None`` for PyTorch's own.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        hidden: Sequence[int] | None = None,
        batch_norm: bool = True,
        output_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.head = _perceptron(num_classes, (64, num_classes) if hidden is None else hidden, batch_norm)
        if output_bias is not None:
            nn.init.constant_(self.head[-1].bias, output_bias)  # type: ignore[arg-type]

    def logit(self, teacher: ModelViews, student: ModelViews | None) -> Tensor:
        """Return the log-odds of the help, shape ``(N,)``, from the teacher's logits."""
        return self.head(self._watched(teacher, "logits", "teacher")).squeeze(1)


class FeaturesGuide(Guide):
    """A perceptron on the input of the teacher's classifier: ``B23``, or ``hidden=(C, 64, C)`` as for ImageNet.

    Args:
        in_features: Size ``D`` of the teacher's features.
        hidden: Hidden widths.
        batch_norm: Whether batch normalisation follows each hidden layer.
        output_bias: Bias of the output before training; below 0 the guide starts with little help.
    """

    needs = frozenset({"teacher_features"})

    def __init__(
        self, in_features: int, *, hidden: Sequence[int] = (64, 128), batch_norm: bool = True, output_bias: float = 0.01
    ) -> None:
        super().__init__()
        self.head = _head(in_features, hidden, batch_norm, output_bias)

    def logit(self, teacher: ModelViews, student: ModelViews | None) -> Tensor:
        """Return the log-odds of the help, shape ``(N,)``, from the teacher's features."""
        return self.head(self._watched(teacher, "features", "teacher")).squeeze(1)


class MapGuide(Guide):
    """Three convolutions on a feature map of the teacher, then a small head: ``B24``, the released default.

    Args:
        channels: Channels of the map.
        out_features: What the convolutions are projected to; the size of the network's features in the released code.
        num_classes: Classes ``C``, the hidden width of the head.
        width: Channels of the convolutions.
        output_bias: Bias of the output before training.
    """

    needs = frozenset({"teacher_map"})

    def __init__(
        self, channels: int, out_features: int, num_classes: int, *, width: int = 256, output_bias: float = 0.01
    ) -> None:
        super().__init__()
        self.tower = _tower(channels, out_features, width)
        self.head = _head(out_features, (num_classes,), True, output_bias)

    def logit(self, teacher: ModelViews, student: ModelViews | None) -> Tensor:
        """Return the log-odds of the help, shape ``(N,)``, from the teacher's map."""
        return self.head(self.tower(self._watched(teacher, "feature_map", "teacher"))).squeeze(1)


class StudentMapGuide(MapGuide):
    """``MapGuide`` on a feature map of the student, which no gradient enters: ``B25`` of the released code."""

    needs = frozenset({"student_map"})

    def logit(self, teacher: ModelViews, student: ModelViews | None) -> Tensor:
        """Return the log-odds of the help, shape ``(N,)``, from the student's map."""
        return self.head(self.tower(self._watched(student, "feature_map", "student"))).squeeze(1)


class BothMapsGuide(Guide):
    """Convolutions on a feature map of the teacher and one of the student, one head on both: ``B26``.

    Args:
        teacher_sizes: Channels of the teacher's map, and what the convolutions on it are projected to.
        student_sizes: The same two of the student.
        num_classes: Classes ``C``, the hidden width of the head.
        width: Channels of the convolutions.
        output_bias: Bias of the output before training.
    """

    needs = frozenset({"teacher_map", "student_map"})

    def __init__(
        self, teacher_sizes: Pair, student_sizes: Pair, num_classes: int, *, width: int = 256, output_bias: float = 0.01
    ) -> None:
        super().__init__()
        self.teacher_tower = _tower(*teacher_sizes, width)
        self.student_tower = _tower(*student_sizes, width)
        self.head = _head(teacher_sizes[1] + student_sizes[1], (num_classes,), True, output_bias)

    def logit(self, teacher: ModelViews, student: ModelViews | None) -> Tensor:
        """Return the log-odds of the help, shape ``(N,)``, from both maps."""
        seen_of_teacher = self.teacher_tower(self._watched(teacher, "feature_map", "teacher"))
        seen_of_student = self.student_tower(self._watched(student, "feature_map", "student"))
        return self.head(torch.cat([seen_of_teacher, seen_of_student], dim=1)).squeeze(1)


class ConstantGuide(Guide):
    """The same help for every sample, with nothing to learn: the baseline that a learned guide has to beat.

    Args:
        value: Help in ``[0, 1]``; 0 is plain distillation on the support.

    Raises:
        ConfigurationError: ``value`` outside ``[0, 1]``.

    Example:
        >>> ConstantGuide(0.25)(ModelViews(torch.zeros(3, 10))).tolist()
        [0.25, 0.25, 0.25]
    """

    def __init__(self, value: float = 0.1) -> None:
        super().__init__()
        check_fraction("value", value, zero=True)
        self.value = float(value)

    def logit(self, teacher: ModelViews, student: ModelViews | None) -> Tensor:
        """Return the log-odds of the value, shape ``(N,)``; infinite for 0 and 1."""
        return torch.logit(self._filled(teacher))

    def forward(self, teacher: ModelViews, student: ModelViews | None = None) -> Tensor:
        """Return the value for each sample, shape ``(N,)``."""
        return self._filled(teacher)

    def _filled(self, teacher: ModelViews) -> Tensor:
        dtype = torch.promote_types(teacher.logits.dtype, torch.float32)
        return torch.full((len(teacher.logits),), self.value, dtype=dtype, device=teacher.logits.device)


GUIDES: dict[str, type[Guide]] = {
    "teacher_features": FeaturesGuide,
    "teacher_map": MapGuide,
    "student_map": StudentMapGuide,
    "both_maps": BothMapsGuide,
    "teacher_logits": LogitsGuide,
    "constant": ConstantGuide,
}
"""Guides by what they look at."""


@dataclass(frozen=True)
class MapChoice:
    """Which feature maps a guide sees, and the options that are the guide's own."""

    map_index: int
    teacher_map_module: str | None
    student_map_module: str | None
    rest: Mapping[str, Any]

    @classmethod
    def of(cls, guide_kwargs: Mapping[str, Any] | None) -> MapChoice:
        """Take the choice out of the options of a guide."""
        rest = dict(guide_kwargs or {})
        teacher, student = (rest.pop(f"{owner}_map_module", None) for owner in ("teacher", "student"))
        return cls(rest.pop("map_index", -1), teacher, student, rest)


def guide_needs(source: str) -> frozenset[str]:
    """Return which views the guide of this source needs, so that they can be tapped before it is built.

    Raises:
        ConfigurationError: unknown ``source``.

    Example:
        >>> sorted(guide_needs("both_maps"))
        ['student_map', 'teacher_map']
    """
    check_choice("guide", source, GUIDES)
    return GUIDES[source].needs


def build_guide(source: str, teacher: ViewSizes, student: ViewSizes | None, num_classes: int, **options: Any) -> Guide:
    """Build a guide with the sizes that its networks have.

    Args:
        source: One of ``GUIDES``.
        teacher: Tap of the teacher, or the ``Teacher`` itself, with the views that :func:`guide_needs` names.
        student: Tap of the student; ``None`` where the guide needs none of its views.
        num_classes: Classes ``C``.
        options: Keyword options of the guide, such as ``hidden`` or ``width``.

    Raises:
        ConfigurationError: unknown source or option, or a network without the size that is needed.
    """
    check_choice("guide", source, GUIDES)
    kind = GUIDES[source]
    allowed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is not p.empty]
    for name in set(options) - set(allowed):
        hint = did_you_mean(name, allowed)
        raise ConfigurationError(f"guide {source!r} has no option {name!r}; it has {allowed}.{hint}")

    def size(network: ViewSizes | None, name: str, whose: str) -> int:
        found = getattr(network, name, None)
        if found is None:
            raise ConfigurationError(f"guide={source!r} needs the {name} of the {whose}, which its tap does not have")
        return found

    def map_sizes(network: ViewSizes | None, whose: str) -> Pair:
        return size(network, "map_channels", whose), size(network, "feature_dim", whose)

    if source == "constant":
        return kind(**options)
    if source == "teacher_logits":
        return kind(num_classes, **options)
    if source == "teacher_features":
        return kind(size(teacher, "feature_dim", "teacher"), **options)
    if source == "both_maps":
        return kind(map_sizes(teacher, "teacher"), map_sizes(student, "student"), num_classes, **options)
    whose = "teacher" if source == "teacher_map" else "student"
    return kind(*map_sizes(teacher if source == "teacher_map" else student, whose), num_classes, **options)


def _perceptron(in_features: int, hidden: Sequence[int], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        if not isinstance(width, int) or width < 1:
            raise ConfigurationError(f"hidden={list(hidden)!r} must be widths of layers, whole numbers of 1 or more")
        layers += [nn.Linear(in_features, width), *([nn.BatchNorm1d(width)] if batch_norm else []), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, 1))


def _tower(channels: int, out_features: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for in_channels, kernel_size in ((channels, 1), (width, 3), (width, 1)):
        convolution = nn.Conv2d(in_channels, width, kernel_size, padding=kernel_size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, out_features))


def _head(in_features: int, hidden: Sequence[int], batch_norm: bool, output_bias: float) -> nn.Sequential:
    head = _perceptron(in_features, hidden, batch_norm)
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, 0.01)
    nn.init.constant_(head[-1].bias, output_bias)  # type: ignore[arg-type]
    return head
