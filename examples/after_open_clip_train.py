# /// script
# # clipmerge itself comes by --with, until a registry has it
# requires-python = ">=3.11"
# dependencies = ["open_clip_torch>=3.3"]
# ///
"""Merge a checkpoint of `open_clip_train` with the model that training started from.

    python -m open_clip_train.main --model ViT-B-32 --pretrained openai --train-data ... --logs logs
    --name cars
    uv run --with . examples/after_open_clip_train.py ViT-B-32 openai
    logs/cars/checkpoints/epoch_3.pt --data val --output merged

Give the same MODEL and PRETRAINED as in training; "-" if MODEL includes its weights
(hf-hub:ORG/NAME or local-dir:FOLDER). The output loads as
`open_clip.create_model("local-dir:merged")`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import open_clip

import clipmerge


def base_of(model: str, pretrained: str) -> tuple[Any, str | None]:
    """Find the model that training started from.

    Args:
        model: Value of open_clip_train's ``--model``.
        pretrained: Value of its ``--pretrained``.

    Returns:
        The checkpoint or the model, and the configuration of a model in memory.
    """
    for prefix, written in (("hf-hub:", "hf://"), ("local-dir:", "")):
        if model.startswith(prefix):
            return written + model.removeprefix(prefix), None
    return open_clip.create_model(model, pretrained=pretrained), model


def main(arguments: Sequence[str] | None = None) -> clipmerge.MergeResult:
    """Read the command line and merge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("pretrained")
    parser.add_argument("checkpoint", help="epoch_N.pt")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--data", help="images of the task: one folder per class, or with captions")
    parser.add_argument("--output", required=True)
    asked = parser.parse_args(arguments)
    base, described = base_of(asked.model, asked.pretrained)
    # the checkpoint also holds the optimiser and the epoch; only the weights are read
    result = clipmerge.merge(
        base,
        asked.checkpoint,
        asked.recipe,
        data=asked.data,
        output=asked.output,
        processor=described,
    )
    print(result)  # the answer: whether to use it
    return result


if __name__ == "__main__":
    main()
