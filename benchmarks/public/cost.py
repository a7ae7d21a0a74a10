"""The cost of a suite before it is run: bytes to download, forward passes, and the time that they
take here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.public.release import path_of, size_of
from benchmarks.public.suite import Release, Suite
from clipmerge.errors import ClipmergeError
from clipmerge.hub.download import Snapshot, choose_files, connect, resolve, with_retries
from clipmerge.hub.errors import explained
from clipmerge.hub.ids import HubId, parse_hub_id
from clipmerge.images.hub_dataset import open_split
from clipmerge.images.hub_splits import card_of
from clipmerge.images.registry import find_known

# A model's forward passes reach about this share of the speed of one large matrix product.
_SHARE = 0.4
_SIDE, _SECONDS = 1024, 0.3


@dataclass(frozen=True)
class Download:
    """A checkpoint or split: its size in bytes at most, its number of images, or why the size is
    unknown."""

    what: str
    bytes: int | None = None
    cached: bool = False
    images: int | None = None
    problem: str | None = None


def cost_of(
    suite: Suite, *, recipes: int, alphas: int, limit: int | None, device: str
) -> dict[str, Any]:
    """Look up what a suite downloads, and estimate how long its evaluation takes, without recipes
    that learn.
    """
    checkpoints = {str(end): end for pair in suite.pairs for end in (pair.zeroshot, pair.finetuned)}
    evaluated = [source for pair in suite.pairs for source in pair.sources.values()]
    measured = [pair.data for pair in suite.pairs if pair.data]
    splits = {source: _split(source) for source in dict.fromkeys([*evaluated, *measured])}
    downloads = [*map(_checkpoint, checkpoints.values()), *splits.values()]
    counts = [
        [count for count in (splits[source].images, limit) if count is not None]
        for source in evaluated
    ]
    images = _sum(min(known, default=None) for known in counts)
    passes = None if images is None else images * (alphas + recipes)
    speed = flops_per_second(device) * _SHARE
    return {
        "downloads": [asdict(download) for download in downloads],
        "bytes": _sum(0 if download.cached else download.bytes for download in downloads),
        "forward_passes": passes,
        "flops_per_second": speed,
        "seconds": None if passes is None else passes * suite.gflops * 1e9 / speed,
    }


def flops_per_second(device: str) -> float:
    """Measure how many floating-point operations per second a large matrix product reaches."""
    import torch

    from clipmerge.distributed import distributed_context

    matrix = torch.randn(_SIDE, _SIDE, device=distributed_context(device).device)  # type: ignore[arg-type]
    float((matrix @ matrix)[0, 0])
    begin, products = time.perf_counter(), 0
    while time.perf_counter() - begin < _SECONDS:
        float((matrix @ matrix)[0, 0])  # waits for the device
        products += 1
    return 2 * _SIDE**3 * products / (time.perf_counter() - begin)


def _checkpoint(checkpoint: str | Release) -> Download:
    if isinstance(checkpoint, Release):
        size = checkpoint.size or size_of(checkpoint)
        problem = None if size else "the server does not state its size, or cannot be reached"
        return Download(
            what=checkpoint.url, bytes=size, cached=path_of(checkpoint).is_file(), problem=problem
        )
    hub_id = parse_hub_id(checkpoint)
    if hub_id is None:
        return Download(what=checkpoint, bytes=0, cached=True)
    try:
        snapshot = resolve(hub_id)
        return _files(checkpoint, snapshot, choose_files(snapshot.files, snapshot.hub_id))
    except ClipmergeError as error:
        return Download(what=checkpoint, problem=str(error))


def _split(source: str) -> Download:
    named = find_known(source, on_disk=False)
    address = named.address if named else source
    known = named.known.images.get(address.rpartition(":")[2]) if named else None
    if not address.startswith("hf://"):
        return Download(what=source, bytes=0, cached=True)
    try:
        split = open_split(address)
        images = known or _images_on_card(card_of(split.snapshot), split.name)
        return _files(address, split.snapshot, split.files, images)
    except ClipmergeError as error:
        return Download(what=address, problem=str(error), images=known)


def _file_sizes(pinned: HubId) -> dict[str, int]:
    """Ask for the sizes of a repository's files."""
    which: dict[str, Any] = {"revision": pinned.revision, "repo_type": pinned.kind}
    with explained(f"reading {pinned}"):
        info: Any = with_retries(
            lambda: connect().repo_info(pinned.repo_id, files_metadata=True, **which)
        )
    return {item.rfilename: int(item.size or 0) for item in info.siblings or ()}


def _files(
    what: str, snapshot: Snapshot, names: Sequence[str], images: int | None = None
) -> Download:
    """The download of some files of the Hub, if they are not here."""
    if not snapshot.missing(names):
        return Download(what=what, bytes=0, cached=True, images=images)
    sizes = _file_sizes(snapshot.hub_id)
    return Download(what=what, bytes=sum(sizes[name] for name in names), images=images)


def _images_on_card(card: dict[str, Any], split: str) -> int | None:
    """Number of images of a split, from the data set's card, which anybody may have written."""
    info = card.get("dataset_info")
    for config in info if isinstance(info, list) else [info]:
        splits = config.get("splits") if isinstance(config, dict) else None
        for entry in splits if isinstance(splits, list) else []:
            count = (
                entry.get("num_examples")
                if isinstance(entry, dict) and entry.get("name") == split
                else None
            )
            if isinstance(count, int):
                return count
    return None


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum; ``None`` if a value is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
