"""Write down what a model answered, and what it did not."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lightning_efficient._files import write_tensors
from lightning_efficient.functional.confidence import msp
from lightning_efficient.inference.abstaining import decide
from lightning_efficient.inference.routing_file import RoutingFile
from lightning_efficient.inference.threshold_file import ThresholdFile

FileT = TypeVar("FileT", ThresholdFile, RoutingFile)


def write_predictions(outputs: list[Any], folder: Path, rank: int = 0, world_size: int = 1) -> Path:
    """Write the outputs of ``Trainer.predict``, in the order of the samples that this process saw.

    Steps that return a mapping give ``predictions.csv`` with a row per sample and a column per tensor of shape
    ``(N,)``, such as ``prediction`` and ``confidence``, and per list of ``N`` strings; anything else is saved as it is
    in ``predictions.pt``.

    Args:
        outputs: One output per batch.
        folder: Where to write; made if it is not there.
        rank: Index of this process; with several, each writes a file of its own.
        world_size: Number of processes.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = "predictions" if world_size == 1 else f"predictions_rank{rank}"
    columns = _columns(outputs)
    if not columns:
        write_tensors(outputs, folder / f"{stem}.pt")
        return folder / f"{stem}.pt"
    with (folder / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", *columns])
        writer.writerows([index, *row] for index, row in enumerate(zip(*columns.values(), strict=True)))
    return folder / f"{stem}.csv"


def threshold_beside(ckpt_path: str | None, module: object) -> ThresholdFile | None:
    """Return the threshold that was calibrated for a checkpoint, if one lies beside it.

    Args:
        ckpt_path: The checkpoint, if any.
        module: The module that predicts.

    Raises:
        ConfigurationError: the file is damaged, or belongs to other weights or to another score than the module's.
    """
    if (file := _file_beside(ThresholdFile, ckpt_path)) is not None:
        file.check_score(module, ThresholdFile.find(str(ckpt_path)))
    return file


def routing_beside(ckpt_path: str | None, module: Any) -> RoutingFile | None:
    """Return the routing that was calibrated for a checkpoint, if one lies beside it and the module routes.

    Args:
        ckpt_path: The checkpoint, if any.
        module: The module that predicts.

    Raises:
        ConfigurationError: the file is damaged, or belongs to other weights or to another router.
    """
    if not hasattr(module, "use_routing"):
        return None
    if (file := _file_beside(RoutingFile, ckpt_path)) is not None:
        file.check_router(module, RoutingFile.find(str(ckpt_path)))
    return file


def _file_beside(kind: type[FileT], ckpt_path: str | None) -> FileT | None:
    """Return the file of a checkpoint, after a look at whose weights it is for; ``None`` where there is none."""
    if not ckpt_path or not Path(ckpt_path).is_file() or not (path := kind.find(ckpt_path)).is_file():
        return None
    file = kind.read(path)
    file.check_weights(ckpt_path, path)
    return file


def count_sources(outputs: Iterable[Any]) -> Counter[str]:
    """Return how many samples each model answered, by its name; empty where outputs do not tell."""
    return Counter(
        name for output in outputs if isinstance(output, Mapping) for name in output.get("source", ()) if name
    )


def routed(counts: Iterable[Counter[str]], file: RoutingFile | None) -> str | None:
    """Return the line that says who answered how much, and what is promised; ``None`` where nobody routed."""
    total = sum(counts, Counter())
    if not total:
        return None
    answered = ", ".join(f"{name} {count}" for name, count in total.most_common())
    promise = "no thresholds were calibrated, so nothing is promised" if file is None else file.calibrated.promise
    return f"answered by {answered}: {promise}"


def abstaining(outputs: list[Any], file: ThresholdFile) -> list[dict[str, Any]] | None:
    """Add ``accepted`` and ``reason`` to the outputs of ``Trainer.predict``, after their ``confidence``.

    Args:
        outputs: One mapping per batch, with ``prediction`` and ``confidence`` of shape ``(N,)``. Where the threshold is
            one of ``msp``, also with ``logits`` ``(N, C)``, whose ``msp`` takes the place of another confidence.
        file: The threshold.

    Returns:
        The outputs with more entries, or ``None`` where they are not of that form; see ``not_used``.
    """
    if not_used(outputs, file) is not None:
        return None
    return [_with_decisions(output, file) for output in outputs]


def not_used(outputs: list[Any], file: ThresholdFile) -> str | None:
    """Return the line that says why a threshold cannot be compared with outputs, or ``None`` where it can."""
    line = "the threshold beside the checkpoint is not used: "
    if not all(_can_abstain(output) for output in outputs):
        return f"{line}predict_step returns no prediction and confidence per sample"
    if file.score == "msp" and not all(_has_logits(output) for output in outputs):
        return f"{line}it is one of the maximum softmax probability, and predict_step returns no logits (N, C)"
    return None


def count_answers(outputs: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many samples are answered, and how many there are."""
    accepted = [output["accepted"] for output in outputs]
    return sum(int(each.sum()) for each in accepted), sum(map(len, accepted))


def answered(counts: Iterable[tuple[int, int]], file: ThresholdFile) -> str:
    """Return the line that says how many samples of all processes are answered, and what is promised of them."""
    accepted, total = map(sum, zip(*counts, strict=True))
    return f"answered {accepted} of {total}: {file.calibrated.promise}"


def _can_abstain(output: Any) -> bool:
    if not isinstance(output, Mapping):
        return False
    columns = [output.get(name) for name in ("prediction", "confidence")]
    return all(isinstance(column, Tensor) and column.ndim == 1 for column in columns)


def _has_logits(output: Mapping[str, Any]) -> bool:
    return isinstance(logits := output.get("logits"), Tensor) and logits.ndim == 2


def _with_decisions(output: Mapping[str, Any], file: ThresholdFile) -> dict[str, Any]:
    confidence = msp(output["logits"]) if file.score == "msp" else output["confidence"]
    answer = decide(output["prediction"], confidence, file.calibrated.threshold)
    decisions = {"confidence": answer.confidence, "accepted": answer.accepted, "reason": answer.reason}
    content: dict[str, Any] = {}
    for name, value in output.items():
        content |= decisions if name == "confidence" else {name: value}
    return content


def _columns(outputs: list[Any]) -> dict[str, list[Any]]:
    if not all(isinstance(output, Mapping) for output in outputs):
        return {}
    names = [name for name, value in outputs[0].items() if _is_column(value)]
    return {name: [each for output in outputs for each in _plain(output[name])] for name in names}


def _is_column(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 1
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _plain(column: Tensor | list[str]) -> list[Any]:
    return column.tolist() if isinstance(column, Tensor) else column
