from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_efficient.datamodules import Digits
from lightning_efficient.datamodules._labelled_images import LabelledImages
from lightning_efficient.errors import ConfigurationError


class Prepared(BoringModel):
    data_config = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "input_size": (3, 9, 9)}


class NoSizeOfItsOwn(Digits):
    def native_size(self) -> None:
        return None


class Nothing(Digits):
    def read(self, split):
        return LabelledImages.all_of([], [])


class NoValidation(Digits):
    def read(self, split):
        return None if split == "val" else super().read(split)


def small(**options) -> Digits:
    return Digits(**{"image_size": 8, "in_chans": 1, **options})


def attached(data: Digits, model: L.LightningModule) -> Digits:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    data.trainer = trainer
    return data


def epoch_of_images(seed: int, **options) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    data = small(**options)
    data.setup("fit")
    return [images for images, _ in data.train_dataloader()]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_global_seed_decides_order_and_augmentation():
    first = epoch_of_images(seed=1)
    assert all_equal(first, epoch_of_images(seed=1))
    assert not all_equal(first, epoch_of_images(seed=2))


def test_workers_do_not_change_the_images():
    assert all_equal(epoch_of_images(seed=1, num_workers=2), epoch_of_images(seed=1))


def test_loading_data_leaves_the_global_random_state_alone():
    data = small()
    data.setup()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_state_in_mid_epoch_gives_the_same_remaining_batches(num_workers):
    data = small(batch_size=200, num_workers=num_workers)
    data.setup("fit")
    torch.manual_seed(5)
    loader = data.train_dataloader()
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    state = loader.state_dict()
    remaining = [images for images, _ in batches]
    torch.manual_seed(6)
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    assert len(remaining) == 3
    assert all_equal([images for images, _ in resumed], remaining)


def test_a_restored_module_goes_on_with_the_seed_of_the_checkpoint():
    torch.manual_seed(5)
    data = small()
    data.setup("fit")
    expected = next(iter(data.train_dataloader()))[0]
    torch.manual_seed(6)
    restored = small()
    restored.load_state_dict(data.state_dict())
    restored.setup("fit")
    assert torch.equal(next(iter(restored.train_dataloader()))[0], expected)


def test_training_drops_the_incomplete_batch_and_evaluation_keeps_it():
    data = small(batch_size=200, eval_batch_size=128)
    data.setup()
    assert [len(labels) for _, labels in data.train_dataloader()] == [200] * 5
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert [len(labels) for _, labels in loader] == [128, 128, 44]


def test_a_set_smaller_than_a_batch_is_one_batch():
    data = small(batch_size=2000)
    data.setup("fit")
    assert [len(labels) for _, labels in data.train_dataloader()] == [1197]


def test_evaluation_is_in_order_and_repeatable():
    data = small()
    data.setup("test")
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert labels.tolist() == data.datasets["test"].images.chosen_labels.tolist()


def test_normalisation_follows_the_model_unless_options_say_otherwise():
    black = small(in_chans=3, mean=[0.0], std=[1.0])
    black.setup("test")
    raw = black.datasets["test"][0][0]

    by_model = attached(small(in_chans=3), Prepared())
    by_model.setup("test")
    mean = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(by_model.datasets["test"][0][0], (raw - mean) / 0.5)

    by_option = attached(small(in_chans=3, mean=[0.0]), Prepared())
    by_option.setup("test")
    torch.testing.assert_close(by_option.datasets["test"][0][0], raw / 0.5)


def test_size_is_the_option_or_what_suits_the_data_or_what_the_model_wants():
    assert attached(Digits(image_size=8), Prepared()).input_shape == (3, 8, 8)
    assert attached(Digits(), Prepared()).input_shape == (3, 32, 32)
    assert attached(NoSizeOfItsOwn(in_chans=1), Prepared()).input_shape == (1, 9, 9)
    assert NoSizeOfItsOwn().input_shape == (3, 224, 224)


def test_training_without_augmentation_sees_the_evaluation_images():
    data = small(augment=False)
    data.setup("fit")
    train = data.datasets["train"]
    assert train.transform is data.datasets["val"].transform
    assert torch.equal(train[0][0], train[len(train)][0])


def test_augment_changes_the_policy_by_name():
    data = small(augment={"re_prob": 1.0, "re_mode": "const"}, mean=[0.0], std=[1.0])
    data.setup("fit")
    assert type(data.datasets["train"].transform.transforms[-1]).__name__ == "RandomErasing"


def test_validation_is_cut_from_training_by_its_own_seed():
    def parts(**options):
        data = NoValidation(image_size=8, **options)
        data.setup()
        return {split: set(dataset.images.positions.tolist()) for split, dataset in data.datasets.items()}

    first = parts(val_fraction=0.25)
    assert (len(first["train"]), len(first["val"]), len(first["test"])) == (898, 299, 300)
    assert len(first["train"] | first["val"] | first["test"]) == 1497
    torch.manual_seed(99)
    assert parts(val_fraction=0.25) == first
    assert parts(val_fraction=0.25, split_seed=1)["val"] != first["val"]


def test_train_samples_shrink_training_only():
    data = small(train_samples=100)
    data.setup("fit")
    labels = data.datasets["train"].images.chosen_labels
    assert len(labels) == 100
    assert sorted(set(labels.tolist())) == list(range(10))
    assert len(data.datasets["val"]) == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"train_samples": -1}, "train_samples is -1"),
        ({"num_workers": -2}, "num_workers is -2"),
        ({"in_chans": 4}, r"in_chans is 4; images have 1 \(grey\) or 3"),
        ({"val_fraction": 0.0}, r"val_fraction is 0.0; it must lie in \(0, 1\)"),
        ({"crop_pct": 1.5}, r"crop_pct is 1.5"),
        ({"mean": [0.1, 0.2], "in_chans": 3}, "mean has 2 values for 3 channels"),
        ({"augment": {"flip": 1}}, "augment has no option 'flip'"),
        ({"augment": {"scale": 3}}, r"create_transform refuses .*'scale': 3"),
        ({"interpolation": "cubical"}, "create_transform refuses .*cubical"),
    ],
)
def test_a_useless_option_is_refused_in_one_line(options, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        small(**options)
    assert "\n" not in str(caught.value)


def test_empty_parts_are_refused():
    with pytest.raises(ConfigurationError, match="the training part of the data holds no image"):
        Nothing().setup("fit")
    with pytest.raises(ConfigurationError, match=r"val_fraction 0\.0001 of 1197 training images holds out 0"):
        NoValidation(val_fraction=0.0001).setup("fit")


def test_a_loader_before_setup_says_what_to_call():
    with pytest.raises(ConfigurationError, match=r"the val images are not loaded; call prepare_data\(\) and setup\(\)"):
        small().val_dataloader()
