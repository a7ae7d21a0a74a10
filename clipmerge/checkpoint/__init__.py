"""Open checkpoints without reading weights, and check that they can be merged."""

from clipmerge.checkpoint.alignment import Inputs, Location, OutputKind, pair_keys
from clipmerge.checkpoint.mismatches import find_mismatches, settle_differences
from clipmerge.checkpoint.opening import open_checkpoint, open_checkpoints
from clipmerge.checkpoint.source import Checkpoint
from clipmerge.errors import CheckpointError
from clipmerge.files.safetensors import TensorEntry
from clipmerge.types import Missing, OutputDtype

__all__ = [
    "Checkpoint",
    "Location",
    "Inputs",
    "OutputKind",
    "TensorEntry",
    "open_checkpoint",
    "open_checkpoints",
    "align_checkpoints",
]


def align_checkpoints(
    zeroshot: Checkpoint,
    finetuned: list[Checkpoint],
    *,
    missing: Missing = "error",
    dtype: OutputDtype = "keep",
    refuse: bool = True,
) -> Inputs:
    """Match the tensors of checkpoints by name, and compare everything but their values.

    Args:
        zeroshot: The zero-shot checkpoint.
        finetuned: The fine-tuned checkpoints.
        missing: Treatment of keys that only one side has.
        dtype: The dtype of the merged weights.
        refuse: Whether to raise an error if a difference prevents a merge.

    Returns:
        The aligned checkpoints, with notes about differences that do not prevent a merge.

    Raises:
        CheckpointError: If the checkpoints are of different families, or cannot be merged.
    """
    inputs = settle_differences(pair_keys(zeroshot, finetuned, missing, dtype))
    problems = find_mismatches(inputs) if refuse else []
    if problems:
        every = f". `clipmerge inspect` lists all {len(problems)} differences"
        raise CheckpointError(problems[0] + (every if len(problems) > 1 else ""))
    return inputs
