"""What is read back from run folders, and from a real W&B run that was never sent."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_efficient.errors import ConfigurationError
from lightning_efficient.reporting._wandb_offline import read_wandb_file
from lightning_efficient.reporting.run_records import grouped, read_run, read_runs

CHECKPOINT = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "val/loss"}}
METRICS = """\
epoch,step,train/loss,val/loss,val/accuracy,selective/val_aurc,test/accuracy,profile/macs
0,9,2.5,,,,,
0,10,,0.9,0.5,0.31,,
1,20,,0.4,0.6,0.32,,
1,19,1.5,,,,,
2,30,,0.7,0.8,0.33,,
,30,,,,,,8
0,30,,,,,0.77,
"""
PROFILE = {
    "name": "net",
    "macs": 8,
    "uncounted": [],
    "ok": True,
    "layers": {"conv": 3},
    "latencies": [
        {"batch_size": 1, "p50_ms": 2.0, "p95_ms": 3.0, "threads": 2, "device": "cpu", "precision": "32-true"},
        {"batch_size": 1, "p50_ms": 9.0, "p95_ms": 9.0, "threads": 4, "device": "cpu", "precision": "32-true"},
        {"batch_size": 8, "p50_ms": 4.0, "threads": 2, "device": "cpu", "precision": "32-true"},
    ],
}


def make_run(folder: Path, config: dict[str, Any] | None = None, metrics: str = METRICS, **files: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(metrics)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("callbacks", "expected"),
    [
        ([CHECKPOINT], {"val/loss": 0.4, "val/accuracy": 0.6, "selective/val_aurc": 0.32}),
        (
            [{**CHECKPOINT, "init_args": {"monitor": "val/accuracy", "mode": "max"}}],
            {"val/loss": 0.7, "val/accuracy": 0.8, "selective/val_aurc": 0.33},
        ),
        (CHECKPOINT, {"val/loss": 0.4, "val/accuracy": 0.6, "selective/val_aurc": 0.32}),
        ([{"class_path": "FiniteLoss"}], {"val/loss": 0.7, "val/accuracy": 0.8, "selective/val_aurc": 0.33}),
        (None, {"val/loss": 0.7, "val/accuracy": 0.8, "selective/val_aurc": 0.33}),
        ([{**CHECKPOINT, "init_args": {"monitor": "val/f1"}}], {"val/loss": 0.7, "val/accuracy": 0.8}),
    ],
    ids=["least", "most", "alone", "no_checkpoint", "none", "never_logged"],
)
def test_validation_counts_at_the_epoch_of_the_best_checkpoint(
    tmp_path: Path, callbacks: Any, expected: dict[str, float]
) -> None:
    record = read_run(make_run(tmp_path / "quickstart" / "version_0", {"trainer": {"callbacks": callbacks}}))
    assert record.name == "quickstart/version_0"
    assert {key: record.metrics[key] for key in expected} == expected
    assert record.metrics["train/loss"] == 1.5
    assert record.metrics["test/accuracy"] == 0.77
    assert record.metrics["profile/macs"] == 8


def test_each_json_file_adds_its_numbers_under_its_name(tmp_path: Path) -> None:
    pruning = {"sparsity": 0.8, "before": {"macs": 10, "name": "net"}, "broken": float("nan"), "kept": [1, 2]}
    record = read_run(make_run(tmp_path / "run", profile=PROFILE, pruning=pruning, threads_only={"threads": 3}))
    numbers = {key: value for key, value in record.metrics.items() if key.startswith(("profile/", "pruning/"))}
    assert numbers == {
        "profile/macs": 8,
        "profile/layers/conv": 3,
        "profile/latency_ms_p50_b1": 2,
        "profile/latency_ms_p95_b1": 3,
        "profile/latency_ms_p50_b8": 4,
        "pruning/sparsity": 0.8,
        "pruning/before/macs": 10,
    }
    assert record.conditions["profile"] == {"threads": "2", "device": "cpu", "precision": "32-true"}
    assert record.conditions["threads_only"] == {"threads": "3"}


def test_a_profile_alone_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    record = read_run(tmp_path)
    assert record.config == {}
    assert record.metrics["profile/macs"] == 8


def test_runs_below_a_folder_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for version in (10, 9, 2):
        make_run(tmp_path / "runs" / "a" / f"version_{version}")
    make_run(tmp_path / "runs" / "b")
    (tmp_path / "runs" / "a" / "latest").symlink_to(tmp_path / "runs" / "a" / "version_2")
    (tmp_path / "runs" / "notes").mkdir()
    assert [record.name for record in read_runs(tmp_path)] == ["a/version_2", "a/version_9", "a/version_10", "b"]


def test_runs_that_differ_in_seed_logger_and_paths_only_belong_together(tmp_path: Path) -> None:
    def config(seed: int, lr: float, version: int) -> dict[str, Any]:
        logger = {"class_path": "CSVLogger", "init_args": {"version": version}}
        return {"seed_everything": seed, "model": {"lr": lr}, "trainer": {"logger": [logger], "max_epochs": 2}}

    settings = [(0, 0.1), (1, 0.1), (0, 0.2), (2, 0.1)]
    records = [
        read_run(make_run(tmp_path / str(number), config(seed, lr, number)))
        for number, (seed, lr) in enumerate(settings)
    ]
    records += [read_run(make_run(tmp_path / name)) for name in ("x", "y")]
    assert [[record.name for record in group] for group in grouped(records)] == [["0", "1", "3"], ["2"], ["x"], ["y"]]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("profile.json", "{", "profile.json is no JSON: "),
        ("metrics.csv", "epoch,val/loss\n0,high\n", "metrics.csv is no table of numbers: "),
        ("metrics.csv", "epoch\n0,1\n", "metrics.csv is no table of numbers: "),
        ("config.yaml", "a: [", "config.yaml is no YAML: "),
        ("run-x.wandb", "text", "run-x.wandb is no file of a W&B run"),
    ],
    ids=["json", "word", "long_row", "yaml", "wandb"],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, file: str, content: str, says: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / file).write_text(content)
    with pytest.raises(ConfigurationError, match=says) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_ours_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"is no run: it has none of metrics.csv, profile.json.* \.wandb file"):
        read_run(tmp_path)
    with pytest.raises(ConfigurationError, match=r"is no run and holds none: looked for metrics.csv"):
        read_runs(tmp_path)
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        read_runs(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real W&B run that was not sent, with enough rows for several blocks of its file."""
    import wandb

    folder = tmp_path_factory.mktemp("save_dir")
    settings = wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True, console="off")
    config = {"seed": 1, "model": {"lr": 0.1}}
    run = wandb.init(project="tiny", name="small", mode="offline", dir=folder, config=config, settings=settings)
    for epoch in range(4):
        run.log({"epoch": epoch, "val/accuracy": [0.1, 0.9, 0.5, 0.4][epoch], "note": "text" * 5000, "wrong": True})
    run.summary["test/accuracy"] = 0.77
    run.finish()
    [found] = folder.glob("wandb/offline-run-*")
    [file] = found.glob("*.wandb")
    until = time.monotonic() + 20
    while not read_wandb_file(file).finished and time.monotonic() < until:  # its own process writes the rest later
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_a_wandb_run_that_was_not_sent_is_read(offline: Path) -> None:
    [file] = offline.glob("*.wandb")
    assert file.stat().st_size > 2 * 32768
    run = read_wandb_file(file)
    assert (run.name, run.project, run.config) == ("small", "tiny", {"seed": 1, "model": {"lr": 0.1}})
    assert [row["val/accuracy"] for row in run.rows] == [0.1, 0.9, 0.5, 0.4]
    record = read_run(offline)
    assert record.name == "small"
    assert record.finished
    assert record.metrics == {"epoch": 3, "val/accuracy": 0.4, "test/accuracy": 0.77}
    assert [each.name for each in read_runs(offline.parent)] == ["small"]  # the link to the latest run is no other


