"""Save models in memory to temporary folders, in the layout of their library."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from clipmerge.errors import UsageError
from clipmerge.files import IN_MEMORY

if TYPE_CHECKING:
    from torch.nn import Module

# Attributes with the model in a wrapper: the first of DataParallel and DistributedDataParallel, the
# second of torch.compile.
_WRAPPERS = ("module", "_orig_mod")
_SIDE_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def unwrap_model(model: Module) -> Module:
    """Return the model inside the wrappers of `torch.compile` and of parallel training."""
    for name in _WRAPPERS * 2:
        children = dict(model.named_children())
        model = children[name] if set(children) == {name} else model
    return model


@contextmanager
def saved_model(checkpoint: Module, processor: Any) -> Iterator[str]:
    """Save a model in memory to a temporary folder, and yield its path. The folder is deleted when
    the ``with`` block ends.
    """
    with TemporaryDirectory(prefix=IN_MEMORY) as parent:
        yield _save_model(checkpoint, Path(parent), processor)


def _save_model(checkpoint: Module, parent: Path, processor: Any) -> str:
    is_module = hasattr(checkpoint, "named_children")
    model: Any = unwrap_model(checkpoint) if is_module else checkpoint
    folder = parent / f"{type(model).__name__} in memory"
    folder.mkdir()
    if hasattr(model, "save_pretrained") and hasattr(model, "config"):
        _write_transformers(model, folder, processor)
    elif hasattr(model, "visual"):
        _write_open_clip(model, folder, processor)
    else:
        raise UsageError(
            f"{type(model).__name__} is not a model of transformers or open_clip; save its state"
            " dict to a file, and give the file"
        )
    return str(folder)


def _write_transformers(model: Any, folder: Path, processor: Any) -> None:
    """Write a transformers model and its processor. Without a processor, copy the one beside the
    files that the model was loaded from.
    """
    # in a process group only the first process would write, but each process reads its own copy
    if hasattr(model, "should_save_on_this_rank"):
        model.should_save_on_this_rank = lambda _: True
    try:
        model.save_pretrained(folder)
    finally:
        vars(model).pop("should_save_on_this_rank", None)
    if hasattr(processor, "save_pretrained"):
        processor.save_pretrained(folder)
        return
    name = processor or getattr(model, "name_or_path", None) or None
    origin = _original_folder(os.fspath(name)) if isinstance(name, (str, os.PathLike)) else None
    if processor and origin is None:
        raise UsageError(
            f"processor={processor!r}: is neither a processor of transformers nor a folder or a"
            " name in the Hub's cache; give the processor itself"
        )
    _copy_side_files(origin, folder, but=OPEN_CLIP_CONFIG)


def _original_folder(name: str) -> Path | None:
    """Find the folder that a model was loaded from, on the disk or in the Hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _copy_side_files(origin: Path | None, folder: Path, *, but: str) -> None:
    """Copy the small files beside a model's weights, such as its tokenizer. Leave out the file
    ``but`` and files that the new folder has already.
    """
    for file in sorted(origin.iterdir()) if origin else ():
        is_side_file = file.suffix in _SIDE_SUFFIXES and not file.name.endswith(".index.json")
        if is_side_file and file.name != but and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _write_open_clip(model: Any, folder: Path, config: Any) -> None:
    """Write the weights of an open_clip model, and its configuration if ``config`` names one or is
    a folder with one. The model itself does not keep its configuration.
    """
    from safetensors.torch import save_file

    # safetensors cannot save tensors that share memory
    weights = {key: value.cpu().contiguous().clone() for key, value in model.state_dict().items()}
    save_file(weights, folder / OPEN_CLIP_WEIGHTS[0], metadata={"format": "pt"})
    if config is None:
        return
    if isinstance(config, (str, os.PathLike)) and Path(config).is_dir():
        _copy_side_files(Path(config), folder, but="config.json")
        return
    import open_clip

    named = open_clip.get_model_config(config) if isinstance(config, str) else None
    if named is None:
        raise UsageError(
            f"processor={config!r}: is neither a folder nor a model of open_clip; give the name of"
            " the architecture, such as 'ViT-B-32' (open_clip.list_models() lists them), or the"
            " model's folder"
        )
    preprocessing = getattr(model.visual, "preprocess_cfg", None)
    stated = {"preprocess_cfg": dict(preprocessing)} if preprocessing else {}
    stated |= {"model_cfg": named}
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
