"""The texts beside the shards of a data set: class names, prompt templates, the kind of set, and
the number of shards.

CLIP_benchmark writes them as follows: ``classnames.txt`` (line i names class i),
``zeroshot_classification_templates.txt`` (``{c}`` stands for the class) and ``dataset_type.txt`` at
the root, ``nshards.txt`` in the folder of each split.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path, PurePath

from clipmerge.errors import DataError
from clipmerge.files.reading import read_text, refusing
from clipmerge.files.side_files import lies_in

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
KIND = "dataset_type.txt"
SHARDS = "nshards.txt"
_RETRIEVAL, _CLASSIFICATION = "retrieval", "classification"


@dataclass(frozen=True)
class Description:
    """The content of the texts; defaults for missing texts."""

    # name of each class, as used in prompts; ``None`` if the set has no names
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ()  # prompt templates with ``{}`` for the class
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

    def counted_shards(
        self, source: str, folder: PurePath, there: Container[str] | None
    ) -> list[str]:
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
                " --template"
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
