"""Load a checkpoint to measure its accuracy or recall."""

from __future__ import annotations

from clipmerge.checkpoint import Checkpoint
from clipmerge.checkpoint.alignment import pair_keys
from clipmerge.errors import CheckpointError
from clipmerge.families import tower_of
from clipmerge.models import ImageTextModel
from clipmerge.models.building import build_model


def load_model(checkpoint: Checkpoint) -> ImageTextModel:
    """Return the model of a checkpoint, in float32: a full CLIP, or a tower with a head."""
    inputs = pair_keys(checkpoint, [], "error", "keep")
    tower = tower_of(inputs.layers)
    if tower != "full" and not inputs.output.is_classifier:
        raise CheckpointError(
            f"{checkpoint.source}: holds the {tower} tower only, which has no zero-shot classes;"
            " `clipmerge sweep` with its zero-shot model evaluates it as alpha 1"
        )
    model = build_model(inputs)
    model.load(inputs.theta_0, checkpoint.source)
    return model
