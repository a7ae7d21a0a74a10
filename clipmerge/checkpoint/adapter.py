"""Adapters such as LoRA, DoRA and rsLoRA, which peft merges into their base."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge.checkpoint.source import Checkpoint, stored_array
from clipmerge.errors import CheckpointError, shorten
from clipmerge.files.safetensors import TensorEntry
from clipmerge.files.side_files import read_side_json
from clipmerge.types import Json

if TYPE_CHECKING:
    from torch import Tensor

ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
CONFIG = "adapter_config.json"
_MERGE_IT = "merge it where it was trained (peft: merge_and_unload()) and give the result"


def apply_adapter(base: Checkpoint | None, adapter: Path, source: str) -> Checkpoint:
    """Let peft merge the adapter in a folder into its base, in float32."""
    if base is None:
        raise CheckpointError(f"{source}: is an adapter, not a full model; {_MERGE_IT}")
    if base.config is None or base.family.layout != "transformers":
        raise CheckpointError(
            f"{source}: is an adapter, which peft merges into a folder of transformers, but"
            f" {base.source} is another checkpoint; {_MERGE_IT}"
        )
    keys = base.family.by_canonical_name(base.entries, base.source)
    config = read_side_json(adapter, CONFIG) or {}
    merged = _merged_by_peft(base, adapter, config, source)
    entries = dict(base.entries)
    for name, key in base.family.by_canonical_name(merged, source).items():
        form = partial(stored_array, merged[key])
        # a classifier may be in the adapter only
        entries[keys.get(name, name)] = TensorEntry(
            adapter, "F32", tuple(merged[key].shape), form=form
        )
    trained_on = str(config.get("base_model_name_or_path") or "")
    note = (
        f"{source}: was trained on '{trained_on}' and is applied to {base.source}; make sure that"
        " they are the same model"
    )
    base_name, _, _ = base.source.partition("@")
    is_same = Path(trained_on).name in ("", Path(base_name).name)
    beside = [adapter / name for name in (*ADAPTERS, CONFIG)]
    return replace(
        base,
        is_adapted=True,
        source=source,
        revision=None,
        files=tuple(filter(Path.is_file, beside)),
        entries=entries,
        notes=() if is_same else (note,),
    )


def _merged_by_peft(
    base: Checkpoint, adapter: Path, config: Json, source: str
) -> dict[str, Tensor]:
    """Load the base model, let peft merge the adapter into it, and return its parameters."""
    try:
        import peft
    except ImportError:
        raise CheckpointError(
            f"{source}: is an adapter, and merging it needs peft; install clipmerge[peft]"
        ) from None
    import torch

    model_class = _model_class(base, config)
    try:
        with _quietly():
            model = model_class.from_pretrained(
                base.folder, dtype=torch.float32, local_files_only=True
            )
            adapted: Any = peft.PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=False)
            stored = set(peft.load_peft_weights(str(adapter), device="cpu"))
            used = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
            if unused := sorted(stored - used) or sorted(used - stored):
                raise CheckpointError(
                    f"{source}: {shorten(unused, 3)} of the adapter fit no parameter of"
                    f" {base.source}; give the base that it was trained on"
                )
            return dict(adapted.merge_and_unload().named_parameters())
    except CheckpointError:
        raise
    except Exception as error:  # peft passes on every error of torch
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{source}: peft cannot apply this adapter to {base.source} ({reason}); {_MERGE_IT}"
        ) from None


def _model_class(base: Checkpoint, config: Json) -> Any:
    """Find the transformers class of the model that the adapter was trained on, or else of its
    base.
    """
    import transformers

    stated = (config.get("auto_mapping") or {}).get("base_model_class")
    names = [stated, *((base.config or {}).get("architectures") or ())]
    for found in (getattr(transformers, str(name), None) for name in names):
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence warnings of transformers and peft about unused keys; clipmerge raises errors for
    them.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
