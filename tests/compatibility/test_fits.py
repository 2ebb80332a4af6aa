"""Checkpoints and configs of earlier minor versions: they load, answer as they did, and a fit goes on from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from kept import SETS, by_newer_torch, needs, read

from lightning_efficient._lightning_compat import ParsesOnly
from lightning_efficient.cli import EfficientCLI

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
"""Another torch, or another processor, may sum in another order."""
AFTER_STEPS = {"rtol": 1e-2, "atol": 1e-3}
"""Adam makes a step of 0.01 of a gradient of any size, so that what differed in the last digit moves further apart."""

every_fit = pytest.mark.parametrize(
    "fit", [pytest.param(path, id=f"{kept.name}-{path.name}") for kept in SETS for path in sorted(kept.glob("fits/*"))]
)


class Parsed(ParsesOnly, EfficientCLI):
    """Reads a config, and builds nothing."""


def configs_of(fit: Path) -> list[str]:
    """Return the options that give a fit its configs, as its user wrote them."""
    return runs.config_options(fit.parent.parent / "configs", fit.name)


def last_config(fit: Path) -> list[str]:
    """Return the option for what the run wrote down, with every option of its torch; or else what its user wrote."""
    return configs_of(fit) if by_newer_torch(fit) else ["--config", str(fit / "config.yaml")]


@every_fit
def test_the_weights_of_a_checkpoint_answer_as_they_did(fit: Path) -> None:
    stored = np.load(fit / "outputs.npz")
    module = runs.loaded(fit / "first.checkpoint", read(fit / "expected.json")["class_path"])
    found = runs.outputs(module, stored["inputs"])
    assert found.keys() >= set(stored.files) - {"inputs"} != set()
    for name, value in found.items():
        np.testing.assert_allclose(value, stored[name], **CLOSE)


@every_fit
def test_a_fit_goes_on_from_a_checkpoint_as_it_did(fit: Path) -> None:
    if fit.name == "quantization":
        needs("torchao")
    runs.write_text(Path("text"))
    shutil.copy(fit / "first.checkpoint", "first.ckpt")
    cli = EfficientCLI(["fit", *last_config(fit), "--ckpt_path", "first.ckpt"])
    expected, found = read(fit / "expected.json"), runs.observed(cli)
    # where two scores are as good as equal, areas and shares move by a sample
    assert {name: found[name] for name in expected["metrics"]} == pytest.approx(expected["metrics"], rel=0.02, abs=0.02)
    stored, weights = np.load(fit / "end.npz"), runs.final_weights(cli.model)
    assert set(stored.files) == set(weights)
    for name in stored.files:
        np.testing.assert_allclose(weights[name], stored[name], **AFTER_STEPS, err_msg=name)
    assert set(expected["callbacks"]) <= set(torch.load("epochs/epoch=1.ckpt", weights_only=True)["callbacks"])


@every_fit
def test_a_config_that_its_user_wrote_is_understood(fit: Path) -> None:
    if fit.name == "quantization":
        needs("torchao")
    parsed = Parsed(["fit", *configs_of(fit)])
    class_path = read(fit / "expected.json")["class_path"]
    assert parsed.config["fit"]["model"]["class_path"].rpartition(".")[2] == class_path.rpartition(".")[2]


@every_fit
def test_the_last_weights_are_not_the_first(fit: Path) -> None:
    first = torch.load(fit / "first.checkpoint", weights_only=True)["state_dict"]
    end = np.load(fit / "end.npz")
    assert any(
        not np.allclose(value.numpy(), end[name], **AFTER_STEPS) for name, value in first.items() if name in end.files
    )
