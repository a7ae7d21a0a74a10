"""Where weights come from: opened lazily, checked before anything is computed."""

from clipmerge.checkpoint.header import TensorEntry, read_header
from clipmerge.checkpoint.opening import open_checkpoint
from clipmerge.checkpoint.pair import Pair, pair_checkpoints
from clipmerge.checkpoint.source import Checkpoint

__all__ = ["Checkpoint", "Pair", "TensorEntry", "open_checkpoint", "pair_checkpoints", "read_header"]
