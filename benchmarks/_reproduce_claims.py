"""The rows of the table of results: a method, its baseline, the study that has both, and what was published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import _reproduce_published as published
from _reproduce_published import Published
from _reproduce_readers import (
    SEEDS,
    Reader,
    adding_speed,
    memory,
    of_bound,
    paired,
    percent,
    same,
    selective_error,
    violations,
)

METHODS = {
    "fptt": "FPTT",
    "chunked": "Training in parts",
    "irnn": "IncrementalRNN",
    "tarnn": "TimeAdaptiveRNN",
    "global": "Global layer",
    "interpolation": "SpatialInterpolation",
    "osp": "One-sided prediction",
    "selectivenet": "SelectiveNet",
    "gamblers": "Deep Gamblers",
    "sat": "Self-adaptive training",
    "disk": "DiSK",
    "kd": "Distillation",
    "gain": "Gain router",
    "thresholds": "Thresholds that keep a promise",
    "online": "Online abstention",
    "pruning": "Pruning",
    "int8": "int8",
    "bf16": "bfloat16",
}
"""What ``--only`` takes, and how it is called on the page."""

ACCURACY, ERROR, BATCHES = "test accuracy, %", "last squared error", "batches until the error is below 0.05"


@dataclass(frozen=True)
class Claim:
    """One row.

    Attributes:
        method: Key into ``METHODS``.
        variant: What was run, as the study calls it.
        baseline: What it is compared with.
        task: The data and the network.
        study: Name of the study's JSON, without its suffix.
        read: Finds the pairs in it.
        measure: What the numbers are.
        better: Which way is good.
        published: The figure to compare with.
    """

    method: str
    variant: str
    baseline: str
    task: str
    study: str
    read: Reader
    measure: str = ACCURACY
    better: Literal["higher", "lower"] = "higher"
    published: Published | None = None

    @property
    def decimals(self) -> int:
        """How many decimals its numbers are told with."""
        return {ERROR: 3, BATCHES: 0}.get(self.measure, 2)

    @property
    def key(self) -> str:
        """What names the row in messages and in the JSON."""
        return f"{self.method}: {self.variant} over {self.baseline}, {self.task}, {self.measure}"


def sequences(data: str, task: str) -> list[Claim]:
    study = f"fptt_tasks_{data}"

    def value(network: str, method: str) -> tuple[str, ...]:
        return ("runs", network, method, SEEDS, "test_accuracy")

    return [
        Claim("fptt", "FPTT, LSTM", "BPTT", task, study, paired(value("lstm", "FPTT"), value("lstm", "BPTT")),
              published=published.FPTT_IMAGES),
        Claim("chunked", "ChunkedBackprop, LSTM", "BPTT", task, study,
              paired(value("lstm", "ChunkedBackprop"), value("lstm", "BPTT")), published=published.CHUNKED_IMAGES),
        Claim("irnn", "IncrementalRNN", "LSTM", task, study, paired(value("irnn", "BPTT"), value("lstm", "BPTT")),
              published=published.IRNN),
        Claim("tarnn", "TimeAdaptiveRNN", "LSTM", task, study, paired(value("tarnn", "BPTT"), value("lstm", "BPTT"))),
    ]  # fmt: skip


def adding() -> list[Claim]:
    tasks = ("adding problem, 500 steps", "adding problem, 200 steps")

    def value(method: str) -> tuple[str | int, ...]:
        return ("runs", -1, method, SEEDS, "final_mse")

    found = []
    for method, variant in (("fptt", "FPTT"), ("chunked", "ChunkedBackprop")):
        found += [
            Claim(method, variant, "BPTT", tasks[0], "fptt_adding", paired(value(variant), value("BPTT"), same), ERROR,
                  "lower", published.ADDING),
            Claim(method, variant, "BPTT", tasks[1], "fptt_adding", adding_speed(variant, "BPTT"), BATCHES, "lower"),
        ]  # fmt: skip
    peak = "peak memory of a step, % of BPTT's"
    found += [
        Claim(method, variant, "BPTT", "LSTM, 1,000 steps in 10 parts", "fptt_memory", memory(variant, "BPTT"), peak,
              "lower", published.MEMORY)
        for method, variant in (("fptt", "FPTT"), ("chunked", "ChunkedBackprop"))
    ]  # fmt: skip
    return found


def blocks(data: str, task: str) -> list[Claim]:
    study = f"blocks_images_{data}"
    rows = (
        ("global", "Global, K=1", "condensed, depthwise", "a depthwise convolution in its place", None),
        ("global", "Global, K=1", "base", "the whole network", published.GLOBAL_BASE),
        ("global", "Global, K=1", "narrow as Global", "a narrow network of as many MACs", published.GLOBAL_NARROW),
        ("interpolation", "interpolated", "base", "the whole network", published.INTERPOLATION),
        ("interpolation", "interpolated", "narrow as interpolated", "a narrow network of as many MACs", None),
    )
    return [
        Claim(method, variant, called, task, study,
              paired(("runs", variant, SEEDS, "accuracy"), ("runs", baseline, SEEDS, "accuracy")), published=figure)
        for method, variant, baseline, called, figure in rows
    ]  # fmt: skip


def selective(data: str, task: str) -> list[Claim]:
    study, baseline = f"selective_images_{data}", "softmax response"
    rows = (
        ("osp", "OSP", "msp", "coverage at 1 % of joint risk, %", ("risk_0.01", "coverage"), percent, "higher",
         published.OSP),
        ("osp", "OSP", "msp", "AUGRC, %", ("augrc",), percent, "lower", None),
        ("selectivenet", "SelectiveNet", "selector", "error at 90 % coverage, %", ("coverage_0.9",), selective_error,
         "lower", published.SELECTIVENET),
        ("gamblers", "Deep Gamblers", "abstain_logit", "error at 90 % coverage, %", ("coverage_0.9",),
         selective_error, "lower", published.GAMBLERS),
        ("sat", "SAT", "abstain_logit", "error at 90 % coverage, %", ("coverage_0.9",), selective_error, "lower",
         published.SAT),
        ("sat", "SAT + EM", "msp", "error at 90 % coverage, %", ("coverage_0.9",), selective_error, "lower", None),
    )  # fmt: skip
    return [
        Claim(method, variant, baseline, task, study,
              paired(("runs", variant, SEEDS, "scores", score, *leaf),
                     ("runs", "CE + SR", SEEDS, "scores", "msp", *leaf), of), measure, better, figure)
        for method, variant, score, measure, leaf, of, better, figure in rows
    ]  # fmt: skip


def distilled_toy(hidden: str) -> list[Claim]:
    def value(method: str) -> tuple[str, ...]:
        return ("runs", hidden, SEEDS, "methods", method, "test_accuracy")

    task = f"generated modes, {hidden} hidden units"
    return [
        Claim("disk", "DiSK", "KD", task, "disk_toy", paired(value("DiSK"), value("KD")), published=published.DISK_KD),
        Claim("kd", "KD", "cross-entropy", task, "disk_toy", paired(value("KD"), value("CE")),
              published=published.KD_CE),
    ]  # fmt: skip


def distilled(data: str, task: str) -> list[Claim]:
    def value(method: str) -> tuple[str, ...]:
        return ("runs", method, SEEDS, "test/accuracy")

    study = f"disk_images_{data}"
    return [
        Claim("disk", "DiSK", "KD", task, study, paired(value("DiSK"), value("KD")), published=published.DISK_KD),
        Claim("kd", "KD", "cross-entropy", task, study, paired(value("KD"), value("CE")), published=published.KD_CE),
    ]


AT = "accuracy of the pair at 70 % coverage, %"


def routed_digits(scenario: str) -> list[Claim]:
    def value(router: str) -> tuple[str, ...]:
        return ("scenarios", scenario, SEEDS, "routers", router, "0.7", "equal")

    return [
        Claim("gain", "gain", router, f"corrupted digits, {scenario}", "hybrid_digits",
              paired(value("gain"), value(router)), AT, published=figure)
        for router, figure in (("entropy", published.HYBRID_ENTROPY), ("msp", None))
    ]  # fmt: skip


def routed(data: str, task: str) -> list[Claim]:
    def value(router: str) -> tuple[str, ...]:
        return ("runs", SEEDS, "routers", router, "at", "0.7")

    return [
        Claim("gain", "gain", router, task, f"hybrid_images_{data}", paired(value("gain"), value(router)), AT,
              published=figure)
        for router, figure in (("entropy", published.HYBRID_ENTROPY), ("msp", None))
    ]  # fmt: skip


def promises() -> list[Claim]:
    broken = "calibration sets that break it, %; 10 promised"
    return [
        Claim("thresholds", "betting", "empirical threshold", "drop of accuracy, corrupted digits",
              "routing_thresholds", violations("betting", "empirical", "samples", "max_drop"), broken, "lower"),
        *(
            Claim("thresholds", f"{rule} at 10 %", "empirical threshold", f"{kind} risk, generated populations",
                  "selective_thresholds", violations(f"{rule}, 0.1", f"empirical, {other}", "population", "samples",
                                                     "target"), broken, "lower")
            for rule, kind, other in (("sgr", "selective", "selective"), ("rcps", "joint", "joint"))
        ),
        *(
            Claim("online", "OnlineAbstainer", "the derived bound", f"{called}, streams of digits",
                  "online_abstention", of_bound(count), "mean, % of the bound", "lower")
            for count, called in (("mistakes", "mistakes"), ("excess_of_perfect", "excess abstentions"))
        ),
    ]  # fmt: skip


def compressed(data: str, network: str, task: str) -> list[Claim]:
    longer = "float32, as long"
    rows = (
        ("pruning", "weights pruned", longer, "trained as long", published.PRUNED),
        ("pruning", "channels pruned", longer, "trained as long", None),
        ("pruning", "channels pruned", "that shape from scratch", "that shape from scratch", None),
        ("int8", "int8 static", longer, "trained as long", published.STATIC),
        ("int8", "int8 aware", longer, "trained as long", published.AWARE),
        ("int8", "int8 weights", longer, "trained as long", None),
        ("bf16", "bfloat16", longer, "the same in float32", None),
    )
    return [
        Claim(method, variant, called, f"{task}, {network}", f"compression_{data}",
              paired(("runs", network, SEEDS, variant, "accuracy"), ("runs", network, SEEDS, baseline, "accuracy")),
              published=figure)
        for method, variant, baseline, called, figure in rows
    ]  # fmt: skip


IMAGES = {"fashion_6k": "FashionMNIST, 6,000 images", "cifar10_6k": "CIFAR-10, 6,000 images"}
LARGE = {"fashion": "FashionMNIST", "cifar10": "CIFAR-10"}


def claims(profile: str) -> list[Claim]:
    """Return the rows of a profile, those of a method together.

    Args:
        profile: ``smoke``, ``cpu`` or ``gpu``.
    """
    if profile == "gpu":
        found = [
            claim
            for data, task in LARGE.items()
            for group in (blocks, selective, distilled, routed)
            for claim in group(data, task)
        ]
    else:
        digits = "digits"
        found = [*sequences(digits, "digits by pixels, 64 steps"), *adding(), *promises()]
        found += [*blocks(digits, digits), *selective(digits, digits), *distilled(digits, digits)]
        found += [claim for hidden in ("4", "8") for claim in distilled_toy(hidden)]
        found += [claim for scenario in ("plain", "mixed", "specialist") for claim in routed_digits(scenario)]
        found += compressed(digits, "mobilenetv3_small_050", digits) + compressed(digits, "resnet10t", digits)
    if profile == "cpu":
        found += sequences("rows", "MNIST by rows, 28 steps")
        found += [claim for data, task in IMAGES.items() for group in (blocks, selective, distilled, routed)
                  for claim in group(data, task)]  # fmt: skip
        found += selective("fashion_2k", "FashionMNIST, 2,000 images")
        found += [
            claim
            for data, task in (
                ("fashion_timm", "FashionMNIST, 8,000 images"),
                ("cifar10_timm", "CIFAR-10, 8,000 images"),
            )
            for claim in routed(data, f"{task}, timm")
        ]
        found += compressed("fashion_2k", "mobilenetv3_small_050", "FashionMNIST, 2,000 images")
    return sorted(found, key=lambda claim: [*METHODS].index(claim.method))
