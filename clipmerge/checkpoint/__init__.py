"""Checkpoints: opened lazily, and checked before anything is computed."""

from clipmerge.checkpoint.alignment import Inputs, Location, align_checkpoints
from clipmerge.checkpoint.opening import open_checkpoint, open_checkpoints
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.files.safetensors import TensorEntry

__all__ = [
    "Checkpoint",
    "Location",
    "Inputs",
    "TensorEntry",
    "open_checkpoint",
    "open_checkpoints",
    "align_checkpoints",
]
