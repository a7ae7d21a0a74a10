"""The cost of a suite before it is run: bytes to download, forward passes, and the time that they take here."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clipmerge.errors import ClipmergeError
from clipmerge.evaluation.suites.release import place_of, size_of
from clipmerge.evaluation.suites.suite import Release, Suite
from clipmerge.hub.choice import choose_files
from clipmerge.hub.download import is_cached, resolve
from clipmerge.hub.ids import parse_hub_id
from clipmerge.hub.sizes import file_sizes
from clipmerge.images.hub_dataset import Split, front_matter_of, open_split
from clipmerge.images.known import find_known

# A model's forward passes reach about this share of the speed of one large matrix product.
_SHARE = 0.4
_SIDE, _GLANCE = 1024, 0.3


@dataclass(frozen=True)
class Download:
    """Something that a suite downloads.

    Attributes:
        what: Address or name.
        bytes: Its maximum size; ``None`` if it is unknown.
        cached: Whether it is on this machine already.
        images: Number of its images, if it is a split and the number is known.
        problem: Why its size is not known.
    """

    what: str
    bytes: int | None = None
    cached: bool = False
    images: int | None = None
    problem: str | None = None


def cost_of(suite: Suite, *, recipes: int, alphas: int, limit: int | None, device: str) -> dict[str, Any]:
    """Look up what a suite downloads, and estimate how long its evaluation takes.

    Args:
        suite: The suite.
        recipes: Number of recipes; each adds at most one point.
        alphas: Number of points of the curve.
        limit: Images taken from each source; ``None`` for all.
        device: Device on which it would run: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns:
        JSON-ready: ``downloads``, their ``bytes`` (``None`` if one is not known), ``forward_passes``,
        ``flops_per_second`` and ``seconds`` of the evaluation, without recipes that learn.
    """
    checkpoints = {_name(each): each for pair in suite.pairs for each in (pair.zeroshot, pair.finetuned)}
    evaluated = {source: None for pair in suite.pairs for source in pair.sources.values()}
    measured = {pair.data: None for pair in suite.pairs if pair.data}
    downloads = [_checkpoint(each) for each in checkpoints.values()]
    splits = {source: _split(source) for source in [*evaluated, *measured]}
    downloads += splits.values()
    counts = {source: _count(splits[source], limit) for source in evaluated}
    passes = [_times(counts[source], alphas + recipes) for pair in suite.pairs for source in pair.sources.values()]
    speed = flops_per_second(device) * _SHARE
    forward = _sum(passes)
    return {
        "downloads": [vars(each) for each in downloads],
        "bytes": _sum(0 if each.cached else each.bytes for each in downloads),
        "forward_passes": forward,
        "flops_per_second": speed,
        "seconds": None if forward is None else forward * suite.gflops * 1e9 / speed,
    }


def flops_per_second(device: str) -> float:
    """Measure how many floating-point operations per second a large matrix product reaches.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """
    import torch

    from clipmerge.distributed import accelerator_for

    place = accelerator_for(device).device  # type: ignore[arg-type]
    matrix = torch.randn(_SIDE, _SIDE, device=place)
    float((matrix @ matrix)[0, 0])
    begin, turns = time.perf_counter(), 0
    while time.perf_counter() - begin < _GLANCE:
        float((matrix @ matrix)[0, 0])  # waits for the device
        turns += 1
    return 2 * _SIDE**3 * turns / (time.perf_counter() - begin)


def _name(checkpoint: str | Release) -> str:
    return checkpoint.url if isinstance(checkpoint, Release) else checkpoint


def _checkpoint(checkpoint: str | Release) -> Download:
    if isinstance(checkpoint, Release):
        size = checkpoint.size or size_of(checkpoint)
        problem = None if size else "the server does not state its size, or cannot be reached"
        return Download(checkpoint.url, size, place_of(checkpoint).is_file(), problem=problem)
    hub_id = parse_hub_id(checkpoint)
    if hub_id is None:
        return Download(checkpoint, 0, cached=True)
    try:
        resolved = resolve(hub_id)
        pinned = hub_id.at(resolved.sha)
        wanted = choose_files(resolved.files, pinned)
        if is_cached(pinned, wanted):
            return Download(checkpoint, 0, cached=True)
        sizes = file_sizes(pinned)
        return Download(checkpoint, sum(sizes[name] for name in wanted))
    except ClipmergeError as error:
        return Download(checkpoint, problem=str(error))


def _split(source: str) -> Download:
    named = find_known(source, on_disk=False)
    address = named.address if named else source
    known = named.known.images.get(address.rpartition(":")[2]) if named else None
    if not address.startswith("hf://"):
        return Download(source, 0, cached=True)
    try:
        split = open_split(address)
        images = known or _told(split)
        if is_cached(split.pinned, split.files):
            return Download(address, 0, cached=True, images=images)
        sizes = file_sizes(split.pinned)
        return Download(address, sum(sizes[name] for name in split.files), images=images)
    except ClipmergeError as error:
        return Download(address, problem=str(error), images=known)


def _told(split: Split) -> int | None:
    """Number of images of a split, from the data set's card."""
    info = front_matter_of(split).get("dataset_info")
    for config in info if isinstance(info, list) else [info]:
        splits = config.get("splits") if isinstance(config, dict) else None
        for each in splits if isinstance(splits, list) else []:
            if isinstance(each, dict) and each.get("name") == split.name and isinstance(each.get("num_examples"), int):
                return int(each["num_examples"])
    return None


def _count(split: Download, limit: int | None) -> int | None:
    if split.images is None:
        return limit
    return split.images if limit is None else min(limit, split.images)


def _times(count: int | None, points: int) -> int | None:
    return None if count is None else count * points


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum; ``None`` if a value is unknown."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
