"""Side files that are copied along with the weights: only those that loaders read, without private
fields.

A stranger's folder may contain a link to somebody's keys under the name of a vocabulary, and the
user's own may contain notes and passwords. So only files with the names listed here are copied,
only regular ones inside the folder, and JSON loses the fields with paths on the machine that saved
it.
"""

from __future__ import annotations

import filecmp
import json
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from clipmerge.errors import CheckpointError
from clipmerge.files.limits import MAX_SIDE_FILE_BYTES
from clipmerge.files.reading import parse_json, read_bytes, read_json, refusing
from clipmerge.types import Json

#: Vocabularies: a folder with one of these has a tokenizer.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
#: Files of an image processor, the one that is read first in front.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: All files that a tokenizer may consist of.
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
#: Files that licences require to be passed on.
LICENCE_FILES = tuple(
    f"{name}{suffix}"
    for name in ("LICENSE", "LICENCE", "NOTICE", "COPYING")
    for suffix in ("", ".txt", ".md")
)
#: Files that transformers, tokenizers and open_clip read beside weights, and those of licences.
SIDE_FILES = frozenset(
    {
        "config.json",
        "open_clip_config.json",
        "generation_config.json",
        *PROCESSORS,
        "video_preprocessor_config.json",
        *TOKENIZER_FILES,
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
        *LICENCE_FILES,
    }
)
#: Where a path may begin in a text, and the beginnings of paths on somebody's machine; `/x` alone
#: may be a token.
PATH_STARTS = r"(?:(?<=[\s\"'`=(,;:])|^)"
MACHINE_PATH = (
    r"~[\w.\-]*[\\/]|[A-Za-z]:[\\/]|\\\\|\.\.?[\\/](?=\w)|\$\{?[A-Za-z_]\w*\}?[\\/]|%\w+%[\\/]"
)
_WITHIN = re.compile(rf"{PATH_STARTS}(?:{MACHINE_PATH}|/[^/\s][^/\n]*/|file:)")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{12,}")
_SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")
# Files in which any text may be a word of a vocabulary, and a field in which any text may be code.
_WORDS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})
_PROGRAM = "chat_template"
# OpenCLIP builds a text tower of transformers from this name, which may be a folder. It is copied
# but not published.
_NEEDED = ("hf_model_name",)
# Fields with paths on the machine where a model was saved, which no loader needs; and with code
# that is not copied.
_PATH_FIELDS = frozenset(
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
    }
)
# Fields with secrets; in a vocabulary, the same names are words with numbers.
_SECRETS = frozenset(
    {
        "token",
        "use_auth_token",
        "hub_token",
        "hf_token",
        "api_key",
        "access_token",
        "password",
        "secret",
    }
)


class NotJsonError(CheckpointError):
    """A file with the name of a JSON file cannot be read as JSON, so its content is unknown."""


def find_inside(folder: Path, name: str) -> Path | None:
    """Find a regular file of a folder, links resolved; ``None`` if there is none, or it is
    elsewhere.

    A link is allowed if it stays in the folder, or leads from a snapshot of the Hub's cache to the
    cache's own blobs.
    """
    path = folder / name
    try:
        return path.resolve(strict=True) if path.is_file() and lies_in(folder, path) else None
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None


def lies_in(folder: Path, path: Path) -> bool:
    """Whether a path, with links resolved, is in a folder, or in the blobs of the Hub's cache for
    that snapshot.
    """
    home = folder.resolve()
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        # RuntimeError: links in a circle, until Python 3.13
        return False
    for snapshots in home.parents:  # models--ORG--NAME/snapshots/COMMIT
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith(
            ("models--", "datasets--")
        ):
            blobs = snapshots.parent / "blobs"
            return home in target.parents or (blobs in target.parents and not blobs.is_symlink())
    return home in target.parents


def require_inside(folder: Path, name: str) -> Path | None:
    """Find a regular file that is needed, if there is one; a link out of the folder is an error."""
    file = find_inside(folder, name)
    path = folder / name
    if file is None and path.is_symlink() and path.exists():
        raise CheckpointError(
            f"{path}: is a link out of its folder, to {path.resolve()}; put the file itself there"
        )
    return file


