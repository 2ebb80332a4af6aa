"""Carries steps out on a model, and remembers what became of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.nn.surgery import _drop_path
from lightning_efficient.nn.surgery._architecture import architecture_of
from lightning_efficient.nn.surgery._journal import Journal, restore
from lightning_efficient.nn.surgery._takeover import MARK, adopt, check_hooks, hang_hooks, is_replacement, lifted_hooks
from lightning_efficient.nn.surgery._takeover import transplanted as transplant_
from lightning_efficient.nn.surgery.makers import imported, maker_of
from lightning_efficient.nn.surgery.steps import Step, check_steps, parameter_count, written

HISTORY = "_surgery_steps"
"""Attribute of a model that keeps the steps carried out on it."""

ARCHITECTURE = "_surgery_architecture"
"""Attribute of a model that keeps its fingerprint from before the first of these steps."""

_PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def inner_model(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` wrapped, or the model itself.

    Raises:
        ConfigurationError: the model is wrapped for parallel training, scripted, or compiled in part.
    """
    root: Any = model._orig_mod if type(model).__name__ == "OptimizedModule" else model
    for name, module in root.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if found := sorted(kinds & set(_PARALLEL)):
            raise ConfigurationError(f"{name or 'the model'} is wrapped by {found[0]}; operate first, wrap afterwards")
        if "ScriptModule" in kinds:
            raise ConfigurationError(f"{name or 'the model'} is a TorchScript module; operate first, script afterwards")
        if "OptimizedModule" in kinds:
            raise ConfigurationError(f"{name} is compiled by itself; operate first, compile afterwards")
    return root


