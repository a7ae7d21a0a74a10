"""The texts that CLIP_benchmark writes beside tar shards.

``classnames.txt`` (line i names class i), ``zeroshot_classification_templates.txt`` (``{c}`` stands
for the class) and ``dataset_type.txt`` at the root, ``nshards.txt`` in the folder of each split.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from clipmerge.errors import DataError
from clipmerge.files.reading import read_text, refusing
from clipmerge.files.side_files import lies_in
from clipmerge.types import Names

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
KIND = "dataset_type.txt"
SHARDS = "nshards.txt"
_CLASSIFICATION = "classification"


@dataclass(frozen=True)
class Description:
    """The content of the texts; defaults for missing texts."""

    # name of each class, as used in prompts; ``None`` if the set has no names
    class_names: Names | None = None
    templates: Names = ()  # prompt templates with ``{}`` for the class
    kind: str = _CLASSIFICATION  # or ``retrieval``, or another word that the set uses
    shards: int | None = None  # number of shards of the split

    @property
    def is_retrieval(self) -> bool:
        """Whether images come with captions instead of classes."""
        return self.kind == "retrieval"

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


def read_description(files: Mapping[str, Path]) -> Description:
    """Read the texts, by their usual names."""
    texts = {name: _lines(file) for name, file in files.items()}
    templates = [line.replace("{c}", "{}") for line in texts.get(TEMPLATES, ())]
    for line in templates:
        if "{}" not in line:
            raise DataError(
                f"{files[TEMPLATES]}: '{line[:60]}' has no {{c}} for the class name; give templates"
                " with `template`"
            )
    shards = texts.get(SHARDS, [])[:1]
    for line in shards:
        if not (line.isascii() and line.isdigit() and len(line) < 7 and int(line) > 0):
            raise DataError(f"{files[SHARDS]}: '{line[:60]}' is not a number of shards")
    return Description(
        class_names=tuple(texts.get(CLASS_NAMES, ())) or None,
        templates=tuple(templates),
        kind=(texts.get(KIND) or [_CLASSIFICATION])[0].lower(),
        shards=int(shards[0]) if shards else None,
    )


def describe_folder(folder: Path) -> Description:
    """Read the texts in a folder of shards, or in its parent."""
    files: dict[str, Path] = {}
    for name in (CLASS_NAMES, TEMPLATES, KIND, SHARDS):
        folders = (folder,) if name == SHARDS else (folder, folder.parent)
        file = next((parent / name for parent in folders if (parent / name).is_file()), None)
        if file is not None and not lies_in(file.parent, file):
            raise DataError(
                f"{file}: is a link out of its folder, to {file.resolve()}; put the file itself"
                " there"
            )
        files |= {} if file is None else {name: file}
    return read_description(files)


def _lines(file: Path) -> list[str]:
    """Lines without surrounding white space, and without empty lines at the end."""
    with refusing(DataError, f"{file}: cannot be read"):
        text = read_text(file)
        return [line.strip() for line in text.rstrip().splitlines()]
