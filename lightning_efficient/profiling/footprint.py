"""The record of what a model costs: whatever measures, logs or plots a cost uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.profiling.layers import LayerCost
from lightning_efficient.profiling.training_memory import TrainingMemory
from lightning_efficient.profiling.variant_costs import VariantComparison
from lightning_efficient.typing import InputShape


@dataclass(frozen=True)
class Latency:
    """How long one forward pass takes at one batch size, and under which conditions that was measured.

    Attributes:
        batch_size: Samples per forward pass.
        p50_ms: Median over the runs, milliseconds per forward pass.
        p95_ms: 95th percentile over the runs, milliseconds.
        mean_ms: Mean over the runs, milliseconds.
        throughput: Samples per second at the median.
        runs: Forward passes that were timed, each by itself; the percentiles are over these.
        warmup: Forward passes before the first reading.
        threads: Intra-op threads of torch.
        device: Where the module was, such as ``"cpu"`` or ``"cuda:0"``.
        precision: In the words of ``Trainer(precision=...)``, such as ``"32-true"`` or ``"bf16-mixed"``.
    """

    batch_size: int
    p50_ms: float
    p95_ms: float
    mean_ms: float
    throughput: float
    runs: int
    warmup: int
    threads: int
    device: str
    precision: str


@dataclass(frozen=True)
class Footprint:
    """What a model costs when it predicts.

    Attributes:
        name: What to call the model in tables.
        parameters: Number of parameters, shared ones counted once.
        trainable_parameters: Those of them that require a gradient.
        bytes: Memory of parameters and buffers.
        bytes_on_disk: Size of ``torch.save(module.state_dict())``.
        macs: Multiply-accumulate operations per sample.
        flops: Floating-point operations per sample, ``2 * macs``.
        uncounted: Names of modules that hold weights, ran, and contribute nothing to ``macs``.
        peak_memory_bytes: Largest memory during the forward pass of one sample, parameters and buffers included.
        peak_memory_method: ``"live tensors"`` or ``"cuda allocator"``.
        input_shape: Shape of one sample, without the batch dimension.
        latencies: One entry per number of threads and batch size.
        layers: What each module does itself, in the order of the forward.
        read_bytes: Memory read in the forward pass of one sample, operator by operator; see ``LayerRecorder``.
        written_bytes: Memory written, likewise.
        training: Memory of a training step, where that was asked for.
        variants: The model in other forms, where that was asked for.
        energy_mj: Millijoules per sample, where that was asked for and something measures them.
        left_out: What was asked for and is missing, each with the reason.
        processor: Name of the processor that was measured on; empty in files of earlier versions.

    Example:
        >>> footprint = Footprint("net", 10, 10, 40, 1200, 8, 16, (), 64, "live tensors", (4,), ())
        >>> Footprint.from_dict(footprint.to_dict()) == footprint
        True
    """

    name: str
    parameters: int
    trainable_parameters: int
    bytes: int
    bytes_on_disk: int
    macs: int
    flops: int
    uncounted: tuple[str, ...]
    peak_memory_bytes: int
    peak_memory_method: str
    input_shape: InputShape
    latencies: tuple[Latency, ...]
    layers: tuple[LayerCost, ...] = ()
    read_bytes: int | None = None
    written_bytes: int | None = None
    training: TrainingMemory | None = None
    variants: VariantComparison | None = None
    energy_mj: float | None = None
    left_out: tuple[str, ...] = ()
    processor: str = ""

    _shared: ClassVar[tuple[str, ...]] = ("name", "parameters", "macs", "bytes", "bytes_on_disk", "peak_memory_bytes")
    _timed: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "p50_ms",
        "p95_ms",
        "throughput",
        "threads",
        "device",
        "precision",
    )
    columns: ClassVar[tuple[str, ...]] = _shared + _timed

    @property
    def arithmetic_intensity(self) -> float | None:
        """FLOPs per byte that is read or written: low where memory sets the pace; None where traffic is unknown."""
        moved = (self.read_bytes or 0) + (self.written_bytes or 0)
        return self.flops / moved if moved else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, numbers and strings, ready for JSON."""
        plain: dict[str, Any] = _lists(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Footprint:
        """Rebuild what ``to_dict`` returned, also after a round trip through JSON, and from older versions.

        Raises:
            ConfigurationError: there are fields that no version has.
        """
        if unknown := content.keys() - {field.name for field in fields(cls)}:
            raise ConfigurationError(f"a footprint has no {', '.join(sorted(unknown))}")
        training, variants = content.get("training"), content.get("variants")
        built = {
            "uncounted": tuple(content["uncounted"]),
            "input_shape": tuple(content["input_shape"]),
            "latencies": tuple(Latency(**each) for each in content["latencies"]),
            "layers": tuple(
                LayerCost(**{**each, "output_shape": tuple(each["output_shape"])}) for each in content.get("layers", ())
            ),
            "training": TrainingMemory(**training) if training else None,
            "variants": VariantComparison.from_dict(variants) if variants else None,
            "left_out": tuple(content.get("left_out", ())),
        }
        return cls(**{**content, **built})

    def rows(self) -> list[list[Any]]:
        """Return one row per batch size under ``columns``; without latencies one row that ends in None."""
        shared = [getattr(self, key) for key in self._shared]
        timed = [[getattr(latency, key) for key in self._timed] for latency in self.latencies]
        return [shared + row for row in timed or [[None] * len(self._timed)]]

    def scalars(self) -> dict[str, float]:
        """Return a flat dict for loggers; latencies read ``latency_ms_p50_b8`` for a batch of 8.

        With several numbers of threads, the first keeps these names and the others end in ``_t2`` and the like.
        """
        keys = ("parameters", "trainable_parameters", "bytes", "bytes_on_disk", "macs", "flops", "peak_memory_bytes")
        values: dict[str, float] = {key: getattr(self, key) for key in keys}
        for latency in self.latencies:
            more = f"_t{latency.threads}" if latency.threads != self.latencies[0].threads else ""
            batch = f"b{latency.batch_size}{more}"
            values[f"latency_ms_p50_{batch}"] = latency.p50_ms
            values[f"latency_ms_p95_{batch}"] = latency.p95_ms
            values[f"throughput_{batch}"] = latency.throughput
        return values | {key: value for key, value in self._more_scalars().items() if value is not None}

    def _more_scalars(self) -> dict[str, float | None]:
        values = {key: getattr(self, key) for key in ("read_bytes", "written_bytes", "arithmetic_intensity")}
        values["energy_mj"] = self.energy_mj
        if self.training:
            values["training_peak_bytes"] = self.training.peak_bytes
            values["training_saved_bytes"] = self.training.saved_bytes
        for variant in self.variants.rows if self.variants else ():
            for timing in variant.timings:
                values[f"time_ratio_{variant.name}_b{timing.batch_size}"] = timing.ratio
        return values


def _lists(tree: Any) -> Any:
    """Turn tuples into lists, as JSON has them."""
    if isinstance(tree, dict):
        return {key: _lists(value) for key, value in tree.items()}
    return [_lists(each) for each in tree] if isinstance(tree, list | tuple) else tree
