"""Training batches with keys: the same samples as without, and keys that name the very input."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_efficient.datamodules import Digits, ImageFolderImages, TorchvisionImages
from lightning_efficient.datamodules._labelled_images import LabelledImages
from lightning_efficient.datamodules._sample_keys import KeyedDataModule, sha256_of
from lightning_efficient.datamodules.gaussian_modes import GaussianModes
from lightning_efficient.errors import ConfigurationError

SIZE = 1197


def digits(keys: bool = True, **options) -> Digits:
    data = Digits(**{"image_size": 8, "in_chans": 1, "batch_size": 200, **options})
    data.sample_keys = keys
    return data


def gaussians(keys: bool = True, **options) -> GaussianModes:
    data = GaussianModes(**{"train_samples": 100, "batch_size": 20, **options})
    data.sample_keys = keys
    return data


MODULES = {
    "augmented": digits,
    "plain": lambda keys=True, **options: digits(keys, augment=False, **options),
    "gaussians": gaussians,
}


def epochs(data: KeyedDataModule, count: int = 2) -> list[list[Tensor]]:
    torch.manual_seed(3)
    data.setup("fit")
    loader = data.train_dataloader()
    return [list(batch) for _ in range(count) for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", MODULES)
def test_keys_come_after_the_batches_that_are_drawn_without(kind: str, num_workers: int) -> None:
    without = epochs(MODULES[kind](keys=False))
    with_keys = epochs(MODULES[kind](num_workers=num_workers))
    assert len(with_keys) == len(without) == 10
    for (inputs, labels, keys), (same_inputs, same_labels) in zip(with_keys, without, strict=True):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(labels, same_labels)
        assert (keys.dtype, keys.shape) == (torch.int64, labels.shape)


@pytest.mark.parametrize("kind", MODULES)
def test_a_key_names_the_very_input_wherever_it_is_drawn(kind: str) -> None:
    data = MODULES[kind]()
    batches = epochs(data)
    dataset = data.datasets["train"]
    for inputs, labels, keys in batches:
        for each, label, key in zip(inputs[:20], labels[:20], keys[:20].tolist(), strict=True):
            again, same_label = dataset[key]
            assert torch.equal(again, each)
            assert same_label == label


@pytest.mark.parametrize("kind", ["plain", "gaussians"])
def test_without_augmentation_a_sample_has_its_index_as_key_in_each_epoch(kind: str) -> None:
    data = MODULES[kind]()
    batches = epochs(data)
    first, second = (torch.cat([keys for *_, keys in half]) for half in (batches[:5], batches[5:]))
    assert not data.augments_training
    assert not torch.equal(first, second)
    for keys in (first, second):
        assert len(keys.unique()) == len(keys)
        assert 0 <= keys.min() <= keys.max() < data.train_size


def test_with_augmentation_keys_of_two_epochs_never_meet_and_hold_the_index() -> None:
    data = digits()
    batches = epochs(data)
    assert (data.augments_training, data.train_size) == (True, SIZE)
    keys = torch.cat([keys for *_, keys in batches])
    assert len(keys.unique()) == len(keys) == 2000
    assert len((keys // SIZE).unique()) == 2
    labels = torch.from_numpy(data.datasets["train"].images.chosen_labels)
    assert torch.equal(labels[keys % SIZE], torch.cat([labels for _, labels, _ in batches]))


@pytest.mark.parametrize("kind", MODULES)
def test_evaluation_batches_have_no_keys(kind: str) -> None:
    data = MODULES[kind]()
    data.setup()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert len(next(iter(loader))) == 2


@pytest.mark.parametrize("kind", MODULES)
def test_the_size_before_setup_says_what_to_call(kind: str) -> None:
    for ask in (lambda data: data.train_size, lambda data: data.train_fingerprint()):
        with pytest.raises(ConfigurationError, match=r"are not loaded; call prepare_data\(\) and setup\(\)"):
            ask(MODULES[kind]())


class Recorder(L.LightningModule):
    """Asks for keys, as a module with a store of outputs does, and remembers every batch."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, 50))
        self.seen: list[list[Tensor]] = []

    def setup(self, stage: str) -> None:
        self.trainer.datamodule.sample_keys = True

    def training_step(self, batch, batch_idx):
        inputs, labels, keys = batch
        self.seen.append([inputs, labels, keys])
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SaveInside(L.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 7:
            trainer.save_checkpoint(self.path)


class Report(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer, module):
        torch.save(module.seen, self.folder / str(trainer.global_rank))


def trainer(**options) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, limit_val_batches=0, **quiet, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", MODULES)
def test_a_run_resumed_inside_an_epoch_sees_the_keys_of_the_uninterrupted_one(kind, num_workers, tmp_path) -> None:
    size = 24 if kind == "gaussians" else 64
    make = lambda: MODULES[kind](keys=False, num_workers=num_workers)  # noqa: E731
    L.seed_everything(3, verbose=False)
    whole = Recorder(size)
    trainer(max_epochs=2, callbacks=[SaveInside(tmp_path / "inside")]).fit(whole, datamodule=make())
    L.seed_everything(99, verbose=False)
    resumed = Recorder(size)
    trainer(max_epochs=2).fit(resumed, datamodule=make(), ckpt_path=tmp_path / "inside")
    assert len(whole.seen) == 10
    assert len(resumed.seen) == 3
    for one, other in zip(resumed.seen, whole.seen[7:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["augmented", "plain"])
def test_two_processes_share_the_keys(kind: str, tmp_path: Path) -> None:
    L.seed_everything(3, verbose=False)
    two = trainer(max_epochs=1, devices=2, strategy="ddp_fork", callbacks=[Report(tmp_path)])
    two.fit(Recorder(), datamodule=MODULES[kind](keys=False))
    seen = [batch for rank in (0, 1) for batch in torch.load(tmp_path / str(rank))]
    keys = torch.cat([keys for *_, keys in seen])
    assert len(keys.unique()) == len(keys) == 800
    assert len((keys // SIZE).unique()) == 1
    data = MODULES[kind]()
    data.setup("fit")
    for inputs, _, keys in seen:
        assert torch.equal(data.datasets["train"][int(keys[0])][0], inputs[0])


def fingerprint(data: KeyedDataModule) -> str:
    data.setup("fit")
    return data.train_fingerprint()


def test_the_fingerprint_is_the_same_whatever_does_not_change_an_image() -> None:
    expected = fingerprint(digits())
    torch.manual_seed(77)
    for same in (digits(keys=False), digits(batch_size=7, num_workers=1), digits(crop_pct=0.9), digits(split_seed=3)):
        assert fingerprint(same) == expected
    assert fingerprint(digits(augment=False, batch_size=7)) == fingerprint(digits(augment=False))


@pytest.mark.parametrize("policy", ["rand-m9-n2", "original", "augmix-m3", "3a"])
def test_no_address_in_memory_is_in_the_fingerprint(policy: str) -> None:
    data = digits(augment={"auto_augment": policy, "re_prob": 0.1, "gaussian_blur_prob": 0.1, "grayscale_prob": 0.1})
    data.setup("fit")
    assert " at 0x" not in f"{data.datasets['train'].transform!r} {data._preparation()!r} {data._policy()!r}"


def test_the_fingerprint_tells_all_that_changes_an_image() -> None:
    base = {"color_jitter": 0.4}
    changed = [
        digits(),
        digits(augment=False),
        digits(augment=False, crop_pct=0.9),
        digits(augment=base),
        digits(augment={**base, "color_jitter_prob": 0.5}),
        digits(augment={"re_prob": 0.1}),
        digits(augment={"re_prob": 0.1000001}),
        digits(augment={"auto_augment": "rand-m9-n2"}),
        digits(augment={"auto_augment": "rand-m9-n3"}),
        digits(in_chans=3),
        digits(image_size=9),
        digits(mean=[0.5]),
        digits(mean=[0.500001]),
        digits(std=[0.3]),
        digits(interpolation="bicubic"),
        digits(train_samples=100),
        digits(train_samples=101),
        digits(train_samples=100, split_seed=1),
    ]
    found = [fingerprint(data) for data in changed]
    assert len(set(found)) == len(found)
    assert all(len(each) == 64 for each in found)


def test_the_fingerprint_of_a_folder_knows_names_and_pixels_and_not_where_it_is(write_folder, tmp_path) -> None:
    root = write_folder(train={"cat": 5, "dog": 5}, val={"cat": 1, "dog": 1})
    of = lambda folder: fingerprint(ImageFolderImages(str(folder), image_size=8))  # noqa: E731
    expected = of(root)
    copy = tmp_path / "copy"
    shutil.copytree(root / "train", copy / "train")
    shutil.copytree(root / "val", copy / "val")
    assert of(copy) == expected
    (copy / "train" / "cat" / "2.png").rename(copy / "train" / "cat" / "2b.png")
    renamed = of(copy)
    Image.new("RGB", (16, 12)).save(copy / "train" / "dog" / "4.png")
    assert len({expected, renamed, of(copy)}) == 3


def test_the_fingerprint_tells_sets_of_the_same_labels_apart(fashion_root, tmp_path) -> None:
    expected = fingerprint(TorchvisionImages("FashionMNIST", root=str(fashion_root), cache_dir=str(tmp_path / "a")))
    again = TorchvisionImages("FashionMNIST", root=str(fashion_root), cache_dir=str(tmp_path / "b"))
    assert fingerprint(again) == expected
    again.datasets["train"].images.pairs.data[again.datasets["train"].images.positions[-1]] += 1
    assert again.train_fingerprint() != expected


def test_the_fingerprint_of_gaussians_follows_from_the_training_samples_alone() -> None:
    expected = fingerprint(gaussians())
    assert fingerprint(gaussians(val_samples=7, batch_size=3, keys=False)) == expected
    others = [gaussians(seed=1), gaussians(noise=0.5), gaussians(train_samples=99), gaussians(classes=49)]
    assert len({expected, *map(fingerprint, others)}) == 5


def test_up_to_32_images_are_read_evenly_and_with_both_ends() -> None:
    class Pairs(list):
        read: list[int]

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    for count, expected in ((1, [0]), (3, [0, 1, 2]), (1000, None)):
        pairs = Pairs((Image.new("L", (1, 1), index % 256), 0) for index in range(count))
        pairs.read = []
        list(LabelledImages.all_of(pairs, [0] * count).identity())
        if expected is not None:
            assert pairs.read == expected
        else:
            assert len(pairs.read) == 32
            assert (pairs.read[0], pairs.read[-1]) == (0, 999)
            assert set(np.diff(pairs.read)) <= {32, 33}


def test_the_places_of_the_cuts_count_in_a_hash() -> None:
    assert sha256_of([b"ab", b"c"]) != sha256_of([b"a", b"bc"]) != sha256_of([b"abc"])
