"""Channels that are removed in training, and the smaller network that is left."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks.gradual_pruning import GradualPruning
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules import ImageClassifier

pytest.importorskip("torch_pruning")
from lightning_efficient.nn.pruning.pruned_file import load_pruned

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
CHANNELS = 8 + 6


class Module(L.LightningModule):
    """Two convolutions with normalisation and a classifier."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Hardswish()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3) if head is None else head),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.5)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(32, 1, 8, 8, generator=generator), torch.randint(3, (32,), generator=generator))
    return DataLoader(data, batch_size=8)


def fit(folder: Path, *callbacks: Callback, module: Any = None, ckpt_path: Path | None = None, **options: Any) -> Any:
    module = Module() if module is None else module
    saves = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 3, "accelerator": "cpu", "enable_checkpointing": saves, "default_root_dir": folder}
    trainer = L.Trainer(callbacks=list(callbacks), **{**quiet, **defaults, **options})
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return module


def pruning(**options: Any) -> GradualPruning:
    given = {"sparsity": 0.5, "structure": "channels", "rounds": 3, "input_shape": [1, 8, 8], "measure": False}
    return GradualPruning(**{**given, **options})


def batch() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"saliency": "first_order", "scope": "layer"},
        {"saliency": "random", "schedule": "iterative"},
        {"schedule": "one_shot", "begin": 0.3},
    ],
    ids=str,
)
def test_the_smaller_network_computes_what_the_masked_one_does(options: Any, tmp_path: Path) -> None:
    callback = pruning(**options)
    module = fit(tmp_path, callback).eval()
    assert callback.pruned is not None
    assert not callback.pruned.training
    widths = [callback.pruned[place].out_channels for place in (0, 3)]
    assert sum(widths) == CHANNELS // 2
    assert options.get("scope") != "layer" or widths == [4, 3]
    with torch.no_grad():
        torch.testing.assert_close(callback.pruned(batch()), module.net(batch()), rtol=1e-5, atol=1e-6)
    assert not callback.pruned(batch()).isclose(Module().net.eval()(batch())).all()
    # the module itself keeps its shapes, so that its checkpoints load
    assert module.net[0].weight.shape == (8, 1, 3, 3)


def test_a_channel_goes_in_every_layer_it_passes_through(tmp_path: Path) -> None:
    callback = pruning()
    module = fit(tmp_path, callback)
    kept = callback.masks["net.0.weight"].flatten(1).all(1)
    assert 0 < int(kept.sum()) < 8
    assert torch.equal(callback.masks["net.0.weight"].flatten(1).any(1), kept)
    for name in ("net.1.weight", "net.1.bias"):
        assert torch.equal(module.get_parameter(name) != 0, kept)
    assert torch.equal(module.net[3].weight.flatten(2).any(2).any(0), kept)
    left = sum(int(value.count_nonzero()) for value in module.parameters())
    assert callback.state_dict()["history"][-1]["parameters"] == left
    assert left == sum(value.numel() for value in callback.pruned.parameters())


def test_averaged_weights_lose_the_same_channels(tmp_path: Path) -> None:
    callback = pruning()
    module = fit(tmp_path, EMAWeightAveraging(decay=0.9), callback)
    assert all(not module.get_parameter(name)[~mask].any() for name, mask in callback.masks.items())
    with torch.no_grad():
        torch.testing.assert_close(callback.pruned(batch()), module.eval().net(batch()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["magnitude", "first_order", "random"])
def test_a_resumed_run_ends_with_the_same_smaller_network(kind: Any, tmp_path: Path) -> None:
    callback, again = pruning(saliency=kind), pruning(saliency=kind)
    whole = fit(tmp_path, callback, ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    resumed = fit(tmp_path, again, ckpt_path=tmp_path / "epoch=1.ckpt")
    for one, other in ((whole, resumed), (callback.pruned, again.pruned)):
        theirs = other.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_layers_keep_their_channels_where_they_are_told_to(tmp_path: Path) -> None:
    callback = pruning(layers={"^0$": 0.0})
    fit(tmp_path, callback)
    assert [callback.pruned[place].out_channels for place in (0, 3)] == [8, 3]
    assert "net.0.weight" not in callback.masks


def test_layers_whose_channels_cannot_go_are_named(tmp_path: Path, told: list[str]) -> None:
    fit(tmp_path, pruning())
    [line] = [each for each in told if "leaves alone" in each]
    assert line == "GradualPruning leaves alone: 8 (they are an output of the network)"


def test_a_network_without_channels_to_remove_is_refused(tmp_path: Path) -> None:
    module = Module()
    module.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ConfigurationError, match=r"has no layer that can be pruned: 1 \(they are an output"):
        fit(tmp_path, pruning(), module=module)


def test_a_sparsity_that_leaves_a_layer_without_channels_is_refused(tmp_path: Path) -> None:
    # each layer keeps a channel, 2 of 14
    with pytest.raises(ConfigurationError, match=r"sparsity=0.94 cannot be reached, the largest possible is 0.857"):
        fit(tmp_path, pruning(sparsity=0.94))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GradualPruning, ImageClassifier]:
    """A timm classifier on digits, pruned and measured."""
    folder = tmp_path_factory.mktemp("measured")
    callback = pruning(input_shape=None, measure=True)
    module = ImageClassifier("test_efficientnet", num_classes=10, in_chans=1)
    logger = CSVLogger(folder, name="", version="")
    trainer = L.Trainer(
        callbacks=[callback], logger=logger, max_steps=6, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=1, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=Digits(image_size=16, in_chans=1, batch_size=16, train_samples=48))
    return folder, callback, module


def test_the_smaller_network_is_saved_and_needs_no_code_of_the_run(measured: Any) -> None:
    folder, callback, module = measured
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    loaded = load_pruned(folder / "pruned.pt").eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), callback.pruned(images))
        torch.testing.assert_close(loaded(images), module.eval()(images), rtol=1e-5, atol=1e-6)


def test_the_run_folder_tells_what_is_left(measured: Any) -> None:
    folder, callback, module = measured
    content = json.loads((folder / "pruning.json").read_text())
    assert content["sparsity"] == pytest.approx(0.5, abs=0.001)
    assert content["parameters"]["left"] == sum(each.numel() for each in callback.pruned.parameters())
    assert content["parameters"]["dense"] == sum(each.numel() for each in module.backbone.parameters())
    assert content["macs"]["left"] < content["macs"]["dense"]
    assert content["macs"]["left"] == content["history"][-1]["macs"]
    assert content["largest_output_difference"] < 1e-5
    assert content["latency_ms"].keys() == {"b1", "b32"}
    logged = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    keys = ("sparsity", "parameters", "channels", "macs", "latency_ratio_b1", "latency_ratio_b32")
    assert {f"pruning/{key}" for key in keys} <= set(logged)
    assert (folder / "pruning.png").stat().st_size > 1000
    table = (folder / "pruning_layers.csv").read_text().splitlines()
    assert table[0] == "layer,channels,kept,share"
    assert len(table) == 1 + len(content["layers"])


def test_the_callback_can_be_copied_after_a_run_and_used_again(measured: Any, tmp_path: Path) -> None:
    _, callback, _ = measured
    again = copy.deepcopy(callback)
    again.measure, again.input_shape = False, [1, 8, 8]
    fit(tmp_path, again)
    assert sum(again.pruned[place].out_channels for place in (0, 3)) == CHANNELS // 2


def test_a_rehearsal_writes_no_file(tmp_path: Path) -> None:
    callback = pruning(measure=True)
    fit(tmp_path, callback, fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []
    assert callback.pruned is not None
