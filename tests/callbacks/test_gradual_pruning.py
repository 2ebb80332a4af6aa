"""Single weights that are removed in training, and what a Trainer may do to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_efficient.callbacks._pruning_plan import PruningPlan
from lightning_efficient.callbacks._pruning_units import pack, unpack
from lightning_efficient.callbacks.gradual_pruning import GradualPruning
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.functional.pruning import saliency

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
STEPS = 12
"""Three epochs of four steps."""


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.5)


class Module(L.LightningModule):
    """A network with a convolution, normalisation and two linear layers; everything is known after each step."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer] = sgd) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv1d(1, 5, 3, padding=1), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(40, 6), nn.ReLU()
        )
        self.net.append(nn.Linear(6, 3))
        self.optimizer = optimizer
        self.poison: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        return loss * (float("inf") if self.trainer.global_step in self.poison else 1.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


class Watch(Callback):
    """Call a function of the module at a hook."""

    def __init__(self, hook: str, look: Callable[[L.Trainer, Module], None]) -> None:
        setattr(self, hook, lambda trainer, module, *args: look(trainer, module))


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(32, 1, 8, generator=generator), torch.randint(3, (32,), generator=generator))
    return DataLoader(data, batch_size=8)


def fit(*callbacks: Callback, module: Module | None = None, ckpt_path: Path | None = None, **options: Any) -> Module:
    module = Module() if module is None else module
    saves = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 3, "accelerator": "cpu", "enable_checkpointing": saves}
    trainer = L.Trainer(callbacks=list(callbacks), **{**quiet, **defaults, **options})
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return module


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pruning(**options: Any) -> GradualPruning:
    return GradualPruning(**{"sparsity": 0.75, "rounds": 3, "measure": False, **options})


def zeros(module: nn.Module) -> dict[str, int]:
    return {name: int((value == 0).sum()) for name, value in module.named_parameters() if value.ndim > 1}


WEIGHTS = 5 * 3 + 40 * 6 + 6 * 3


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_what_is_removed_stays_at_zero_whatever_the_optimiser_does(optimizer: Any) -> None:
    callback = pruning(end=0.5)
    module = fit(callback, module=Module(optimizer))
    assert sum(zeros(module).values()) == round(0.75 * WEIGHTS)
    for name, parameter in module.named_parameters():
        if name in callback.masks:
            assert torch.equal(parameter != 0, callback.masks[name])
    assert sorted(callback.masks) == ["net.0.weight", "net.4.weight", "net.6.weight"]


def test_biases_and_normalisation_are_left_alone() -> None:
    module = fit(pruning())
    assert all(bool(value.all()) for name, value in module.named_parameters() if value.ndim == 1)
    assert list(module.state_dict()) == list(Module().state_dict())


@pytest.mark.parametrize(
    ("options", "steps", "sparsities"),
    [
        ({"schedule": "cubic"}, [3, 6, 9], [1 - 8 / 27, 1 - 1 / 27, 1.0]),
        ({"schedule": "cubic", "begin": 0.5, "end": 1.0}, [8, 10, 12], [1 - 8 / 27, 1 - 1 / 27, 1.0]),
        ({"schedule": "one_shot", "begin": 0.25}, [3], [1.0]),
        ({"schedule": "one_shot"}, [1], [1.0]),
    ],
    ids=["cubic", "later", "one_shot", "at_once"],
)
def test_rounds_come_when_the_schedule_says(options: Any, steps: list[int], sparsities: list[float]) -> None:
    callback = pruning(**options)
    fit(callback)
    assert [entry["step"] for entry in callback.state_dict()["history"]] == steps
    found = [entry["sparsity"] for entry in callback.state_dict()["history"]]
    assert found == pytest.approx([0.75 * each for each in sparsities], abs=1 / WEIGHTS)


def test_each_round_of_the_iterative_schedule_removes_the_same_share_of_what_is_left() -> None:
    callback = pruning(schedule="iterative", begin=0.25, end=0.75, sparsity=1 - 0.5**3)
    fit(callback)
    history = callback.state_dict()["history"]
    assert [entry["step"] for entry in history] == [3, 6, 9]
    assert [entry["sparsity"] for entry in history] == pytest.approx([0.5, 0.75, 0.875], abs=1 / WEIGHTS)
    total = sum(each.numel() for each in Module().parameters())
    assert history[-1]["parameters"] == total - round(0.875 * WEIGHTS)


def test_accumulated_gradients_make_one_step() -> None:
    callback = pruning()
    fit(callback, accumulate_grad_batches=2)
    assert [entry["step"] for entry in callback.state_dict()["history"]] == [2, 3, 4]


