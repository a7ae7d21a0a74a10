"""Files of a source: on this machine, or on the Hub, read in ranges; and the texts beside shards.

CLIP_benchmark writes these texts as follows: ``classnames.txt`` (line i names class i),
``zeroshot_classification_templates.txt`` (``{c}`` stands for the class) and ``dataset_type.txt`` at
the root, ``nshards.txt`` in the folder of each split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, TypeAlias

from clipmerge.errors import ClipmergeError, DataError, did_you_mean, shorten
from clipmerge.files.limits import MAX_FILES
from clipmerge.files.paths import local_path, split_part
from clipmerge.files.reading import open_regular, read_text, refusing
from clipmerge.files.side_files import lies_in
from clipmerge.types import Names

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
KIND = "dataset_type.txt"
SHARDS = "nshards.txt"
_RETRIEVAL, _CLASSIFICATION = "retrieval", "classification"
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_SHARD = re.compile(r"-\d+-of-\d+$")


#: Opens a file of a source by its name.
Opener: TypeAlias = Callable[[str], AbstractContextManager[IO[bytes]]]


@contextmanager
def open_local(name: str) -> Iterator[IO[bytes]]:
    """Open a file on this machine for reading anywhere in it; an error while it is read becomes one
    line.
    """
    try:
        with open_regular(Path(name)) as file:
            yield file
    except ClipmergeError:
        raise
    except Exception as error:  # pyarrow and tarfile raise their own for damaged files
        raise _damaged(name, error) from None


@contextmanager
def open_on_hub(system: HfFileSystem, address: str) -> Iterator[IO[bytes]]:
    """Open a file of a dataset on the Hub, of which only the ranges that are read are
    downloaded.
    """
    import pyarrow

    from clipmerge.hub.errors import explained

    with explained(f"reading {address}"):
        try:
            # without read-ahead: the reader knows which ranges it needs
            with system.open(address, "rb", cache_type="none") as file:
                yield file
        except (pyarrow.ArrowException, EOFError) as error:
            raise _damaged(address, error) from None


def _damaged(name: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
    kind = "a tar archive" if name.endswith(".tar") else "Parquet"
    return DataError(f"{name}: cannot be read as {kind} ({reason}); is it whole?")


def local_split(source: str) -> tuple[Path, str | None]:
    """The path of a source on this machine, and the split of ``DIR:SPLIT``, unless the whole is the
    name of a path.

    A folder inside DIR with the split's name is the path; so is, without a split, the only one with
    ``nshards.txt``, as in the sets of CLIP_benchmark.
    """
    path, split = local_path(source), None
    before, colon, after = source.rpartition(":")
    if colon and after and not path.exists() and local_path(before).is_dir():
        path, split = local_path(before), after
        return (path / split, None) if (path / split).is_dir() else (path, split)
    splits = sorted(file.parent.name for file in path.glob(f"*/{SHARDS}"))
    if len(splits) > 1:
        raise DataError(
            f"{source}: holds several splits ({shorten(splits)}); write {source}:{splits[0]}"
        )
    return (path / splits[0] if splits else path), split


def expand(source: str, suffix: str) -> list[str]:
    """Paths of the files named by a source: one file, ``{00..11}`` ranges, or a folder of files;
    empty if none.
    """
    path, split = local_split(source)
    if path.is_dir():
        return _in_folder(source, path, suffix, split)
    if path.suffix != suffix:
        return []
    files = expand_ranges(str(path))
    if missing := [file for file in files if not Path(file).is_file()]:
        raise DataError(
            f"{source}: no such file" + (f": {shorten(missing)}" if len(files) > 1 else "")
        )
    return files


def expand_ranges(text: str) -> list[str]:
    """Expand numeric ranges in a path or address, with the leading zeros of their first number.

    Example:
        >>> expand_ranges("val-{08..10}.tar")
        ['val-08.tar', 'val-09.tar', 'val-10.tar']
    """
    count = 1
    for match in _RANGE.finditer(text):
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise DataError(f"{text}: {match[0]} runs backwards; write {{{match[2]}..{match[1]}}}")
        count *= last - first + 1
    if count > MAX_FILES:
        raise DataError(
            f"{text}: names {count} files, more than {MAX_FILES}; give the range of those there are"
        )
    pieces = _RANGE.split(text)  # text, first, last, text, first, last, ..., text
    files = [pieces[0]]
    for begin, end, after in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        numbers = [f"{number:0{len(begin)}}" for number in range(int(begin), int(end) + 1)]
        files = [f"{file}{number}{after}" for file in files for number in numbers]
    return files


def _in_folder(source: str, folder: Path, suffix: str, split: str | None) -> list[str]:
    files = sorted(
        file
        for file in folder.glob(f"*{suffix}")
        if file.is_file() and not file.name.startswith(".")
    )
    refuse_links(source, folder, files)
    if suffix == ".tar" and (folder / SHARDS).is_file():
        described, there = describe_folder(folder), {file.name for file in files}
        files = [folder / name for name in described.shard_names(source, folder, there)]
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_SHARD.sub("", file.stem), []).append(str(file))
    if split is not None and files:
        if split not in splits:
            hint = did_you_mean(split, splits)
            raise DataError(f"{source}: no split '{split}' (splits: {shorten(splits)}).{hint}")
        return splits[split]
    sharded = sorted({_SHARD.sub("", file.stem) for file in files if _SHARD.search(file.stem)})
    if len(sharded) > 1:
        raise DataError(
            f"{source}: holds several splits ({shorten(sharded)}); write {source}:{sharded[0]}"
        )
    return [str(file) for file in files]


def refuse_links(source: str, folder: Path, files: Iterable[Path]) -> None:
    """Refuse files of a source that are links out of its folder, because they may lead to
    anything.
    """
    if leading_out := [
        str(file) for file in files if file.is_symlink() and not lies_in(folder, file)
    ]:
        raise DataError(
            f"{source}: {shorten(leading_out, 3)} are links out of it; put the files themselves"
            " there, or give the folder that holds them"
        )


def local_inputs(*named: str | Path | None) -> list[Path]:
    """Local files and folders named by flags, with or without ``{00..11}`` ranges; an output must
    not contain them.
    """
    paths: list[Path] = []
    for text in [str(name) for name in named if name]:
        # braces may also be part of a name
        folder = local_path(text.rpartition(":")[0])  # of DIR:SPLIT
        texts = [text] if local_path(text).exists() else expand_ranges(split_part(text)[0])
        paths += [folder] if ":" in text and folder.is_dir() else []
        paths += map(local_path, texts)
    return [path for path in paths if path.exists()]


@dataclass(frozen=True)
class Description:
    """The content of the texts; defaults for missing texts."""

    # name of each class, as used in prompts; ``None`` if the set has no names
    class_names: Names | None = None
    templates: Names = ()  # prompt templates with ``{}`` for the class
    kind: str = (
        _CLASSIFICATION  # ``classification``, ``retrieval`` or another word that the set uses
    )
    shards: int | None = None  # number of shards of the split

    @property
    def is_retrieval(self) -> bool:
        """Whether images come with captions instead of classes."""
        return self.kind == _RETRIEVAL

    def require_classes(self, source: str) -> None:
        """Refuse a set whose images have no single class."""
        if self.kind != _CLASSIFICATION:
            raise DataError(
                f"{source}: {KIND} says '{self.kind}'; accuracy needs one class per image"
                f" (dataset_type '{_CLASSIFICATION}')"
            )

    def shard_names(self, source: str, folder: PurePath, there: Container[str] | None) -> list[str]:
        """Names of the split's shards, as they are counted in its folder; none may be missing from
        ``there``.
        """
        names = [f"{number}.tar" for number in range(self.shards or 0)]
        if missing := [name for name in names if there is not None and name not in there]:
            raise DataError(
                f"{source}: {folder / SHARDS} counts {len(names)} shards, but {len(missing)} of"
                f" them cannot be found (first {missing[0]}); add them, or correct the number"
            )
        return names


def read_description(find: Callable[[str], Path | None]) -> Description:
    """Read the texts."""
    names, kinds = _lines(find(CLASS_NAMES)), _lines(find(KIND))
    file, numbers = find(TEMPLATES), find(SHARDS)  # once, not for every line
    templates, shards = [line.replace("{c}", "{}") for line in _lines(file)], _lines(numbers)[:1]
    for line in templates:
        if "{}" not in line:
            raise DataError(
                f"{file}: '{line[:60]}' has no {{c}} for the class name; give templates with"
                " `template`"
            )
    for line in shards:
        if not (line.isascii() and line.isdigit() and len(line) < 7 and int(line) > 0):
            raise DataError(f"{numbers}: '{line[:60]}' is not a number of shards")
    return Description(
        class_names=tuple(names) or None,
        templates=tuple(templates),
        kind=kinds[0].lower() if kinds else _CLASSIFICATION,
        shards=int(shards[0]) if shards else None,
    )


def describe_folder(folder: Path) -> Description:
    """Read the texts in a folder of shards, or in its parent."""

    def find(name: str) -> Path | None:
        files = [folder / name] if name == SHARDS else [folder / name, folder.parent / name]
        found = next((file for file in files if file.is_file()), None)
        if found is not None and not lies_in(found.parent, found):
            raise DataError(
                f"{found}: is a link out of its folder, to {found.resolve()}; put the file itself"
                " there"
            )
        return found

    return read_description(find)


def _lines(file: Path | None) -> list[str]:
    """Lines without surrounding white space, and without empty lines at the end."""
    if file is None:
        return []
    with refusing(DataError, f"{file}: cannot be read"):
        return [
            line.strip() for line in read_text(file, encoding="utf-8-sig").rstrip().splitlines()
        ]
