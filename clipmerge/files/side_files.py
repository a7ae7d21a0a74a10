"""Side files that are copied along with the weights: only those that loaders read, without private fields.

A stranger's folder may contain a link to somebody's keys under the name of a vocabulary, and the user's own may contain
notes and passwords. So only files with the names listed here are copied, only regular ones inside the folder, and JSON
loses the fields with paths on the machine that saved it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from clipmerge.errors import CheckpointError
from clipmerge.files.limits import LARGEST_SIDE_FILE
from clipmerge.files.reading import Unreadable, parse_json, read_bytes, read_json

#: Vocabularies: a folder with one of these has a tokenizer.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
#: All files that a tokenizer may consist of.
TOKENIZER_FILES = (
    *VOCABULARIES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
#: Files that transformers, tokenizers and open_clip read beside weights, and files that licences require to pass on.
SIDE_FILES = frozenset(
    {
        *("config.json", "open_clip_config.json", "generation_config.json"),
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        *TOKENIZER_FILES,
        "tokenizer.model",
        *("chat_template.jinja", "chat_template.json"),
        *(f"{name}{suffix}" for name in ("LICENSE", "LICENCE", "NOTICE", "COPYING") for suffix in ("", ".txt", ".md")),
    }
)
#: Follows the names of such files in a note; notes are published without these names.
NOT_COPIED = "not copied: "
# Absolute paths, of which a token of a vocabulary has no second slash.
_ABSOLUTE = re.compile(r"~[\w.\-]*/|/[^/\s]+/|[A-Za-z]:[\\/]|\\\\|file:")
# OpenCLIP builds a text tower of transformers from this name, which may be a folder. It is copied but not published.
_NEEDED = ("hf_model_name",)
# Fields with paths on the machine where a model was saved; no loader needs them.
_PLACES = frozenset(
    {
        *("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file"),
        *("added_tokens_file", "tokenizer_config_file", "chat_template_file", "cache_dir", "_commit_hash"),
    }
)


def inside(folder: Path, name: str) -> Path | None:
    """Find a regular file of a folder.

    A link is allowed if it stays in the folder, or leads from a snapshot of the Hub's cache to the cache's own blobs.

    Args:
        folder: The folder.
        name: The file's name in it.

    Returns:
        The file itself, with links resolved; ``None`` if there is none, or it is elsewhere.
    """
    path = folder / name
    try:
        return path.resolve(strict=True) if path.is_file() and lies_in(folder, path) else None
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None


def lies_in(folder: Path, path: Path) -> bool:
    """Whether a path, with links resolved, is in a folder, or in the blobs of the Hub's cache for that snapshot."""
    home = folder.resolve()
    try:
        place = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle, until Python 3.13
        return False
    return home in place.parents or _blobs(home) in place.parents


def _blobs(folder: Path) -> Path | None:
    """The blobs of a Hub cache, if the folder is a snapshot in it: ``models--ORG--NAME/snapshots/COMMIT``."""
    repository = folder.parent.parent
    blobs = repository / "blobs"
    is_snapshot = folder.parent.name == "snapshots" and repository.name.startswith(("models--", "datasets--"))
    return blobs if is_snapshot and not blobs.is_symlink() else None


def require_inside(folder: Path, name: str) -> Path | None:
    """Find a regular file that is needed; see `inside`.

    Returns:
        The file; ``None`` if there is none.

    Raises:
        CheckpointError: If it is a link out of the folder.
    """
    file, path = inside(folder, name), folder / name
    if file is None and path.is_symlink() and path.exists():
        raise CheckpointError(f"{path}: is a link out of its folder, to {path.resolve()}; put the file itself there")
    return file


def copy_side_file(source: Path, target: Path) -> None:
    """Copy one file; JSON loses the fields with paths on the machine that saved it, unless a loader needs them.

    Args:
        source: A regular file, from `inside`.
        target: Path of the copy.

    Raises:
        CheckpointError: If it cannot be read.
        OSError: If it cannot be written.
    """
    target.write_bytes(side_file_bytes(source, target.name, kept=_NEEDED))


def side_file_bytes(source: Path, name: str, *, kept: Container[str] = ()) -> bytes:
    """Read the content of one file to pass on; JSON loses the fields with paths on the machine that saved it.

    Args:
        source: A regular file; in the Hub's cache it has another name.
        name: Its name beside the weights.
        kept: Fields that stay even if their value is an absolute path.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        content = read_bytes(source, LARGEST_SIDE_FILE)
    except Unreadable as error:
        raise CheckpointError(f"{source}: cannot be read ({error})") from None
    return _without_places(content, kept) if name.endswith(".json") else content


def _without_places(content: bytes, kept: Container[str]) -> bytes:
    """Drop the fields with paths; a file without such fields keeps its bytes."""
    try:
        data = parse_json(content.decode("utf-8"), halves=True)
    except ValueError:  # not JSON in spite of its name; loaders will report it
        return content
    cleaned = without_places(data, kept)
    if cleaned == data:
        return content
    try:
        return f"{json.dumps(cleaned, indent=2, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can express
        return f"{json.dumps(cleaned, indent=2)}\n".encode()


def without_places(data: Any, kept: Container[str] = ()) -> Any:
    """Copy a JSON value without the fields with paths on the machine that saved it.

    These are known by their names, or by a value that is an absolute path; fields in ``kept`` stay with any value.

    Example:
        >>> without_places({"_name_or_path": "clip", "data": "/home/me/x", "text_config": {"vocab_size": 3}})
        {'text_config': {'vocab_size': 3}}
    """
    if isinstance(data, dict):
        items = ((key, value) for key, value in data.items() if key not in _PLACES)
        return {key: without_places(value, kept) for key, value in items if key in kept or not _is_path(value)}
    return [without_places(value, kept) for value in data] if isinstance(data, list) else data


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and _ABSOLUTE.match(value) is not None


def read_side_json(folder: Path, name: str) -> dict[str, Any] | None:
    """Read a JSON object beside the weights.

    Returns:
        The object; ``None`` if there is no such file.

    Raises:
        CheckpointError: If it is a link out of the folder, or cannot be read as a JSON object.
    """
    path = require_inside(folder, name)
    if path is None:
        return None
    try:
        data = read_json(path)
    except Unreadable as error:
        raise CheckpointError(f"{folder / name}: cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{folder / name}: is not a JSON object")
    return data
