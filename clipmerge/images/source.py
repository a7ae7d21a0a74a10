"""What every reader gives: pictures by position with their labels or captions as they stand there,
and the columns that the user may name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipmerge.errors import UsageError
from clipmerge.types import Names

if TYPE_CHECKING:
    from torch import Tensor


#: Usual names of labels and of captions, in order of preference.
LABEL_NAMES = ("label", "labels", "class", "cls", "target", "class_name", "category")
CAPTION_NAMES = (
    *("caption", "captions", "text", "texts", "title", "sentence", "sentences"),
    *("description", "alt_text", "prompt"),
)
#: Names of columns with names of image files.
FILE_NAMES = ("file_name", "filepath", "file", "path", "image", "image_path", "filename")
#: Texts that CLIP_benchmark writes beside the archives of a data set.
TEXTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")


@dataclass(frozen=True)
class Columns:
    """The columns that the user named; ``None`` to find them."""

    image: str | None = None  # column of a table, or ending of a tar's files
    label: str | None = None  # the same; ``json.KEY`` for a key of a tar's JSON files
    caption: str | None = None  # the same; naming it asks for captions in place of classes

    def __post_init__(self) -> None:
        if self.label is not None and self.caption is not None:
            raise UsageError(
                "`label_column` asks for classes and `caption_column` for captions; give one"
            )

    @property
    def captioned(self) -> bool | None:
        """Whether the user asked for captions, or for labels; ``None`` for neither."""
        return None if self.caption is None and self.label is None else self.caption is not None


@dataclass(frozen=True)
class Pictures:
    """Pictures of a source, read one by one when they are needed."""

    get: Callable[[int], Any]  # the content, path or picture of an item
    name: Callable[[int], str]  # its name in messages
    items: Sequence[int]  # the item at each position
    # whether items are tensors (3, height, width) that the model's preprocessing has made already
    preprocessed: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Any:
        return self.get(self.items[position])

    def name_of(self, position: int) -> str:
        """The name of a picture in messages."""
        return self.name(self.items[position])

    def take(self, positions: Sequence[int]) -> Pictures:
        """Some of the pictures, in the order of the positions."""
        return replace(self, items=tuple(self.items[at] for at in positions))

    def tensors(self, positions: Sequence[int]) -> Tensor:
        """Stack preprocessed pictures: (images, 3, height, width), float32."""
        import torch

        return torch.stack([torch.as_tensor(self[at]).float() for at in positions])


def picture_files(paths: Sequence[str]) -> Pictures:
    """Pictures stored one per file."""
    return Pictures(paths.__getitem__, paths.__getitem__, range(len(paths)))


@dataclass(frozen=True)
class Opened:
    """A source, opened: no picture has been read, and its labels or captions are as they stand
    there.
    """

    title: str
    pictures: Pictures
    # for each picture its class, a number or a name, or its captions, a text or several
    values: Sequence[Any]
    # whether the values are captions; ``None`` to tell by their look
    captioned: bool | None = None
    # the column of captions that stand beside labels, which are taken
    unread_captions: str | None = None
    class_names: Names | None = None  # of labels that are numbers
    # whether the names are written as they go into prompts, underscores and all
    verbatim: bool = False
    templates: Names = ()  # the source's own prompt templates, with ``{}`` for the class
    revision: str | None = None  # commit of a dataset on the Hub
    notes: Names = ()
