"""Columns of images, labels and captions: found in a table, and turned into classes or captions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipmerge.errors import DataError, NoLabelsError, counted, did_you_mean, is_utf8, shorten
from clipmerge.files.reading import parse_json
from clipmerge.images.store import OpenedSource, Store
from clipmerge.types import Json, Names, Shape

if TYPE_CHECKING:
    import pyarrow

#: More classes than any classifier from prompts has. A larger label is an id, and names for all
#: smaller numbers would fill memory.
_MOST_CLASSES = 1_000_000
#: Usual names of label columns, for tables whose types do not show it; the first one present is
#: used.
LABEL_NAMES = ("label", "labels", "class", "cls", "target", "class_name", "category")
#: A class name with a number in front, such as ``001.Black_footed_Albatross`` or ``0 - zero``.
NUMBERED = re.compile(r"(?P<number>\d{1,18}) ?[._-]+ ?(?P<name>[^\W\d_].*)", re.ASCII | re.DOTALL)
_FIRST_NUMBER = re.compile(r"\d+", re.ASCII)
_DIGITS = re.compile(r"-?\d{1,18}", re.ASCII)
#: Usual names of caption columns, in order of preference.
CAPTION_NAMES = (
    "caption",
    "captions",
    "text",
    "texts",
    "title",
    "sentence",
    "sentences",
    "description",
    "alt_text",
    "prompt",
)
# Texts are captions if their mean number of words is at least this and most of them differ.
_WORDS_OF_A_CAPTION = 3
_LABEL_OR_CAPTION = "`label_column` or `caption_column`"
_IMAGE_NAMES = ("image", "img", "jpg", "png", "webp", "picture")


@dataclass(frozen=True)
class Columns:
    """The columns that the user named; ``None`` to find them."""

    image: str | None = None  # column of a table, or ending of a tar's files
    label: str | None = None  # the same; ``json.KEY`` for a key of a tar's JSON files
    caption: str | None = None  # the same; naming it asks for captions in place of classes
    # whether labels are read. If not, every image has the label 0, and ``image`` is used only if
    # there is such a column
    labelled: bool = True
    # whether images that cannot be read are left out; otherwise they are an error
    skip_unreadable: bool = False


@dataclass(frozen=True)
class TableColumns:
    """A table's columns: at most one of ``label`` and ``caption``, and the ``names`` of the classes
    if the table has them.
    """

    image: str
    label: str | None = None
    names: Names | None = None
    caption: str | None = None

    @property
    def texts(self) -> str | None:
        """The column of labels or captions; ``None`` if neither is read."""
        return self.label or self.caption

    def opened(self, where: str, store: Store, values: Sequence[Any]) -> OpenedSource:
        """The table's images with the values of `texts`, one for each image."""
        if self.caption is None:
            return OpenedSource(store, *number_classes(where, values, self.names))
        captions = caption_lists(where, values, store.name)
        note = f"{where}: images with captions, from column '{self.caption}'"
        return OpenedSource.with_captions(store, captions, notes=(note,))


