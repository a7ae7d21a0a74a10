"""Names of data sets on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clipmerge.errors import DataError
from clipmerge.hub.ids import HubId, parse_hub_id

PREFIX = "hf://datasets/"
_SOURCE = re.compile(r"hf://datasets/(?P<id>[^:@\s]+(?:@[^:\s]+)?)(?::(?P<split>[^:\s]+))?")


@dataclass(frozen=True)
class DatasetId:
    """A dataset on the Hub; ``config`` and ``split`` are ``None`` if the user did not name one."""

    hub_id: HubId
    config: str | None = None
    split: str | None = None

    def at(self, sha: str) -> str:
        """Write the source with its commit."""
        part = "/".join(name for name in (self.config, self.split) if name)
        return f"{self.hub_id.at(sha)}{':' + part if part else ''}"


def parse_dataset(source: str) -> DatasetId:
    """Read ``hf://datasets/ORG/NAME[@REVISION][:SPLIT]``; the split may be ``CONFIG/SPLIT``.

    Example:
        >>> parse_dataset("hf://datasets/acme/cars@v1:test").split
        'test'
    """
    match = _SOURCE.fullmatch(source)
    hub_id = parse_hub_id(match["id"], kind="dataset") if match else None
    if match is None or hub_id is None:
        raise DataError(f"{source}: not a dataset on the Hub; write {PREFIX}ORG/NAME[@REVISION][:SPLIT]")
    config, _, split = (match["split"] or "").rpartition("/")
    return DatasetId(hub_id, config or None, split or None)
