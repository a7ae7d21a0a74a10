# /// script
# # clipmerge itself comes by --with, until a registry has it
# requires-python = ">=3.11"
# dependencies = ["open_clip_torch>=3.3"]
# ///
"""Merge two models of the Hub and publish the result, on Hugging Face Jobs or on any machine.

    python -m build --wheel --outdir dist .
    hf jobs uv run --flavor a10g-small --timeout 2h --secrets HF_TOKEN -v ./dist:/dist -v ./val:/val
    --with /dist/clipmerge-0.1.0-py3-none-any.whl examples/merge_on_a_job.py
    ORG/ZEROSHOT ORG/FINETUNED --data /val --push ORG/ROBUST

A job stops after 30 minutes unless ``--timeout`` says otherwise. Here, in a clone:
``uv run --with . examples/merge_on_a_job.py ...``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import clipmerge


def main(arguments: Sequence[str] | None = None) -> clipmerge.MergeResult:
    """Read the command line, merge, print the answer and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zeroshot", help="ORG/NAME[@REVISION], or a folder")
    parser.add_argument("finetuned", help="the same, fine-tuned from ZEROSHOT")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--data", help="labelled images: a folder or hf://datasets/ORG/NAME:SPLIT")
    parser.add_argument("--output", default="merged")
    parser.add_argument("--push", help="ORG/NAME to publish as, unless the merge loses too much")
    parser.add_argument("--allow", action="append", default=[], help="go on in spite of a check")
    asked = parser.parse_args(arguments)
    result = clipmerge.merge(
        asked.zeroshot,
        asked.finetuned,
        asked.recipe,
        data=asked.data,
        output=asked.output,
        push=asked.push,
        fail_on=("check-images", "keep-finetuned", "use-alpha") if asked.data else (),
        allow=asked.allow,
    )
    print(result)  # the answer: whether to use it
    return result


if __name__ == "__main__":
    main()
