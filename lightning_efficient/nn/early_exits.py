"""Answers in the middle of a network: classifiers at inner layers, and rows that leave there for good."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import is_integer
from lightning_efficient.functional.routing import QueryScore
from lightning_efficient.nn._exit_heads import HIDDEN_WIDTH, ExitHead, ExitHeadName
from lightning_efficient.nn._stage_answers import LiveRows, StageAnswers, check_routing, no_answers
from lightning_efficient.nn.views import ViewTap

Exits = int | Sequence[int | str] | None


class EarlyExitNetwork(nn.Module):
    """A network with exits: classifiers at inner layers, at which sure inputs leave and spare the rest.

    The network stays as it is, with the names of its weights below ``backbone.``; its own classifier is the last stage.
    ``forward`` runs everything and returns the class scores of all stages, for training. ``route`` runs what is needed:
    at each exit the rows that are sure enough leave, all later layers see only the others, and where no row is left the
    rest does not run. With no row leaving the last scores are those of the network, bit for bit.

    Rows may leave only where everything after the exit is computed from its output: at the end of a stage or a block,
    not inside a residual branch. ``route`` reads scores on the host and changes shapes, which ``torch.compile`` and
    ``torch.export`` cannot follow; compile the heads or the stages, not this. A row's scores may differ in the last
    digits between batches of other sizes, as those of any network do.

    Args:
        backbone: Any network of ``(N, ...)`` to class scores ``(N, C)``; its last linear layer, or what timm declares,
            tells its classes.
        exits: Where. ``None``: every feature stage that timm declares but the last; a number: so many of them, evenly
            spaced by depth; else places, each an index into timm's ``feature_info`` or the dotted name of a module.
        head: Kind of the classifiers: ``norm``, ``linear`` or ``hidden``; see ``ExitHead``.
        num_classes: Outputs of the backbone, where it does not tell.
        hidden_width: Units in the middle of ``hidden`` heads.

    Attributes:
        exits: Names of the modules, in the order in which they run.
        stages: Number of exits and one for the whole network, ``M``.

    Raises:
        ConfigurationError: an unknown place, or one whose channels cannot be told.

    Reference:
        Teerapittayanon, McDanel, Kung. BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks. ICPR
        2016. Berestizshevsky, Even. Dynamically Sacrificing Accuracy for Reduced Computation: Cascaded Inference Based
        on Softmax Confidence. ICANN 2019.

    Example:
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> network = EarlyExitNetwork(backbone, exits=["0"], head="linear").eval()
        >>> network(torch.zeros(5, 4)).shape
        torch.Size([5, 2, 3])
        >>> network.route(torch.zeros(5, 4), [float("inf")]).source
        tensor([0, 0, 0, 0, 0])
    """

    def __init__(
        self,
        backbone: nn.Module,
        exits: Exits = None,
        head: ExitHeadName = "norm",
        num_classes: int | None = None,
        *,
        hidden_width: int = HIDDEN_WIDTH,
    ) -> None:
        super().__init__()
        found = ViewTap(backbone).num_classes
        if num_classes is None and found is None:
            raise ConfigurationError(
                f"num_classes is not given, and {type(backbone).__name__} has no linear classifier that tells it"
            )
        if None not in (num_classes, found) and num_classes != found:
            raise ConfigurationError(f"num_classes={num_classes}, but {type(backbone).__name__} has {found} classes")
        self.num_classes = int(num_classes or found or 0)
        self.exits = _places(backbone, exits)
        self.stages = len(self.exits) + 1
        self.backbone = backbone
        layout = {
            "channels_last": getattr(backbone, "output_fmt", None) in ("NHWC", "NLC"),
            "class_token": _has_class_token(backbone),
        }
        self.heads = nn.ModuleList(
            ExitHead(_channels(backbone, name), self.num_classes, head, hidden_width=hidden_width, **layout)
            for name in self.exits
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the class scores of every stage, shape ``(N, M, C)``, those of the whole network last."""
        seen: list[Tensor] = []
        versions: list[int | None] = []

        def at_exit(stage: int, output: Tensor) -> None:
            seen.append(output)
            versions.append(_version(output))

        with self._watched(at_exit):
            logits = self.backbone(inputs)
        for name, output, version in zip(self.exits, seen, versions, strict=True):
            if _version(output) != version:
                raise ConfigurationError(
                    f"exits: the output of {name!r} is changed in place by the layer after it; name that layer"
                )
        # after the network, as activation checkpointing would run a head twice
        return torch.stack([*(head(each) for head, each in zip(self.heads, seen, strict=True)), logits], 1)

    def route(self, inputs: Tensor, thresholds: Sequence[float], score: QueryScore = "msp") -> StageAnswers:
        """Answer each row at the first exit that is sure enough, and compute nothing more for it.

        Args:
            inputs: Shape ``(N, ...)``; may be empty.
            thresholds: One query score per exit: a row leaves where its own is at most this. Infinity lets every row
                leave, minus infinity none, and a row whose score is not finite never leaves.
            score: How unsure a stage is, by name, or a function from class scores ``(N, C)`` to confidence ``(N,)``.

        Raises:
            ConfigurationError: another number of thresholds, or an exit at which rows cannot leave.
            RuntimeError: the network is in training mode.
        """
        check_routing(self, thresholds)
        if not len(inputs):
            return no_answers(inputs.device, self.num_classes)
        rows = LiveRows(len(inputs), inputs.device, score)

        def at_exit(stage: int, output: Tensor) -> Tensor | None:
            self._check_rows(output, rows, stage)
            going_on = rows.ask(self.heads[stage](output), stage, thresholds[stage])
            if going_on is None:
                return None
            if not len(going_on):
                raise _AllAnswered
            return _selected(output, going_on)

        with suppress(_AllAnswered), self._watched(at_exit):
            logits = self.backbone(inputs)
            self._check_rows(logits, rows, len(self.exits))
            rows.close(logits, len(self.exits))
        return rows.answers()

    def last(self, inputs: Tensor) -> Tensor:
        """Return the class scores ``(N, C)`` of the whole network, as it is without exits."""
        return self.backbone(inputs)

    def up_to(self, inputs: Tensor, stage: int) -> Tensor:
        """Return the class scores ``(N, C)`` of one stage, and run all heads up to it and no layer after it.

        Raises:
            ConfigurationError: no such stage.
        """
        if not 0 <= stage < self.stages:
            raise ConfigurationError(f"stage={stage} must be 0 to {self.stages - 1}")
        found: list[Tensor] = []

        def at_exit(number: int, output: Tensor) -> None:
            found.append(self.heads[number](output))
            if number == stage:
                raise _AllAnswered

        with suppress(_AllAnswered), self._watched(at_exit):
            found.append(self.backbone(inputs))
        return found[-1]

    def extra_repr(self) -> str:
        """Name the exits."""
        return f"exits={list(self.exits)}"

    @contextmanager
    def _watched(self, at_exit: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """Call a function with the output of each exit as it runs; what it returns takes the output's place."""
        thread, ran = get_ident(), 0

        def hook_of(stage: int) -> Callable[..., Tensor | None]:
            def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
                nonlocal ran
                if get_ident() != thread:  # the forward of somebody else
                    return None
                if ran != stage:
                    raise self._out_of_order(stage, ran)
                if not isinstance(output, Tensor):
                    raise ConfigurationError(
                        f"exits: {self.exits[stage]!r} returns a {type(output).__name__}, not a tensor; name another "
                        "module"
                    )
                ran += 1
                return at_exit(stage, output)

            return hook

        modules = dict(self.backbone.named_modules())
        # hooks live as long as one forward, so that copies, files and the network itself know nothing of them
        handles = [modules[name].register_forward_hook(hook_of(stage)) for stage, name in enumerate(self.exits)]
        try:
            yield
            if ran != len(self.exits):
                raise ConfigurationError(
                    f"exits: {self.exits[ran]!r} does not run in a forward pass; name another module"
                )
        finally:
            for handle in handles:
                handle.remove()

    def _out_of_order(self, stage: int, expected: int) -> ConfigurationError:
        if stage < expected:
            return ConfigurationError(f"exits: {self.exits[stage]!r} runs more than once; name another module")
        return ConfigurationError(
            f"exits: {self.exits[stage]!r} runs before {self.exits[expected]!r}; give them in the order of the forward"
        )

    def _check_rows(self, output: Tensor, rows: LiveRows, stage: int) -> None:
        if len(output) != len(rows.live):
            place = "the end" if stage == len(self.exits) else repr(self.exits[stage])
            raise ConfigurationError(
                f"exits: {len(rows.live)} rows went on and {len(output)} came to {place}, as an exit lies inside a "
                "block or the batch is not in dimension 0; place exits at the end of blocks"
            )


class _AllAnswered(Exception):  # noqa: N818 - no error
    """Ends a forward pass; never leaves this file."""


def _version(output: Tensor) -> int | None:
    """Return how often a tensor was changed in place; inference mode does not count."""
    return None if output.is_inference() else output._version


def _selected(output: Tensor, rows: Tensor) -> Tensor:
    """Return some rows in the memory order of all of them, of which convolutions make theirs."""
    chosen = output.index_select(0, rows)
    if output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous():
        return chosen.contiguous(memory_format=torch.channels_last)
    return chosen


def _places(backbone: nn.Module, exits: Exits) -> tuple[str, ...]:
    declared = [info["module"] for info in getattr(backbone, "feature_info", None) or []]
    kind = type(backbone).__name__
    if (exits is None or is_integer(exits)) and len(declared) < 2:
        raise ConfigurationError(f"exits={exits}: {kind} declares no feature stages, so give the names of modules")
    if exits is None:
        return tuple(declared[:-1])
    if is_integer(exits):
        if not 1 <= exits < len(declared):
            raise ConfigurationError(
                f"exits={exits} must be 1 to {len(declared) - 1}, as {kind} has {len(declared)} stages"
            )
        return tuple(declared[math.ceil(len(declared) * (k + 1) / (exits + 1)) - 1] for k in range(exits))
    assert not isinstance(exits, int)
    if isinstance(exits, str) or not exits:
        raise ConfigurationError(f"exits={exits!r} must be a list of at least one place, a number, or null")
    modules = dict(backbone.named_modules())
    names = [_place(each, declared, modules, kind) for each in exits]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigurationError(f"exits holds {repeated[0]!r} more than once")
    return tuple(names)


def _place(given: Any, declared: list[str], modules: dict[str, nn.Module], kind: str) -> str:
    if is_integer(given):
        if not -len(declared) <= given < len(declared):
            raise ConfigurationError(
                f"exits: {given} is out of range, as {kind} declares {len(declared)} feature stages"
            )
        return declared[given]
    if not isinstance(given, str) or given not in modules or not given:
        hint = did_you_mean(str(given), modules)
        raise ConfigurationError(f"exits: {kind} has no module {given!r}.{hint}")
    return given


def _channels(backbone: nn.Module, name: str) -> int:
    for info in getattr(backbone, "feature_info", None) or []:
        if info["module"] == name:
            return int(info["num_chs"])
    module = backbone.get_submodule(name)
    if isinstance(module, nn.Linear):
        return module.out_features
    try:
        channels = ViewTap(backbone, feature_map=True, map_module=name).map_channels
    except ConfigurationError as error:
        raise ConfigurationError(
            f"exits: nothing in {name!r}, a {type(module).__name__}, says how many channels it has; name one that ends "
            "in a convolution or a normalisation"
        ) from error
    assert channels is not None
    return channels


def _has_class_token(backbone: nn.Module) -> bool:
    # XCiT and CaiT add theirs after the blocks
    late = hasattr(backbone, "cls_attn_blocks") or hasattr(backbone, "blocks_token_only")
    return bool(getattr(backbone, "num_prefix_tokens", 0)) and not late
