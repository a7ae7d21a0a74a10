"""What every kind of source gives when it is opened, and the columns that the user may name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipmerge.finding import Finding
from clipmerge.images.store import Store
from clipmerge.types import Names


@dataclass(frozen=True)
class Columns:
    """The columns that the user named; ``None`` to find them."""

    image: str | None = None  # column of a table, or ending of a tar's files
    label: str | None = None  # the same; ``json.KEY`` for a key of a tar's JSON files
    caption: str | None = None  # the same; naming it asks for captions in place of classes
    # whether labels are read; if not, ``image`` is used only if there is such a column
    labelled: bool = True
    # whether images that cannot be read are left out; otherwise they are an error
    skip_unreadable: bool = False

    @property
    def captioned(self) -> bool | None:
        """Whether the user asked for captions, or for labels; ``None`` for neither."""
        return None if self.caption is None and self.label is None else self.caption is not None


@dataclass(frozen=True)
class Source:
    """A source, opened: no image has been read, and its labels or captions are as they stand there.

    To add a kind of source, write a module with a function that returns one, and call it in
    `clipmerge.images.dataset`.
    """

    title: str
    store: Store
    # for each image its class, a number or a name, or its captions, a text or several; ``None`` if
    # they are not read
    values: Sequence[Any] | None = None
    # whether the values are captions; ``None`` to tell by their look
    captioned: bool | None = None
    # the column of captions that stand beside labels, which are taken
    unread_captions: str | None = None
    captions_from: str | None = ""  # where captions stand, for a note; ``None`` for no note
    class_names: Names | None = None  # of labels that are numbers
    # whether the names are written as they go into prompts, underscores and all
    verbatim: bool = False
    templates: Names = ()  # the source's own prompt templates, with ``{}`` for the class
    revision: str | None = None  # commit of a dataset on the Hub
    notes: tuple[Finding, ...] = ()