@given(st.integers(1, 400), st.integers(1, 12), st.sampled_from(["cubic", "iterative", "one_shot"]), st.data())
def test_rounds_lie_within_the_training_in_order(total: int, rounds: int, schedule: Any, data: Any) -> None:
    begin = data.draw(st.floats(0, 1))
    plan = PruningPlan(schedule, begin, data.draw(st.floats(begin, 1)), rounds)
    steps = plan.steps(total)
    assert steps == sorted(steps)
    assert len(steps) == plan.length
    assert 1 <= steps[0] <= steps[-1] <= total
    shares = [plan.share(number, 0.9) for number in range(1, plan.length + 1)]
    assert shares == sorted(shares)
    assert shares[-1] == 0.9


def test_validation_and_checkpoints_see_no_removed_weight(tmp_path: Path) -> None:
    callback, seen = pruning(end=0.3, rounds=1, schedule="one_shot"), []
    watch = Watch("on_validation_batch_start", lambda trainer, module: seen.append(sum(zeros(module).values())))
    fit(callback, watch, ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), num_sanity_val_steps=0)
    assert set(seen) == {round(0.75 * WEIGHTS)}
    for file in tmp_path.glob("*.ckpt"):
        weights = torch.load(file, weights_only=True)["state_dict"]
        assert all(not weights[name][~mask].any() for name, mask in callback.masks.items())


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_averaged_weights_are_as_sparse(first: bool, tmp_path: Path) -> None:
    callback, average, seen = pruning(), EMAWeightAveraging(decay=0.9), []
    watch = Watch("on_validation_batch_start", lambda trainer, module: seen.append(sum(zeros(module).values())))
    pair = [callback, average] if first else [average, callback]
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module = fit(*pair, watch, save, num_sanity_val_steps=0)
    removed = [round(WEIGHTS * entry["sparsity"]) for entry in callback.state_dict()["history"]]
    assert list(dict.fromkeys(seen)) == removed
    assert sum(zeros(module).values()) == removed[-1]
    saved = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert sum(int((saved[key][name] == 0).sum()) for name in callback.masks) == removed[-1]


def test_gradients_of_what_is_removed_are_not_clipped() -> None:
    callback, norms = pruning(schedule="one_shot", sparsity=0.9), []

    def look(trainer: L.Trainer, module: Module) -> None:
        for name, mask in callback.masks.items():
            gradient = module.get_parameter(name).grad
            norms.append(float(gradient[~mask].abs().sum()))
            assert gradient[mask].any()

    fit(callback, Watch("on_before_optimizer_step", look), gradient_clip_val=0.1)
    assert norms
    assert not any(norms)


def test_a_regrown_weight_starts_at_zero_with_no_past_where_the_gradient_is_largest() -> None:
    callback, gradients, found = pruning(schedule="one_shot", regrowth=0.5, rounds=2, end=0.5), {}, []

    def before(trainer: L.Trainer, module: Module) -> None:
        gradients.update({name: value.grad.clone() for name, value in module.named_parameters() if value.ndim > 1})

    def after(trainer: L.Trainer, module: Module) -> None:
        if trainer.global_step == 6:
            found.append({name: mask.clone() for name, mask in callback.masks.items()})
            for name, mask in callback.masks.items():
                new = mask & ~old[name]
                parameter = module.get_parameter(name)
                kept, removed = int(old[name].sum()), int((~old[name]).sum())
                assert int(new.sum()) == min(round(0.5 * kept), removed)
                assert not parameter[new].any()
                assert not trainer.optimizers[0].state[parameter]["momentum_buffer"][new].any()
                left = ~mask & ~old[name]
                assert not left.any() or gradients[name][new].abs().min() >= gradients[name][left].abs().max()
        elif trainer.global_step == 5:
            old.update({name: mask.clone() for name, mask in callback.masks.items()})

    old: dict[str, Tensor] = {}
    # looks at the gradients before the callback takes out those of what is removed
    module = fit(Watch("on_before_optimizer_step", before), callback, Watch("on_train_batch_end", after))
    assert len(found) == 1
    assert sum(int((~mask).sum()) for mask in callback.masks.values()) == round(0.75 * WEIGHTS)
    grown = found[0]["net.4.weight"] & ~old["net.4.weight"]
    assert module.net[4].weight[grown].any()


def test_first_order_saliency_is_summed_over_the_steps_since_the_last_round() -> None:
    callback = pruning(saliency="first_order", schedule="one_shot", begin=0.25, sparsity=0.6)
    total: dict[str, Tensor] = {}

    def before(trainer: L.Trainer, module: Module) -> None:
        if trainer.global_step < 3:
            for name, value in module.named_parameters():
                if value.ndim > 1 and value.grad.isfinite().all():
                    total[name] = total.get(name, 0) + saliency(value, value.grad, "first_order")

    module = Module()
    fit(Watch("on_before_optimizer_step", before), callback, module=module)
    flat = torch.cat([value.flatten() for value in total.values()])
    kept = torch.cat([callback.masks[name].flatten() for name in total])
    assert flat[kept].min() >= flat[~kept].max()
    assert flat.min() < flat.max()


