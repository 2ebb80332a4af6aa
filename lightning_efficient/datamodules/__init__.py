"""LightningDataModules: real image sets by name or by folder, and the digits that need no download."""

from lightning_efficient.datamodules.digits import Digits
from lightning_efficient.datamodules.image_folder import ImageFolderImages
from lightning_efficient.datamodules.images import ImageDataModule
from lightning_efficient.datamodules.samplers import ShuffledSampler, UnpaddedDistributedSampler
from lightning_efficient.datamodules.torchvision_images import TorchvisionImages

__all__ = [
    "Digits",
    "ImageDataModule",
    "ImageFolderImages",
    "ShuffledSampler",
    "TorchvisionImages",
    "UnpaddedDistributedSampler",
]
