"""Write the integers of a run into its folder, with what they cost beside the float network."""

from __future__ import annotations

import json
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_efficient.callbacks._quantization_costs import FLOAT, Sizes, Timed, slower, timed
from lightning_efficient.callbacks._quantization_network import network_before
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization.aware import AwareNetwork
from lightning_efficient.nn.quantization.compiled import compile_quantized
from lightning_efficient.nn.quantization.files import save_quantized
from lightning_efficient.nn.quantization.result import Quantized
from lightning_efficient.reporting import log_scalars, log_table, run_dir

INT8 = "int8"


def report_integers(trainer: Trainer, name: str, network: AwareNetwork, quantized: Quantized, *, measure: bool) -> None:
    """Write ``quantized.pt2`` and ``quantization.json``, and log scalars and a table; a full disk costs a warning."""
    folder, usual = run_dir(trainer), name == "quantization"
    file = folder / ("quantized.pt2" if usual else f"{name}.pt2")
    before = network_before(network)
    sizes: dict[str, Sizes] = {} if before is None else {FLOAT: Sizes.of_weights(before)}
    try:
        save_quantized(quantized, file)
        sizes[INT8] = Sizes.of_file(file)
    except (OSError, ConfigurationError) as error:
        rank_zero_warn(f"{file} could not be written ({error}); the integers are in the callback's attribute quantized")
    rows: list[Timed] = []
    problem: str | None = None
    if measure and before is not None:
        example = torch.zeros((1, *quantized.shape), dtype=quantized.dtype)
        rows, problem = timed({FLOAT: before, INT8: quantized.module}, example, compiler=compile_quantized)
    content: dict[str, Any] = {
        "scheme": quantized.scheme,
        "file": file.name,
        "input_shape": list(quantized.shape),
        "quantized": list(quantized.quantized),
        "skipped": quantized.skipped,
        "size": {key: vars(size) for key, size in sizes.items()},
        "latency": [row.to_dict() for row in rows],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    try:
        (folder / f"{name}.json").write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8")
    except OSError as error:
        rank_zero_warn(f"{folder / name}.json could not be written ({error.strerror or error})")
    log_scalars(trainer, {f"{name}/{key}": value for key, value in _scalars(quantized, sizes, rows).items()})
    columns = ["network", "compiled", "ms", "speed_up", "speed_up_over_eager", "bytes", "compressed"]
    log_table(trainer, f"{name}/{name}", columns, [_cells(row, sizes) for row in rows])
    for line in filter(None, [*slower(rows), problem, _left(quantized)]):
        rank_zero_info(f"QuantizationAware: {line}")


def _scalars(quantized: Quantized, sizes: dict[str, Sizes], rows: list[Timed]) -> dict[str, float]:
    found: dict[str, float] = {"layers": len(quantized.quantized), "float_layers": len(quantized.skipped)}
    for key, size in sizes.items():
        found |= {f"{key}_bytes": size.bytes, f"{key}_compressed_bytes": size.compressed}
    for row in rows:
        if row.name == INT8:
            mode = "compiled" if row.compiled else "eager"
            found |= {f"{mode}_ms": row.ms, f"{mode}_speed_up": row.speed_up}
    return found


def _cells(row: Timed, sizes: dict[str, Sizes]) -> list[Any]:
    size = sizes.get(row.name)
    numbers = [row.ms, row.speed_up, row.speed_up_over_eager, *((size.bytes, size.compressed) if size else ("", ""))]
    return [row.name, row.compiled, *numbers]


def _left(quantized: Quantized) -> str | None:
    if not quantized.skipped:
        return None
    named = "; ".join(f"{layer}: {reason}" for layer, reason in quantized.skipped.items())
    return f"these layers stay in float: {named}"
