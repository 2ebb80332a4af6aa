from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn

from lightning_efficient.datamodules import Digits
from lightning_efficient.errors import ConfigurationError
from lightning_efficient.modules import ImageClassifier, image_classifier
from lightning_efficient.nn import surgery
from lightning_efficient.nn.spatial_interpolation import SpatialInterpolation

IMAGES = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
INTERPOLATED: dict[str, Any] = {"class_path": "SpatialInterpolation", "init_args": {"upsampling": "nearest"}}


def cut(**options: Any) -> ImageClassifier:
    given = {"backbone": "cifar_resnet18", "num_classes": 10, "in_chans": 1, "surgery": [INTERPOLATED]}
    given["backbone_kwargs"] = {"channels": [4, 4, 8, 8]}
    return ImageClassifier(**given | options)


def digits() -> Digits:
    return Digits(in_chans=1, image_size=32, batch_size=64)


def trainer(folder: Path, **options: Any) -> Trainer:
    given: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1, "accelerator": "cpu"}
    given |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**given | {"default_root_dir": folder} | options)


def interpolated(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) is SpatialInterpolation]


def predicted(module: ImageClassifier) -> Tensor:
    with torch.no_grad():
        return module.eval()(IMAGES)


def test_a_policy_changes_the_backbone_before_the_optimiser_sees_it(tmp_path: Path) -> None:
    module = cut()
    assert interpolated(module.backbone) == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    before = {name: value.clone() for name, value in module.backbone.named_parameters() if "cheap" in name}
    trainer(tmp_path).fit(module, datamodule=digits())
    assert before
    assert all(not torch.equal(before[name], dict(module.backbone.named_parameters())[name]) for name in before)


def test_a_name_alone_is_a_policy() -> None:
    assert interpolated(cut(surgery=["SpatialInterpolation"]).backbone) == interpolated(cut().backbone)


def test_policies_follow_one_another() -> None:
    policies = [{"class_path": "Condense", "init_args": {"keep": 1}}, "SpatialInterpolation"]
    assert interpolated(cut(surgery=policies).backbone) == ["layer1.0"]


def test_a_checkpoint_rebuilds_the_network(tmp_path: Path) -> None:
    module, run = cut(), trainer(tmp_path)
    run.fit(module, datamodule=digits())
    run.save_checkpoint(tmp_path / "net.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "net.ckpt")
    assert torch.equal(predicted(loaded), predicted(module))
    kept = torch.load(tmp_path / "net.ckpt", weights_only=True)["surgery"]
    assert json.loads(json.dumps(kept)) == surgery.recipe_of(module.backbone)


def test_a_checkpoint_rebuilds_what_was_changed_by_hand(tmp_path: Path) -> None:
    module, run = cut(surgery=None), trainer(tmp_path)
    surgery.interpolate(module.backbone, design="grid")
    run.fit(module, datamodule=digits())
    run.save_checkpoint(tmp_path / "net.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "net.ckpt")
    assert interpolated(loaded.backbone)
    assert torch.equal(predicted(loaded), predicted(module))


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    whole = cut()
    trainer(tmp_path, max_epochs=2).fit(whole, datamodule=digits())
    seed_everything(0, verbose=False)
    first = trainer(tmp_path)
    first.fit(cut(), datamodule=digits())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = cut()
    trainer(tmp_path, max_epochs=2).fit(resumed, datamodule=digits(), ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (None, "5 x SpatialInterpolation, and there none;"),
        ([{"class_path": "SpatialInterpolation", "init_args": {"factor": 3}}], "with factor=2, and there 3;"),
    ],
)
def test_another_surgery_than_the_checkpoints_is_told(tmp_path: Path, changed: Any, message: str) -> None:
    run = trainer(tmp_path)
    run.fit(cut(surgery=changed), datamodule=digits())
    run.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match=f"model.surgery makes another network.*{message}"):
        trainer(tmp_path).validate(cut(), datamodule=digits(), ckpt_path=tmp_path / "other.ckpt", verbose=False)


def test_weights_of_the_network_before_surgery_are_kept(tmp_path: Path) -> None:
    original = cut(surgery=None)
    torch.save({"state_dict": original.state_dict()}, tmp_path / "base.ckpt")
    module = cut(backbone_checkpoint=str(tmp_path / "base.ckpt"))
    trainer(tmp_path, limit_train_batches=0).fit(module, datamodule=digits())
    theirs, ours = original.backbone.state_dict(), module.backbone.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    gammas = [value for name, value in ours.items() if name.endswith("cheap_norm.weight")]
    assert len(gammas) == 5
    assert not any(gamma.any() for gamma in gammas)


def test_weights_of_an_uncut_network_load_too(tmp_path: Path) -> None:
    original = cut(surgery=None)
    torch.save(original.state_dict(), tmp_path / "base.ckpt")
    module = cut(surgery=None, backbone_checkpoint=str(tmp_path / "base.ckpt"))
    trainer(tmp_path, limit_train_batches=0).fit(module, datamodule=digits())
    assert torch.equal(predicted(module), predicted(original))


