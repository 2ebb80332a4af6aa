"""From a checkpoint to 8-bit networks, each evaluated and timed beside the float one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.cli import quantizing
from lightning_efficient.cli._calibration_batches import calibration_batches
from lightning_efficient.cli._quantize_page import quantize_page
from lightning_efficient.cli.quantizing import QuantizeRequest, quantize_checkpoint, schemes_of
from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.nn.quantization import load_quantized

pytest.importorskip("torchao")
Command = Callable[..., Any]


class Small(L.LightningModule):
    """A convolution, BatchNorm and a classifier of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, split: str) -> None:
        logits = self(batch[0])
        self.log(f"{split}/accuracy", (logits.argmax(1) == batch[1]).float().mean())
        self.log(f"{split}/loss", nn.functional.cross_entropy(logits, batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


TINY = f"""
model: {__name__}.Small
data:
  class_path: Digits
  init_args: {{batch_size: 4}}
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 2
  limit_test_batches: 2
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {{save_dir: runs, name: tiny}}
  callbacks:
    - class_path: QuantizationAware
      init_args: {{measure: false}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{monitor: val/accuracy, mode: max, filename: best, save_last: true}}
"""
VERSION = Path("runs/tiny/version_0")
BEST = VERSION / "checkpoints/best.ckpt"
FOLDER = VERSION / "checkpoints/best.quantized"
QUICK = ("--min_run_time_s", "0.001", "--calibration_batches", "2", "--batch_sizes", "[1]", "--threads", "1")


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "compile_quantized", lambda module: module)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schemes": ("statik",)}, "--schemes has 'statik'; it must be of weight_only, static. Did you mean 'static'?"),
        ({"schemes": ("aware",)}, "--schemes aware is trained: fit with the callback QuantizationAware"),
        ({"schemes": ()}, "--schemes is empty"),
        ({"calibration_batches": 0}, "--calibration_batches=0 must be"),
        ({"batch_sizes": (1, 0)}, "--batch_sizes=0 must be"),
        ({"threads": -1}, "--threads=-1 must be"),
        ({"min_run_time_s": 0.0}, "--min_run_time_s is 0"),
    ],
    ids=["unknown", "aware", "none", "batches", "sizes", "threads", "time"],
)
def test_options_that_cannot_be_met_are_told_before_the_model_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        QuantizeRequest(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ("weight_only", "static")),
        ("static", ("static",)),
        ("static,weight_only static", ("static", "weight_only")),
        (["static", "static"], ("static",)),
        ([], ()),
    ],
    ids=["default", "one", "text", "twice", "empty"],
)
def test_schemes_are_a_list_or_text_with_commas(given: Any, expected: tuple[str, ...]) -> None:
    assert schemes_of(given) == expected


# ---- the command


