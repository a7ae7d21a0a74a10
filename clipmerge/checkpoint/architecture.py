"""A configuration for weights that have none, found by open_clip's name of the architecture."""

from __future__ import annotations

import json
from dataclasses import replace

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, Checkpoint
from clipmerge.errors import CheckpointError, did_you_mean
from clipmerge.files import replace_bytes, user_cache
from clipmerge.types import Json

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
# Tensors, a dimension of each, and where a configuration states the size of that dimension.
_DIMENSIONS = (
    ("visual.conv1.weight", 0, "vision_cfg", "width"),
    ("visual.conv1.weight", 3, "vision_cfg", "patch_size"),
    ("token_embedding.weight", 0, "text_cfg", "vocab_size"),
    ("token_embedding.weight", 1, "text_cfg", "width"),
    ("positional_embedding", 0, "text_cfg", "context_length"),
    ("text_projection", 1, "", "embed_dim"),
)


def with_architecture(checkpoint: Checkpoint, model: str) -> Checkpoint:
    """Give weights without a configuration the configuration of a named architecture.

    The configuration is written to a folder in the user's cache, which becomes the folder of the
    checkpoint's side files.
    """
    if checkpoint.config is not None:
        return checkpoint
    if checkpoint.family.layout != "open-clip":
        raise CheckpointError(
            f"{checkpoint.source}: `model` {model} describes weights in OpenCLIP's layout, but"
            " these have another one; put the config.json of their model beside them"
        )
    config = architecture_config(model)
    _check_shapes(checkpoint, model, config["model_cfg"])
    folder = user_cache("architectures") / model
    replace_bytes(folder / OPEN_CLIP_CONFIG, f"{json.dumps(config, indent=2)}\n".encode())
    import open_clip

    notes = checkpoint.notes
    other = f"{model}-quickgelu"
    if other in open_clip.list_models():  # weights do not show the activation
        note = f"read as {model}, with GELU; weights trained from OpenAI's need {other}"
        notes = (*notes, note)
    return replace(checkpoint, folder=folder, config=config, architecture=model, notes=notes)


def architecture_config(model: str) -> Json:
    """Make the content of ``open_clip_config.json`` for a model that open_clip knows by name.

    Preprocessing settings are included if all pretrained weights of this name share them.
    """
    try:
        import open_clip
    except ImportError as error:
        raise CheckpointError(
            f"`model` {model}: naming an architecture needs open_clip_torch ({error}); install"
            " clipmerge[open-clip]"
        ) from None
    names = open_clip.list_models()
    if model not in names:
        raise CheckpointError(
            f"`model` {model}: open_clip has no architecture of this name; see"
            f" open_clip.list_models().{did_you_mean(model, names)}"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    pretrained = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    preprocessing = {}
    for key in _PREPROCESSING:
        values = [settings.get(key) for settings in pretrained] or [None]
        if values[0] is not None and values.count(values[0]) == len(values):
            preprocessing[key] = values[0]
    return {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": preprocessing}


def _check_shapes(checkpoint: Checkpoint, model: str, config: Json) -> None:
    """Raise an error if the named architecture has other shapes than the weights."""
    for key, dimension, section, setting in _DIMENSIONS:
        entry = checkpoint.entries.get(key)
        size = (config[section] if section else config).get(setting)
        if entry is not None and size not in (None, entry.shape[dimension]):
            raise CheckpointError(
                f"{checkpoint.source}: is not a {model}: {key} has shape {entry.shape}, but the"
                f" {setting} of a {model} is {size}; give the name under which open_clip trained it"
            )