def find_columns(where: str, schema: pyarrow.Schema, wanted: Columns) -> TableColumns:
    """Choose the columns of a table.

    An image column is one of the type ``Image`` of `datasets`, a struct with ``bytes``, or binary.
    A label column is a ``ClassLabel``, or an integer or string column with a usual name; a caption
    column, for tables without labels, is one of texts or lists of texts with a usual name.
    """
    described = _described(schema)
    if not wanted.labelled:
        wanted = Columns(image=wanted.image if wanted.image in described else None, labelled=False)
    check_named(where, wanted, described)
    image = wanted.image
    if image is None:
        holding = [name for name in described if _holds_images(schema.field(name).type)]
        typed = [name for name in holding if described[name].get("_type") == "Image"]
        image = _choose(where, "image", "`image_column`", typed or holding, _IMAGE_NAMES, described)
    if not _holds_images(schema.field(image).type):
        raise DataError(f"{where}: column '{image}' holds {schema.field(image).type}, not images")
    if not wanted.labelled:
        return TableColumns(image)
    caption = wanted.caption
    if caption is not None and not _holds_captions(schema.field(caption).type):
        raise DataError(
            f"{where}: column '{caption}' holds {schema.field(caption).type}; a caption is a text,"
            " or a list of texts"
        )
    names = {
        name: _class_names(schema.field(name).type, about) for name, about in described.items()
    }
    label = wanted.label
    if label is None and caption is None:
        candidates = [name for name in described if names[name] is not None]
        if not candidates:
            usual = [name for name in LABEL_NAMES if name in described and name != image]
            plain = [name for name in usual if _holds_labels(schema.field(name).type)]
            # a wrong type is refused as such, not reported as missing
            candidates = (plain or usual)[:1]
        captions = [
            name
            for name in CAPTION_NAMES
            if name in described and _holds_captions(schema.field(name).type)
        ]
        if captions and not candidates:
            caption = captions[0]
        else:
            label = _choose(
                where, "label or caption", _LABEL_OR_CAPTION, candidates, LABEL_NAMES, described
            )
    if caption is not None:
        return TableColumns(image, caption=caption)
    assert label is not None
    if not _holds_labels(schema.field(label).type):
        hint = "" if wanted.label else "; name another with `label_column`"
        raise DataError(
            f"{where}: column '{label}' holds {schema.field(label).type}; a label is one number or"
            f" one text per image{hint}"
        )
    return TableColumns(image, label, names[label])


def check_named(where: str, wanted: Columns, columns: Iterable[str]) -> None:
    """Refuse columns that the user named and the table does not have, and labels with captions."""
    columns = list(columns)
    if wanted.label is not None and wanted.caption is not None:
        raise DataError(
            f"{where}: `label_column` asks for classes and `caption_column` for captions; give one"
            " of them"
        )
    named = {
        "`image_column`": wanted.image,
        "`label_column`": wanted.label,
        "`caption_column`": wanted.caption,
    }
    for parameter, name in named.items():
        if name is not None and name not in columns:
            hint = did_you_mean(name, columns)
            raise DataError(
                f"{where}: no column '{name}' for {parameter} (columns:"
                f" {shorten(columns, 12)}).{hint}"
            )


def _described(schema: pyarrow.Schema) -> dict[str, Json]:
    """Each column's description by `datasets`, without making its types: some read files."""
    features: Any = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = (schema.metadata or {})[b"huggingface"].decode("utf-8")
        features = dict(parse_json(text)["info"]["features"])
    return {
        name: about if isinstance(about := features.get(name), dict) else {}
        for name in schema.names
    }


def _class_names(kind: pyarrow.DataType, about: Json) -> Names | None:
    from pyarrow import types

    names = (
        about.get("names")
        if about.get("_type") == "ClassLabel" and types.is_integer(kind)
        else None
    )
    return (
        tuple(names)
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
        else None
    )


def _choose(
    where: str,
    what: str,
    flag: str,
    candidates: list[str],
    usual: Sequence[str],
    columns: Iterable[str],
) -> str:
    if not candidates:
        error = NoLabelsError if flag == _LABEL_OR_CAPTION else DataError
        raise error(
            f"{where}: no {what} column found (columns: {shorten(columns, 12)}); name it with"
            f" {flag}"
        )
    preferred = [name for name in usual if name in candidates]
    if len(candidates) > 1 and not preferred:
        raise DataError(
            f"{where}: several {what} columns ({shorten(candidates)}); name the one you mean with"
            f" {flag}"
        )
    return preferred[0] if preferred else candidates[0]


def _holds_images(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind)) or _holds_texts(kind)


def _holds_texts(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in tests)


def _holds_captions(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind)
    return _holds_texts(kind.value_type if is_list else kind)


