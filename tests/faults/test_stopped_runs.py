"""Runs that are killed or interrupted go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Fit = Callable[..., Any]
STEPS = 15


def stop_at(step: int, name: str) -> tuple[str, ...]:
    return (
        "--trainer.callbacks+=faults.SignalAt",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.name={name}",
    )


def checkpoint(version: int, name: str = "last.ckpt") -> Path:
    return Path(f"runs/quickstart/version_{version}/checkpoints/{name}")


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def same_weights(left: Path, right: Path) -> bool:
    one, other = load(left)["state_dict"], load(right)["state_dict"]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_weights_of_the_uninterrupted_one(fit: Fit) -> None:
    assert fit().status == 0
    # in mid-epoch with worker processes
    killed = fit(*stop_at(8, "SIGKILL"), "--data.num_workers=2")
    assert killed.status == -9
    resumed = fit("--data.num_workers=2", "--ckpt_path", "steps/step=8-v1.ckpt")
    assert resumed.status == 0, resumed.stderr
    assert load(checkpoint(2))["global_step"] == STEPS
    assert same_weights(checkpoint(0), checkpoint(2))
    # at the end of an epoch
    assert fit(*stop_at(10, "SIGKILL")).status == -9
    assert load(checkpoint(3))["global_step"] == 10
    assert fit("--ckpt_path", checkpoint(3)).status == 0
    assert same_weights(checkpoint(0), checkpoint(4))


def whole_and_killed(fit: Fit, config: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a config whole, then kill it in mid-epoch and resume it: the last checkpoint of each, of equal weights."""
    tiny = ("--config", str(Path(__file__).with_name(config)), *options)
    whole = fit(*tiny)
    assert whole.status == 0, whole.stderr
    assert fit(*tiny, *stop_at(8, "SIGKILL")).status == -9
    resumed = fit(*tiny, "--ckpt_path", "steps/step=8-v1.ckpt")
    assert resumed.status == 0, resumed.stderr
    ends = Path("ends/step=15.ckpt"), Path("ends/step=15-v1.ckpt")
    assert same_weights(*ends)
    one, other = map(load, ends)
    return one, other


@pytest.mark.slow
def test_a_run_trained_forward_through_time_resumes_in_mid_epoch_after_a_kill(fit: Fit) -> None:
    one, other = (end["callbacks"]["FPTT[fptt]"] for end in whole_and_killed(fit, "tiny_in_parts.yaml"))
    assert one["updates"] == other["updates"] == 2 * STEPS
    assert all(torch.equal(one["duals"][name], other["duals"][name]) for name in one["duals"])
    assert any(bool(dual.any()) for dual in one["duals"].values())


@pytest.mark.slow
def test_a_distilled_student_resumes_in_mid_epoch_after_a_kill(fit: Fit) -> None:
    ends = whole_and_killed(fit, "tiny_distilled.yaml")
    assert any(name.startswith("objective.guide") for name in ends[0]["state_dict"])
    for key in ("GuideSchedule[guide]", "Constraint[constraint/train/loss]"):
        one, other = (end["callbacks"][key] for end in ends)
        one, other = (state.get("dual", state) for state in (one, other))
        assert one == other
        assert one["multiplier"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "kept"), [("osp", "multipliers"), ("sat", "doubt._extra_state")])
def test_a_classifier_that_abstains_resumes_in_mid_epoch_after_a_kill(fit: Fit, objective: str, kept: str) -> None:
    options = () if objective == "osp" else ("--model.objective", objective, "--model.objective_kwargs", "null")
    one, other = (end["state_dict"] for end in whole_and_killed(fit, "tiny_abstaining.yaml", *options))
    assert torch.equal(one[f"objective.{kept}"], other[f"objective.{kept}"])
    assert len(one[f"objective.{kept}"].unique()) > 1


@pytest.mark.slow
def test_a_hybrid_resumes_in_the_middle_of_its_routers_stage_after_a_kill(fit: Fit) -> None:
    one, other = whole_and_killed(fit, "tiny_hybrid.yaml")
    for name in ("threshold", "threshold_path"):
        assert not bool(one["state_dict"][name].isnan().any())
    kept = [end["hybrid_classifier"]["per_rank"][0] for end in (one, other)]
    assert torch.equal(kept[0]["scores"], kept[1]["scores"])
    assert torch.equal(kept[0]["training_samples"], kept[1]["training_samples"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_run_leaves_a_checkpoint_to_go_on_from(fit: Fit, name: str) -> None:
    stopped = fit(*stop_at(8, name))
    assert stopped.status == {"SIGINT": 130, "SIGTERM": 143}[name]
    assert "Traceback" not in stopped.stderr
    saved = checkpoint(0, "interrupted.ckpt")
    assert f"go on with --ckpt_path {saved}" in stopped.stderr
    resumed = fit("--ckpt_path", saved)
    assert resumed.status == 0, resumed.stderr
    # the step in which Ctrl-C came had taken its batch
    assert load(checkpoint(1))["global_step"] == STEPS - (name == "SIGINT")
    assert all(value.isfinite().all() for value in load(checkpoint(1))["state_dict"].values())
