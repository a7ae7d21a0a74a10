"""Names of evaluated sources, and how images go through a model. Imports nothing slow, so flags are
checked at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipmerge.errors import UsageError
from clipmerge.files.paths import local_path

if TYPE_CHECKING:
    from clipmerge.config import OutputDtype
    from clipmerge.distributed import DistributedContext


@dataclass(frozen=True)
class EvalSettings:
    """How images go through a model in an evaluation."""

    context: DistributedContext  # places the model, and gathers the results of several processes
    templates: tuple[
        str, ...
    ] = ()  # prompt templates for every source; if empty, each source's own, or the default
    batch_size: int | None = None  # images per batch; ``None`` for the default
    images_at_once: int | None = (
        None  # images that go through the model at once; ``None`` for a batch
    )
    dtype: OutputDtype = "keep"  # dtype that points between checkpoints are rounded to

    @property
    def share(self) -> tuple[int, int]:
        """Index of this process, and the number of processes that share the batches."""
        return self.context.rank, self.context.world_size


def parse_named_source(text: str) -> tuple[str, str]:
    """Split ``NAME=SOURCE``; the default name is the last part of the source.

    Example:
        >>> parse_named_source("val=data/val"), parse_named_source("data/val")
        (('val', 'data/val'), ('val', 'data/val'))
    """
    name, equals, source = text.partition("=")
    if not (source if equals and name else text).strip():
        raise UsageError(f"'{text}': names no images; write NAME=SOURCE, such as val=data/val")
    if equals and name:
        return name, source
    path = Path(text)
    # "." and ".." are not names; use the folder's own
    return (local_path(text).resolve().name if path.name in ("", "..") else path.name) or text, text


def named_sources(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """Split the ``NAME=SOURCE`` texts of a flag into sources by name."""
    sources = [parse_named_source(text) for text in texts]
    if len(dict(sources)) != len(sources):
        raise UsageError(f"two {flag} have the same name; write NAME=SOURCE with different names")
    return dict(sources)


def check_source_name(name: str) -> None:
    """Refuse a name that `write_correct` cannot use for a tensor, before anything is evaluated."""
    if (
        name == "__metadata__"
    ):  # a reserved header entry: the file would be written, but no reader would open it
        raise UsageError(
            "a source cannot be named '__metadata__', which safetensors reserves; choose another"
            " name"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"a source cannot be named {name!a}, which is not UTF-8; write NAME=SOURCE"
        ) from None