def test_a_checkpoint_is_quantised_with_the_config_of_its_run(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    before = content(run)
    result = command("quantize", "--ckpt_path", BEST, "--split", "test", *QUICK)
    assert result.status == 0, result.err
    after = content(run)
    assert {path: after[path] for path in before} == before
    written = {path.relative_to(run / FOLDER).as_posix() for path in set(after) - set(before)}
    assert written == {"weight_only.pt2", "static.pt2", "aware.pt2", "quantization.json"}
    report = json.loads((FOLDER / "quantization.json").read_text())
    forms = {form["name"]: form for form in report["forms"]}
    assert list(forms) == ["float", "weight_only", "static", "aware"]
    assert (report["split"], report["samples"], report["network"]) == ("test", 8, "backbone")
    assert report["calibrated_on"] == "8 training samples, not augmented"
    for name in ("weight_only", "static", "aware"):
        assert forms[name]["size"]["bytes"] == (FOLDER / f"{name}.pt2").stat().st_size
        assert forms[name]["metrics"]["test/loss"] == pytest.approx(forms["float"]["metrics"]["test/loss"], abs=0.1)
        assert forms[name]["quantized"]
    assert len({form["metrics"]["test/loss"] for form in forms.values()}) == 4
    assert {(row["name"], row["compiled"]) for row in report["latency"]} == {
        (name, mode) for name in forms for mode in (False, True)
    }
    lines = result.out.splitlines()
    assert lines[0] == "  best.ckpt · backbone · input 3x32x32 · test split, 8 samples"
    assert lines[-1] == str(FOLDER)
    assert max(map(len, lines)) <= 80
    for word in ("accuracy", "loss", "agrees", "zipped", "n=1 eager", "n=1 compiled"):
        assert word in result.out


def test_the_figures_are_those_of_the_files(command: Command, run: Path) -> None:
    words = ("quantize", "--ckpt_path", BEST, "--schemes", "static", *QUICK)
    result = command(*words, "--json_file", "-", "--out", "new/folder")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert json.loads((run / "new/folder/quantization.json").read_text()) == report
    data = Digits(batch_size=4)
    data.prepare_data()
    data.setup("validate")
    batches = iter(data.val_dataloader())
    images, labels = (torch.cat(both) for both in zip(next(batches), next(batches), strict=True))
    answers = load_quantized("new/folder/static.pt2")(images)
    [form] = [form for form in report["forms"] if form["name"] == "static"]
    assert form["metrics"]["val/accuracy"] == pytest.approx((answers.argmax(1) == labels).float().mean().item())
    loss = nn.functional.cross_entropy(answers, labels).item()
    assert form["metrics"]["val/loss"] == pytest.approx(loss, abs=1e-4)


def test_a_float_run_has_no_aware_network(command: Command, run: Path) -> None:
    config = TINY.replace("    - class_path: QuantizationAware\n      init_args: {measure: false}\n", "")
    Path("plain.yaml").write_text(config)
    words = ("quantize", "--config", "plain.yaml", "--ckpt_path", "best", "--schemes", "weight_only", *QUICK)
    result = command(*words)
    assert result.status == 0, result.err
    assert {path.name for path in FOLDER.iterdir()} == {"weight_only.pt2", "quantization.json"}
    report = json.loads((FOLDER / "quantization.json").read_text())
    assert report["calibrated_on"] is None
    assert {path.name for path in Path("runs/tiny").iterdir()} == {"version_0"}


def test_a_rehearsal_writes_nothing(command: Command, run: Path) -> None:
    before = content(run)
    words = ("quantize", "--ckpt_path", BEST, "--schemes", "weight_only", "--json_file", "x.json", *QUICK)
    result = command(*words, "--trainer.fast_dev_run", "true")
    assert result.status == 0, result.err
    assert "weight_only" in result.out
    assert content(run) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "missing --ckpt_path"),
        (("--ckpt_path", "none.ckpt"), "there is no checkpoint 'none.ckpt'"),
        (("--ckpt_path", BEST, "--schemes", "[statik]"), "Did you mean 'static'?"),
        (("--ckpt_path", BEST, "--network", "backbon"), "--network is 'backbon'"),
        (("--ckpt_path", BEST, "--trainer.limit_val_batches", "0"), "--split val has no samples"),
    ],
    ids=["missing", "absent", "scheme", "network", "samples"],
)
def test_a_mistake_is_told_in_one_line(command: Command, run: Path, words: tuple[Any, ...], message: str) -> None:
    config = () if words and words[-1] != "none.ckpt" else ("--config", "tiny.yaml")
    command("quantize", *config, *words).assert_refused(message)
    assert not (run / FOLDER).exists()


# ---- modules of somebody else


