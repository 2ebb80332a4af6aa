"""How long the pairs of ``hybrid_images.py`` take: base, global model and both behind a router, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from _hybrid_pairs import COVERAGES, Task, parts_of
from harness import paired, quantile, ratio
from images import loaded
from torch import Tensor, nn

from lightning_efficient.functional.routing import query_threshold
from lightning_efficient.inference.routed import RoutedPredictor
from lightning_efficient.nn.hybrid_graphs import EdgeGraph, GlobalGraph
from lightning_efficient.nn.input_fit import InputFit
from lightning_efficient.nn.views import ViewTap

ROUNDS = {1: 300, 64: 60}
"""Timed calls of each variant, by batch size."""
POOL = 1024
"""Test images that are gone through."""


def latencies(task: Task, device: str, weights: Path | None) -> dict[str, Any]:
    """Time whole answers to test images in turns, evaluation mode, one thread on the CPU.

    Every variant gets the same images in the same round: the images as they come, resized by each network that sees
    them. Thresholds keep the shares of these very images, so that latencies do not depend on how well the networks are
    trained. On the CPU processor time counts, so that what others do counts less; on a GPU each call ends when the GPU
    has finished.

    Returns:
        ``weights``, whether those were saved or random, and by batch size and variant ``p50``, ``p95`` and ``mean`` in
        ms, ``asked``, the share of the images that the global model saw, and ``median``, ``low`` and ``high``, the time
        over the global model's, round by round.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fit = InputFit(task.channels, task.side)
    base, router, other = (each.to(device, memory_format=torch.channels_last) for each in parts_of(task, weights))
    images = loaded(task, device)["test"][0][:POOL].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        scores = torch.cat([EdgeGraph(base, router, fit)(batch)[1] for batch in images.split(64)])
    tap = ViewTap(base, features=router.needs_features)

    def base_outputs(batch: Tensor) -> tuple[Tensor, Tensor | None]:
        views = tap(fit(batch))
        return views.logits, views.features

    small, large = GlobalGraph(base, fit), GlobalGraph(other, fit)
    found: dict[str, Any] = {"weights": "saved" if weights is not None and weights.exists() else "random"}
    for size, rounds in ROUNDS.items():
        pairs = {
            f"routed, {share:g}": RoutedPredictor(
                base_outputs, router, large, query_threshold(scores, share), features=False
            )
            for share in COVERAGES
        }
        answers: dict[str, Callable[[Tensor], object]] = {"base": _alone(small), "global": _alone(large), **pairs}
        calls = {name: _through(images, size, answer) for name, answer in answers.items()}
        clock = process_time if device == "cpu" else perf_counter
        times = paired(calls, rounds, warmup=5, clock=clock)
        found[str(size)] = {name: summary(times, name) for name in times}
        for name, pair in pairs.items():
            found[str(size)][name]["asked"] = pair.statistics.query_rate
    torch.set_num_threads(threads)
    return found


def summary(times: dict[str, list[float]], name: str) -> dict[str, float]:
    """Return quantiles in ms, and the time over that of the global model."""
    ordered = sorted(1000 * each for each in times[name])
    return {
        "p50": quantile(ordered, 0.5),
        "p95": quantile(ordered, 0.95),
        "mean": statistics.mean(ordered),
        **ratio(times, name, "global"),
    }


def _alone(network: nn.Module) -> Callable[[Tensor], Tensor]:
    @torch.inference_mode()
    def answer(images: Tensor) -> Tensor:
        return network(images).softmax(1).max(1).indices

    return answer


def _through(images: Tensor, size: int, answer: Callable[[Tensor], object]) -> Callable[[], None]:
    """Return a function that answers the next batch at each call, from the first one on."""
    batches = [batch for batch in images.split(size) if len(batch) == size]
    position = 0

    def call() -> None:
        nonlocal position
        answer(batches[position % len(batches)])
        position += 1
        if images.is_cuda:
            torch.cuda.synchronize()

    return call
