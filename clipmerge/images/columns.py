"""Columns of images, labels and captions, found in a table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipmerge.errors import DataError, NoLabelsError, did_you_mean, shorten
from clipmerge.files.reading import parse_json
from clipmerge.finding import Finding
from clipmerge.images.source import Columns, Source
from clipmerge.images.store import Store
from clipmerge.types import Json, Names

if TYPE_CHECKING:
    import pyarrow

#: Usual names of columns of labels, and of captions, in order of preference; for tables whose types
#: do not show them.
LABEL_NAMES = ("label", "labels", "class", "cls", "target", "class_name", "category")
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
#: Names of columns with names of image files.
FILE_NAMES = ("file_name", "filepath", "file", "path", "image", "image_path", "filename")
_LABELS = ("numbers", "texts", "any")
_CAPTIONS = ("texts", "lists", "any")
_IMAGE_NAMES = ("image", "img", "jpg", "png", "webp", "picture")


@dataclass(frozen=True)
class TableColumns:
    """A table's columns: at most one of ``label`` and ``caption``, and the ``names`` of the classes
    if the table has them.
    """

    image: str
    label: str | None = None
    names: Names | None = None
    caption: str | None = None
    unread: str | None = None  # captions that are there beside labels

    @property
    def text_column(self) -> str | None:
        """The column of labels or captions; ``None`` if neither is read."""
        return self.label or self.caption

    def to_source(self, title: str, store: Store, values: Sequence[Any] | None) -> Source:
        """The table's images with the values of `text_column`."""
        note = Finding.of("classes-taken", source=title, label=self.label, caption=self.unread)
        return Source(
            title,
            store,
            values,
            captioned=self.caption is not None,
            captions_from=f"column '{self.caption}'",
            class_names=self.names,
            unread_captions=self.unread,
            notes=(note,) if self.unread else (),
        )


def find_columns(where: str, schema: pyarrow.Schema, wanted: Columns) -> TableColumns:
    """Choose the columns of a table whose columns have types.

    An image column is one of the type ``Image`` of `datasets`, a struct with ``bytes``, or binary;
    a column of classes a ``ClassLabel``.
    """
    about = _column_descriptions(schema)
    types = {name: schema.field(name).type for name in about}
    images = [name for name in about if _content_kind(types[name]) == "images"]
    typed = [name for name in images if about[name].get("_type") == "Image"]
    classes = {
        name: names
        for name in about
        if _content_kind(types[name]) == "numbers"
        and (names := _class_names(about[name])) is not None
    }
    files = [name for name in FILE_NAMES if name in types]
    if files and not images and wanted.image is None:
        raise DataError(
            f"{where}: has names of files (column '{files[0]}') and no images; write it as CSV,"
            " whose files are read: pandas.read_parquet(FILE).to_csv('metadata.csv', index=False)"
        )
    return choose_columns(where, types, wanted, typed or images, classes)


