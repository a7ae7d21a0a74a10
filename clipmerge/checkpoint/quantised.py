"""Recognise quantised checkpoints, whose tensors are codes instead of weights, by names, and refuse them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from clipmerge.errors import CheckpointError

# Names that each library adds to a module's weight, or uses instead of it.
_MARKS = (
    (r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|\.quant_state\.", "bitsandbytes"),
    (r"\.(?:qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"\.(?:weight_packed|weight_scale|weight_scale_inv|weight_zero_point|input_scale)$", "compressed-tensors or FP8"),
    (r"\.(?:_data|_scale|_packed)$", "quanto"),
    (r"\.W_q$", "HQQ"),
)


def refuse_quantised(source: str, keys: Iterable[str], config: dict[str, Any] | None) -> None:
    """Refuse a quantised checkpoint, because averages of codes are meaningless.

    Args:
        source: The source as the user wrote it, for the message.
        keys: Keys in the file.
        config: The model's configuration.

    Raises:
        CheckpointError: If the configuration says so, or a key is typical of quantisation.
    """
    keys = list(keys)
    settings = (config or {}).get("quantization_config")
    how = settings.get("quant_method", "a method it does not name") if isinstance(settings, dict) else None
    mark = next(((mark, key) for pattern, mark in _MARKS for key in keys if re.search(pattern, key)), None)
    if settings:
        evidence = f"quantization_config in its config.json: {how or settings}"
    elif mark:
        evidence = f"{mark[0]}: {mark[1]}"
    else:
        return
    raise CheckpointError(
        f"{source}: is quantised ({evidence}), so its tensors are codes and cannot be averaged; give the checkpoint it "
        "was made from, or save it dequantised: model.dequantize().save_pretrained(FOLDER)"
    )
