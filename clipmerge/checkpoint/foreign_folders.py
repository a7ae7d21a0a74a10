"""Folders with a CLIP in another program's layout: one can be opened, the others must be converted first."""

from __future__ import annotations

import shlex
from pathlib import Path

from clipmerge.files.paths import is_plain_name
from clipmerge.files.reading import Unreadable, read_json
from clipmerge.files.side_files import lies_in

_MODULES = "modules.json"
_CONSOLIDATE = "zero_to_fp32.py"
_SHARDS = ".metadata"


def sentence_transformer_module(folder: Path) -> Path | None:
    """Find the CLIP inside a folder written by sentence-transformers, such as ``0_CLIPModel``.

    Args:
        folder: A folder without weights of its own.

    Returns:
        The first module's folder that holds a configuration; ``None`` if it is not such a folder.
    """
    try:
        listed = read_json(folder / _MODULES)
    except Unreadable:
        return None
    modules = [module for module in listed if isinstance(module, dict)] if isinstance(listed, list) else []
    for path in (str(module.get("path")) for module in modules):
        if is_plain_name(path) and (folder / path / "config.json").is_file() and lies_in(folder, folder / path):
            return folder / path
    return None


def conversion_command(folder: Path) -> tuple[str, str] | None:
    """Say how to convert a training checkpoint that lies in pieces.

    Args:
        folder: A folder without weights that can be opened.

    Returns:
        A clause that describes the folder, and the command that makes one file or folder of weights from it; ``None``
        if it is neither DeepSpeed's nor torch.distributed.checkpoint's.
    """
    for place in (folder, folder.parent):
        if (place / _CONSOLIDATE).is_file() and (place == folder or any(folder.glob("*_model_states.pt"))):
            command = shlex.join(["python", str(place / _CONSOLIDATE), str(place), f"{place}-weights"])
            return "is a DeepSpeed checkpoint, whose weights lie in pieces", command
    if any(folder.glob("*_model_states.pt")) or any(folder.glob("global_step*/*_model_states.pt")):
        command = f"python -m deepspeed.utils.zero_to_fp32 {shlex.join([str(folder), f'{folder}-weights'])}"
        return "is a DeepSpeed checkpoint, whose weights lie in pieces", command
    for place in (folder, *sorted(path.parent for path in folder.glob(f"*/{_SHARDS}"))):
        if (place / _SHARDS).is_file():
            words = ["python", "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"]
            command = shlex.join([*words, str(place), f"{place}.pt"])
            return "is a checkpoint of torch.distributed.checkpoint (FSDP), whose weights lie in pieces", command
    return None
