"""What runs beside or after training: stored outputs, thresholds with promises, prediction, export and serving."""

from lightning_efficient.inference.abstaining import AbstainingPrediction, AbstainingPredictor
from lightning_efficient.inference.cascade_predictor import CascadePrediction, CascadePredictor
from lightning_efficient.inference.circuit_breaker import CircuitBreaker
from lightning_efficient.inference.deployment_cost import DeploymentCost
from lightning_efficient.inference.drift_monitor import DriftMonitor
from lightning_efficient.inference.edge_client import EdgeClient
from lightning_efficient.inference.events import GlobalUnavailable, RoutingEvent
from lightning_efficient.inference.export import ExportReport, export_graphs
from lightning_efficient.inference.exported import ExportedModel, load_export
from lightning_efficient.inference.online_abstainer import OnlineAbstainer, OnlineDecision
from lightning_efficient.inference.output_store import OutputStore
from lightning_efficient.inference.routed import RoutedPrediction, RoutedPredictor
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.routing_thresholds import CalibratedRouting, calibrate_routing
from lightning_efficient.inference.sample_hashes import hash_samples
from lightning_efficient.inference.serving import serve_global
from lightning_efficient.inference.threshold_file import ThresholdFile
from lightning_efficient.inference.thresholds import CalibratedThreshold, calibrate_threshold

__all__ = [
    "AbstainingPrediction",
    "AbstainingPredictor",
    "CalibratedRouting",
    "CalibratedThreshold",
    "CascadePrediction",
    "CascadePredictor",
    "CircuitBreaker",
    "DeploymentCost",
    "DriftMonitor",
    "EdgeClient",
    "ExportReport",
    "ExportedModel",
    "GlobalUnavailable",
    "OnlineAbstainer",
    "OnlineDecision",
    "OutputStore",
    "RoutedPrediction",
    "RoutedPredictor",
    "RoutingEvent",
    "RoutingFile",
    "ThresholdFile",
    "calibrate_routing",
    "calibrate_threshold",
    "export_graphs",
    "hash_samples",
    "load_export",
    "serve_global",
]