def scaler() -> MixedPrecision:
    # Trainer(precision="16-mixed") turns into bf16 on a CPU; the plugin does not
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))


@pytest.mark.parametrize("kind", ["magnitude", "first_order"])
def test_a_round_on_a_step_that_the_scaler_leaves_out_comes_with_the_next(kind: Any) -> None:
    module, callback = Module(), pruning(schedule="one_shot", begin=0.25, saliency=kind)
    module.poison = {1, 2}
    fit(callback, module=module, plugins=[scaler()])
    assert [entry["step"] for entry in callback.state_dict()["history"]] == [4]
    assert sum(zeros(module).values()) == round(0.75 * WEIGHTS)
    assert all(value.isfinite().all() for value in module.parameters())


def test_random_masks_hang_on_the_seed_alone() -> None:
    one, same, other = (pruning(saliency="random", seed=seed) for seed in (3, 3, 4))
    fit(one)
    fit(same, module=Module(adamw))
    fit(other)
    assert all(torch.equal(mask, same.masks[name]) for name, mask in one.masks.items())
    assert not all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())


def test_layers_may_have_a_sparsity_of_their_own() -> None:
    module = fit(pruning(sparsity=0.5, layers={"^0$": 0.0, "6": 0.5, "": 0.8}, scope="layer"))
    assert zeros(module) == {"net.0.weight": 0, "net.4.weight": round(0.8 * 240), "net.6.weight": 9}


def test_a_compiled_network_is_pruned() -> None:
    module = Module()
    module.net.compile(backend="eager")
    fit(pruning(), module=module)
    assert sum(zeros(module).values()) == round(0.75 * WEIGHTS)


