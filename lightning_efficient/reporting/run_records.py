"""What runs left behind, as flat numbers: run folders of ours and W&B runs that were not sent."""

from __future__ import annotations

import csv
import glob
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.reporting._wandb_offline import WandbRun, read_wandb_file

MARKS = ("metrics.csv", "profile.json", "pruning.json", "quantization.json", "energy.json", "search.json")
"""Files one of which makes a folder a run."""

_DEPTH = 3
_LARGEST_JSON = 4_000_000
_CONDITIONS = ("threads", "device", "precision")
_COST_OF_THE_PRODUCT = {
    "parameters/left": "parameters",
    "bytes/on_disk": "bytes_on_disk",
    **{f"latency_ms/b{batch}/pruned": f"latency_ms_p50_b{batch}" for batch in (1, 32)},
}
"""What ``GradualPruning`` tells of the smaller network, and what a profile calls that."""
_SEEDS = ("seed", "seed_everything")


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: What to call it: the name and version of the logger, or what W&B shows.
        path: Its folder.
        metrics: Finite numbers by key, such as ``val/accuracy``, ``profile/macs`` or ``pruning/sparsity``.
        config: Of ``config.yaml``, else what the logger noted; empty if there is neither.
        conditions: By the first part of a key, how what is measured there was measured: threads, device, precision,
            and of energy the devices that were counted.
        finished: False where a W&B file does not say that the run has ended; it was killed, or still runs.
        incomplete: First parts of keys of what was not measured during the whole run.
    """

    name: str
    path: Path
    metrics: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, dict[str, str]] = field(default_factory=dict)
    finished: bool = True
    incomplete: tuple[str, ...] = ()


def read_runs(path: str | Path) -> list[RunRecord]:
    """Read the run at a path, or all runs below it, in the order of their names.

    Args:
        path: A run folder, one of W&B (``wandb/offline-run-*``), or a folder up to three levels above such.

    Raises:
        ConfigurationError: there is no run, or one that cannot be read.
    """
    return [read_run(each) for each in run_folders(path)]


def run_folders(path: str | Path) -> list[Path]:
    """Return the folder of the run at a path, or those of all runs below it, in the order of their names.

    Args:
        path: A run folder, one of W&B (``wandb/offline-run-*``), or a folder up to three levels above such.

    Raises:
        ConfigurationError: there is no run.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no run: there is no such folder")
    found = list(_run_folders(folder, _DEPTH))
    if not found:
        raise ConfigurationError(
            f"{folder} is no run and holds none: looked for {', '.join(MARKS)} and a .wandb file, in it and up to "
            f"{_DEPTH} levels below"
        )
    # a run of our command line with W&B has two folders
    twins = {
        twin.parent.resolve()
        for each in found
        if (file := wandb_file(each)) and file.parent != each
        for twin in file.parent.parent.glob(f"*/{file.name}")
    }
    return _one_for_each_id([each for each in found if each.resolve() not in twins])


def read_run(path: str | Path) -> RunRecord:
    """Read one run.

    Metrics come from ``metrics.csv`` or the W&B file. Of what was validated after each epoch it is the values of the
    epoch whose checkpoint counts as best, which is the best by the ``monitor`` of the first ``ModelCheckpoint`` in the
    config; without one, the last. Of everything else it is the last. Each JSON file adds its numbers under its name:
    ``profile.json`` gives ``profile/macs``. Where channels were pruned, what the smaller network costs is that of the
    run: its profile is of the network before they were removed.

    Args:
        path: A run folder, or one of W&B.

    Raises:
        ConfigurationError: it is no run, or a file in it cannot be read.
    """
    folder = Path(path)
    file = wandb_file(folder)
    if file is None and not _has_marks(folder):
        raise ConfigurationError(f"{folder} is no run: it has none of {', '.join(MARKS)}, and no .wandb file")
    wandb_run = read_wandb_file(file) if file else None
    own = folder
    if wandb_run and file and file.parent == folder:  # what our callbacks wrote lies where checkpoints do
        own = folder.resolve().parent.parent / wandb_run.project / wandb_run.id
    config = _yaml(own / "config.yaml") or (wandb_run.config if wandb_run else {})
    rows = csv_rows(own / "metrics.csv") or (wandb_run.rows if wandb_run else [])
    metrics = _chosen(rows, *_monitor(config))
    if wandb_run:
        metrics = _only_in_summary(wandb_run) | metrics
    conditions: dict[str, dict[str, str]] = {}
    incomplete: list[str] = []
    for json_file in sorted(own.glob("*.json")):
        content = _json(json_file)
        metrics |= dict(_numbers(content, json_file.stem))
        if noted := _conditions(content):
            conditions[json_file.stem] = noted
        if isinstance(content, dict) and content.get("complete") is False:
            incomplete.append(json_file.stem)
    metrics = {key: value for key, value in _of_the_product(metrics).items() if math.isfinite(value)}
    finished = wandb_run.finished if wandb_run else True
    return RunRecord(_name(folder, wandb_run), folder, metrics, config, conditions, finished, tuple(incomplete))