def copy_side_file(source: Path, target: Path) -> None:
    """Copy one file; JSON loses the fields with paths on the machine that saved it, unless a loader
    needs them.
    """
    target.write_bytes(side_file_bytes(source, target.name, exempt_fields=_NEEDED))


def side_file_bytes(source: Path, name: str, *, exempt_fields: Container[str] = ()) -> bytes:
    """Read the content of one file to pass on; JSON loses the fields with paths on the machine that
    saved it.
    """
    with refusing(CheckpointError, f"{source}: cannot be read"):
        content = read_bytes(source, MAX_SIDE_FILE_BYTES)
    try:
        return (
            _without_private_fields(content, exempt_fields, words=name in _WORDS)
            if name.endswith(".json")
            else content
        )
    except ValueError as error:  # it could hold anything, and loaders do not read it
        raise NotJsonError(
            f"{source}: cannot be read as JSON ({error}); repair or remove it"
        ) from None


def holds_a_secret(content: bytes) -> bool:
    """Whether a file holds a token of the Hub or a private key, whatever its format."""
    return _SECRET.search(content) is not None


def _without_private_fields(content: bytes, exempt_fields: Container[str], *, words: bool) -> bytes:
    """Drop the fields with paths; a file without such fields keeps its bytes."""
    repeated = []

    def built(pairs: Iterable[tuple[str, Any]]) -> Json:
        pairs = list(pairs)
        data = dict(pairs)
        if len(data) < len(pairs):
            repeated.append(data)  # a value that nobody reads could hold anything
        return data

    data = parse_json(content.decode("utf-8-sig"), pairs=built, halves=True)
    cleaned = without_private_fields(data, exempt_fields, words=words)
    return (
        content
        if cleaned == data and not repeated
        else f"{json.dumps(cleaned, indent=2)}\n".encode()
    )


def without_private_fields(
    data: Any, exempt_fields: Container[str] = (), *, words: bool = False
) -> Any:
    """Copy a JSON value without paths on the machine that saved it, tokens of the Hub, and
    references to code.

    Fields are recognised by their names, or by a text with an absolute path;
    ``exempt_fields`` stay with any value.
    """
    if isinstance(data, dict):
        named_so = _PATH_FIELDS | {
            key for key, value in data.items() if key in _SECRETS and isinstance(value, str)
        }
        names = (key for key in data if key not in named_so and (words or not _is_private(key)))
        return {
            key: without_private_fields(data[key], exempt_fields, words=words)
            for key in names
            if key in exempt_fields or key == _PROGRAM or not _is_private(data[key])
        }
    if isinstance(data, list):
        return [
            without_private_fields(value, exempt_fields, words=words)
            for value in data
            if words or not _is_private(value)
        ]
    return data


def _is_private(value: Any) -> bool:
    return isinstance(value, str) and (_WITHIN.search(value) or _TOKEN.search(value)) is not None


def read_side_json(folder: Path, name: str) -> Json | None:
    """Read a JSON object beside the weights; ``None`` if there is no such file."""
    path = require_inside(folder, name)
    if path is None:
        return None
    with refusing(CheckpointError, f"{folder / name}: cannot be read as JSON"):
        data = read_json(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{folder / name}: is not a JSON object")
    return data


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Read the ids of the tokens of the tokenizer beside the weights; ``None`` if there is none, or
    if its file does not list them by id.
    """
    try:
        vocabulary: Any = read_side_json(folder, "vocab.json")
        if vocabulary is None:
            tokenizer: Any = read_side_json(folder, "tokenizer.json")
            vocabulary = tokenizer["model"]["vocab"]
        return {str(token): int(index) for token, index in vocabulary.items()}
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def have_same_vocabulary_files(one: Path, other: Path) -> bool:
    """Whether two folders have the same vocabularies, byte for byte."""
    pairs = [(find_inside(one, name), find_inside(other, name)) for name in VOCABULARIES]
    return all(a == b or (a and b and filecmp.cmp(a, b, shallow=False)) for a, b in pairs)


def read_image_processor(folder: Path) -> Json | None:
    """Read the settings of the image processor beside the weights; ``None`` if there are none."""
    for name in PROCESSORS:
        data = read_side_json(folder, name) or {}
        settings = data.get("image_processor", data)
        if isinstance(settings, dict) and settings:
            return settings
    return None
