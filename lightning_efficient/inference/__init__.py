"""What runs beside or after training: the outputs of frozen networks, kept on disk."""

from lightning_efficient.inference.output_store import OutputStore

__all__ = ["OutputStore"]
