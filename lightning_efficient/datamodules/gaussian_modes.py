"""Classes that are mixtures of Gaussians: more than a small network can hold, and the best rule in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_efficient.datamodules._resumable import Split
from lightning_efficient.datamodules._sample_keys import KeyedDataModule, sha256_of
from lightning_efficient.datamodules.sequences import as_it_is
from lightning_efficient.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class LabelledVectors(Dataset[tuple[Tensor, Tensor]]):
    """A part of the set, in memory.

    Attributes:
        inputs: Shape ``(N, dimensions)``, float32.
        target: Shape ``(N,)``, int64.
    """

    inputs: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        """Return one sample without a batch dimension."""
        return self.inputs[key % len(self)], self.target[key % len(self)]

    def __getitems__(self, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a batch, by plain indices or by the keys of ``ShuffledSampler``; torch's loader calls this."""
        index = torch.tensor([key % len(self) for key in keys])
        return self.inputs[index], self.target[index]


@dataclass(kw_only=True, eq=False, repr=False)
class GaussianModes(KeyedDataModule):
    """Tell apart classes that have several modes each; batches are ``(inputs, labels)``.

    Inputs have shape ``(N, dimensions)``, float32, and labels shape ``(N,)``, int64. The centre of each mode is drawn
    from N(0, I) once; a sample takes a class and one of its modes, each with the same probability, and adds noise
    from N(0, noise² I) to the centre. A network with few hidden units cannot hold all modes, so how it is taught
    decides which it gives up. All parts are kept in memory, and drawn within milliseconds.

    All follows from ``seed``: centres, training, validation and test samples come from four generators of their own,
    ``torch.Generator().manual_seed(4 * seed + i)`` with i from 0 to 3, so that the number of samples in one part
    changes no other, and the order of the training samples from ``seed`` and the epoch.

    Args:
        classes: Number of classes.
        modes: Modes of each class.
        dimensions: Numbers per sample.
        noise: Standard deviation of a sample around its centre, in each dimension.
        train_samples: Training samples.
        val_samples: Validation samples.
        test_samples: Test samples.
        batch_size: Training samples per step and process.
        seed: Of all samples and of their order.

    Raises:
        ConfigurationError: an option has a value that cannot work.

    Example:
        >>> data = GaussianModes(classes=3, noise=0.1)
        >>> data.setup("test")
        >>> inputs, labels = next(iter(data.test_dataloader()))
        >>> inputs.shape, (data.bayes_predict(inputs) == labels).float().mean().item()
        (torch.Size([256, 24]), 1.0)
    """

    contents: ClassVar[str] = "vectors"

    classes: int = 50
    modes: int = 3
    dimensions: int = 24
    noise: float = 1.0
    train_samples: int = 4_000
    val_samples: int = 1_000
    test_samples: int = 4_000
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "modes", "dimensions", "train_samples", "val_samples", "test_samples")
        self._check_at_least(2, "classes")
        self._check_at_least(0, "seed")
        if not 0 < self.noise < float("inf"):
            raise ConfigurationError(f"noise is {self.noise}; it must be a finite number above 0")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classes

    @property
    def input_shape(self) -> tuple[int]:
        """``(dimensions,)``."""
        return (self.dimensions,)

    @property
    def augments_training(self) -> bool:
        """Never: a sample is the same in each epoch."""
        return False

    @property
    def centres(self) -> Tensor:
        """Centres of the modes, shape ``(classes, modes, dimensions)``, float32."""
        return torch.randn(self.classes, self.modes, self.dimensions, generator=self._generator(0))

    def setup(self, stage: str | None = None) -> None:
        """Draw all parts; called by the Trainer on every process."""
        sizes: dict[Split, int] = {"train": self.train_samples, "val": self.val_samples, "test": self.test_samples}
        centres = self.centres
        for number, (split, size) in enumerate(sizes.items(), start=1):
            self.datasets[split] = self._draw(centres, size, self._generator(number))

    def bayes_predict(self, inputs: Tensor) -> Tensor:
        """Return the most probable class of each input for one who knows the centres: no rule is right more often.

        Args:
            inputs: Shape ``(N, dimensions)``.

        Returns:
            Shape ``(N,)``, int64.
        """
        centres = self.centres.to(inputs.device, torch.float64)
        # Not by a matrix product, which loses the small differences.
        distances = torch.cdist(inputs.double(), centres.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist")
        log_density = -distances.square() / (2 * self.noise**2)
        return log_density.unflatten(1, (self.classes, self.modes)).logsumexp(2).argmax(1)

    def train_fingerprint(self) -> str:
        """Return the SHA-256 of the training samples, after ``setup("fit")``."""
        train = self._train_samples()
        return sha256_of([type(self).__name__.encode(), train.inputs.numpy().tobytes(), train.target.numpy().tobytes()])

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(4 * self.seed + number)

    def _draw(self, centres: Tensor, size: int, generator: torch.Generator) -> LabelledVectors:
        target = torch.randint(self.classes, (size,), generator=generator)
        mode = torch.randint(self.modes, (size,), generator=generator)
        noise = torch.randn(size, self.dimensions, generator=generator)
        return LabelledVectors(centres[target, mode] + self.noise * noise, target)

    def _choose_seed(self, replicas: int) -> int:
        return self.seed

    def _loader_options(self) -> dict[str, Any]:
        return super()._loader_options() | {"collate_fn": as_it_is}
