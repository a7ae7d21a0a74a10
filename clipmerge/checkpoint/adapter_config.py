"""Read the arithmetic from a peft adapter's configuration, and refuse everything else in it.

An unknown option might change the meaning of the adapter's tensors, so it is refused by name unless it is switched
off: a wrong task vector would be merged silently.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmerge.errors import CheckpointError, shorten
from clipmerge.files.limits import LONGEST_PATTERN, MOST_CHOICES, MOST_GROUPS, MOST_PATTERNS, MOST_REPEATS
from clipmerge.files.reading import read_json

CONFIG = "adapter_config.json"
#: Advice for an adapter that is not supported.
MERGE_IT = (
    "merge it where it was trained, "
    "PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(FOLDER), and give that folder"
)
# Options that affect the meaning of tensors are handled one by one; these only concern training or inference.
_HARMLESS = frozenset(
    {
        *("alpha_pattern", "lora_alpha", "peft_type", "r", "rank_pattern", "use_dora", "use_rslora"),
        *("bias", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_bias", "modules_to_save"),
        *("corda_config", "eva_config", "init_lora_weights", "lora_dropout", "lora_ga_config", "target_modules"),
        *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "task_type"),
        # peft itself ignores it for the Linear, Conv2d and Embedding modules that CLIPs consist of
        "fan_in_fan_out",
        *("ensure_weight_tying", "inference_mode", "megatron_core", "qalora_group_size", "runtime_config"),
    }
)
# Initialisations that do not change the base model's weights; others move a part of them into the adapter.
_KEEPS_BASE = (True, False, "gaussian", "eva", "mica", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """The part of ``adapter_config.json`` that the arithmetic needs."""

    base: str  # name of the model it was trained on; empty if not recorded
    base_class: str  # class of that model, such as ``CLIPVisionModel``; empty if not recorded
    rank: int  # rank of the modules without a pattern
    alpha: float  # numerator of the scale, likewise
    rank_pattern: dict[str, int]  # ranks by regular expression over module paths
    alpha_pattern: dict[str, float]  # alphas, likewise
    rslora: bool  # whether the scale is alpha / sqrt(rank) rather than alpha / rank
    saved: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """Rank of a module."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Factor of B A for a module.

        Source:
            Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 for the square root.
        """
        rank = self.rank_of(module)
        alpha = float(_matching(self.alpha_pattern, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _matching(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """Value of the first pattern that matches the module's path or the end of it, as in peft."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read ``adapter_config.json``."""
    try:
        data = read_json(path)
        kind = str(data.get("peft_type", "")).upper()
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read as an adapter's configuration ({error})") from None
    if kind != "LORA":
        raise CheckpointError(f"{path}: a peft adapter of type {kind or 'unknown'}; clipmerge reads LORA. {MERGE_IT}")
    _refuse_unknown(path, data)
    try:
        return _parsed(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, re.error) as error:
        raise CheckpointError(f"{path}: not a LoRA configuration ({error!r}); save the adapter again") from None


def _refuse_unknown(path: Path, data: dict[str, Any]) -> None:
    unknown = sorted(key for key, value in data.items() if key not in _HARMLESS and value)
    if unknown:
        raise CheckpointError(f"{path}: uses {shorten(unknown)}, whose arithmetic clipmerge does not know. {MERGE_IT}")
    start = data.get("init_lora_weights", True)
    if start not in _KEEPS_BASE:
        raise CheckpointError(
            f"{path}: started with init_lora_weights={start!r}, which changes the base model's weights, so the "
            f"adapter does not fit the published base. {MERGE_IT}"
        )


def _check_pattern(pattern: str) -> None:
    """Refuse a regular expression that could take very long: peft writes little more than names of modules."""
    plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)
    repeats, groups, choices = sum(map(plain.count, "*+?{")), plain.count("("), plain.count("|")
    if len(pattern) > LONGEST_PATTERN or repeats > MOST_REPEATS or groups > MOST_GROUPS or choices > MOST_CHOICES:
        raise ValueError(f"the pattern {pattern[:80]!r} is longer or more complex than names of modules need")
    if re.search(r"\)[*+?{]|\(\?", plain):
        raise ValueError(f"the pattern {pattern[:80]!r} repeats a group, or has a look-around")
    re.compile(pattern)


def _parsed(data: dict[str, Any]) -> AdapterConfig:
    ranks = {str(key): int(value) for key, value in (data.get("rank_pattern") or {}).items()}
    alphas = {str(key): float(value) for key, value in (data.get("alpha_pattern") or {}).items()}
    patterns = [*ranks, *alphas]
    if len(patterns) > MOST_PATTERNS:
        raise ValueError(f"{len(patterns)} patterns, more than {MOST_PATTERNS}")
    for pattern in patterns:
        _check_pattern(pattern)
    rank = int(data["r"])
    if min(rank, *ranks.values(), rank) < 1:
        raise ValueError("rank below 1")
    if not all(map(math.isfinite, (float(data["lora_alpha"]), *alphas.values()))):
        raise ValueError("lora_alpha is not a finite number")
    return AdapterConfig(
        base=str(data.get("base_model_name_or_path") or ""),
        base_class=str((data.get("auto_mapping") or {}).get("base_model_class") or ""),
        rank=rank,
        alpha=float(data["lora_alpha"]),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        rslora=bool(data.get("use_rslora")),
        saved=tuple(str(name) for name in data.get("modules_to_save") or ()),
    )
