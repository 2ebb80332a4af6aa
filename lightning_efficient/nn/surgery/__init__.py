"""Surgery: other blocks in the place of a network's own, with a plan, a recipe and a way back.

Example:
    >>> import timm
    >>> from torch import nn
    >>> model = timm.create_model("mobilenetv3_small_050")
    >>> result = replace(model, is_residual & stage(1), lambda name, block: nn.Identity())
    >>> result.names
    ['blocks.1.1']
    >>> type(result.undo().blocks[1][1]).__name__
    'InvertedResidual'
"""

from lightning_efficient.nn.surgery.makers import MAKERS
from lightning_efficient.nn.surgery.plans import Plan, PlanRow, preview
from lightning_efficient.nn.surgery.policies import POLICIES, perform
from lightning_efficient.nn.surgery.replacing import apply, condense, global_layers, interpolate, plan, replace
from lightning_efficient.nn.surgery.result import Result, carry_out, recipe_of
from lightning_efficient.nn.surgery.where import Where, is_residual, min_resolution, stage, stride1

__all__ = [
    "MAKERS",
    "POLICIES",
    "Plan",
    "PlanRow",
    "Result",
    "Where",
    "apply",
    "carry_out",
    "condense",
    "global_layers",
    "interpolate",
    "is_residual",
    "min_resolution",
    "perform",
    "plan",
    "preview",
    "recipe_of",
    "replace",
    "stage",
    "stride1",
]
