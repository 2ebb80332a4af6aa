"""The pairs of ``hybrid_images.py``: how base and global model are trained, and what routers make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from images import OnDevice, loaded, quiet_trainer, settle
from torch import Tensor, nn

from lightning_efficient.functional import routing as LR
from lightning_efficient.inference.routing_thresholds import calibrate_routing, threshold_path
from lightning_efficient.modules.image_classifier import ImageClassifier
from lightning_efficient.nn.backbones import create_backbone
from lightning_efficient.nn.hybrid_graphs import EdgeGraph
from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.routers import Router, build_router
from lightning_efficient.nn.views import ViewTap
from lightning_efficient.profiling import count_macs

CLASSES = 10
COVERAGES = (0.9, 0.7, 0.5)
CONFIDENCE_LEVEL = 0.9
ROUTERS = ("msp", "margin", "entropy", "energy", "proxy", "gain")
BASELINE, TIMED = "msp", "gain"
ROUTER_EPOCHS, ROUTER_BATCH = 20, 256
GRID = 50
"""Steps of the curve that is kept."""


@dataclass(frozen=True)
class Task:
    """A data set, a pair of networks, how its training images are shared out, and how long to train.

    Attributes:
        side: Height and width that both networks see, pixels; images are resized to it.
        router: How many of the official training images are the router's alone.
        calibration: How many are those of the thresholds.
        trained_on: How many of the rest base and global model learn; ``None`` for all.
        max_drop: The drop of accuracy below the global model that a calibrated threshold may cost.
    """

    data: str
    channels: int
    side: int
    base: str
    global_model: str
    epochs: int
    batch: int
    shift: int
    flips: bool
    router: int
    calibration: int
    trained_on: int | None = None
    max_drop: float = 0.01
    rate: float = 3e-3
    samples: None = None


class Apart(OnDevice):
    """A task's images in four parts: the official test images, and the others shared out by the seed."""

    def __init__(self, task: Task, seed: int, device: str) -> None:
        super().__init__(task, seed, device)
        parts = loaded(task, device)
        images, labels = (torch.cat([parts[name][index] for name in ("train", "val")]) for index in (0, 1))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(device)
        sizes = {"router": task.router, "calibration": task.calibration, "train": task.trained_on or len(order)}
        self.parts = {"test": parts["test"]}
        for name, size in sizes.items():
            chosen, order = order[:size], order[size:]
            self.parts[name] = (images[chosen], labels[chosen])


class Resized(ImageClassifier):
    """A classifier that sees images at another resolution than they come in."""

    def __init__(self, name: str, task: Task, **options: Any) -> None:
        super().__init__(name, num_classes=CLASSES, in_chans=task.channels, channels_last=True, **options)
        self.fit = InputFit(task.channels, task.side)
        self.data_config = {}  # the images are normalised already

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.fit(images))


class Outputs(NamedTuple):
    """What both networks say of a part, on the CPU."""

    logits: Tensor
    features: Tensor
    global_logits: Tensor
    labels: Tensor

    @property
    def stage_predictions(self) -> Tensor:
        return torch.stack([self.logits.argmax(1), self.global_logits.argmax(1)], 1)

    @property
    def correct(self) -> tuple[Tensor, Tensor]:
        base, other = (self.stage_predictions == self.labels.unsqueeze(1)).unbind(1)
        return base, other


def train(task: Task, seed: int, device: str, weights: str | None = None) -> dict[str, Any]:
    """Train a pair and its routers, and return what they achieve on the test part.

    Args:
        task: The task.
        seed: Of the split, the weights and the order of images.
        device: ``cpu`` or ``cuda``.
        weights: A file to which the networks and the router that is timed go; ``None`` for none.
    """
    settle(seed)
    torch.backends.cudnn.benchmark = device == "cuda"
    start = perf_counter()
    data = Apart(task, seed, device)
    networks = {name: trained(getattr(task, name), task, data, device) for name in ("base", "global_model")}
    found = {name: outputs(task, networks, *data.parts[name]) for name in ("router", "calibration", "test")}
    routers = {name: fitted(name, found["router"], seed) for name in ROUTERS}
    if weights is not None:
        Path(weights).parent.mkdir(parents=True, exist_ok=True)
        states = {name: module.state_dict() for name, module in (*networks.items(), ("router", routers[TIMED]))}
        torch.save(states, weights)
    base, other = found["test"].correct
    oracle = LR.oracle_curve(base, other)
    return {
        "seconds": perf_counter() - start,
        "parts": {name: len(part[1]) for name, part in data.parts.items()},
        "base_accuracy": float(base.double().mean()),
        "global_accuracy": float(other.double().mean()),
        "only_base_right": float((base & ~other).double().mean()),
        "only_global_right": float((other & ~base).double().mean()),
        "oracle": {"area": LR.hybrid_area(oracle), "curve": sampled(oracle)},
        "routers": {name: judged(router, found, task.max_drop) for name, router in routers.items()},
    }


def trained(name: str, task: Task, data: OnDevice, device: str) -> nn.Module:
    """Train a network from scratch with AdamW and one cycle of the learning rate."""
    steps = task.epochs * len(data.train_dataloader())
    module = Resized(
        name,
        task,
        optimizer=partial(torch.optim.AdamW, lr=task.rate, weight_decay=0.05),
        lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=task.rate, total_steps=steps, pct_start=0.2),
        lr_interval="step",
    )
    options = {"precision": "bf16-mixed"} if device == "cuda" else {}
    quiet_trainer(task.epochs, device, limit_val_batches=0, gradient_clip_val=1.0, **options).fit(
        module, datamodule=data
    )
    return module.backbone.eval().to(device)


