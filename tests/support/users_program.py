"""A user's program, in which mypy, in `scripts/check`, finds the last two lines wrong alone."""

import clipmerge
from clipmerge import MergeResult, Plan


def right() -> tuple[dict[str, float], MergeResult, float]:
    """Every type is the one that the call returns."""
    plan: Plan = clipmerge.plan("zeroshot", "finetuned", "auto", data="val", images=256)
    alphas: dict[str, float] = {name: layer.alpha for name, layer in plan.layers.items()}
    result: MergeResult = clipmerge.merge(
        "zeroshot", ["finetuned"], "wise-ft", set={"method.alpha": 0.4}, output="merged"
    )
    accuracy: float = clipmerge.evaluate("merged", {"val": "val"}).accuracy["val"]
    return alphas, result, accuracy


def wrong() -> object:
    """An argument that is missing and an attribute that does not exist; a checker that misses one
    calls its comment unused."""
    clipmerge.merge("zeroshot")  # type: ignore[call-arg]
    return clipmerge.plan("zeroshot", "finetuned", "auto").layer  # type: ignore[attr-defined]
