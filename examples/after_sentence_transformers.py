# /// script
# # clipmerge itself comes by --with, until a registry has it
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Merge a CLIP that was fine-tuned with sentence-transformers with the model that it started from.

    model = SentenceTransformer("openai/clip-vit-base-patch32")
    SentenceTransformerTrainer(model, ...).train()
    model.save("finetuned")

    uv run --with . examples/after_sentence_transformers.py openai/clip-vit-base-patch32 finetuned
    --data val --output merged

The output loads as `SentenceTransformer("merged")`. Folders of every version are read: before
version 5 the CLIP was in `0_CLIPModel`, and then it is there in the output too.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import clipmerge

#: Files by which sentence-transformers recognises its folders.
ITS_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")


def main(arguments: Sequence[str] | None = None) -> clipmerge.MergeResult:
    """Read the command line and merge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zeroshot")
    parser.add_argument("finetuned", type=Path, help="folder that model.save wrote")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--data", help="images of the task: one folder per class, or with captions")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args(arguments)
    first = json.loads((asked.finetuned / "modules.json").read_text(encoding="utf-8"))[0]["path"]
    result = clipmerge.merge(
        asked.zeroshot,
        asked.finetuned / first,
        asked.recipe,
        data=asked.data,
        output=asked.output / first,
    )
    for name in ITS_FILES:
        if (asked.finetuned / name).is_file():
            shutil.copyfile(asked.finetuned / name, asked.output / name)
    print(result)  # the answer: whether to use it
    return result


if __name__ == "__main__":
    main()
