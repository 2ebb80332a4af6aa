"""What runs beside or after training: stored outputs, thresholds with promises, prediction that may abstain."""

from lightning_efficient.inference.abstaining import AbstainingPrediction, AbstainingPredictor
from lightning_efficient.inference.online_abstainer import OnlineAbstainer, OnlineDecision
from lightning_efficient.inference.output_store import OutputStore
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.inference.thresholds import CalibratedThreshold, calibrate_threshold

__all__ = [
    "AbstainingPrediction",
    "AbstainingPredictor",
    "CalibratedThreshold",
    "OnlineAbstainer",
    "OnlineDecision",
    "OutputStore",
    "ThresholdFile",
    "calibrate_threshold",
]
