"""The verb ``compare``: nothing is written unless all was read, and it says what it left out and doubts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

MODELS = {"small": (1e6, 0.80), "medium": (4e6, 0.90), "large": (90e6, 0.93), "poor": (6e6, 0.70)}


def make_run(folder: Path, macs: float, accuracy: float | None, *, seed: int = 0, threads: int = 1) -> None:
    folder.mkdir(parents=True)
    latency = {"batch_size": 1, "p50_ms": macs / 1e6, "threads": threads, "device": "cpu", "precision": "32-true"}
    (folder / "profile.json").write_text(json.dumps({"macs": macs, "score": 1, "latencies": [latency]}))
    if accuracy is not None:
        (folder / "metrics.csv").write_text(f"epoch,val/accuracy\n0,{accuracy}\n")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed, "model": macs}))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, (macs, accuracy) in MODELS.items():
        make_run(Path("runs") / name, macs, accuracy)
    return Path("runs")


def test_the_front_the_knee_and_the_hypervolume_are_told_drawn_and_tabulated(
    runs: Path, command: Callable[..., Any]
) -> None:
    done = command("compare", runs, "--out", "seen", "--reference", 100e6, 0.5)
    assert (done.status, done.err) == (0, "")
    lines = {name: next(line for line in done.out.splitlines() if name in line) for name in MODELS}
    assert [name for name, line in lines.items() if "★" in line] == ["small", "medium", "large"]
    assert "← knee" in lines["medium"]
    assert "4 M" in lines["medium"]
    volume = 10e6 * 0.43 + 86e6 * 0.40 + 3e6 * 0.30
    assert f"hypervolume: {volume:.4g}" in done.out
    assert "the reference point (profile/macs 100 M, val/accuracy 0.5)" in done.out
    assert "wrote seen/pareto.png, seen/pareto.csv" in done.out
    assert Path("seen/pareto.png").read_bytes().startswith(b"\x89PNG")
    with Path("seen/pareto.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert {name: int(row["front"]) for name, row in rows.items()} == {"small": 1, "medium": 1, "large": 1, "poor": 0}
    assert [name for name, row in rows.items() if row["knee"] == "1"] == ["medium"]
    assert {name: (float(row["profile/macs"]), float(row["val/accuracy"])) for name, row in rows.items()} == MODELS


def test_json_takes_the_place_of_the_table(runs: Path, command: Callable[..., Any]) -> None:
    done = command("compare", *(runs / name for name in MODELS), "--json_file", "-", "--labels", *"abcd")
    figures = json.loads(done.out)
    assert [(point["label"], point["front"]) for point in figures["points"]] == [
        ("a", True), ("b", True), ("c", True), ("d", False),
    ]  # fmt: skip
    assert figures["knee"] == "b"
    assert figures["axes"]["x"]["key"] == "profile/macs"
    assert figures["axes"]["x"]["logarithmic"]
    assert figures["axes"]["y"]["better"] == "more"
    assert figures["left_out"] == figures["warnings"] == []


def test_the_user_may_say_which_way_is_better(runs: Path, command: Callable[..., Any]) -> None:
    done = command("compare", runs, "--minimize", "accuracy", "--maximize", "macs", "--json_file", "-")
    figures = json.loads(done.out)
    assert [point["front"] for point in figures["points"]] == [True, False, True, False]  # large, medium, poor, small
    unclear = command("compare", runs, "--x", "score")
    assert unclear.status == 2
    assert "which way is profile/score better? Say --maximize profile/score or --minimize" in unclear.err
    assert command("compare", runs, "--x", "score", "--minimize", "score").status == 0


def test_seeds_are_averaged_and_their_spread_shown(runs: Path, command: Callable[..., Any]) -> None:
    make_run(runs / "seeds" / "version_0", 2e6, 0.80)
    make_run(runs / "seeds" / "version_1", 2e6, 0.90, seed=1)
    done = command("compare", runs / "seeds", runs / "small", "--group")
    assert "0.85 ± 0.071" in done.out
    figures = json.loads(command("compare", runs, "--group", "--json_file", "-").out)
    [point] = [point for point in figures["points"] if point["label"] == "seeds"]
    assert len(figures["points"]) == 5
    assert point["y"] == pytest.approx(0.85)
    assert point["y_std"] == pytest.approx(0.05 * 2**0.5)
    assert point["x_std"] == 0
    assert len(point["paths"]) == 2


def test_a_run_without_an_axis_is_named_and_left_out(runs: Path, command: Callable[..., Any]) -> None:
    make_run(runs / "unfinished", 5e6, None)
    done = command("compare", runs)
    assert done.status == 0
    assert done.err == "warning: left out unfinished (runs/unfinished): it has no val/accuracy\n"
    assert "unfinished" not in done.out


def test_energy_of_other_devices_or_of_a_part_of_a_run_is_doubted(runs: Path, command: Callable[..., Any]) -> None:
    for name, devices, complete in (("small", ["cpu:0"], True), ("large", ["cpu:0", "gpu:0"], False)):
        content = {"joules": 5.0, "complete": complete, "devices": dict.fromkeys(devices, 1.0)}
        (runs / name / "energy.json").write_text(json.dumps(content))
    done = command("compare", runs / "small", runs / "large", "--x", "energy/joules")
    assert done.status == 0
    assert "warning: large (runs/large): energy was measured for a part of the run only\n" in done.err
    assert "not comparable: devices cpu:0 (small); devices cpu:0 + gpu:0 (large)\n" in done.err


@pytest.mark.parametrize("latencies", [[3], [{}], [{"batch_size": 1, "p50_ms": None}]], ids=["number", "empty", "null"])
def test_a_profile_that_is_not_ours_has_no_latency(
    runs: Path, command: Callable[..., Any], latencies: list[Any]
) -> None:
    (runs / "small" / "profile.json").write_text(json.dumps({"macs": 1e6, "latencies": latencies}))
    assert command("compare", runs / "small", runs / "large").status == 0
    assert "left out small" in command("compare", runs / "small", runs / "large", "--x", "latency_ms").err


def test_what_cannot_be_written_is_named_by_its_option_and_nothing_is_left(
    runs: Path, command: Callable[..., Any]
) -> None:
    done = command("compare", runs, "--out", "new", "--json_file", "nowhere/x.json")
    assert (done.status, done.err) == (2, "error: --json_file nowhere/x.json: there is no folder nowhere\n")
    assert not Path("new").exists()
    Path("taken").touch()
    assert "--out taken: it cannot be written" in command("compare", runs, "--out", "taken").err


def test_latencies_under_different_conditions_are_doubted(runs: Path, command: Callable[..., Any]) -> None:
    make_run(runs / "threaded", 5e6, 0.9, threads=4)
    assert command("compare", runs).err == ""  # MACs do not depend on them
    done = command("compare", runs, "--x", "latency_ms")
    assert done.err.count("\n") == 1
    assert "profile/latency_ms_p50_b1 was measured in different ways and is not comparable: threads 1," in done.err
    assert "(large, medium, poor and 1 more); threads 4, device cpu, precision 32-true (threaded)" in done.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "the following arguments are required: RUN; see lightning-efficient compare --help"),
        (["runs", "--ax", "macs"], "unknown option --ax"),
        (["runs", "--label", "a"], "unknown option --label. Did you mean '--labels'"),
        (["runs", "nowhere"], "nowhere is no run: there is no such folder"),
        (["runs", "empty"], "empty is no run and holds none: looked for metrics.csv, profile.json"),
        (["runs", "--x", "mac"], "no run has an axis 'mac'. Did you mean 'macs'? Of the axes all have profile/lat"),
        (["runs", "--split", "test"], "no run has an axis 'accuracy' of the split 'test'"),
        (["runs", "--x", "accuracy"], "--x accuracy and --y accuracy are the same axis, val/accuracy"),
        (["runs", "--labels", "a"], "--labels names 1 of 4 points, which are large, medium, poor, small"),
        (["runs", "--maximize", "score"], "--maximize score is no axis of the picture"),
        (["runs", "--maximize", "macs", "--minimize", "macs"], "macs cannot be both maximized and minimized"),
        (["partial"], "no run has both profile/macs and val/accuracy; left out a"),
    ],
    ids=lambda value: " ".join(value) or "none" if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    runs: Path, words: list[str], says: str, command: Callable[..., Any]
) -> None:
    Path("empty").mkdir()
    make_run(Path("partial/a"), 1e6, None)
    Path("partial/b").mkdir()
    Path("partial/b/metrics.csv").write_text("val/accuracy\n0.5\n")
    before = sorted(Path().rglob("*"))
    done = command("compare", *words)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert says in done.err
    assert sorted(Path().rglob("*")) == before


def test_help_and_a_missing_folder_need_no_torch() -> None:
    code = (
        "import sys; from lightning_efficient.cli.compare import run_compare\n"
        "try: run_compare(['--help'])\nexcept SystemExit as ended: print('ended', ended.code)\n"
        "print(run_compare(['nowhere']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("ended 0\n2 False\n")
    assert "whichever more" in done.stdout


@pytest.mark.slow
def test_table_and_picture_go_to_a_wandb_run_that_can_be_sent_later(runs: Path, command: Callable[..., Any]) -> None:
    from lightning_efficient.reporting._wandb_offline import read_wandb_file

    done = command("compare", runs, "--out", "seen", "--wandb", "efficiency")
    assert (done.status, done.err) == (0, "")
    [file] = Path("seen/wandb").glob("offline-run-*/*.wandb")
    assert str(file.parent) in done.out
    until = time.monotonic() + 20
    while not (run := read_wandb_file(file)).finished and time.monotonic() < until:  # W&B writes the rest later
        time.sleep(0.02)
    assert run.project == "efficiency"
    assert run.summary["compare/pareto/nrows"] == 4
    assert run.summary["compare/pareto_front/count"] == 1
