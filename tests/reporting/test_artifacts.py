from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_efficient.cli.config_files import find
from lightning_efficient.cli.products import log_product
from lightning_efficient.reporting.artifacts import (
    REMEMBERED,
    Artifact,
    artifact_name,
    log_artifact,
    log_run_files,
    log_with_checkpoint,
    remember_run,
    send_artifact,
)
from lightning_efficient.reporting.steady_wandb import PATIENCE, SteadyWandbLogger


class Run:
    """What the loggers use of a W&B run; it keeps what it is given."""

    def __init__(self, **given: Any) -> None:
        self.given = given
        self.id, self.project, self.entity = given.get("id") or "fresh", given.get("project"), given.get("entity")
        self.artifacts: list[tuple[wandb.Artifact, list[str]]] = []

    def log_artifact(self, artifact: wandb.Artifact, aliases: list[str] | None = None) -> None:
        self.artifacts.append((artifact, aliases or []))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that ``wandb.init`` began."""
    runs: list[Run] = []

    def init(**given: Any) -> Run:
        runs.append(Run(**given))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setenv("WANDB_DATA_DIR", "data")
    return runs


def trainer(*loggers: Any, **options: Any) -> Any:
    metrics = {"val/accuracy": torch.tensor(0.5)}
    known = {"loggers": list(loggers), "is_global_zero": True, "fast_dev_run": False, "default_root_dir": "."}
    return SimpleNamespace(**{**known, "callback_metrics": metrics, **options})


def folder_of_two() -> Path:
    folder = Path("best.export")
    folder.mkdir()
    (folder / "model.pt2").write_bytes(b"graph")
    (folder / "metadata.json").write_text('{"format": "x"}')
    return folder


def wandb_logger(kind: type[WandbLogger] = SteadyWandbLogger, **options: Any) -> WandbLogger:
    return kind(**{"project": "p", "save_dir": "runs", **options})


def files_of(artifact: wandb.Artifact) -> list[str]:
    return sorted(artifact.manifest.entries)


@pytest.mark.parametrize("kind", [WandbLogger, SteadyWandbLogger])
def test_a_folder_goes_to_wandb_with_its_files_metadata_and_aliases(kind: type, started: list[Run]) -> None:
    artifact = Artifact("export-a", "graph", [folder_of_two()], {"bytes": 5}, ("shown",))
    log_artifact(trainer(wandb_logger(kind)), artifact)
    [(sent, aliases)] = started[0].artifacts
    assert (sent.name, sent.type, sent.metadata, aliases) == ("export-a", "graph", {"bytes": 5}, ["shown"])
    assert files_of(sent) == ["metadata.json", "model.pt2"]


@pytest.mark.parametrize(("policy", "copied"), [("mutable", True), ("immutable", False)])
def test_files_are_copied_only_where_the_logger_says_so(policy: Any, copied: bool, started: list[Run]) -> None:
    log_artifact(trainer(wandb_logger(add_file_policy=policy)), Artifact("a", "graph", [folder_of_two()], {}))
    [(sent, _)] = started[0].artifacts
    own = str(Path("best.export/model.pt2"))
    assert (sent.manifest.entries["model.pt2"].local_path != own) is copied


def test_other_loggers_and_a_rehearsal_and_other_ranks_keep_nothing(started: list[Run]) -> None:
    artifact = Artifact("a", "graph", [folder_of_two()], {})
    log_artifact(trainer(CSVLogger("runs")), artifact)
    log_artifact(trainer(wandb_logger(), fast_dev_run=True), artifact)
    log_artifact(trainer(wandb_logger(), is_global_zero=False), artifact)
    log_run_files(trainer(CSVLogger("runs")))
    remember_run(trainer(CSVLogger("runs")))
    assert started == []
    assert not Path("runs").exists()


def test_what_callbacks_wrote_is_kept_but_no_checkpoint(started: list[Run]) -> None:
    logger = wandb_logger(id="abc")
    _ = logger.experiment
    folder = Path("runs/p/abc")
    (folder / "checkpoints").mkdir(parents=True)
    names = ("risk_coverage.csv", "profile.json", "pruned.pt", "config.yaml", "metrics.csv", "checkpoints/last.ckpt")
    for name in names:
        (folder / name).write_text("x")
    remember_run(trainer(logger))
    log_run_files(trainer(logger))
    [(sent, _)] = started[0].artifacts
    assert (sent.name, sent.type, sent.metadata) == ("run-abc", "run-files", {"metrics": {"val/accuracy": 0.5}})
    assert files_of(sent) == ["config.yaml", "profile.json", "pruned.pt", "risk_coverage.csv"]
    assert json.loads((folder / REMEMBERED).read_text()) == {"id": "abc", "project": "p", "entity": None}


@pytest.mark.parametrize("known", ['{"id": "abc"}', None, "damaged", "[]"], ids=["known", "none", "damaged", "other"])
def test_files_made_of_a_checkpoint_go_to_the_run_that_trained_it(known: str | None, started: list[Run]) -> None:
    checkpoint = Path("runs/q/version_0/checkpoints/best.ckpt")
    checkpoint.parent.mkdir(parents=True)
    if known is not None:
        (checkpoint.parent.parent / REMEMBERED).write_text(known)
    log_with_checkpoint([wandb_logger()], checkpoint, Artifact("export", "graph", [folder_of_two()], {}))
    [run] = started
    assert (run.id == "abc") is (known == '{"id": "abc"}')
    assert run.artifacts[0][0].name == f"export-{run.id}"


def test_a_run_that_was_named_is_not_exchanged_for_the_one_that_trained(started: list[Run]) -> None:
    logger = wandb_logger(id="mine")
    logger.belong_to("abc")
    assert logger.experiment.id == "mine"


def test_an_artifact_that_cannot_be_logged_costs_a_warning(started: list[Run]) -> None:
    with pytest.warns(UserWarning, match=r"^the artifact a could not be logged \(.*missing\.pt.*\); its files stay"):
        log_artifact(trainer(wandb_logger()), Artifact("a", "graph", [Path("missing.pt")], {}))


def test_a_logger_of_ones_own_joins_by_registration() -> None:
    class Own(CSVLogger):
        kept: list[Artifact] = []

    @send_artifact.register(Own)
    def _(logger: Own, artifact: Artifact) -> None:
        logger.kept.append(artifact)

    artifact = Artifact("a", "graph", [], {})
    log_artifact(trainer(Own("runs")), artifact)
    assert Own.kept == [artifact]


@pytest.mark.parametrize("parts", [("a b", "c/d"), ("x" * 200,)], ids=["odd-characters", "long"])
def test_names_are_such_as_wandb_takes(parts: tuple[str, ...]) -> None:
    assert wandb.Artifact(artifact_name(*parts), type="model").name == artifact_name(*parts)


@pytest.mark.parametrize(
    ("verb", "place", "kind", "files"),
    [
        ("export", "best.export", "graph", ["metadata.json", "model.pt2"]),
        ("quantize", "best.quantized", "graph", ["metadata.json", "model.pt2"]),
        ("calibrate", "best.threshold.json", "threshold", ["best.threshold.json"]),
        ("calibrate", "best.routing.json", "threshold", ["best.routing.json"]),
    ],
    ids=["export", "quantize", "threshold", "routing"],
)
def test_what_a_verb_made_of_a_checkpoint_is_kept_with_sizes_and_metrics(
    verb: str, place: str, kind: str, files: list[str], started: list[Run]
) -> None:
    folder = Path("runs/q/version_0")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,val/accuracy\n0,9,0.75\n")
    path = folder / "checkpoints" / place
    if kind == "graph":
        folder_of_two().rename(path)
    else:
        path.write_text('{"format": "x"}')
    options = {"ckpt_path": str(folder / "checkpoints/best.ckpt"), "out": None}
    report = SimpleNamespace(files=[SimpleNamespace(file="model.pt2", differences={1: 2e-7})])
    log_product(verb, [CSVLogger("csv"), wandb_logger()], options, time.time(), report if verb == "export" else None)
    [(sent, _)] = started[0].artifacts
    assert (sent.name, sent.type, files_of(sent)) == (f"{verb}-{started[0].id}", kind, files)
    assert sent.metadata["description"] == {"format": "x"}
    assert sum(sent.metadata["bytes"].values()) == sum(
        (path / f if kind == "graph" else path).stat().st_size for f in files
    )
    assert sent.metadata["metrics"]["val/accuracy"] == 0.75
    assert sent.metadata.get("differences") == ({"model.pt2": {"1": 2e-7}} if verb == "export" else None)


def test_what_an_earlier_command_made_is_not_sent_again(started: list[Run]) -> None:
    Path("best.threshold.json").write_text("{}")
    options = {"ckpt_path": "best.ckpt", "out": None}
    log_product("calibrate", [wandb_logger()], options, time.time() + 60)
    assert started == []


def test_checkpoints_can_be_logged_offline_which_lightnings_logger_refuses(started: list[Run]) -> None:
    with pytest.raises(Exception, match="offline"):
        WandbLogger(project="p", offline=True, log_model=True)
    logger = wandb_logger(offline=True, log_model=True)
    assert logger.experiment.given["mode"] == "offline"


def test_settings_that_are_given_win_over_ours_and_those_of_wandb_are_known(started: list[Run]) -> None:
    logger = wandb_logger(settings={"init_timeout": 3, "quiet": True})
    assert logger.experiment.given["settings"] == {**PATIENCE, "init_timeout": 3, "quiet": True}
    shipped = yaml.safe_load(find("logger/wandb").read_text())["trainer"]["logger+"][0]["init_args"]["settings"]
    assert shipped.items() >= PATIENCE.items()
    assert {name for name in shipped if name not in wandb.Settings.model_fields} == set()