@torch.inference_mode()
def outputs(task: Task, networks: Mapping[str, nn.Module], images: Tensor, labels: Tensor) -> Outputs:
    """Run both networks over images, in float32."""
    fit = InputFit(task.channels, task.side)
    tap = ViewTap(networks["base"], features=True)
    found = []
    for batch in images.split(500):
        resized = fit(batch).contiguous(memory_format=torch.channels_last)
        views = tap(resized)
        assert views.features is not None
        found.append([each.float().cpu() for each in (views.logits, views.features, networks["global_model"](resized))])
    logits, features, global_logits = (torch.cat(each) for each in zip(*found, strict=True))
    if not (logits.isfinite().all() and global_logits.isfinite().all()):
        raise RuntimeError("a network diverged")
    return Outputs(logits, features, global_logits, labels.cpu())


def fitted(name: str, seen: Outputs, seed: int) -> Router:
    """Build a router, and train it if it learns, on outputs that the networks did not learn from."""
    torch.manual_seed(seed)
    router = build_router(name, CLASSES, seen.features.shape[1])
    if not router.learns:
        return router.eval()
    base, other = seen.correct
    draw = torch.Generator().manual_seed(seed)
    size = min(ROUTER_BATCH, len(base))
    steps = ROUTER_EPOCHS * (len(base) // size)
    optimizer = torch.optim.AdamW(router.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    router.train()
    for _ in range(ROUTER_EPOCHS):
        for chosen in torch.randperm(len(base), generator=draw).split(size)[: len(base) // size]:
            optimizer.zero_grad()
            router.loss(seen.logits[chosen], seen.features[chosen], base[chosen], other[chosen]).backward()
            optimizer.step()
            schedule.step()
    return router.eval()


@torch.inference_mode()
def judged(router: Router, found: Mapping[str, Outputs], max_drop: float) -> dict[str, Any]:
    """Choose thresholds on the calibration part, and tell what they do on the test part."""
    scores = {part: router(each.logits, each.features) for part, each in found.items()}
    calibration, test = found["calibration"], found["test"]
    curve = LR.hybrid_curve(scores["test"], *test.correct)
    oracle = LR.oracle_curve(*test.correct)
    # chosen on the calibration part alone; the path comes from the router's part
    promise = calibrate_routing(
        scores["calibration"],
        calibration.stage_predictions,
        calibration.labels,
        max_drop=max_drop,
        confidence_level=CONFIDENCE_LEVEL,
        path=threshold_path(scores["router"]),
    )
    promised = on_test(scores["test"], test, promise.thresholds[0])
    return {
        "area": LR.hybrid_area(curve),
        "gap": LR.gap_to_oracle(curve, oracle),
        "at": {f"{share:g}": LR.accuracy_at_coverage(curve, share) for share in COVERAGES},
        "hindsight": {f"{drop:g}": coverage_within(curve, drop) for drop in (0.0, max_drop)},
        "thresholds": {
            f"{share:g}": on_test(scores["test"], test, LR.query_threshold(scores["calibration"], share))
            for share in COVERAGES
        },
        "promise": {
            **promised,
            "calibration_coverage": promise.coverage,
            "calibration_drop": promise.drop,
            "samples": promise.samples,
            "held": promised["drop"] <= max_drop,
        },
        "curve": sampled(curve),
    }


def on_test(scores: Tensor, test: Outputs, threshold: float) -> dict[str, Any]:
    """Return what a threshold does: coverage, accuracy, and the drop below the global model with its standard error."""
    kept = scores <= threshold
    base, other = test.correct
    right = torch.where(kept, base, other).double()
    lost = other.double() - right
    return {
        # JSON holds no infinity
        "threshold": threshold if math.isfinite(threshold) else str(threshold),
        "coverage": float(kept.double().mean()),
        "accuracy": float(right.mean()),
        "drop": float(lost.mean()),
        "drop_error": float(lost.std() / len(lost) ** 0.5),
    }


def coverage_within(curve: LR.HybridCurve, drop: float) -> float:
    """Return the largest coverage whose accuracy is at most ``drop`` below the global model's, known afterwards."""
    return float(curve.coverage[curve.accuracy >= curve.accuracy[0] - drop - 1e-12].max())


def sampled(curve: LR.HybridCurve) -> list[float]:
    return [round(LR.accuracy_at_coverage(curve, step / GRID), 5) for step in range(GRID + 1)]


def footprint(task: Task) -> dict[str, dict[str, float]]:
    """Count parameters and MACs of one image, of the base, the router that is timed, and the global model."""
    base, router, other = parts_of(task)
    images = torch.zeros(1, task.channels, task.side, task.side)
    macs = {
        "base": count_macs(base, images).macs,
        "router": count_macs(EdgeGraph(base, router), images).macs - count_macs(base, images).macs,
        "global_model": count_macs(other, images).macs,
    }
    modules = {"base": base, "router": router, "global_model": other}
    return {
        name: {"macs": macs[name], "params": sum(each.numel() for each in module.parameters())}
        for name, module in modules.items()
    }


def parts_of(task: Task, weights: Path | None = None) -> tuple[nn.Module, Router, nn.Module]:
    """Build base, router and global model, with saved weights where there are some, else with random ones."""
    torch.manual_seed(0)
    base, other = (create_backbone(name, False, CLASSES, task.channels) for name in (task.base, task.global_model))
    router = build_router(TIMED, CLASSES, ViewTap(base).feature_dim or 0)
    if weights is not None and weights.exists():
        states = torch.load(weights, map_location="cpu", weights_only=True)
        for module, name in ((base, "base"), (router, "router"), (other, "global_model")):
            module.load_state_dict(states[name])
    return base.eval(), router.eval(), other.eval()
