"""Options with a few allowed values, listed once. Imports nothing, so that ``--help`` can use it."""

from __future__ import annotations

from typing import Literal

#: Device to measure on.
Device = Literal["auto", "cpu", "cuda", "mps"]
#: Dtype of the merged weights; ``keep`` uses that of the checkpoints.
OutputDtype = Literal["keep", "float32", "bfloat16", "float16"]
#: Treatment of keys that only one checkpoint has: an error, or one of the two key sets.
Missing = Literal["error", "keep-zeroshot", "keep-finetuned"]