class Surgeon:
    """One surgery under way.

    Args:
        model: The model; changed in place.
        copy_blocks: Whether makers get copies of the blocks, so that the originals keep their weights for an undo.
        optimizers: Optimisers to be kept up to date; None where nobody said whether there are any.
    """

    def __init__(self, model: nn.Module, copy_blocks: bool, optimizers: Sequence[Optimizer] | None = None) -> None:
        self.root = self.first_root = inner_model(model)
        self.copy_blocks, self.optimizers = copy_blocks, optimizers
        self.journal = Journal(self.root)
        self.before = tensors_of(self.root)
        self.rates = _drop_path.drop_path_rates(self.root)
        self.history: list[Step] = list(self.root.__dict__.get(HISTORY, ()))
        self.architecture = architecture_of(self.root)
        # None: it was operated on before fingerprints were kept
        self.original: dict[str, str] | None = (
            self.root.__dict__.get(ARCHITECTURE) if self.history else self.architecture
        )
        self.steps: list[Step] = []
        self.pairs: list[tuple[str, nn.Module, nn.Module]] = []
        self.anchors: list[tuple[nn.Module, list[Tensor]]] = []
        self.cuts: dict[int, list[tuple[Tensor, ...]]] = {}
        self._next: dict[int, Tensor] = {}
        self._alive: list[Tensor] = list(self.before.values())

    def carry_out(self, steps: Sequence[Step], option: str = "steps") -> None:
        """Carry steps out, one after the other; on an error everything is as it was before.

        Raises:
            ConfigurationError: names the step, and why it cannot be.
        """
        try:
            check_steps(steps, option)
            for index, step in enumerate(steps):
                self._here = f"{option}[{index}]"
                done = getattr(self, f"_{step['op']}")(dict(step))
                if done is not None:
                    self.steps.append(written(done))
            self.root.__dict__[HISTORY] = [*self.history, *self.steps]
            self.root.__dict__[ARCHITECTURE] = self.original
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Put everything back as it was."""
        restore(self.journal.changes())

    def latest(self, tensor: Tensor) -> Tensor:
        """Return what has become of a tensor."""
        while id(tensor) in self._next:
            tensor = self._next[id(tensor)]
        return tensor

    def cut(self, tensor: Tensor, value: Tensor) -> Tensor:
        """Return the entries that are left of ``value``, which belongs to a tensor of the model as it was."""
        from lightning_efficient.nn.surgery.densenet import cut

        while True:
            for indices in self.cuts.get(id(tensor), ()):
                value = cut(value, indices)
            if id(tensor) not in self._next:
                return value
            tensor = self._next[id(tensor)]

    def cut_tensors(self, tensor: Tensor) -> list[tuple[Tensor, ...]]:
        """Return how a tensor was cut, in the order of the cuts."""
        found = list(self.cuts.get(id(tensor), ()))
        return found + (self.cut_tensors(self._next[id(tensor)]) if id(tensor) in self._next else [])

    def _replace(self, step: Step) -> Step | None:
        name = step["name"]
        block = self._block(name)
        self._fits(step, [block])
        check_hooks(name, block, itself=False, what="replaced")
        places = list(self._places(block))
        hooks = lifted_hooks(block)
        (given,), successors = self._given([block])
        made = self._made(step, name, given)
        if made is None:
            block.__dict__.update(hooks)
            return None
        self._follow(successors)
        adopt([given], made)
        self._transplant(step.get("transplant"), given, made)
        hang_hooks(hooks, made, name)
        self._put(name, block, made, places)
        return {**step, "old": type(block).__name__, "params": parameter_count(block)}

    def _merge(self, step: Step) -> Step | None:
        names = list(step["names"])
        blocks = [self._block(name) for name in names]
        self._fits(step, blocks)
        self._in_a_row(names)
        for name, block in zip(names, blocks, strict=True):
            check_hooks(name, block, itself=True, what="merged with its neighbours")
        given, successors = self._given(blocks)
        made = self._made(step, names[0], given)
        if made is None:
            return None
        self._follow(successors)
        adopt(given, made)
        self.anchors.append((made, [each for block in blocks for each in block.parameters()]))
        # found before the new module, which may hold the blocks themselves, is in the model
        first, *others = [list(self._places(block)) for block in blocks]
        self._put(names[0], blocks[0], made, first)
        for places in others:
            _take_out(places)
        return {**step, "old": [type(block).__name__ for block in blocks], "params": parameter_count(*blocks)}

    def _append(self, step: Step) -> Step | None:
        name, container = step["name"], self._block(step["name"], anything=True)
        if type(container).forward is not nn.Sequential.forward or not len(container._modules):
            raise self._wrong(f"append needs a Sequential with a child; {name!r} is a {type(container).__name__}")
        blocks, count = list(container.children()), parameter_count(container)
        self._fits(step, [container])
        made = self._made(step, f"{name}.{next(reversed(container._modules))}".lstrip("."), blocks[-1])
        if made is None:
            return None
        adopt([blocks[-1]], made)
        keys = list(container._modules)
        following = str(max(map(int, keys)) + 1) if all(key.isdigit() for key in keys) else type(made).__name__.lower()
        child = step.get("child", following)
        if child in keys:
            raise self._wrong(f"{name} has a child {child!r} already; give another one as 'child'")
        container._modules[child] = made
        made.__dict__[MARK] = True
        self.anchors.append((made, [*blocks[-1].parameters(), *container.parameters()]))
        self.pairs.append((f"{name}.{child}".lstrip("."), nn.Identity(), made))
        return {
            **step,
            "child": child,
            "old": type(container).__name__,
            "params": count,
        }

    def _delete(self, step: Step) -> Step:
        names = list(step["names"])
        blocks = [self._block(name) for name in names]
        self._fits(step, blocks)
        for name, block in zip(names, blocks, strict=True):
            check_hooks(name, block, itself=True, what="deleted")
            if not self._in_list(name):
                raise self._wrong(f"delete takes children of a Sequential or a ModuleList, and {name} is none")
        count = parameter_count(*blocks)
        for block in blocks:
            _take_out(list(self._places(block)))
        return {**step, "old": [type(block).__name__ for block in blocks], "params": count}

    def _thin_densenet(self, step: Step) -> Step:
        from lightning_efficient.nn.surgery.densenet import thin

        old, count = tensors_of(self.root), parameter_count(self.root)
        self._fits(step, [self.root])
        slices = thin(self.root, step["keep"])
        new = tensors_of(self.root)
        self._alive.extend(new.values())
        for key, indices in slices.items():
            if new[key] is not old[key]:
                self._next[id(old[key])] = new[key]
            self.cuts.setdefault(id(old[key]), []).append(indices)
        return {**step, "old": type(self.root).__name__, "params": count}

    def _block(self, name: str, anything: bool = False) -> nn.Module:
        modules = dict(self.root.named_modules(remove_duplicate=False))
        if name not in modules:
            raise self._wrong(f"{type(self.root).__name__} has no module {name!r}.{did_you_mean(name, modules)}")
        parts = name.split(".") if name else []
        for depth in range(len(parts) + 1):
            outer = ".".join(parts[:depth])
            if is_replacement(modules[outer]):
                kind = type(modules[outer]).__name__
                where = f"{name!r} is" if outer == name else f"{name!r} is inside {outer!r},"
                raise self._wrong(f"{where} a {kind} that a surgery put in already; undo that one first")
        return modules[name] if name or anything else self.root

    def _fits(self, step: Step, blocks: list[nn.Module]) -> None:
        kinds: Any = [type(block).__name__ for block in blocks]
        names = step.get("names", [step.get("name", "the model")])
        expected = step.get("old", kinds)
        for name, kind, wanted in zip(
            names, kinds, [expected] if isinstance(expected, str) else expected, strict=False
        ):
            if kind != wanted:
                raise self._wrong(f"{name!r} is a {kind} here, and not a {wanted}")
        count = parameter_count(*blocks)
        if step.get("params", count) != count:
            raise self._wrong(f"{names[0]!r} has {count} parameters here, and not {step['params']}")

    def _wrong(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{self._here}: {reason}")

    def _made(self, step: Step, name: str, given: Any) -> nn.Module | None:
        make, options = step["make"], step.get("options")
        try:
            made = maker_of(make, options)(name, given)
        except TypeError as error:
            called = make if isinstance(make, str) else getattr(make, "__qualname__", repr(make))
            reason = " ".join(str(error).split())
            raise self._wrong(
                f"{called} cannot make what stands at {name!r} with options {options or {}}: {reason}"
            ) from error
        if made is not None and not isinstance(made, nn.Module):
            raise self._wrong(f"make returned a {type(made).__name__} for {name}, and not a module or None")
        return made

    def _given(self, blocks: list[nn.Module]) -> tuple[list[nn.Module], list[tuple[Tensor, Tensor]]]:
        """Return what makers get, and which tensors are copies of which."""
        if not self.copy_blocks:
            return blocks, []
        # what the rest of the model uses, too, must stay the same object
        memo: dict[int, Any] = {id(thing): thing for thing in _outside(self.root, {id(block) for block in blocks})}
        shared = set(memo)
        copies = [deepcopy(block, memo) for block in blocks]
        theirs = (each for block in blocks for each in (*block.parameters(), *block.buffers()))
        return copies, [(each, memo[id(each)]) for each in theirs if id(each) not in shared and id(each) in memo]

    def _follow(self, successors: Iterable[tuple[Tensor, Tensor]]) -> None:
        for old, new in successors:
            self._next[id(old)] = new
            self._alive += [old, new]

    def _transplant(self, transplant: Any, given: nn.Module, made: nn.Module) -> None:
        if transplant == "auto":
            self._follow(list(transplant_([given], made)))
        elif transplant is not None:
            function = imported(transplant) if isinstance(transplant, str) else transplant
            with torch.no_grad():
                function(given, made)

    def _places(self, block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        for parent in self.root.modules():
            yield from ((parent, key) for key, child in parent._modules.items() if child is block)

    def _put(self, name: str, block: nn.Module, made: nn.Module, places: list[tuple[nn.Module, str]]) -> None:
        for parent, key in places:
            parent._modules[key] = made
        if block is self.root:
            self.root = made
        made.__dict__[MARK] = True
        self.anchors.append((made, list(block.parameters())))
        self.pairs.append((name, block, made))

    def _in_list(self, name: str) -> bool:
        parent = self.root.get_submodule(name.rpartition(".")[0])
        return bool(name) and isinstance(parent, nn.Sequential | nn.ModuleList)

    def _in_a_row(self, names: list[str]) -> None:
        parents = {name.rpartition(".")[0] for name in names}
        if len(parents) == 1 and all(self._in_list(name) for name in names):
            keys = list(self.root.get_submodule(parents.pop())._modules)
            places = [keys.index(name.rpartition(".")[2]) for name in names]
            if places == list(range(places[0], places[0] + len(places))):
                return
        raise self._wrong(f"merge takes neighbours in one Sequential, and not {names}")


def _take_out(places: list[tuple[nn.Module, str]]) -> None:
    for parent, key in places:
        del parent._modules[key]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model's state, by key: the tensors themselves."""
    return {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _outside(root: nn.Module, blocks: set[int]) -> list[Any]:
    found: dict[int, Any] = {}
    waiting = [] if id(root) in blocks else [root]
    while waiting:
        module = waiting.pop()
        if id(module) in found:
            continue
        found[id(module)] = module
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found[id(tensor)] = tensor
        waiting += [child for child in module._modules.values() if child is not None and id(child) not in blocks]
    return list(found.values())
