"""Words that options, plans and recipes share."""

from typing import Literal, get_args

#: Device that models run on.
Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]
#: Dtype of the merged weights; ``keep`` uses that of the checkpoints.
OutputDtype = Literal["keep", "float32", "bfloat16", "float16"]
#: Treatment of keys that only one checkpoint has: an error, or one of the two key sets.
Missing = Literal["error", "keep-zeroshot", "keep-finetuned"]
#: What to do with a merged model, in the order of the verdict's rules.
Recommendation = Literal[
    "check-images", "keep-finetuned", "either", "use", "probably-use", "too-few-images"
]
RECOMMENDATIONS = get_args(Recommendation)
#: What follows from a failed check of the inputs, by its name: an error that `allow` waves through,
#: or a warning.
CHECKS: dict[str, Literal["error", "warning"]] = {
    "swapped": "error",
    "unrelated": "error",
    "equal-models": "warning",
    "half-zeroshot": "warning",
    "blank-images": "error",
    "same-images": "error",
    "pixel-range": "error",
    "at-chance": "error",
    "odd-names": "error",
    "zeroshot-at-chance": "warning",
}
