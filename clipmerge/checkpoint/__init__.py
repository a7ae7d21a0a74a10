"""Checkpoints: opened lazily, and checked before anything is computed."""

from clipmerge.checkpoint.alignment import align_checkpoints
from clipmerge.checkpoint.inputs import Inputs, Location
from clipmerge.checkpoint.opening import CheckpointRef, open_checkpoint, open_checkpoints
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.files.safetensors import TensorEntry

__all__ = [
    "Checkpoint",
    "Location",
    "Inputs",
    "TensorEntry",
    "CheckpointRef",
    "open_checkpoint",
    "open_checkpoints",
    "align_checkpoints",
]
