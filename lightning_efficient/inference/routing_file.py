"""Calibrated thresholds of a hybrid or cascade in a file beside the checkpoint they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.calibration_file import CalibrationFile
from lightning_efficient.inference.routing_thresholds import CalibratedRouting


@dataclass(frozen=True)
class RoutingFile(CalibrationFile[CalibratedRouting]):
    """What a calibration of routing writes down: thresholds, what they were measured on, whose weights they fit.

    Its weights are those of all models and of the router, its ``module_score`` is the router by name. See
    ``CalibrationFile`` for the other attributes.

    Example:
        >>> RoutingFile.beside("runs/x/checkpoints/best.ckpt").as_posix()
        'runs/x/checkpoints/best.routing.json'
    """

    kind = "routing"
    calibrated_class = CalibratedRouting

    def check_router(self, module: object, path: str | Path) -> None:
        """Raise where a module routes by another score than was calibrated; two scores may share all weights.

        Args:
            module: With an attribute ``router_name``; without one there is nothing to compare.
            path: This file, for the message.

        Raises:
            ConfigurationError: its router is another one.
        """
        given = getattr(module, "router_name", None)
        if None not in (given, self.module_score) and given != self.module_score:
            raise ConfigurationError(
                f"the routing file {path} is of the router {self.module_score!r}, and {type(module).__name__} has "
                f"{given!r}; set it to what was calibrated, or calibrate again"
            )
