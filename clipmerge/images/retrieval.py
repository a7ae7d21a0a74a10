"""Images with captions, for image-text retrieval: WebDataset tar files with ``KEY.txt`` beside ``KEY.jpg``.

A caption is one line of the text; an image may have several. `load_captions` reads the sets of CLIP_benchmark
(``hf://datasets/clip-benchmark/wds_flickr8k:test``) and local copies of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipmerge.errors import DataError
from clipmerge.images.caption_folder import captioned_files, read_captioned
from clipmerge.images.columns import Columns
from clipmerge.images.decoding import decode
from clipmerge.images.description import CLASS_NAMES, Description, describe_folder
from clipmerge.images.file_store import LocalFiles, expand, local_split
from clipmerge.images.hub_dataset import open_split
from clipmerge.images.hub_shards import shard_order
from clipmerge.images.known import find_known
from clipmerge.images.store import MemoryStore, Store
from clipmerge.images.webdataset import Shard, TarImages, read_shard

if TYPE_CHECKING:
    from PIL.Image import Image

_CAPTIONS = "txt"


@dataclass(frozen=True)
class CaptionedImages:
    """Images with their captions.

    Attributes:
        source: The source as the user wrote it.
        store: The encoded images; decoded one by one, on demand.
        captions: Captions of each image, at least one.
        revision: Commit of a data set on the Hub, else ``None``.
        notes: Notes for the user.
    """

    source: str
    store: Store
    captions: tuple[tuple[str, ...], ...]
    revision: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.captions)

    def image(self, index: int) -> Image:
        """Decode one image, as RGB."""
        (encoded,) = self.store.read([index])
        return decode(self.store.name(index), encoded)

    def sample(self, count: int, seed: int) -> CaptionedImages:
        """Sample images, with all their captions."""
        if count >= len(self):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        positions = sorted(int(position) for position in drawn)
        names = tuple(self.store.name(position) for position in positions)
        store = MemoryStore(tuple(self.store.read(positions)), names)
        return replace(self, store=store, captions=tuple(self.captions[position] for position in positions))


def load_captions(
    source: str, *, columns: Columns | None = None, most: int | None = None, seed: int = 0
) -> CaptionedImages:
    """Find images with captions; none is decoded."""
    columns = columns or Columns()
    columns = Columns(columns.image, columns.label or _CAPTIONS)
    named = find_known(source)
    if named is not None:
        source = named.address
    if source.startswith("hf://"):
        return _from_hub(source, columns, most, seed)
    tars = expand(source, ".tar")
    folder, _ = local_split(source)
    if not tars and captioned_files(folder):
        store, captions, notes = read_captioned(source, folder)
        return CaptionedImages(source, store, captions, notes=notes)
    if not tars:
        raise DataError(
            f"{source}: holds no tar files; images with captions are a folder or tar files with KEY.{_CAPTIONS} beside "
            "KEY.jpg, such as hf://datasets/clip-benchmark/wds_flickr8k:test"
        )
    _require_captions(source, describe_folder(Path(tars[0]).parent))
    return _captioned(source, [read_shard(LocalFiles(), tar, columns) for tar in tars])


def has_captions(source: str) -> bool:
    """Whether a source is known, by its texts and without reading images, to hold captions instead of classes."""
    named = find_known(source)
    if named is not None:
        return named.known.kind == "retrieval"
    if source.startswith("hf://"):
        split = open_split(source)
        return split.is_tar and split.shards().described.is_retrieval
    if tars := expand(source, ".tar"):
        return describe_folder(Path(tars[0]).parent).is_retrieval
    return bool(captioned_files(local_split(source)[0]))


def _from_hub(source: str, columns: Columns, most: int | None, seed: int) -> CaptionedImages:
    split = open_split(source)
    if not split.is_tar:
        raise DataError(f"{source}: holds Parquet files; images with captions are read from tar files")
    shards = split.shards()
    _require_captions(source, shards.described)
    order = range(len(shards.files)) if most is None else shard_order(len(shards.files), seed)
    taken: dict[int, Shard] = {}
    for number in order:
        (path,) = shards.paths([shards.files[number]])
        taken[number] = read_shard(LocalFiles(), path, columns)
        if most is not None and sum(len(shard.labels) for shard in taken.values()) >= most:
            break
    opened = _captioned(source, [taken[number] for number in sorted(taken)])
    return replace(opened, revision=split.resolved.sha, notes=split.notes)


def _require_captions(source: str, described: Description) -> None:
    if not described.is_retrieval and described.class_names is not None:
        raise DataError(f"{source}: is a set for classification ({CLASS_NAMES} lies beside it); its labels are classes")


def _captioned(source: str, shards: Sequence[Shard]) -> CaptionedImages:
    members = [member for shard in shards for member in shard.members]
    if not members:
        raise DataError(f"{source}: holds no images")
    texts = [str(text) for shard in shards for text in shard.labels]
    captions = tuple(tuple(line.strip() for line in text.splitlines() if line.strip()) for text in texts)
    return CaptionedImages(source, TarImages(LocalFiles(), members), captions)
