"""What a surgery did: names, keys, a recipe, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.surgery._drop_path import respread
from lightning_efficient.nn.surgery._journal import restore
from lightning_efficient.nn.surgery._optimizers import OptimizerUpdate, warn_of_live_optimizers
from lightning_efficient.nn.surgery._surgeon import ARCHITECTURE, HISTORY, Surgeon, inner_model, tensors_of
from lightning_efficient.nn.surgery.steps import Step, check_written

VERSION = 1
"""Of the form of recipes."""


class Result:
    """A surgery that was carried out.

    Attributes:
        model: The model, or what took its place where the model itself was replaced.
        names: Of the new modules.
        pairs: ``(name, old module, new module)``; an appended module has an ``Identity`` as the old one.
        key_map: Key of the state dict before -> key now, of all entries that are still there.
        new_keys: Keys of now that come from no old one.
        slices: Key before -> the indices that are left of it, where it was cut.
        steps: The steps as a recipe keeps them.
    """

    def __init__(self, surgeon: Surgeon) -> None:
        self.model = surgeon.root
        self.steps: list[Step] = surgeon.steps
        self.pairs = list(surgeon.pairs)
        self.names = [name for name, _, _ in surgeon.pairs]
        after = tensors_of(self.model)
        by_id: dict[int, list[str]] = {}
        for key, tensor in after.items():
            by_id.setdefault(id(tensor), []).append(key)
        self.key_map: dict[str, str] = {}
        self.slices: dict[str, tuple[Tensor, ...]] = {}
        came: set[int] = set()
        for key, tensor in surgeon.before.items():
            now = surgeon.latest(tensor)
            if id(now) not in by_id:
                continue
            came.add(id(now))
            self.key_map[key] = key if key in by_id[id(now)] else by_id[id(now)][0]
            if cuts := surgeon.cut_tensors(tensor):
                self.slices[key] = _composed(cuts)
        self.new_keys = [key for key, tensor in after.items() if id(tensor) not in came]
        self._architecture: Mapping[str, str] | None = surgeon.architecture
        self._known = set(surgeon.before)
        self._first_root: nn.Module | None = surgeon.first_root
        self._history = self.model.__dict__.get(HISTORY)
        self._modes = [(old, new, new.training) for _, old, new in surgeon.pairs]
        self._changes = surgeon.journal.changes()
        self._optimizers = _updated(surgeon)

    @property
    def recipe(self) -> dict[str, Any]:
        """What to give to :func:`apply` for the same change of another such model; can be written as JSON.

        Raises:
            ConfigurationError: a maker was a lambda or a local function.
        """
        return _recipe(self.steps, self._architecture)

    def load(self, original: Mapping[str, Tensor]) -> list[str]:
        """Load a state dict of the model as it was before; entries of what went are left out.

        Args:
            original: State dict of the unchanged architecture.

        Returns:
            Keys that it has no values for, which stay as they are: those of new branches.

        Raises:
            ConfigurationError: an entry that the model never had, one that is missing, or one of another shape.
        """
        from lightning_efficient.nn.surgery.densenet import cut

        if unknown := [key for key in original if key not in self._known]:
            raise ConfigurationError(f"the state dict has {unknown[0]!r}{_more(unknown)}, which the model never had")
        if missing := [key for key in self.key_map if key not in original]:
            raise ConfigurationError(f"the state dict lacks {missing[0]!r}{_more(missing)}")
        own, renamed = self.model.state_dict(), {}
        for key, new_key in self.key_map.items():
            value = original[key]
            if key in self.slices:
                value = cut(value, self.slices[key])
            if value.shape != own[new_key].shape:
                theirs, ours = tuple(original[key].shape), tuple(own[new_key].shape)
                raise ConfigurationError(f"the state dict has {key!r} of shape {theirs}, which does not give {ours}")
            renamed[new_key] = value
        self.model.load_state_dict(renamed, strict=False)
        return list(self.new_keys)

    def undo(self) -> nn.Module:
        """Take the surgery back, in place, and return the model as it was.

        Modules come back in their old order. With ``copy_blocks=True`` the replaced blocks have the weights from before
        the surgery, with ``copy_blocks=False`` the present ones; all other weights are the present ones. Optimisers
        that were given are put back, too.

        Raises:
            ConfigurationError: it was undone already, or a later surgery is still in place.
        """
        if self._first_root is None:
            raise ConfigurationError("this surgery cannot be undone: forget() dropped the blocks from before it")
        if self._history is None or self.model.__dict__.get(HISTORY) is not self._history:
            raise ConfigurationError(
                "this surgery cannot be undone: it was undone already, or a later one is in place; undo that first"
            )
        for old, new, was_training in self._modes:
            if new.training != was_training:
                old.train(new.training)
        for update in self._optimizers:
            update.undo()
        restore(self._changes)
        self._history = None
        return self._first_root

    def forget(self) -> None:
        """Drop what only :meth:`undo` needs, so that blocks that went do not stay in memory.

        Names, recipe, key map and :meth:`load` still work; the old modules of ``pairs`` become ``Identity``.

        Example:
            >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            >>> result = carry_out(model, [{"op": "delete", "names": ["0"]}])
            >>> result.forget()
            >>> len(result.recipe["steps"])
            1
        """
        self.pairs = [(name, nn.Identity(), new) for name, _, new in self.pairs]
        self._first_root, self._history = None, None
        self._modes, self._changes, self._optimizers = [], [], []


def carry_out(
    model: nn.Module,
    steps: Sequence[Step],
    *,
    copy_blocks: bool = True,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> Result:
    """Carry steps out on a model, in place: all of them, or none where one cannot be.

    Args:
        model: Any network; of a compiled one the inner model is changed.
        steps: See :mod:`lightning_efficient.nn.surgery.steps`.
        copy_blocks: Whether makers get copies of the blocks. The originals then keep their weights, and
            :meth:`Result.undo` brings these back; else the blocks themselves go on inside their replacements.
        optimizer: Optimisers that hold the model's parameters. Copies take the place of their originals with the
            state of these, new parameters join the group of the block before them (of the parameter before them, where
            that block has none), and what went is taken out. Without it, an optimiser that holds parameters of the
            model is told in a warning; an empty list says there is none.

    Raises:
        ConfigurationError: a step that does not fit the model; names the step.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> result = carry_out(model, [{"op": "delete", "names": ["1"]}])
        >>> model, result.key_map
        (Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
        ), {'0.weight': '0.weight', '0.bias': '0.bias'})
        >>> result.undo()[1]
        ReLU()
    """
    surgeon = Surgeon(model, copy_blocks, optimizers_of(optimizer))
    surgeon.carry_out(steps)
    return finished(surgeon)


def finished(surgeon: Surgeon) -> Result:
    """Close a surgery: stochastic depth is spread anew where blocks went, and optimisers learn of it."""
    if any(step["op"] == "delete" for step in surgeon.steps):
        respread(surgeon.root, surgeon.rates)
    return Result(surgeon)


def optimizers_of(optimizer: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer] | None:
    """Return optimisers as a list; None stays None."""
    if optimizer is None:
        return None
    return [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)


def recipe_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the recipe of all that was carried out on a model and is still in place; None where nothing was.

    Raises:
        ConfigurationError: a maker was a lambda or a local function.
    """
    steps = inner_model(model).__dict__.get(HISTORY)
    if not steps:
        return None
    return _recipe(list(steps), inner_model(model).__dict__.get(ARCHITECTURE))


