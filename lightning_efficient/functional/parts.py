"""Cut sequences, and batches of them, into consecutive parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.typing import Batch, Part

Key = int | str


def sequence_parts(length: int, parts: int | None = None, part_length: int | None = None) -> list[Part]:
    """Cut a sequence into consecutive parts that leave nothing out.

    Args:
        length: Time steps of the sequence.
        parts: How many parts, whose lengths differ by at most one.
        part_length: Or the time steps of each part; the last one may be shorter.

    Raises:
        ConfigurationError: not exactly one of the two is given, it is below 1, or the sequence has fewer time steps
            than ``parts``.

    Example:
        >>> [(part.start, part.stop) for part in sequence_parts(11, parts=3)]
        [(0, 4), (4, 8), (8, 11)]
        >>> [(part.start, part.stop) for part in sequence_parts(11, part_length=4)]
        [(0, 4), (4, 8), (8, 11)]
    """
    if (parts is None) == (part_length is None):
        raise ConfigurationError(
            f"give exactly one of parts (got {parts}) and part_length (got {part_length}), a whole number above 0"
        )
    given = parts if part_length is None else part_length
    if not isinstance(given, int) or given < 1:
        name = "parts" if part_length is None else "part_length"
        raise ConfigurationError(f"{name} is {given!r}; it must be a whole number above 0")
    if part_length is not None:
        bounds = [*range(0, length, part_length), length]
    elif length < given:
        raise ConfigurationError(
            f"sequences of {length} time steps cannot be cut into {given} parts; use at most {length} parts"
        )
    else:
        # the longer parts come first, as in torch.tensor_split
        shorter, longer_parts = divmod(length, given)
        bounds = [index * shorter + min(index, longer_parts) for index in range(given + 1)]
    count = len(bounds) - 1
    return [Part(index, count, bounds[index], bounds[index + 1], length) for index in range(count)]


@dataclass(frozen=True)
class SplitBatch:
    """A batch of sequences that is looked at part by part; tensors of a part are views.

    Attributes:
        batch: The whole batch.
        parts: The parts, in order.
        time_dim: Dimension of time in every sequence, 0 or 1; the other one is that of the samples.
        size: Number of sequences.
        elements: Keys of the top-level elements that are cut; ``None`` stands for a batch that is one tensor.
        lengths: Key of the element that holds the valid time steps of each sequence, if there is one.
    """

    batch: Batch
    parts: list[Part]
    time_dim: int
    size: int
    elements: Collection[Key | None]
    lengths: Key | None

    @classmethod
    def of(
        cls,
        batch: Batch,
        parts: int | None = None,
        part_length: int | None = None,
        time_dim: int = 1,
        sequences: Collection[Key] | None = None,
    ) -> SplitBatch:
        """Find out which elements of a batch are sequences, and where to cut them.

        The first tensor with a time axis tells the number of time steps and of sequences. Every element whose tensors
        all agree with it in both is cut; the others, such as one label per sequence, belong to each part as a whole.
        An element named ``lengths`` (of a mapping or a named tuple) is replaced by the valid steps within the part.

        Args:
            batch: A tensor, or a tuple, list, named tuple or mapping of nests of tensors.
            parts: How many parts.
            part_length: Or how many time steps in each.
            time_dim: 1 for sequences of shape ``(N, T, ...)``, 0 for ``(T, N, ...)``.
            sequences: Positions or keys of the elements to cut, where the rule above does not find them.

        Raises:
            ConfigurationError: no element is a sequence, those named by ``sequences`` do not agree, lengths are below 1
                or above the time steps, or the sequences are too short for ``parts``.
        """
        elements = dict(_elements(batch))
        if any(isinstance(leaf, PackedSequence) for leaf in elements.values()):
            raise ConfigurationError(
                "a PackedSequence cannot be cut along time; give padded sequences, and their lengths as 'lengths'"
            )
        named = list(elements) if sequences is None else [_known(key, batch, elements) for key in sequences]
        shapes = [tensor.shape for key in named for tensor in _tensors(elements[key]) if tensor.ndim > 1]
        if not shapes:
            raise ConfigurationError(
                "the batch has no tensor with a time axis, such as one of shape (N, T, F); got "
                f"{ {key: _describe(value) for key, value in elements.items()} }"
            )
        length, size = shapes[0][time_dim], shapes[0][1 - time_dim]

        def fits(value: Any) -> bool:
            tensors = _tensors(value)
            return bool(tensors) and all(
                tensor.ndim > 1 and (tensor.shape[time_dim], tensor.shape[1 - time_dim]) == (length, size)
                for tensor in tensors
            )

        if sequences is not None and (wrong := [key for key in named if not fits(elements[key])]):
            raise ConfigurationError(
                f"sequences names {wrong[0]!r}, {_describe(elements[wrong[0]])}, which does not have {length} time "
                f"steps in dimension {time_dim} and {size} samples"
            )
        cut = [key for key in named if fits(elements[key])]
        lengths = "lengths" if "lengths" in elements else None
        if lengths is None and hasattr(batch, "_fields") and "lengths" in batch._fields:
            lengths = batch._fields.index("lengths")
        if lengths is not None:
            _check_lengths(elements[lengths], length, size)
        split = sequence_parts(length, parts, part_length)
        if lengths is not None:
            starts = torch.tensor([part.start for part in split], device=elements[lengths].device)
            counts = (elements[lengths].unsqueeze(1) > starts).sum(1)
            split = [replace(part, counts=counts) for part in split]
        return cls(batch, split, time_dim, size, cut, lengths)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Batch:
        """Return what a part sees of the batch, in a container of the same kind."""
        if not 0 <= index < len(self.parts):
            raise IndexError(index)
        part = self.parts[index]

        def within(key: Key | None, value: Any) -> Any:
            if key in self.elements:
                return tree_map(lambda tensor: tensor.narrow(self.time_dim, part.start, part.stop - part.start), value)
            if key == self.lengths and key is not None:
                return (value - part.start).clamp(0, part.stop - part.start)
            return value

        return _rebuilt(self.batch, within)

    def __str__(self) -> str:
        shortest, longest = (pick(part.stop - part.start for part in self.parts) for pick in (min, max))
        steps = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
        elements = dict(_elements(self.batch))
        cut = ", ".join(_named(key, elements[key]) for key in self.elements)
        whole = ", ".join(_named(key, value) for key, value in elements.items() if key not in self.elements)
        return f"{len(self)} parts of {steps} time steps; cut along dimension {self.time_dim}: {cut}" + (
            f"; whole in each part: {whole}" if whole else ""
        )


def _elements(batch: Batch) -> list[tuple[Any, Any]]:
    if isinstance(batch, Mapping):
        return list(batch.items())
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        return list(enumerate(batch))
    return [(None, batch)]


def _rebuilt(batch: Batch, change: Callable[[Any, Any], Any]) -> Batch:
    if isinstance(batch, Mapping):
        copied: Any = copy.copy(batch)  # keeps mappings that are no dict what they are
        for key, value in batch.items():
            copied[key] = change(key, value)
        return copied
    if isinstance(batch, tuple | list):
        values = [change(key, value) for key, value in enumerate(batch)]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return change(None, batch)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _known(key: Key, batch: Batch, elements: Mapping[Any, Any]) -> Key:
    fields = getattr(batch, "_fields", ())
    found = fields.index(key) if key in fields else key
    if found not in elements:
        names = [str(name) for name in (fields or elements)]
        hint = did_you_mean(str(key), names)
        raise ConfigurationError(f"sequences names {key!r}, no element of the batch, which has {names}.{hint}")
    return found


def _check_lengths(lengths: Any, length: int, size: int) -> None:
    if not isinstance(lengths, Tensor) or lengths.shape != (size,):
        raise ConfigurationError(
            f"lengths must be a tensor of shape ({size},), one per sequence, got {_describe(lengths)}"
        )
    if size and not 1 <= int(lengths.min()) <= int(lengths.max()) <= length:
        raise ConfigurationError(
            f"lengths must be 1 to {length}, the time steps of the batch, got {int(lengths.min())} to "
            f"{int(lengths.max())}"
        )


def _describe(value: Any) -> str:
    shapes = [str(tuple(tensor.shape)) for tensor in _tensors(value)]
    return " and ".join(shapes) if shapes else type(value).__name__


def _named(key: Any, value: Any) -> str:
    return _describe(value) if key is None else f"{key} {_describe(value)}"
