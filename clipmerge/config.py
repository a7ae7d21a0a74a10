"""Words that options, plans and recipes share."""

from typing import Literal

#: Device that models run on.
Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]
#: Dtype of the merged weights; ``keep`` uses that of the checkpoints.
OutputDtype = Literal["keep", "float32", "bfloat16", "float16"]
#: Treatment of keys that only one checkpoint has: an error, or one of the two key sets.
Missing = Literal["error", "keep-zeroshot", "keep-finetuned"]