def _recipe(steps: list[Step], architecture: Mapping[str, str] | None) -> dict[str, Any]:
    check_written(steps)
    made_on = {"architecture": dict(architecture)} if architecture else {}
    return {"version": VERSION, **made_on, "steps": steps}


def _updated(surgeon: Surgeon) -> list[OptimizerUpdate]:
    if surgeon.optimizers is None:
        if any(tensor.device.type != "meta" for tensor in surgeon.before.values()):
            warn_of_live_optimizers(each for each in surgeon.before.values() if isinstance(each, nn.Parameter))
        return []
    shares = _shares(surgeon, surgeon.optimizers)
    parameters = dict(surgeon.root.named_parameters())
    return [
        OptimizerUpdate(each, surgeon.latest, surgeon.cut, parameters, fresh)
        for each, fresh in zip(surgeon.optimizers, shares, strict=True)
    ]


def _shares(surgeon: Surgeon, optimizers: Sequence[Optimizer]) -> list[list[tuple[nn.Parameter, list[Tensor]]]]:
    """Return for each optimiser the new parameters that it gets, each with the old one whose group it joins."""
    home = {
        id(parameter): index
        for index, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    origin = {id(surgeon.latest(tensor)): tensor for tensor in surgeon.before.values()}
    order = list(surgeon.root.parameters())
    places = {id(parameter): place for place, parameter in enumerate(order)}
    shares: list[list[tuple[nn.Parameter, list[Tensor]]]] = [[] for _ in optimizers]
    for module, anchors in surgeon.anchors:
        now = [id(surgeon.latest(anchor)) for anchor in anchors]
        old = [origin[each] for each in now if each in origin]
        for parameter in module.parameters():
            if id(parameter) in origin or id(parameter) not in places:
                continue
            place = places[id(parameter)]
            # beside blocks without parameters, the nearest one before decides, or else the nearest after
            around = (*reversed(order[:place]), *order[place:])
            near = old or [origin[id(each)] for each in around if id(each) in origin][:1]
            anchor = next((each for each in near if id(each) in home), None)
            if anchor is not None:
                shares[home[id(anchor)]].append((parameter, [anchor]))
    return shares


def _composed(cuts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    whole = list(cuts[0])
    for indices in cuts[1:]:
        for dimension, index in enumerate(indices):
            if dimension < len(whole):
                whole[dimension] = whole[dimension][index.to(whole[dimension].device)]
            else:
                whole.append(index)
    return tuple(whole)


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""
