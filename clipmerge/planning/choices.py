"""Options with a few names to choose from, listed once. Imports nothing, so that ``--help`` may use it."""

from __future__ import annotations

from typing import Literal

#: Where to measure.
Device = Literal["auto", "cpu", "cuda", "mps"]
#: Dtype of the merged weights; ``keep`` takes that of the checkpoints.
OutputDtype = Literal["keep", "float32", "bfloat16", "float16"]
#: What happens to keys that only one checkpoint has: an error, or one of the two key sets.
Missing = Literal["error", "keep-zeroshot", "keep-finetuned"]
