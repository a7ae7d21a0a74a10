"""A peft LoRA adapter as a full checkpoint: its base with the changes applied, computed tensor by
tensor.

theta_1 is theta_0 + scale * B A if the adapter has a pair of factors for the parameter (with DoRA,
each row is then scaled to its trained length), the adapter's own tensor if the module was trained
whole, and theta_0 otherwise. It is computed in float32 (float64 if any input is) and not rounded to
the base's dtype, so that a merge rounds once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, field_validator

from clipmerge.checkpoint.source import Checkpoint, DerivedCheckpoint, LazyTensor, stored_array
from clipmerge.errors import CheckpointError, shorten
from clipmerge.files.limits import (
    MAX_CHOICES,
    MAX_GROUPS,
    MAX_PATTERN_LENGTH,
    MAX_PATTERNS,
    MAX_REPEATS,
)
from clipmerge.files.paths import local_path
from clipmerge.files.reading import read_json
from clipmerge.files.safetensors import Array
from clipmerge.finding import Finding
from clipmerge.frozen import Frozen
from clipmerge.parallel import one_thread
from clipmerge.types import Json, Names, Shape

CONFIG = "adapter_config.json"
#: Advice for an adapter that is not supported.
MERGE_IT = (
    "merge it where it was trained, PeftModel.from_pretrained(BASE,"
    " ADAPTER).merge_and_unload().save_pretrained(FOLDER), and give that folder"
)
# Options that affect the meaning of tensors are handled one by one; these only concern training or
# inference.
_HARMLESS = frozenset(
    {
        "alpha_pattern",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "use_dora",
        "use_rslora",
        "bias",
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "lora_bias",
        "modules_to_save",
        "corda_config",
        "eva_config",
        "init_lora_weights",
        "lora_dropout",
        "lora_ga_config",
        "target_modules",
        "auto_mapping",
        "base_model_name_or_path",
        "peft_version",
        "revision",
        "task_type",
        # peft itself ignores it for the Linear, Conv2d and Embedding modules that CLIPs consist of
        "fan_in_fan_out",
        "ensure_weight_tying",
        "inference_mode",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    }
)
# Initialisations that do not change the base model's weights; others move a part of them into the
# adapter.
_KEEPS_BASE = (True, False, "gaussian", "eva", "mica", "orthogonal")
_PREFIX = "base_model.model."
# peft wraps modules that it trains; in older versions the wrapper has a name
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save|original_module)(?=\.)")
_FIELDS = {
    "A.weight": "lora_a",
    "B.weight": "lora_b",
    "B.bias": "bias",
    "embedding_A": "lora_a",
    "embedding_B": "lora_b",
    "magnitude_vector": "magnitude",
}
_FACTOR = re.compile(rf"(?P<module>.+)\.lora_(?P<part>{'|'.join(map(re.escape, _FIELDS))})")
# An adapter has both factors of a parameter, perhaps with a magnitude, or none of them.
_FACTORS = {"lora_a", "lora_b", "magnitude"}
_Rank = Annotated[int, Field(ge=1)]


@dataclass
class LoraChange:
    """The change of one parameter of the base."""

    module: str
    # Keys of the adapter, by what they hold: ``replacement``, the tensor that replaces the
    # parameter before anything is added; ``lora_a``, A of shape (rank, in), (rank, in, height,
    # width), or (rank, entries) of an embedding; ``lora_b``, B of shape (out, rank), (out, rank, 1,
    # 1), or (width, rank) of an embedding; ``bias``, a trained bias of B, (out,); ``magnitude``,
    # DoRA's: one per row, or one per column of an embedding
    keys: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0  # factor of B A, or of the bias that is added
    embedding: bool = False  # whether B A is transposed, as peft does for embeddings


class AdaptedCheckpoint(DerivedCheckpoint):
    """A base checkpoint, which has the side files, changed by an adapter."""


def apply_adapter(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """Apply an adapter to its base, without reading weights."""
    path = adapter.folder / CONFIG
    config = read_adapter_config(path)
    changes = _group_changes(adapter, config)
    trained_whole = [f".{module}." for module in config.saved]
    added = {
        name
        for name, change in changes.items()
        if "replacement" in change.keys and any(module in f".{name}" for module in trained_whole)
    }
    keys = _keys_in_base(base, adapter, config, changes, optional=added)
    by_base_key = {keys.get(name, name): change for name, change in changes.items()}
    for key, change in by_base_key.items():
        if key not in base.entries:
            continue
        if problem := _describe_mismatch(base, adapter, key, change):
            raise CheckpointError(
                f"{adapter.source}: {problem}; give the base that it was trained on"
            )
        stated = config.rank_of(change.module)
        rank = (
            adapter.entries[change.keys["lora_a"]].shape[0] if "lora_a" in change.keys else stated
        )
        if rank != stated:
            raise CheckpointError(
                f"{adapter.source}: the LoRA of {change.module} has rank {rank}, but"
                f" adapter_config.json says {stated}; the scale would be wrong, so get the two"
                " files from one place"
            )
    extra = {
        key: replace(adapter.entries[change.keys["replacement"]], file=base.files[0])
        for key, change in by_base_key.items()
        if key not in base.entries
    }
    notes = list(adapter.notes)
    base_name = base.source.removeprefix("hf://").partition("@")[0]
    if (
        config.base not in ("", base_name)
        and local_path(config.base).resolve() != base.folder.resolve()
    ):
        notes.append(
            Finding.of(
                "other-base", source=adapter.source, trained_on=config.base, base=base.source
            )
        )
    lazy = {
        key: LazyTensor(
            (key,) if key in base.entries else (),
            partial(_form_adapted, base, adapter, key, change),
        )
        for key, change in by_base_key.items()
    }
    return AdaptedCheckpoint.of(
        base,
        lazy,
        source=adapter.source,
        revision=adapter.revision,
        files=(*adapter.files, path),
        _hashes={},
        entries={**base.entries, **extra},
        notes=tuple(notes),
    )


def _group_changes(adapter: Checkpoint, config: AdapterConfig) -> dict[str, LoraChange]:
    """Group the adapter's tensors by the parameter that they change, named as in the model it was
    trained on.
    """
    changes: dict[str, LoraChange] = {}
    for key in adapter.entries:
        name = _WRAPPERS.sub("", f".{key.removeprefix(_PREFIX)}")[1:]
        factor = _FACTOR.fullmatch(name.removesuffix(".weight") if "magnitude" in name else name)
        # peft's forward pass and its merge_and_unload differ there
        if ".attn.base_layer.out_proj." in key:
            raise CheckpointError(
                f"{adapter.source}: LoRA on torch's MultiheadAttention is not supported. {MERGE_IT}"
            )
        if factor is None:
            if ".lora_" in name or "." not in name:
                raise CheckpointError(f"{adapter.source}: tensor {key} is of an unknown kind")
            changes.setdefault(name, LoraChange(name.rpartition(".")[0])).keys["replacement"] = key
            continue
        module = factor["module"]
        part = factor["part"]
        target = f"{module}.bias" if part == "B.bias" else f"{module}.weight"
        change = changes.setdefault(target, LoraChange(module))
        change.scale = config.scale_of(module)
        change.embedding = change.embedding or part.startswith("embedding")
        change.keys[_FIELDS[part]] = key
    for target, change in changes.items():
        if change.keys.keys() & _FACTORS not in (set(), {"lora_a", "lora_b"}, _FACTORS):
            raise CheckpointError(
                f"{adapter.source}: the LoRA of {target} is incomplete; save the adapter again"
            )
    return changes


def _keys_in_base(
    base: Checkpoint,
    adapter: Checkpoint,
    config: AdapterConfig,
    changes: dict[str, LoraChange],
    optional: set[str],
) -> dict[str, str]:
    """Find the base's key for each parameter; the two may be in different numbers of wrappers, or
    in a bare tower.
    """
    needed = [name for name in changes if name not in optional] or list(changes)
    keys_by_prefix = _keys_by_prefix(base, needed, changes)
    fitting = {
        prefix: keys
        for prefix, keys in keys_by_prefix.items()
        if not any(_describe_mismatch(base, adapter, keys[name], changes[name]) for name in needed)
    } or keys_by_prefix
    if len(fitting) > 1:  # the class that the adapter was trained on may name a tower
        is_image = re.search("Vision|Image", config.base_class)
        tower = "text" if "Text" in config.base_class else "vis" if is_image else "unknown"
        fitting = {prefix: fitting[prefix] for prefix in fitting if tower in prefix} or fitting
    if not fitting:
        ends = [f".{key}" for key in base.entries]
        absent = [name for name in needed if not any(end.endswith(f".{name}") for end in ends)]
        raise CheckpointError(
            f"{adapter.source}: {len(absent or needed)} of the parameters it changes are not in"
            f" {base.source}: {shorten(absent or needed, 3)}; give the base that it was trained on"
        )
    if len(fitting) > 1:
        raise CheckpointError(
            f"{adapter.source}: its keys fit"
            f" {' and '.join(prefix or 'the whole' for prefix in fitting)} of {base.source} alike,"
            " and its adapter_config.json does not say which class it was trained on; add"
            ' auto_mapping: {"base_model_class": "CLIPVisionModel"} (or CLIPTextModel) to it'
        )
    return next(iter(fitting.values()))


def _keys_by_prefix(
    base: Checkpoint, needed: list[str], names: Iterable[str]
) -> dict[str, dict[str, str]]:
    """The base's keys by name, for each prefix of the base's keys with which all needed names are
    there, once the fewest possible leading parts of the names are left out.
    """
    first = needed[0]
    parts = needed[0].split(".")
    for skipped in range(len(parts) - 1):
        end = ".".join(parts[skipped:])
        outer = first[: -len(end)]
        keys_by_prefix = {}
        for hit in sorted(key for key in base.entries if f".{key}".endswith(f".{end}")):
            prefix = hit[: -len(end)]
            keys = {
                name: key
                for name in names
                if name.startswith(outer)
                and (key := prefix + name.removeprefix(outer)) in base.entries
            }
            if keys.keys() >= set(needed):
                keys_by_prefix[prefix] = keys
        if keys_by_prefix:
            return keys_by_prefix
    return {}


def _describe_mismatch(base: Checkpoint, adapter: Checkpoint, key: str, change: LoraChange) -> str:
    """Describe a mismatch with a parameter, in shape or kind; empty if everything fits."""
    entry = base.entries[key]
    entries = {part: adapter.entries[name] for part, name in change.keys.items()}
    shapes = {part: part_entry.shape for part, part_entry in entries.items()}
    for part in ("replacement", "bias"):
        if shapes.get(part, entry.shape) != entry.shape:
            return f"{change.keys[part]} is {shapes[part]}, the base's {key} {entry.shape}"
    if "lora_a" in shapes:
        down, up = shapes["lora_a"], shapes["lora_b"]
        if _product_shape(down, up, change.embedding) != _flatten_kernel(entry.shape):
            return f"the LoRA of {key} is {up} by {down}, the base's {entry.shape}"
    lengths = entry.shape[1 if change.embedding else 0] if "magnitude" in shapes else 0
    if lengths and math.prod(shapes["magnitude"]) != lengths:
        name = change.keys["magnitude"]
        return f"{name} is {shapes['magnitude']}, the base's {key} {entry.shape}"
    if not all(part_entry.is_float for part_entry in (entry, *entries.values())):
        return f"{key} is not a float on both sides"
    return ""


def _flatten_kernel(shape: Shape) -> Shape:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape


def _product_shape(down: Shape, up: Shape, embedding: bool) -> Shape:
    """Shape of B A, with kernels flattened; empty if the two cannot be multiplied."""
    if len(down) < 2 or len(up) < 2 or _flatten_kernel(up)[1] != down[0]:
        return ()
    rows, columns = up[0], _flatten_kernel(down)[1]
    return (columns, rows) if embedding else (rows, columns)


@one_thread()
def _form_adapted(base: Checkpoint, adapter: Checkpoint, key: str, change: LoraChange) -> Array:
    """theta_1 of one parameter, unrounded, by LoRA (arXiv:2106.09685) or DoRA
    (arXiv:2402.09353).
    """
    import torch

    parts = {part: adapter.tensor(name) for part, name in change.keys.items()}
    weight = parts.pop("replacement") if "replacement" in parts else base.tensor(key)
    if not parts:
        return stored_array(weight.flatten())
    dtypes = {weight.dtype, *(tensor.dtype for tensor in parts.values())}
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    parts = {part: tensor.to(wide) for part, tensor in parts.items()}
    weight = weight.to(wide)
    if "bias" in parts:
        return stored_array((weight + change.scale * parts["bias"]).flatten())
    product = parts["lora_b"].flatten(1) @ parts["lora_a"].flatten(1)
    product = (product.T if change.embedding else product).reshape(weight.shape)
    weight = product.mul_(change.scale).add_(weight)
    if "magnitude" in parts:  # to which the rows are scaled, or an embedding's columns
        axes = [axis for axis in range(weight.ndim) if axis != (1 if change.embedding else 0)]
        lengths = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
        weight = weight * (parts["magnitude"].view_as(lengths) / lengths)
    return stored_array(weight.flatten())


class AdapterConfig(Frozen):
    """The part of ``adapter_config.json`` that the arithmetic needs; patterns are regular
    expressions over module paths.
    """

    model_config = ConfigDict(extra="ignore")

    base: str = Field("", alias="base_model_name_or_path")  # empty if not recorded
    auto_mapping: Json = Field(default_factory=dict)
    rank: _Rank = Field(alias="r")  # of the modules without a pattern
    alpha: float = Field(alias="lora_alpha")  # numerator of the scale, likewise
    rank_pattern: dict[str, _Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    # whether the scale is alpha / sqrt(rank) rather than alpha / rank
    rslora: bool = Field(False, alias="use_rslora")
    saved: Names = Field((), alias="modules_to_save")

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _refuse_slow_patterns(cls, values: Json) -> Json:
        """Refuse a pattern that could take very long: peft writes little more than names of
        modules.
        """
        if len(values) > MAX_PATTERNS:
            raise ValueError(f"{len(values)} patterns, more than {MAX_PATTERNS}")
        for pattern in values:
            plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)
            if (
                len(pattern) > MAX_PATTERN_LENGTH
                or sum(map(plain.count, "*+?{")) > MAX_REPEATS
                or plain.count("(") > MAX_GROUPS
                or plain.count("|") > MAX_CHOICES
            ):
                raise ValueError(
                    f"the pattern {pattern[:80]!r} is longer or more complex than names of modules"
                    " need"
                )
            if re.search(r"\)[*+?{]|\(\?", plain):
                raise ValueError(
                    f"the pattern {pattern[:80]!r} repeats a group, or has a look-around"
                )
            re.compile(pattern)
        return values

    @property
    def base_class(self) -> str:
        """Class of the model it was trained on, such as ``CLIPVisionModel``; empty if not
        recorded.
        """
        return str(self.auto_mapping.get("base_model_class") or "")

    def rank_of(self, module: str) -> int:
        """Rank of a module."""
        return int(_match_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Factor of B A for a module; the square root is by Kalajdzievski 2023,
        arXiv:2312.03732.
        """
        rank = self.rank_of(module)
        alpha = float(_match_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _match_pattern(pattern: Json, module: str, default: Any) -> Any:
    """Value of the first pattern that matches the module's path or the end of it, as in peft."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read ``adapter_config.json``."""
    try:
        data = read_json(path)
        _refuse_unknown_arithmetic(data, path)
        stated = {key: value for key, value in data.items() if value is not None}
        return AdapterConfig.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (AttributeError, ValueError, re.error) as error:
        reason = str(error)
    raise CheckpointError(f"{path}: not a LoRA configuration ({reason}); save the adapter again")


def _refuse_unknown_arithmetic(data: Json, path: Path) -> None:
    kind = str(data.get("peft_type", "")).upper()
    if kind != "LORA":
        raise CheckpointError(
            f"{path}: a peft adapter of type {kind or 'unknown'}; clipmerge reads LORA. {MERGE_IT}"
        )
    if unknown := sorted(key for key, value in data.items() if key not in _HARMLESS and value):
        raise CheckpointError(
            f"{path}: uses {shorten(unknown)}, whose arithmetic clipmerge does not know. {MERGE_IT}"
        )
    start = data.get("init_lora_weights", True)
    if start not in _KEEPS_BASE:
        raise CheckpointError(
            f"{path}: started with init_lora_weights={start!r}, which changes the base model's"
            f" weights, so the adapter does not fit the published base. {MERGE_IT}"
        )
