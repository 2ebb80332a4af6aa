"""Which part of a module is the network that is compressed."""

from __future__ import annotations

from torch import nn

from lightning_efficient.errors import ConfigurationError, did_you_mean

USUAL = ("backbone", "network", "model", "net", "student")


def main_network(module: nn.Module, name: str | None = None, option: str = "network") -> str:
    """Return the dotted name of the sub-module that holds a module's network.

    Args:
        module: A module around a network, such as a LightningModule.
        name: What the user gave: the dotted name of a sub-module; ``""`` is the module itself.
        option: What ``name`` is called in messages.

    Returns:
        ``name``, else the first of :data:`USUAL` that has parameters, else the only child that has some.

    Raises:
        ConfigurationError: no sub-module of that name, or none or several to choose from.

    Example:
        >>> main_network(nn.ModuleDict({"backbone": nn.Linear(2, 2), "loss": nn.CrossEntropyLoss()}))
        'backbone'
    """
    if name is not None:
        modules = dict(module.named_modules())
        if name not in modules:
            children = [child for child, _ in module.named_children()]
            raise ConfigurationError(
                f"{option} is {name!r}, and {type(module).__name__} has no such sub-module; it has {children}."
                f"{did_you_mean(name, modules)}"
            )
        return name
    children = [child for child, part in module.named_children() if any(True for _ in part.parameters())]
    usual = [child for child in USUAL if child in children]
    if usual or len(children) == 1:
        return (usual or children)[0]
    raise ConfigurationError(
        f"{type(module).__name__} does not tell which of its parts is the network: with weights are {children}; "
        f"name one with {option}="
    )
