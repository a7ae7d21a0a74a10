"""`clipmerge convert`: the same model in the other library's layout, with the files that library loads it by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmerge import __version__
from clipmerge.apply import copied_tensors
from clipmerge.checkpoint import Checkpoint, open_checkpoint
from clipmerge.checkpoint.converted import convert_checkpoint
from clipmerge.checkpoint.header import DTYPES
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS, sha256_of
from clipmerge.conversion.preprocessing import image_processor_config, preprocess_cfg
from clipmerge.conversion.tokens import is_clips_own, write_clip_tokenizer
from clipmerge.errors import CheckpointError, ClipmergeError
from clipmerge.staging import check_output, staged
from clipmerge.write import write_weights

if TYPE_CHECKING:
    from clipmerge.conversion import Layout
    from clipmerge.run import Progress

#: The record of a conversion, by which its output is known.
CONVERSION = "conversion.json"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
)
# the vocabulary that OpenCLIP's own tokenizer has
_CLIP_WORDS = 49408


def convert(
    source: str, to: Layout, output: Path, *, overwrite: bool = False, progress: Progress, command: str = ""
) -> dict[str, Any]:
    """Write a checkpoint in the other layout, whole or not at all.

    Args:
        source: Where the checkpoint comes from.
        to: The layout wanted.
        output: The folder to write.
        overwrite: Whether an earlier conversion there may be replaced.
        progress: Where to report.
        command: How to run this again, for the record.

    Returns:
        JSON-ready: ``output``, ``files`` {name: sha256}, ``to``, ``source`` {source, revision, files}, ``warnings``.

    Raises:
        CheckpointError: If it has that layout already, or something in it has no counterpart.
        OutputError: If the folder cannot be written.
    """
    progress.stage("read")
    checkpoint = open_checkpoint(source)
    check_output(output, overwrite=overwrite, inputs=[checkpoint.folder], record=CONVERSION)
    converted = convert_checkpoint(checkpoint, to)
    if converted is checkpoint:
        raise CheckpointError(f"{source}: is in the layout of {to} already; there is nothing to convert")
    if converted.config is None:
        needed = OPEN_CLIP_CONFIG if to == "transformers" else "config.json"
        raise CheckpointError(
            f"{source}: has no {needed} beside it, which says what the weights do not (QuickGELU, heads)"
        )
    notes = [converted.note] if converted.note else []
    with staged(output, overwrite=overwrite) as folder:
        progress.stage("write")
        single = WEIGHTS if to == "transformers" else OPEN_CLIP_WEIGHTS[0]
        advance = _ByteCount(progress, converted.bytes)
        files = write_weights(folder, copied_tensors(converted), None, advance, single=single)
        try:
            side = _transformers_files if to == "transformers" else _open_clip_files
            notes += side(folder, checkpoint, converted.config, output.name)
        except ClipmergeError as error:
            raise type(error)(f"{source}: {error}") from None
        for license in sorted(checkpoint.folder.glob("LICENSE*")):
            shutil.copyfile(license, folder / license.name)
        files |= {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name not in files}
        record = {
            "clipmerge": __version__,
            "output": str(output),
            "files": files,
            "to": to,
            "source": checkpoint.provenance(),
            "warnings": notes,
            "command": command,
        }
        (folder / CONVERSION).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for note in notes:
        progress.say(note)
    return record


def _transformers_files(folder: Path, checkpoint: Checkpoint, config: dict[str, Any], _name: str) -> list[str]:
    """Write ``config.json``, ``preprocessor_config.json`` and the tokenizer; return what the user should know."""
    ours = checkpoint.config or {}
    floats = {DTYPES[entry.dtype][0] for entry in checkpoint.entries.values() if entry.is_float}
    if len(floats) == 1:
        config = {**config, "dtype": floats.pop()}
    _write_json(folder / "config.json", config)
    size = config["vision_config"]["image_size"]
    _write_json(folder / "preprocessor_config.json", image_processor_config(ours.get("preprocess_cfg") or {}, size))
    text = ours.get("model_cfg", ours).get("text_cfg") or {}
    is_own = is_clips_own(checkpoint.folder)
    if text.get("hf_tokenizer_name") and is_own is None:
        raise CheckpointError(
            f"its tokenizer is that of {text['hf_tokenizer_name']}; copy the tokenizer's files beside the weights first"
        )
    if is_own or text.get("hf_tokenizer_name"):
        _copy_tokenizer(folder, checkpoint.folder)
        return []
    words = config["text_config"]["vocab_size"]
    if words != _CLIP_WORDS:
        raise CheckpointError(
            f"its text tower has {words} tokens and open_clip_config.json names no tokenizer; set "
            "text_cfg.hf_tokenizer_name and copy the tokenizer's files beside the weights"
        )
    write_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])
    return []


def _open_clip_files(folder: Path, checkpoint: Checkpoint, config: dict[str, Any], name: str) -> list[str]:
    """Write ``open_clip_config.json`` and copy the tokenizer; return what the user should know."""
    model_cfg = config["model_cfg"]
    processor = _image_processor(checkpoint.folder)
    notes = []
    if processor is None:
        notes.append(f"{checkpoint.source}: has no preprocessor_config.json; OpenAI's mean and deviation were written")
    preprocess, said = preprocess_cfg(processor or {}, model_cfg["vision_cfg"]["image_size"])
    is_own = is_clips_own(checkpoint.folder)
    if is_own is None and model_cfg["text_cfg"]["vocab_size"] != _CLIP_WORDS:
        notes.append(f"{checkpoint.source}: has no tokenizer, and its vocabulary is not CLIP's; OpenCLIP will need one")
    if is_own is False:
        # from a folder OpenCLIP reads the files there whatever the name says; on the Hub it must be the repository's
        model_cfg["text_cfg"]["hf_tokenizer_name"] = name
        notes.append(
            f"the tokenizer is not CLIP's own: text_cfg.hf_tokenizer_name is '{name}'; make it ORG/NAME when you "
            "publish"
        )
    if is_own is not None:
        _copy_tokenizer(folder, checkpoint.folder)
    _write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    return notes + said


def _image_processor(folder: Path) -> dict[str, Any] | None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if file.is_file():
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
                found = data.get("image_processor", data)
                if isinstance(found, dict) and found:
                    return found
            except (ValueError, AttributeError) as error:
                raise CheckpointError(f"{file}: cannot be read as JSON ({error})") from None
    return None


def _copy_tokenizer(folder: Path, source: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


class _ByteCount:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress.advance(self._done, self._total)