def opened(folder: Path) -> tuple[Path, WandbRun | None]:
    """Return the folder that holds what our callbacks wrote, which need not be there, and the W&B run if there is one.

    Args:
        folder: A run folder, or one of W&B.

    Raises:
        ConfigurationError: it is no run, or its W&B file cannot be read.
    """
    file = wandb_file(folder)
    if file is None and not _has_marks(folder):
        raise ConfigurationError(f"{folder} is no run: it has none of {', '.join(MARKS)}, and no .wandb file")
    wandb_run = read_wandb_file(file) if file else None
    if wandb_run and file and file.parent == folder:  # what our callbacks wrote lies where checkpoints do
        return folder.resolve().parent.parent / wandb_run.project / wandb_run.id, wandb_run
    return folder, wandb_run


def grouped(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Put runs together whose configs differ in nothing but seeds, loggers and paths; without a config, alone.

    Args:
        records: Runs in any order; groups come in the order of their first.
    """
    groups: dict[str, list[RunRecord]] = {}
    for number, record in enumerate(records):
        key = json.dumps(_without_seeds(record.config), sort_keys=True, default=str) if record.config else str(number)
        groups.setdefault(key, []).append(record)
    return list(groups.values())


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if _has_marks(folder) or any(folder.glob("*.wandb")):
        yield folder
    elif depth:
        for child in sorted(folder.iterdir(), key=_natural):
            if child.is_dir() and not child.is_symlink():  # W&B links to its latest run
                yield from _run_folders(child, depth - 1)


def _natural(path: Path) -> tuple[str, int, str]:
    stem = path.name.rstrip("0123456789")
    return stem, int(path.name[len(stem) :] or -1), path.name


def _has_marks(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in MARKS)


def wandb_file(folder: Path) -> Path | None:
    """Return the file in a folder of W&B, or that of the W&B run that a folder of ours belongs to."""
    if own := sorted(folder.glob("*.wandb")):
        return own[0]
    around = folder.resolve().parent.parent / "wandb"
    name = glob.escape(folder.resolve().name)
    return _fullest(sorted(around.glob(f"*run-*-{name}/run-{name}.wandb")))


def _fullest(files: Sequence[Path]) -> Path | None:
    """Return the file with most rows of several of one run: W&B begins a new one for each process that adds to it."""
    return max(files, key=lambda file: len(read_wandb_file(file).rows)) if len(files) > 1 else next(iter(files), None)


def _one_for_each_id(folders: Sequence[Path]) -> list[Path]:
    """Leave out what is of a W&B run that another folder tells more of."""
    files: dict[str, list[Path]] = {}
    for folder in folders:
        for file in folder.glob("*.wandb"):
            files.setdefault(file.name, []).append(file)
    fullest = {_fullest(each) for each in files.values()}
    return [folder for folder in folders if not any(folder.glob("*.wandb")) or fullest & {*folder.glob("*.wandb")}]


def _name(folder: Path, wandb_run: WandbRun | None) -> str:
    if wandb_run:
        return wandb_run.name or wandb_run.id
    resolved = folder.resolve()
    return f"{resolved.parent.name}/{resolved.name}" if resolved.name.startswith("version_") else resolved.name


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    if not file.is_file():
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def _json(file: Path) -> Any:
    if file.stat().st_size > _LARGEST_JSON:
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{file} is no JSON: {error}") from error


def csv_rows(file: Path) -> list[dict[str, float]]:
    """Return the rows of a ``metrics.csv`` without what is empty; none if there is no such file.

    Raises:
        ConfigurationError: it holds something that is no number.
    """
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]
    except (ValueError, TypeError, AttributeError) as error:  # a word, or a row that is too long
        raise ConfigurationError(f"{file} is no table of numbers: {error}") from error


def _monitor(config: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return what the first checkpoint callback goes by, and whether more of it is better."""
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if not isinstance(callback, dict) or "ModelCheckpoint" not in str(callback.get("class_path")):
            continue
        options = callback.get("init_args") or {}
        if options.get("monitor"):
            return str(options["monitor"]), options.get("mode") == "max"
    return None, False


def _chosen(rows: Sequence[Mapping[str, float]], monitor: str | None, most: bool) -> dict[str, float]:
    last = {key: value for row in rows for key, value in row.items()}
    watched = [row for row in rows if monitor in row and math.isfinite(row[monitor])] if monitor else []
    if not monitor or not watched:
        return last
    best = (max if most else min)(watched, key=lambda row: row[monitor])
    same_epoch = [row for row in rows if "epoch" in row and row["epoch"] == best.get("epoch")]
    then = {key: value for row in [*same_epoch, best] for key, value in row.items()}
    return last | {key: value for key, value in then.items() if is_of_split(key, "val")}


def _only_in_summary(run: WandbRun) -> dict[str, float]:
    logged = {key for row in run.rows for key in row}
    return {
        key: value
        for key, value in run.summary.items()
        if key not in logged and key.rpartition("/")[0] not in run.media  # the rows of a table, the height of a picture
    }


def is_of_split(key: str, split: str) -> bool:
    """Tell whether a key is of a split, as ``val/accuracy`` and ``selective/val_aurc`` are.

    Example:
        >>> is_of_split("selective/val_aurc", "val"), is_of_split("profile/macs", "val")
        (True, False)
    """
    return key.startswith(f"{split}/") or key.rsplit("/", maxsplit=1)[-1].startswith(f"{split}_")


def _numbers(content: Any, prefix: str) -> Iterator[tuple[str, float]]:
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", float(value)
        elif isinstance(value, dict):
            yield from _numbers(value, f"{prefix}/{key}")
        elif key == "latencies" and isinstance(value, list):
            for latency in reversed(value):  # of the same batch size the first counts
                yield from _of_latency(latency, prefix)


def _of_latency(latency: Any, prefix: str) -> Iterator[tuple[str, float]]:
    if not isinstance(latency, dict) or "batch_size" not in latency:
        return
    # the names that Footprint.scalars() gives them
    batch = f"b{latency['batch_size']}"
    for key, name in (("p50_ms", "latency_ms_p50"), ("p95_ms", "latency_ms_p95"), ("throughput", "throughput")):
        if isinstance(latency.get(key), int | float):
            yield f"{prefix}/{name}_{batch}", float(latency[key])


def _conditions(content: Any) -> dict[str, str]:
    if not isinstance(content, dict):
        return {}
    latencies = content.get("latencies")
    source = latencies[0] if isinstance(latencies, list) and latencies else content
    if not isinstance(source, dict):
        return {}
    found = {key: str(source[key]) for key in _CONDITIONS if source.get(key) is not None}
    if content.get("processor"):
        found["processor"] = str(content["processor"])
    devices = content.get("devices")  # of energy
    return found | ({"devices": " + ".join(sorted(devices))} if isinstance(devices, dict) and devices else {})


def _of_the_product(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with the costs of the network in ``pruned.pt`` in place of those before channels were removed."""
    macs = metrics.get("pruning/macs/left")
    if macs is None or macs == metrics.get("pruning/macs/dense"):
        return dict(metrics)
    told = {"profile/macs": macs, "profile/flops": 2 * macs}
    for key, value in metrics.items():
        first, *rest = key.split("/")
        if first == "pruning" and (name := _COST_OF_THE_PRODUCT.get("/".join(rest))):
            told[f"profile/{name}"] = value
    return {key: value for key, value in metrics.items() if not key.startswith("profile/")} | told


def _without_seeds(config: Any) -> Any:
    if isinstance(config, list):
        return [_without_seeds(each) for each in config]
    if not isinstance(config, dict):
        return config
    left_out = (*_SEEDS, "logger", "default_root_dir", "ckpt_path", "config")
    return {key: _without_seeds(value) for key, value in config.items() if key not in left_out}
