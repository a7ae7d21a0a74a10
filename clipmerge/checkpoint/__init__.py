"""Where weights come from: opened lazily, checked before anything is computed."""

from clipmerge.checkpoint.inputs import Pair, pair_checkpoints
from clipmerge.checkpoint.opening import open_checkpoint
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.files.safetensors import TensorEntry, read_header

__all__ = ["Checkpoint", "Pair", "TensorEntry", "open_checkpoint", "pair_checkpoints", "read_header"]