class Foreign(L.LightningModule):
    """A module with loaders of its own, whose network gets a part of the batch, doubled."""

    def __init__(self, training: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        draw = torch.Generator().manual_seed(0)
        self.data = TensorDataset(torch.randn(24, 4, generator=draw), torch.randint(3, (24,), generator=draw))
        if not training:
            self.train_dataloader = super().train_dataloader  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(2 * x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("error", (self(batch[0]).argmax(1) != batch[1]).float().mean())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=8)


class Untrained(Foreign):
    """One without training data."""

    train_dataloader = L.LightningModule.train_dataloader


def trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    return L.Trainer(**{**quiet, **options})


def checkpoint(module: L.LightningModule, path: Path) -> str:
    run = trainer()
    run.strategy.connect(module)
    run.save_checkpoint(path)
    return str(path)


def test_a_module_of_somebody_else_is_calibrated_by_what_its_network_gets(tmp_path: Path) -> None:
    module = Foreign()
    file = checkpoint(module, tmp_path / "x.ckpt")
    before = module.net
    request = QuantizeRequest(batch_sizes=(1,), min_run_time_s=0.001, calibration_batches=2)
    report = quantize_checkpoint(trainer(), module, None, file, request, out=str(tmp_path / "out"))
    assert module.net is before
    assert report.calibrated_on == "the first 2 batches of the training loader, augmented where training is"
    assert [form.name for form in report.forms] == ["float", "weight_only", "static"]
    assert report.input_shape == (4,)
    inputs = module.data.tensors[0]
    network = load_quantized(tmp_path / "out/static.pt2")
    expected = (module.net(2 * inputs).argmax(1) == network(2 * inputs).argmax(1)).double().mean().item()
    assert report.forms[2].agreement == pytest.approx(expected)
    errors = (network(2 * inputs).argmax(1) != module.data.tensors[1]).float().mean().item()
    assert report.forms[2].metrics["error"] == pytest.approx(errors)


def test_the_page_names_the_layers_that_stay_in_float_and_what_is_slower(tmp_path: Path) -> None:
    from rich.console import Console

    module = Foreign()
    file = checkpoint(module, tmp_path / "x.ckpt")
    request = QuantizeRequest(("weight_only",), batch_sizes=(1,), min_run_time_s=0.001)
    report = quantize_checkpoint(trainer(), module, None, file, request, out=str(tmp_path / "out"))
    report.forms[1].skipped |= dict.fromkeys("abcdef", "no kernel")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(quantize_page(report))
    text = " ".join(console.export_text().split())
    assert "weight_only: in float stay a, b, c, d and 2 more (no kernel)" in text
    assert "error" in text
    assert "2 of 8" in text


def test_ranges_need_training_data(tmp_path: Path) -> None:
    module = Untrained()
    file = checkpoint(module, tmp_path / "x.ckpt")
    with pytest.raises(ConfigurationError, match="static learns ranges from training data, and there are none"):
        quantize_checkpoint(trainer(), module, None, file, QuantizeRequest(("static",)))


def test_several_processes_are_refused(tmp_path: Path) -> None:
    file = checkpoint(Foreign(), tmp_path / "x.ckpt")
    run = trainer(devices=2, strategy="ddp_fork")
    with pytest.raises(ConfigurationError, match=r"quantize works in one process, got 2; add --trainer.devices 1"):
        quantize_checkpoint(run, Foreign(), None, file, QuantizeRequest())


def test_calibration_samples_are_plain_training_samples_and_always_the_same() -> None:
    def drawn() -> tuple[list[Tensor], str, Digits]:
        data = Digits(batch_size=8, image_size=16, in_chans=1)
        batches, words = calibration_batches(trainer(), Passing(), data, "net", 3)
        return list(batches), words, data

    (ours, words, data), (theirs, _, _) = drawn(), drawn()
    assert (words, [len(batch) for batch in ours]) == ("24 training samples, not augmented", [8, 8, 8])
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    plain = data.plain_samples(torch.arange(data.train_size))
    rows = {tuple(image.flatten().tolist()) for image in plain}
    assert all(tuple(image.flatten().tolist()) in rows for image in torch.cat(ours))


def test_shuffled_training_batches_are_always_the_same_and_move_no_random_numbers() -> None:
    module = Foreign()

    def drawn(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        batches = list(calibration_batches(trainer(), module, None, "net", 2)[0])
        assert torch.equal(torch.get_rng_state(), before)
        return batches

    assert all(torch.equal(one, other) for one, other in zip(drawn(1), drawn(2), strict=True))


class Passing(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_module_that_does_not_reach_its_network_is_told() -> None:
    class Elsewhere(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            return x

    batches, _ = calibration_batches(trainer(), Elsewhere(), None, "net", 1)
    with pytest.raises(ConfigurationError, match=r"Elsewhere\.forward does not reach 'net'"):
        list(batches)
