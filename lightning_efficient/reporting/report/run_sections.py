"""What run it was: header, config, checkpoints and files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_efficient.reporting.report.markup import Section, facts, folded, paragraph, quantity, table, text
from lightning_efficient.reporting.run_history import RunHistory

_MOST_FILES = 500


def header(run: RunHistory) -> str:
    """Return the name, what became of the run, and when, where and with what it ran."""
    config = run.record.config
    pairs = [("state", state(run)), ("seed", _seed(config))]
    pairs += [("started", when) for when in [_started(run)] if when]
    pairs += [("took", _duration(run.wandb.seconds)) for _ in [0] if run.wandb and run.wandb.seconds]
    pairs += [("model", name) for name in [_model(config)] if name]
    pairs += [("data", str(name)) for name in [_class(config.get("data"))] if name]
    pairs += [("steps", f"{int(last):,}") for last in [_last_step(run)] if last is not None]
    pairs += list(run.wandb.machine.items()) if run.wandb else []
    if not (run.wandb and run.wandb.machine.get("processor")):
        pairs += [("processor", value) for value in [_processor(run)] if value]
    pairs += list(run.versions.items())
    pairs.append(("folder", str(run.record.path)))
    problems = "".join(paragraph(line, "note bad") for line in run.problems)
    return f"<header><h1>{text(run.record.name)}</h1>{facts(pairs)}{problems}</header>"


def state(run: RunHistory) -> str:
    """Say in words whether a run has ended, as far as its files tell."""
    if run.wandb:
        if not run.wandb.finished:
            return "killed, or still running: its W&B file has no end"
        code = run.wandb.exit_code
        return f"failed: the process ended with code {code}" if code else "finished"
    if (run.own / "checkpoints" / "interrupted.ckpt").is_file():
        return "stopped by Ctrl-C or a scheduler (it left interrupted.ckpt)"
    trainer = run.record.config.get("trainer")
    planned = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    done = max(run.epochs.values(), default=-1.0)
    if isinstance(planned, int) and planned > 0 and done >= 0:
        if done + 1 >= planned:
            return f"all {planned} epochs are there"
        return f"{int(done) + 1} of {planned} epochs are there: it ended early, was killed, or still runs"
    return "its files do not tell"


def config_section(run: RunHistory) -> Iterator[Section]:
    """Return the config as YAML, folded."""
    if run.record.config:
        import yaml

        written = yaml.safe_dump(_plain(run.record.config), sort_keys=False, allow_unicode=True, width=100)
        yield Section("config", "Config", folded("show the config", f"<pre>{text(written)}</pre>"))


def checkpoints_section(run: RunHistory) -> Iterator[Section]:
    """Return the checkpoints and exported networks with their sizes."""
    endings = {".ckpt", ".pt", ".pt2", ".onnx"}
    found = [each for each in _files(run.own) if each.suffix in endings]
    if found:
        rows = [[str(each.relative_to(run.own)), each.stat().st_size, _modified(each)] for each in found]
        body = table(["file", "bytes", "last changed"], rows)
        yield Section("checkpoints", "Checkpoints and networks", body)


def files_section(run: RunHistory, leave_out: Path) -> Iterator[Section]:
    """Return all files of the run, folded."""
    rows: list[list[str | int]] = []
    for folder in dict.fromkeys((run.own, run.record.path)):
        kept = [each for each in _files(folder) if each.resolve() != leave_out.resolve()]
        rows += [[str(each.relative_to(folder)), each.stat().st_size] for each in kept]
    if rows:
        total = quantity(sum(int(size) for _, size in rows), "B")
        listed = table(["file", "bytes"], rows, most=_MOST_FILES)
        yield Section("files", "Files", folded(f"{len(rows)} files, {total}", listed))


def _files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file()) if folder.is_dir() else []


def _plain(value: Any) -> Any:
    """Return what YAML can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _seed(config: Mapping[str, Any]) -> str:
    return next(
        (str(config[key]) for key in ("seed_everything", "seed") if config.get(key) is not None), "not recorded"
    )


def _class(part: Any) -> str | None:
    path = part.get("class_path") if isinstance(part, dict) else None
    return str(path).rsplit(".", maxsplit=1)[-1] if path else None


def _model(config: Mapping[str, Any]) -> str | None:
    name, part = _class(config.get("model")), config.get("model")
    options = part.get("init_args") if isinstance(part, dict) else config
    named = (options.get(key) for key in ("backbone", "student", "rnn", "base")) if isinstance(options, dict) else ()
    network = next((each for each in named if isinstance(each, str)), None)
    return " · ".join(filter(None, (name, network))) or None


def _last_step(run: RunHistory) -> float | None:
    return max((points[-1].step for points in run.scalars.values()), default=None)


def _processor(run: RunHistory) -> str | None:
    profile = run.reports.get("profile")
    return str(profile["processor"]) if isinstance(profile, dict) and profile.get("processor") else None


def _started(run: RunHistory) -> str | None:
    if run.wandb and run.wandb.started:
        return datetime.fromtimestamp(run.wandb.started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    config = run.own / "config.yaml"
    return f"{_modified(config)}, by the time of config.yaml" if config.is_file() else None


def _modified(file: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(file.stat().st_mtime))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