@pytest.mark.parametrize("options", [{}, {"saliency": "first_order", "regrowth": 0.3}, {"saliency": "random"}], ids=str)
@pytest.mark.parametrize("epoch", [0, 1], ids=["between_rounds", "later"])
def test_a_resumed_run_ends_with_the_same_masks_and_weights(options: Any, epoch: int, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    callback, again = pruning(**options), pruning(**options)
    whole = fit(callback, save, module=Module(adamw))
    torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
    resumed = fit(again, module=Module(adamw), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert all(torch.equal(mask, again.masks[name]) for name, mask in callback.masks.items())
    assert again.state_dict()["history"] == callback.state_dict()["history"]


def test_a_run_resumed_without_the_callback_trains_on_densely_and_one_without_state_by_its_schedule(
    tmp_path: Path,
) -> None:
    fit(pruning(), ModelCheckpoint(tmp_path, filename="pruned-{epoch}", save_top_k=-1))
    module = fit(ckpt_path=tmp_path / "pruned-epoch=1.ckpt")
    assert sum(zeros(module).values()) == 0
    fit(ModelCheckpoint(tmp_path, filename="dense-{epoch}", save_top_k=-1))
    callback = pruning()
    fit(callback, ckpt_path=tmp_path / "dense-epoch=1.ckpt")
    assert [entry["step"] for entry in callback.state_dict()["history"]] == [9]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state["shapes"].update({"4": [6, 41]}), r"do not fit the network: '4' is of shape \(6, 41\)"),
        (lambda state: state["shapes"].pop("6"), "'6' is not pruned there"),
        (lambda state: state.update(structure="channels"), "checkpoint's masks are for 'channels'"),
    ],
    ids=["shape", "layer", "structure"],
)
def test_masks_of_another_network_are_refused(change: Any, match: str, tmp_path: Path) -> None:
    fit(pruning(), ModelCheckpoint(tmp_path, filename="{epoch}"), max_epochs=1)
    file = tmp_path / "epoch=0.ckpt"
    content = torch.load(file, weights_only=True)
    change(content["callbacks"]["GradualPruning[pruning]"])
    torch.save(content, file)
    with pytest.raises(ConfigurationError, match=match):
        fit(pruning(), ckpt_path=file)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 is outside \[0, 1\)"),
        ({"sparsity": float("nan")}, "outside"),
        ({"layers": {"0": -0.1}}, r"layers\['0'\]=-0.1"),
        ({"structure": "blocks"}, "structure='blocks' is not one of"),
        ({"saliency": "magnitud"}, "Did you mean 'magnitude'"),
        ({"schedule": "cubical"}, "Did you mean 'cubic'"),
        ({"scope": "all"}, "scope='all'"),
        ({"begin": 0.8}, "begin=0.8 is after end=0.75"),
        ({"end": 1.5}, "end=1.5"),
        ({"rounds": 0}, "rounds=0"),
        ({"regrowth": 2.0}, "regrowth=2.0"),
        ({"regrowth": 0.1, "structure": "channels"}, "regrowth=0.1 brings single weights back"),
        ({"max_layer_sparsity": 0.0}, "max_layer_sparsity=0.0"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"measure": "no"}, "measure='no'"),
    ],
    ids=str,
)
def test_an_option_outside_its_range_is_refused(options: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=f"GradualPruning: .*{match}|GradualPruning: {match}"):
        GradualPruning(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sparsity": 0.97}, "sparsity=0.97 cannot be reached, the largest possible is 0.9"),
        ({"layers": {"^6$": 0.99}}, "layer '6' is above max_layer_sparsity=0.95"),
        ({"layers": {"conv": 0.0}}, "'conv' fits none of the 3 layers"),
        ({"layers": {"(": 0.0}}, "is no regular expression"),
        ({"layers": {"": 0.0}}, "leaves nothing to prune"),
        ({"network": "nett"}, "Did you mean 'net'"),
        ({"network": "net.1"}, "BatchNorm1d has no layer that can be pruned"),
        ({"structure": "channels"}, "give input_shape="),
    ],
    ids=str,
)
def test_what_cannot_be_pruned_so_is_refused_before_training(options: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        fit(pruning(**options))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("GradualPruning: ")


def test_a_run_without_an_end_and_manual_optimisation_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs the length of the run"):
        fit(pruning(), max_epochs=-1)
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(ConfigurationError, match="automatic optimisation"):
        fit(pruning(), module=module)


def test_two_prune_different_parts_and_not_the_same(tmp_path: Path) -> None:
    one, other = pruning(network="net.0"), pruning(network="net.4", name="second", sparsity=0.5)
    assert zeros(fit(one, other)) == {"net.0.weight": 11, "net.4.weight": 120, "net.6.weight": 0}
    with pytest.raises(ConfigurationError, match=r"two GradualPruning callbacks .* prune 'net.0.weight'"):
        fit(pruning(), pruning(network="net.0", name="second"))


def test_layers_that_are_left_alone_are_named_with_the_reason(told: list[str]) -> None:
    module = Module()
    module.net[4].requires_grad_(False)
    module.net[6] = nn.utils.parametrizations.weight_norm(module.net[6])
    module.net.scale = nn.Parameter(torch.ones(2, 2))
    fit(pruning(sparsity=0.5), module=module)
    [line] = [each for each in told if "leaves alone" in each]
    assert "scale (not the weight of a convolution or linear layer)" in line
    assert "4 (it is frozen)" in line
    assert "6 (its weight is computed from other parameters)" in line
    assert "parametrizations" not in line


def test_a_run_that_stops_early_says_how_far_it_has_come(told: list[str]) -> None:
    fit(pruning(), EarlyStopping("val_loss", patience=1, min_delta=100.0, check_on_train_epoch_end=False))
    [line] = [each for each in told if "training ended" in each]
    assert "at step 8 of 12, after 2 of 3 rounds: the sparsity is 0.722, not 0.75" in line


def test_the_run_folder_tells_what_is_left(tmp_path: Path) -> None:
    callback = pruning(measure=True, input_shape=[1, 8])
    fit(callback, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)
    assert (tmp_path / "pruning.png").stat().st_size > 1000
    content = json.loads((tmp_path / "pruning.json").read_text())
    assert content["sparsity"] == pytest.approx(0.75, abs=1 / WEIGHTS)
    assert {layer["layer"]: layer["kept"] for layer in content["layers"]} == {
        name.split(".")[1]: int(mask.sum()) for name, mask in callback.masks.items()
    }
    assert content["bytes"]["compressed"] < content["bytes"]["on_disk"]
    assert content["macs"]["left"] == content["macs"]["dense"] == 8 * 15 + 240 + 18
    logged = (tmp_path / "metrics.csv").read_text()
    assert all(
        f"pruning/{key}" in logged for key in ("sparsity", "parameters", "latency_ratio_b1", "latency_ratio_b32")
    )
    assert callback.pruned is None
    assert not (tmp_path / "pruned.pt").exists()


def test_a_module_that_does_not_tell_its_input_is_not_timed(tmp_path: Path) -> None:
    fit(pruning(measure=True), default_root_dir=tmp_path)
    assert "latency_ms" not in json.loads((tmp_path / "pruning.json").read_text())
    with pytest.warns(UserWarning, match="does not run on an input of shape"):
        fit(pruning(measure=True, input_shape=[7, 7]), default_root_dir=tmp_path)


@given(st.lists(st.booleans(), max_size=40))
def test_masks_survive_being_packed(bits: list[bool]) -> None:
    mask = torch.tensor(bits, dtype=torch.bool)
    assert len(pack(mask)) == -(-len(bits) // 8)
    assert torch.equal(unpack(pack(mask), mask.shape), mask)
