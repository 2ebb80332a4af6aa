"""A calibrated threshold in a file beside the checkpoint it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.inference.calibration_file import CalibrationFile
from lightning_efficient.inference.thresholds import CalibratedThreshold

ScoreSource: TypeAlias = Literal["confidence", "msp"]
"""Whose confidence the threshold is of: the module's own, or the maximum softmax probability of its logits."""

FUNCTION = "function "
"""How the name of a score begins that is a function."""


@dataclass(frozen=True)
class ThresholdFile(CalibrationFile[CalibratedThreshold]):
    """What a calibration writes down: the threshold, what it was measured on, and whose weights it is for.

    Its ``module_score`` is what the module itself returns as confidence, by the name in its attribute ``score``, see
    ``score_name``; ``None`` where it has no such attribute. See ``CalibrationFile`` for the other attributes.

    Attributes:
        score: ``confidence``, what the module itself returns, or ``msp`` of its logits.

    Example:
        >>> ThresholdFile.beside("runs/x/checkpoints/best.ckpt").as_posix()
        'runs/x/checkpoints/best.threshold.json'
    """

    score: ScoreSource = field(kw_only=True)

    kind = "threshold"
    calibrated_class = CalibratedThreshold
    more_entries = {"score": lambda value: value in get_args(ScoreSource)}

    def check_score(self, module: object, path: str | Path) -> None:
        """Raise where a module's own confidence is another one than was calibrated.

        A threshold of ``msp`` is compared with that of the logits, whatever the module returns. Functions are compared
        by name only, and where the file names no score there is nothing to compare.

        Args:
            module: The module, or a network.
            path: This file, for the message.

        Raises:
            ConfigurationError: its ``score`` is another one, or it has none.
        """
        given = score_name(module)
        if self.score == "confidence" and self.module_score is not None and given != self.module_score:
            has = "none" if given is None else repr(given)
            raise ConfigurationError(
                f"the threshold file {path} is of the score {self.module_score!r}, and {type(module).__name__} has "
                f"{has}; set its score to what was calibrated, or calibrate again"
            )


def score_name(module: object) -> str | None:
    """Return the ``score`` of a module: a word, or ``function`` and the name of one; ``None`` where it has none.

    Example:
        >>> from types import SimpleNamespace
        >>> score_name(SimpleNamespace(score="energy")), score_name(SimpleNamespace(score=max)), score_name(object())
        ('energy', 'function max', None)
    """
    score = getattr(module, "score", None)
    if callable(score):
        return f"{FUNCTION}{getattr(score, '__qualname__', type(score).__qualname__)}"
    return score if isinstance(score, str) else None
