"""Images with captions, for image-text retrieval: ``KEY.txt`` beside ``KEY.jpg``, in a folder or in
tar files.

A caption is one line of the text; an image may have several. `load_captions` reads the sets of
CLIP_benchmark (``hf://datasets/clip-benchmark/wds_flickr8k:test``) and local copies of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from clipmerge.errors import DataError, counted, shorten
from clipmerge.files.reading import read_text, refusing
from clipmerge.images.columns import Columns
from clipmerge.images.file_store import describe_folder, expand, local_split, refuse_links
from clipmerge.images.folder import is_image_name
from clipmerge.images.hub_dataset import open_split
from clipmerge.images.registry import find_known
from clipmerge.images.store import ImageSet, Store, check_count, image_files
from clipmerge.images.webdataset import Sample, TarImages, read_samples

_CAPTIONS = "txt"
_ENDING = f".{_CAPTIONS}"


@dataclass(frozen=True)
class CaptionedImages(ImageSet):
    """Images with their captions."""

    captions: tuple[tuple[str, ...], ...]  # captions of each image, at least one

    def sample(self, count: int, seed: int) -> Self:
        """Sample images, with all their captions, in their order."""
        if count >= len(self):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.subset(sorted(int(position) for position in drawn))

    def subset(self, positions: list[int]) -> Self:
        """Pick images, with all their captions."""
        captions = tuple(self.captions[position] for position in positions)
        return replace(super().subset(positions), captions=captions)


def with_captions(
    source: str,
    store: Store,
    captions: Sequence[tuple[str, ...]],
    *,
    revision: str | None = None,
    notes: tuple[str, ...] = (),
) -> CaptionedImages:
    """Make a set of images with captions; images whose first captions are equal share a label."""
    numbers: dict[str, int] = {}
    labels = tuple(numbers.setdefault(texts[0], len(numbers)) for texts in captions)
    return CaptionedImages(source, store, labels, tuple(captions), revision=revision, notes=notes)


def load_captions(source: str, *, most: int | None = None, seed: int = 0) -> CaptionedImages | None:
    """Find images with captions, without decoding any; ``None`` if a source's name and texts tell
    of no captions.
    """
    named = find_known(source)
    if named is not None and named.known.kind != "retrieval":
        return None
    source = named.address if named is not None else source
    columns = Columns(label=_CAPTIONS)
    if source.startswith("hf://"):
        split = open_split(source)
        if not (split.is_tar and split.described.is_retrieval):
            return None
        order = None if most is None else seed
        samples = split.read_samples(
            columns, order, lambda taken: most is not None and len(taken) >= most
        )
        return replace(
            _captioned(source, samples), revision=split.snapshot.revision, notes=split.notes
        )
    if tars := expand(source, ".tar"):
        if not describe_folder(Path(tars[0]).parent).is_retrieval:
            return None
        return _captioned(source, [sample for tar in tars for sample in read_samples(tar, columns)])
    folder, _ = local_split(source)
    files = _captioned_files(folder)
    return _from_folder(source, folder, files) if files else None


def _captioned_files(folder: Path) -> list[Path]:
    """List the images of a folder that have a text beside them, by name; empty if it is not such a
    folder.
    """
    if not folder.is_dir():
        return []
    listed = sorted(
        path
        for path in folder.iterdir()
        if is_image_name(path.name) and not path.name.startswith(".")
    )
    return [path for path in listed if path.with_suffix(_ENDING).is_file()]


def _from_folder(source: str, folder: Path, files: list[Path]) -> CaptionedImages:
    """Images of a folder and the captions beside them, with a note on texts without an image."""
    alone = [
        path.name
        for path in sorted(folder.iterdir())
        if is_image_name(path.name) and path not in set(files)
    ]
    if alone:
        raise DataError(
            f"{source}: {shorten(alone, 3)} has no captions beside it; write them to the same name"
            " in .txt"
        )
    check_count(source, len(files))
    everything = [file for path in files for file in (path, path.with_suffix(_ENDING))]
    refuse_links(source, folder, everything)
    captions = []
    for file in (path.with_suffix(_ENDING) for path in files):
        with refusing(DataError, f"{source}: {file.name} cannot be read"):
            captions.append(_lines(read_text(file)))
        if not captions[-1]:
            raise DataError(f"{source}: {file.name} holds no caption; write one per line")
    texts = sorted(
        {path.name for path in folder.glob(f"*{_ENDING}")} - {path.name for path in everything}
    )
    without = counted(len(texts), "text without its image", "texts without their images")
    notes = (f"{source}: left out {without} ({shorten(texts, 3)})",)
    store = image_files(map(str, files))
    return with_captions(source, store, captions, notes=notes if texts else ())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _captioned(source: str, samples: Sequence[Sample]) -> CaptionedImages:
    if not samples:
        raise DataError(f"{source}: holds no images")
    captions = tuple(_lines(str(text)) for _, text in samples)
    return with_captions(source, TarImages([member for member, _ in samples]), captions)
