"""The command itself on two processes, the second of which Lightning starts with the same words."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("lightning-efficient")


@pytest.mark.slow
@pytest.mark.skipif(not COMMAND.exists(), reason="the package is not installed")
def test_ddp_trains_on_two_processes_in_one_run_folder(tiny: Path) -> None:
    words = ("fit", "--config", tiny, "--config", "trainer/ddp", "--trainer.accelerator", "cpu")
    done = subprocess.run([COMMAND, *words], cwd=tiny.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert done.stdout.strip().splitlines()[-1].endswith("runs/tiny/version_0")
    [folder] = (tiny.parent / "runs" / "tiny").iterdir()
    assert "strategy: ddp" in (folder / "config.yaml").read_text()
    with (folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["0", "1"]


@pytest.mark.slow
def test_fsdp_on_a_machine_without_a_gpu_is_one_line(command: object, tiny: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = command("fit", "--config", tiny, "--config", "trainer/fsdp")
    assert (result.status, result.out) == (2, "")
    line = result.err.strip().splitlines()[-1]
    assert line.startswith("error: `CUDAAccelerator` can not run on your system")
    assert not (tiny.parent / "runs").exists()


@pytest.mark.parametrize("name", ["fsdp", "slurm"])
def test_fragments_for_machines_that_are_not_here_parse(name: str, parse: object) -> None:
    trainer = parse("--config", "quickstart", "--config", f"trainer/{name}").trainer
    if name == "slurm":
        assert (trainer.strategy, trainer.num_nodes, trainer.devices) == ("ddp", 2, 4)
    else:
        assert trainer.strategy.class_path == "lightning.pytorch.strategies.FSDPStrategy"
        assert (trainer.strategy.init_args.sharding_strategy.name, trainer.devices) == ("FULL_SHARD", "auto")