def number_classes(
    where: str, labels: Sequence[int | str | None], names: Names | None = None
) -> tuple[Shape, Names, bool]:
    """Turn labels into class indices: their numbers, or the order of their texts.

    Returns:
        The index of each image, the class names, and whether these are names or bare numbers.
    """
    if not labels:
        raise DataError(f"{where}: holds no images")
    numbers = as_numbers(labels)
    labels = labels if numbers is None else numbers
    if missing := sum(label is None or (isinstance(label, int) and label < 0) for label in labels):
        some = counted(
            missing,
            f"of {len(labels)} images has no label",
            f"of {len(labels)} images have no label",
        )
        many = "no image has a label" if missing == len(labels) else some
        error = NoLabelsError if missing == len(labels) else DataError
        raise error(f"{where}: {many}; give a labelled split, such as validation")
    if numbers is None:
        classes = tuple(class_order({str(label) for label in labels}))
        index = {name: number for number, name in enumerate(classes)}
        return tuple(index[str(label)] for label in labels), classes, True
    if names is None:
        if max(numbers) >= _MOST_CLASSES:
            raise DataError(
                f"{where}: a label is {max(numbers)}, but there are {len(labels)} images; are the"
                " labels ids? Name the column of the labels with `label_column`"
            )
        return tuple(numbers), tuple(map(str, range(max(numbers) + 1))), False
    if max(numbers) >= len(names):
        raise DataError(
            f"{where}: label {max(numbers)} has no name; there are {len(names)} class names"
        )
    return tuple(numbers), names, True


def as_numbers(labels: Sequence[Any]) -> list[int] | None:
    """Labels as numbers, if all are numbers or texts of digits; otherwise ``None``."""
    if not all(
        isinstance(label, int) or (isinstance(label, str) and _DIGITS.fullmatch(label))
        for label in labels
    ):
        return None
    return list(map(int, labels))


def are_numbered(names: Iterable[str]) -> bool:
    """Whether all classes have a number in front of their names, and differ in both."""
    matches = [NUMBERED.fullmatch(name) for name in names]
    numbers = {int(match["number"]) for match in matches if match}
    texts = {match["name"] for match in matches if match}
    return len(matches) > 1 and len(numbers) == len(texts) == len(matches)


def class_order(names: Iterable[str]) -> list[str]:
    """Sort class names: by the numbers in front if all have one, otherwise by text."""
    ordered = sorted(names)
    if are_numbered(ordered):
        ordered.sort(key=lambda name: int(_FIRST_NUMBER.findall(name)[0]))
    return ordered


def look_like_captions(labels: Sequence[Any]) -> bool:
    """Whether texts are captions and not names of classes: several words each, and most differ.

    Example:
        >>> look_like_captions(["a dog on a bed", "two cats at play", "an old oak"])
        True
        >>> look_like_captions(["dog", "cat", "oak tree"])
        False
    """
    if not labels or not all(isinstance(label, str) for label in labels):
        return False
    words = sum(len(label.split()) for label in labels)
    return words >= _WORDS_OF_A_CAPTION * len(labels) and 2 * len(set(labels)) > len(labels)


def caption_lists(
    where: str, values: Iterable[Any], name_of: Callable[[int], str]
) -> tuple[Names, ...]:
    """The captions of each image: of a text its lines, of a list its texts.

    Args:
        where: The source, for messages.
        values: A text, or a list of texts, for each image.
        name_of: Name of an image by its position, for messages.
    """
    captions: list[Names] = []
    empty: list[str] = []
    for position, value in enumerate(values):
        texts = value.splitlines() if isinstance(value, str) else value
        texts = texts if isinstance(texts, list | tuple) else []
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: {name_of(position)} has a caption that is not a text")
        found = tuple(text.strip() for text in texts if text.strip())
        if not all(is_utf8(text) for text in found):
            raise DataError(f"{where}: the caption of {name_of(position)} is not UTF-8")
        if not found:
            empty.append(name_of(position))
        captions.append(found)
    if not captions:
        raise DataError(f"{where}: holds no images")
    if empty:
        have = counted(len(empty), "image has", "images have")
        raise DataError(
            f"{where}: {have} no caption (of {len(captions)}): {shorten(empty, 3)}; write one, or"
            " leave these images out"
        )
    return tuple(captions)