@pytest.mark.slow
def test_what_our_callbacks_wrote_for_a_wandb_run_belongs_to_it(offline: Path, tmp_path: Path) -> None:
    shutil.copytree(offline.parent.parent, tmp_path, dirs_exist_ok=True, symlinks=True)
    [wandb_folder] = tmp_path.glob("wandb/offline-run-*")
    name = wandb_folder.name.rsplit("-", maxsplit=1)[-1]
    own = tmp_path / "tiny" / name
    own.mkdir(parents=True)
    (own / "profile.json").write_text(json.dumps(PROFILE))
    monitor = {**CHECKPOINT, "init_args": {"monitor": "val/accuracy", "mode": "max"}}
    (own / "config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [monitor]}}))
    both = [read_run(own), read_run(wandb_folder)]
    assert both[0].metrics == both[1].metrics
    assert both[0].metrics["val/accuracy"] == 0.9
    assert both[0].metrics["profile/macs"] == 8
    assert both[0].conditions == both[1].conditions
    assert len(read_runs(tmp_path)) == 1


@pytest.mark.slow
def test_a_wandb_file_cut_short_gives_what_it_has_and_a_damaged_one_is_refused(offline: Path, tmp_path: Path) -> None:
    [file] = offline.glob("*.wandb")
    content = file.read_bytes()
    (tmp_path / "cut.wandb").write_bytes(content[: len(content) // 2])
    cut = read_wandb_file(tmp_path / "cut.wandb")
    assert 1 <= len(cut.rows) < 4
    assert not cut.finished
    assert not read_run(tmp_path).finished
    broken = bytearray(content)
    broken[100] ^= 1
    (tmp_path / "broken.wandb").write_bytes(broken)
    with pytest.raises(ConfigurationError, match=r"broken.wandb is damaged at byte \d+"):
        read_wandb_file(tmp_path / "broken.wandb")


def test_a_run_that_removed_channels_costs_what_its_smaller_network_does(tmp_path: Path) -> None:
    pruning = {
        "macs": {"dense": 10, "left": 4},
        "parameters": {"dense": 9, "left": 3},
        "bytes": {"on_disk": 70, "compressed": 50},
        "latency_ms": {"b1": {"pruned": 0.5, "dense": 0.7}},
    }
    metrics = read_run(make_run(tmp_path / "run", profile=PROFILE, pruning=pruning)).metrics
    assert {key: value for key, value in metrics.items() if key.startswith("profile/")} == {
        "profile/macs": 4,
        "profile/flops": 8,
        "profile/parameters": 3,
        "profile/bytes_on_disk": 70,
        "profile/latency_ms_p50_b1": 0.5,
    }


def test_zeros_among_the_weights_leave_the_costs_as_they_are(tmp_path: Path) -> None:
    pruning = {"macs": {"dense": 10, "left": 10}, "parameters": {"dense": 9, "left": 3}}
    with_zeros = read_run(make_run(tmp_path / "run", profile=PROFILE, pruning=pruning)).metrics
    without = read_run(make_run(tmp_path / "other", profile=PROFILE)).metrics
    assert {key: value for key, value in with_zeros.items() if key.startswith("profile/")} == {
        key: value for key, value in without.items() if key.startswith("profile/")
    }


def test_the_processor_is_a_condition_of_a_latency(tmp_path: Path) -> None:
    profile = PROFILE | {"processor": "a processor"}
    conditions = read_run(make_run(tmp_path / "run", profile=profile)).conditions
    assert conditions["profile"]["processor"] == "a processor"
