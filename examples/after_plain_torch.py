# /// script
# # clipmerge itself comes by --with, until a registry has it
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Fine-tune a CLIP in plain PyTorch, and merge it with its zero-shot self as the last step.

    uv run --with . examples/after_plain_torch.py openai/clip-vit-base-patch32
    --train train --data val --output merged

TRAIN and VAL have one folder of images per class. The loop is the usual one; clipmerge adds only
the two marked places: a copy of the model from before training, and one call after it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import CLIPModel, CLIPProcessor

import clipmerge


def batches(
    folder: Path, size: int, steps: int
) -> Iterator[tuple[list[Image.Image], torch.Tensor]]:
    """Draw batches of images and the numbers of their classes.

    Args:
        folder: One folder of images per class.
        size: Images per batch.
        steps: Number of batches.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [
        (file, number) for number, path in enumerate(classes) for file in sorted(path.iterdir())
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        picked = [files[index] for index in torch.randint(len(files), (size,), generator=generator)]
        yield (
            [Image.open(file).convert("RGB") for file, _ in picked],
            torch.tensor([number for _, number in picked]),
        )


def main(arguments: Sequence[str] | None = None) -> clipmerge.MergeResult:
    """Read the command line, train, merge, save and print the answer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zeroshot")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="images that training does not see"
    )
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--output", required=True)
    asked = parser.parse_args(arguments)

    model = CLIPModel.from_pretrained(asked.zeroshot)
    processor = CLIPProcessor.from_pretrained(asked.zeroshot)
    zeroshot = copy.deepcopy(model)  # clipmerge: keep what training starts from

    names = sorted(path.name for path in asked.train.iterdir() if path.is_dir())
    prompts = processor(
        text=[f"a photo of a {name}." for name in names], padding=True, return_tensors="pt"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=asked.rate)
    model.train()
    for images, labels in batches(asked.train, asked.batch_size, asked.steps):
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        loss = cross_entropy(model(**prompts, pixel_values=pixels).logits_per_image, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # clipmerge: the last step; writes a folder that loads like the model, with a report and a card
    result = clipmerge.merge(
        zeroshot,
        model,
        asked.recipe,
        data=asked.data,
        output=asked.output,
        processor=processor,
    )
    print(result)  # the answer: whether to use it
    return result


if __name__ == "__main__":
    main()
