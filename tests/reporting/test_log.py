from __future__ import annotations

import csv
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from lightning_efficient.reporting import log_curve, log_figure, log_scalars, log_table, run_dir, send_table
from lightning_efficient.reporting.log import thin

ROWS = [(0.5, 0.01), (1.0, 0.2)]


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.add_subplot().plot([0, 1], [0, 1])
    return drawn


class Reporter(Callback):
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            log_scalars(trainer, {"report/monitored": 0.25}, pl_module)
        log_scalars(trainer, {"report/scalar": 0.5})
        log_curve(trainer, "report/curve", ("coverage", "risk"), ROWS)
        log_table(trainer, "report/table", ("model", "macs"), [("a", 1), ("b", 2)])
        log_figure(trainer, "report/picture", figure)


def fit(root: Path, loggers: list[Logger] | bool, **options: Any) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=[Reporter()],
        accelerator="cpu",
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(BoringModel())
    return trainer


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger, None])
def test_tables_curves_and_pictures_lie_in_the_run_folder_whatever_the_logger(tmp_path: Path, kind: Any) -> None:
    trainer = fit(tmp_path, [kind(tmp_path, name="run")] if kind else False)
    folder = run_dir(trainer)
    assert folder == (tmp_path / "run" / "version_0" if kind else tmp_path)
    assert read_csv(folder / "table.csv") == [["model", "macs"], ["a", "1"], ["b", "2"]]
    assert read_csv(folder / "curve.csv") == [["coverage", "risk"], ["0.5", "0.01"], ["1.0", "0.2"]]
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_run_folder_is_the_one_that_holds_the_checkpoints(tmp_path: Path) -> None:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=CSVLogger(tmp_path, name="run"),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    assert Path(trainer.checkpoint_callback.best_model_path).parent == run_dir(trainer) / "checkpoints"


def test_scalars_reach_the_csv_file_and_the_monitored_metrics(tmp_path: Path) -> None:
    trainer = fit(tmp_path, [CSVLogger(tmp_path, name="run")])
    header, *rows = read_csv(run_dir(trainer) / "metrics.csv")
    assert {row[header.index("report/scalar")] for row in rows} >= {"0.5"}
    assert {row[header.index("report/monitored")] for row in rows} >= {"0.25"}
    assert float(trainer.callback_metrics["report/monitored"]) == 0.25


def test_tensorboard_gets_the_picture_and_the_table(tmp_path: Path) -> None:
    trainer = fit(tmp_path, [TensorBoardLogger(tmp_path, name="run")])
    events = EventAccumulator(str(run_dir(trainer))).Reload()
    assert events.Tags()["images"] == ["report/picture"]
    text = events.Tensors("report/table/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["model|macs", "---|---", "a|1", "b|2"]


def test_wandb_offline_run_reads_back_with_scalars_table_curve_and_picture(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, project="p", offline=True)
    trainer = fit(tmp_path, [logger])
    assert (run_dir(trainer) / "table.csv").is_file()
    folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    history = wandb_history(next(folder.glob("*.wandb")))
    assert {json.loads(row["report/scalar"]) for row in history if "report/scalar" in row} == {0.5}
    assert {json.loads(row["report/monitored"]) for row in history if "report/monitored" in row} == {0.25}
    tables = {
        json.dumps(table["columns"]): table["data"]
        for table in (json.loads(path.read_text()) for path in folder.rglob("*.table.json"))
    }
    assert tables['["model", "macs"]'] == [["a", 1], ["b", 2]]
    assert tables['["coverage", "risk"]'] == [[0.5, 0.01], [1.0, 0.2]]
    assert len(list(folder.rglob("*.png"))) == 1


def wandb_history(file: Path) -> list[dict[str, str]]:
    """Rows of an offline run as ``{key: JSON text}``."""
    rows = []
    for record in wandb_records(file):
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): item.value_json for item in items})
    return rows


def wandb_records(file: Path) -> list[Any]:
    """Records of an offline run; another process writes them, some time after ``finish`` has returned."""
    records: list[Any] = []
    deadline = time.monotonic() + 30
    while not any(record.HasField("exit") for record in records) and time.monotonic() < deadline:
        time.sleep(0.1)
        records = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_log(file.read_bytes())]
    return records


def leveldb_log(content: bytes, block: int = 32768, file_header: int = 7) -> Iterator[bytes]:
    """Records of LevelDB's log format: blocks of pieces, each with checksum, length and kind, after W&B's header."""
    position, pieces = file_header, []
    while position + 7 <= len(content):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pieces.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield b"".join(pieces)
            pieces = []


def test_a_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    fit(tmp_path, [CSVLogger(tmp_path, name="run")], fast_dev_run=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_cannot_be_written_costs_a_warning_and_not_the_training(tmp_path: Path) -> None:
    class InTheWay(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            (tmp_path / "picture.png").mkdir()

    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=False,
        callbacks=[InTheWay(), Reporter()],
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with pytest.warns(UserWarning, match=r"picture\.png could not be written .* training goes on"):
        trainer.fit(BoringModel())
    assert trainer.global_step == 2


def test_a_logger_of_ones_own_joins_by_registration(tmp_path: Path) -> None:
    class Own(CSVLogger):
        tables: list[Any] = []

    @send_table.register(Own)
    def _(logger: Own, key: str, columns: Any, rows: Any, step: int) -> None:
        logger.tables.append((key, list(rows), step))

    fit(tmp_path, [Own(tmp_path, name="run")])
    assert Own.tables == [("report/table", [("a", 1), ("b", 2)], 2)]


def test_thinning_keeps_the_ends_and_spreads_evenly() -> None:
    rows = [(i,) for i in range(1001)]
    assert thin(rows, 5) == [(0,), (250,), (500,), (750,), (1000,)]
    assert thin(rows[:4], 5) == rows[:4]