def test_a_loaded_network_exports(tmp_path: Path) -> None:
    module = cut()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "net.ckpt")
    exported = torch.export.export(module.backbone.eval(), (IMAGES,))
    torch.testing.assert_close(exported.module()(IMAGES), predicted(module))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surgery": ["SpatialInterpolaton"]}, r"model.surgery\[0\].*Did you mean 'SpatialInterpolation'\?"),
        (
            {"surgery": [{"class_path": "SpatialInterpolation", "init_args": {"facter": 2}}]},
            r"model.surgery\[0\].*no option 'facter'.*Did you mean 'factor'\?",
        ),
        ({"surgery": [{"init_args": {}}]}, r"model.surgery\[0\].*class_path"),
        ({"surgery": [{"class_path": "Condense"}, {"class_path": "Condense"}]}, r"model.surgery\[1\]"),
        (
            {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": {"img_size": 32}},
            r"model.surgery\[0\].*found no block",
        ),
        ({"surgery": [INTERPOLATED, INTERPOLATED]}, r"model.surgery\[1\]"),
    ],
)
def test_mistakes_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        cut(**options)
    assert "\n" not in str(raised.value)


def test_other_data_modules_work_too(tmp_path: Path) -> None:
    class Ones(LightningDataModule):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader([(torch.ones(1, 32, 32), 1)] * 8, batch_size=4)

    module = cut(surgery=[{"class_path": "GlobalLayer"}])
    trainer(tmp_path).fit(module, datamodule=Ones())
    assert torch.isfinite(predicted(module)).all()


def test_a_recipe_of_a_checkpoint_calls_no_code_of_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(cut(surgery=None), datamodule=digits())
    run.save_checkpoint(tmp_path / "net.ckpt")
    kept = torch.load(tmp_path / "net.ckpt", weights_only=True)
    steps: list[Any] = [{"op": "replace", "name": "layer1.0", "make": "os:mkdir", "options": {}}]
    for hostile in (steps, [{**steps[0], "make": "GlobalLayer", "options": {"act": {"import": "os:getcwd"}}}]):
        kept["surgery"] = {"version": 1, "steps": hostile}
        torch.save(kept, tmp_path / "hostile.ckpt")
        with pytest.raises(ConfigurationError, match=r"recipe.steps\[0\] names 'os:.*', which is code of its own"):
            ImageClassifier.load_from_checkpoint(tmp_path / "hostile.ckpt")


def test_a_checkpoint_that_began_with_weights_loads_without_them(tmp_path: Path) -> None:
    torch.save(cut(surgery=None).state_dict(), tmp_path / "base.ckpt")
    module, run = cut(backbone_checkpoint=str(tmp_path / "base.ckpt")), trainer(tmp_path)
    run.fit(module, datamodule=digits())
    run.save_checkpoint(tmp_path / "net.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "net.ckpt", backbone_checkpoint=None)
    assert torch.equal(predicted(loaded), predicted(module))


def test_weights_of_before_surgery_fit_a_network_that_was_changed_by_hand(tmp_path: Path) -> None:
    original = cut(surgery=None)
    torch.save(original.state_dict(), tmp_path / "base.ckpt")
    module = cut(surgery=None, backbone_checkpoint=str(tmp_path / "base.ckpt"))
    surgery.interpolate(module.backbone)
    trainer(tmp_path, limit_train_batches=0).fit(module, datamodule=digits())
    theirs, ours = original.backbone.state_dict(), module.backbone.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_surgery_that_no_checkpoint_can_hold_is_told_before_training(tmp_path: Path) -> None:
    module = cut(surgery=None)
    surgery.replace(module.backbone, "layer1.0", lambda name, block: nn.Identity())
    with pytest.raises(ConfigurationError, match=r"no recipe: make=.*layer1\.0"):
        trainer(tmp_path).fit(module, datamodule=digits())


def test_an_average_of_weights_cannot_follow_a_change_by_hand(tmp_path: Path) -> None:
    module, run = cut(surgery=None, ema_decay=0.9), trainer(tmp_path)
    surgery.interpolate(module.backbone)
    run.fit(module, datamodule=digits())
    run.save_checkpoint(tmp_path / "net.ckpt")
    again = cut(surgery=None, ema_decay=0.9)
    with pytest.raises(ConfigurationError, match=r"changed by hand, which model\.ema_decay cannot follow"):
        trainer(tmp_path, max_epochs=2).fit(again, datamodule=digits(), ckpt_path=tmp_path / "net.ckpt")


def test_the_blocks_that_went_are_let_go() -> None:
    seen: list[weakref.ref[nn.Module]] = []
    create = image_classifier.create_backbone

    def watched(*arguments: Any) -> nn.Module:
        network = create(*arguments)
        seen.extend(weakref.ref(network.get_submodule(name)) for name in ("layer1.0", "layer1.1"))
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_classifier, "create_backbone", watched)
        module = cut(surgery=["Condense"])
    gc.collect()
    assert [each() is None for each in seen] == [False, True]
    assert len(module.backbone.layer1) == 1