def choose_columns(
    where: str,
    types: Mapping[str, pyarrow.DataType | None],
    wanted: Columns,
    images: Sequence[str],
    classes: Mapping[str, Names],
) -> TableColumns:
    """Choose the columns of a table: those that the user named; otherwise one of ``images``; one of
    ``classes`` or of labels with a usual name; and only without labels captions with a usual name.

    Args:
        where: The table, for messages.
        types: The type of each column; ``None`` for one of any values.
        wanted: The columns that the user named.
        images: Columns that may hold images.
        classes: Names of the classes, by the columns that have them.
    """
    if not wanted.labelled and wanted.image not in types:
        wanted = replace(wanted, image=None)
    _check_named(where, wanted, list(types))
    image = wanted.image or _choose_column(where, "image", images, _IMAGE_NAMES, types)
    if _content_kind(types[image]) not in ("images", "any"):
        raise DataError(f"{where}: column '{image}' holds {types[image]}, not images")
    if not wanted.labelled:
        return TableColumns(image)
    label = wanted.label
    caption = wanted.caption
    unread = None
    if wanted.captioned is None:
        usual = [name for name in LABEL_NAMES if name in types and name != image]
        plain = [name for name in usual if _content_kind(types[name]) in _LABELS]
        # a wrong type is refused as such, not reported as missing
        labels = list(classes) or (plain or usual)[:1]
        captions = [
            name
            for name in CAPTION_NAMES
            if name in types and _content_kind(types[name]) in _CAPTIONS
        ]
        first = captions[0] if captions else None
        if first is not None and not labels:
            caption = first
        else:
            label = _choose_column(where, "label or caption", labels, LABEL_NAMES, types)
            unread = first
    if label is not None and _content_kind(types[label]) not in _LABELS:
        hint = "" if wanted.label else "; name another with `label_column`"
        raise DataError(
            f"{where}: column '{label}' holds {types[label]}; a label is one number or one text per"
            f" image{hint}"
        )
    if caption is not None and _content_kind(types[caption]) not in _CAPTIONS:
        raise DataError(
            f"{where}: column '{caption}' holds {types[caption]}; a caption is a text, or a list of"
            " texts"
        )
    return TableColumns(image, label, classes.get(label or ""), caption, unread)


def _check_named(where: str, wanted: Columns, columns: Sequence[str]) -> None:
    """Refuse columns that the user named and the table does not have, and labels with captions."""
    if wanted.label is not None and wanted.caption is not None:
        raise DataError(
            f"{where}: `label_column` asks for classes and `caption_column` for captions; give one"
            " of them"
        )
    for kind in ("image", "label", "caption"):
        name = getattr(wanted, kind)
        if name is not None and name not in columns:
            raise DataError(
                f"{where}: no column '{name}' for `{kind}_column` (columns:"
                f" {shorten(columns, 12)}).{did_you_mean(name, columns)}"
            )


def _column_descriptions(schema: pyarrow.Schema) -> dict[str, Json]:
    """Each column's description by `datasets`, without making its types: some read files."""
    features: Any = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = (schema.metadata or {})[b"huggingface"].decode("utf-8")
        features = dict(parse_json(text)["info"]["features"])
    return {
        name: about if isinstance(about := features.get(name), dict) else {}
        for name in schema.names
    }


def _class_names(about: Json) -> Names | None:
    """Names of the classes of a ``ClassLabel``."""
    names = about.get("names") if about.get("_type") == "ClassLabel" else None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if names is not None and is_list else None


def _choose_column(
    where: str, kind: str, candidates: Sequence[str], usual: Sequence[str], columns: Iterable[str]
) -> str:
    flags = " or ".join(f"`{name}_column`" for name in kind.split(" or "))
    if not candidates:
        raise (DataError if kind == "image" else NoLabelsError)(
            f"{where}: no {kind} column found (columns: {shorten(columns, 12)}); name it with"
            f" {flags}"
        )
    preferred = [name for name in usual if name in candidates]
    if len(candidates) > 1 and not preferred:
        raise DataError(
            f"{where}: several {kind} columns ({shorten(candidates)}); name the one you mean with"
            f" {flags}"
        )
    return (preferred or candidates)[0]


def _content_kind(kind: pyarrow.DataType | None) -> str:
    """What a column of a type may hold: ``images``, ``numbers``, ``texts``, ``lists`` of texts,
    ``any`` of them, or nothing that is read.
    """
    if kind is None:
        return "any"
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "images" if _content_kind(kind.field("bytes").type) == "images" else ""
    if types.is_list(kind) or types.is_large_list(kind):
        return "lists" if _content_kind(kind.value_type) == "texts" else ""
    if types.is_dictionary(kind):
        inner = _content_kind(kind.value_type)
        return inner if inner in ("numbers", "texts") else ""
    contents = {
        "images": (types.is_binary, types.is_large_binary),
        "numbers": (types.is_integer,),
        "texts": (types.is_string, types.is_large_string, types.is_string_view),
    }
    return next((name for name, tests in contents.items() if any(t(kind) for t in tests)), "")
