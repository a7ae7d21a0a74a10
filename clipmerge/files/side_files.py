"""Files beside the weights: configuration, processor, tokenizer, licence.

A merge copies only files that loaders read, and leaves out private fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipmerge.errors import CheckpointError
from clipmerge.types import Json

#: Vocabularies; a folder with one of them has a tokenizer.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
#: Files of an image processor, in the order in which loaders look for them.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: Files that transformers, tokenizers and open_clip read beside weights, and licences.
SIDE_FILES = frozenset(
    {
        "config.json",
        "open_clip_config.json",
        "generation_config.json",
        "video_preprocessor_config.json",
        *PROCESSORS,
        *VOCABULARIES,
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
        *(
            f"{name}{suffix}"
            for name in ("LICENSE", "LICENCE", "NOTICE", "COPYING")
            for suffix in ("", ".txt", ".md")
        ),
    }
)
# Files whose keys are words of a vocabulary.
_WORDS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})
# Fields that no loader needs: paths on the machine that saved the model, secrets, and names of code
# files, which are not copied.
_PRIVATE = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_file",
        "vocab_file",
        "merges_file",
        "added_tokens_file",
        "tokenizer_config_file",
        "chat_template_file",
        "cache_dir",
        "_commit_hash",
        "auto_map",
        "custom_pipelines",
        "token",
        "use_auth_token",
        "hub_token",
        "hf_token",
    }
)


def copy_side_file(source: Path, target: Path) -> None:
    """Copy a file; JSON is written without its private fields, if it has any."""
    content = source.read_bytes()
    if target.suffix == ".json" and target.name not in _WORDS:
        data = read_side_json(source.parent, source.name)
        public = json.loads(json.dumps(data), object_hook=_without_private_fields)
        if public != data:
            content = f"{json.dumps(public, indent=2)}\n".encode()
    target.write_bytes(content)


def _without_private_fields(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if name not in _PRIVATE}


def read_side_json(folder: Path, name: str) -> Json | None:
    """Read a JSON object beside the weights; ``None`` if there is no such file."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not JSON
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: is not a JSON object; copy it again")
    return data


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Read the token ids of the tokenizer beside the weights; empty if no file lists them."""
    try:
        vocabulary: Any = read_side_json(folder, "vocab.json")
        if vocabulary is None:
            tokenizer: Any = read_side_json(folder, "tokenizer.json")
            vocabulary = tokenizer["model"]["vocab"]
        return {str(token): int(index) for token, index in vocabulary.items()}
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_image_processor(folder: Path) -> Json:
    """Read the settings of the image processor beside the weights; empty if there is none."""
    for name in PROCESSORS:
        data = read_side_json(folder, name) or {}
        settings = data.get("image_processor", data)
        if isinstance(settings, dict) and settings:
            return settings
    return {}
