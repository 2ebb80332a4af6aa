"""Public value objects that users pickle: how each is made, and what is recorded of it.

``observe`` looks at a loaded object by its public names only, so that fields which later versions add do not count.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import record
from torch import Tensor
from torchmetrics import Metric

from lightning_efficient import functional, inference, metrics, profiling, reporting
from lightning_efficient.functional import PrimalDual, Schedule
from lightning_efficient.typing import Part, SequenceBatch


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def labels(samples: int, classes: int) -> Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(1))


def updated(metric: Metric) -> Metric:
    metric.update(drawn(32, 3).log(), labels(32, 3))
    return metric


def routed() -> metrics.RoutingCurve:
    metric = metrics.RoutingCurve()
    metric.update(drawn(32), labels(32, 2).bool(), labels(32, 2).bool().flip(0))
    return metric


def stepped(dual: PrimalDual) -> PrimalDual:
    dual.step(0.5)
    dual.step(-0.1)
    return dual


def latency() -> profiling.Latency:
    return profiling.Latency(1, 1.5, 2.5, 1.75, 570.0, 40, 5, 1, "cpu", "float32")


def layer() -> profiling.LayerCost:
    return profiling.LayerCost("head", "Linear", 32, 36, (1, 4), 160, 16)


def variants() -> profiling.VariantComparison:
    timing = profiling.VariantTime(1, 1.0, 0.5, 0.4, 0.6, 20)
    return profiling.VariantComparison((profiling.VariantCost("compiled", (timing,), 1000, 0.0),), 1, "cpu", ("int8",))


def memory() -> profiling.TrainingMemory:
    return profiling.TrainingMemory(8, 4096, "allocator", 1024, 144, 288)


def footprint() -> profiling.Footprint:
    return profiling.Footprint(
        "Tiny", 36, 36, 144, 1200, 32, 64, ("aten::tanh",), 2048, "allocator", (8,), (latency(),), (layer(),),
        160, 16, memory(), variants(), 1.25, ("backbone",), "a processor",
    )  # fmt: skip


def block() -> profiling.BlockCost:
    return profiling.BlockCost("layer1", "Conv2d", "DepthwiseLayer", 100, 20, 2.0, 1.0, 2.0, 1.8, 2.2, 10)


def threshold() -> inference.CalibratedThreshold:
    return inference.calibrate_threshold(drawn(200), (drawn(200) < 0.1).float(), risk=0.2, confidence_level=0.9)


def routing() -> inference.CalibratedRouting:
    target, wrong = labels(400, 3), drawn(400)
    answers = torch.stack([torch.where(wrong > 0.7, (target + 1) % 3, target), target], dim=1)
    path = torch.linspace(0, 1, 11).unsqueeze(1)
    return inference.calibrate_routing(wrong, answers, target, max_drop=0.1, confidence_level=0.9, path=path)


OBJECTS: dict[str, Callable[[], Any]] = {
    "Alternation": lambda: functional.Alternation(2, 1, 3, "step"),
    "ConstantSchedule": lambda: functional.ConstantSchedule(0.5),
    "CosineSchedule": lambda: functional.CosineSchedule(1.0, 0.1, 2.0, 0.5),
    "LinearSchedule": lambda: functional.LinearSchedule(1.0, 0.0),
    "PowerSchedule": lambda: functional.PowerSchedule(1.0, 2.0, 0.5),
    "StepSchedule": lambda: functional.StepSchedule(1.0, 0.5, 4),
    "PrimalDual": lambda: stepped(PrimalDual(0.1, 0.2, 0.0, 5.0, augmentation=0.1)),
    "QuantizationParameters": lambda: functional.QuantizationParameters(
        torch.tensor([0.1, 0.2]), torch.tensor([0, 3]), -128, 127
    ),
    "RiskCoverage": lambda: functional.risk_coverage_curve(drawn(16), 1.0 * (drawn(16) < 0.4)),
    "DropChoice": lambda: functional.DropChoice(2, 0.01, 5, 3, 200, 0.02, 0.04),
    "ThresholdChoice": lambda: functional.ThresholdChoice(0.75, 150, 3.0, 200, 0.05),
    "GridChoice": lambda: functional.GridChoice(1, 0.5, 0.8, 0.1),
    "Hindsight": lambda: functional.Hindsight(3, 10, 1, 12, 2, None, 1),
    "HybridCurve": lambda: functional.HybridCurve(drawn(4), drawn(4), drawn(4), 4),
    "AURC": lambda: updated(metrics.AURC()),
    "AUGRC": lambda: updated(metrics.AUGRC()),
    "EAURC": lambda: updated(metrics.EAURC()),
    "EAUGRC": lambda: updated(metrics.EAUGRC(bins=16)),
    "AbstentionRate": lambda: updated(metrics.AbstentionRate(0.5)),
    "SelectiveAccuracy": lambda: updated(metrics.SelectiveAccuracy(0.4)),
    "CoverageAtRisk": lambda: updated(metrics.CoverageAtRisk(0.7)),
    "RiskAtCoverage": lambda: updated(metrics.RiskAtCoverage(0.5)),
    "RiskCoverageCurve": lambda: updated(metrics.RiskCoverageCurve(score="energy", temperature=2.0)),
    "RoutingCurve": routed,
    "OperatingPoint": lambda: metrics.OperatingPoint(0.9, 0.05, "at 90 %"),
    "Latency": latency,
    "LayerCost": layer,
    "MacCount": lambda: profiling.MacCount(32, 64, {"head": 32}, (), (layer(),)),
    "Footprint": footprint,
    "TrainingMemory": memory,
    "VariantComparison": variants,
    "VariantCost": lambda: variants().rows[0],
    "VariantTime": lambda: variants().rows[0].timings[0],
    "EnergyReading": lambda: profiling.EnergyReading(2.0, 0.5, {"cpu:0": 2.0}),
    "BlockCost": block,
    "SurgeryCosts": lambda: profiling.SurgeryCosts((block(),), block(), 50, 40, 1, (3, 8, 8), 1, "cpu", "fp32", False),
    "CalibratedThreshold": threshold,
    "CalibratedRouting": routing,
    "DeploymentCost": lambda: inference.DeploymentCost(0.01, 0.001, bytes_up=1000.0, global_s=0.1),
    "ThresholdFile": lambda: inference.ThresholdFile(
        calibrated=threshold(), split="val", data_sha256="0" * 64, weights_sha256="1" * 64, score="msp"
    ),
    "RoutingFile": lambda: inference.RoutingFile(
        calibrated=routing(), split="test", data_sha256="0" * 64, weights_sha256="1" * 64, module_score="gain"
    ),
    "RoutingEvent": lambda: inference.RoutingEvent("drift", "scores have moved", {"samples": 100}),
    "OnlineDecision": lambda: inference.OnlineDecision(2, 7),
    "CostPoint": lambda: reporting.CostPoint(0.5, 0.9, 3.5),
    "CostMark": lambda: reporting.CostMark("base", 1.0, 0.8),
    "CostCurve": lambda: reporting.CostCurve("routed", (1.0, 2.0), (0.8, 0.9)),
    "ParetoPoint": lambda: reporting.ParetoPoint("a run", 1.0, 0.9, 0.1, 0.01),
    "ParetoSummary": lambda: reporting.ParetoSummary((True, False), 0, 0.8, 0.9, (2.0, 0.0), (True, False)),
    "RunRecord": lambda: reporting.RunRecord("a run", Path("runs/a"), {"val/accuracy": 0.9}, {"seed_everything": 0}),
    "SequenceBatch": lambda: SequenceBatch(drawn(2, 4, 1), labels(2, 3), torch.tensor([4, 3])),
    "Part": lambda: Part(1, 4, 10, 20, 40, torch.tensor([4, 3])),
}  # fmt: skip


def observe(value: Any) -> Any:
    """Return what a later version must say of an object, as plain values."""
    if isinstance(value, Metric):
        return observe(value.compute())
    if isinstance(value, Schedule):
        return {"fields": fields(value), "values": [value(step / 4) for step in range(5)]}
    if isinstance(value, PrimalDual):
        return value.state_dict()
    if isinstance(value, torch.Tensor):
        return observe(value.tolist())
    if dataclasses.is_dataclass(value):
        return fields(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: observe(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): observe(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [observe(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def fields(value: Any) -> dict[str, Any]:
    return {field.name: observe(getattr(value, field.name)) for field in dataclasses.fields(value)}


def write_pickles(folder: Path) -> None:
    """Write a pickle of each object, and what is recorded of it."""
    folder.mkdir(parents=True)
    expected = {}
    for name, make in OBJECTS.items():
        value = make()
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(value))
        expected[name] = observe(value)
    record(folder, {"objects": expected})
