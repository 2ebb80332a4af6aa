"""LightningDataModules: real image, sequence and text sets, generated tasks, and the digits that need no download."""

from lightning_efficient.datamodules.adding_problem import AddingProblem
from lightning_efficient.datamodules.copy_memory import CopyMemory
from lightning_efficient.datamodules.digits import Digits
from lightning_efficient.datamodules.gaussian_modes import GaussianModes
from lightning_efficient.datamodules.human_activity import HumanActivity
from lightning_efficient.datamodules.image_folder import ImageFolderImages
from lightning_efficient.datamodules.images import ImageDataModule
from lightning_efficient.datamodules.penn_treebank import PennTreebank
from lightning_efficient.datamodules.samplers import ShuffledSampler, UnpaddedDistributedSampler
from lightning_efficient.datamodules.sequences import SequenceDataModule
from lightning_efficient.datamodules.sequential_images import SequentialImages
from lightning_efficient.datamodules.spoken_commands import SpokenCommands
from lightning_efficient.datamodules.torchvision_images import TorchvisionImages
from lightning_efficient.datamodules.wikitext import WikiText

__all__ = [
    "AddingProblem",
    "CopyMemory",
    "Digits",
    "GaussianModes",
    "HumanActivity",
    "ImageDataModule",
    "ImageFolderImages",
    "PennTreebank",
    "SequenceDataModule",
    "SequentialImages",
    "ShuffledSampler",
    "SpokenCommands",
    "TorchvisionImages",
    "UnpaddedDistributedSampler",
    "WikiText",
]
