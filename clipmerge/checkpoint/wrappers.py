"""A CLIP inside another module: next to a separate head or a second copy, or with its towers apart.

People train `class Model: clip = CLIPModel(...); head = Linear(...)`, keep an average of the weights in the same state
dict, or hold the two towers as two attributes. The CLIP is found under the attributes whose names lead to a tower.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from clipmerge.errors import CheckpointError, shorten

# Where a tower's part of a key begins, whatever comes before it.
_TOWER = re.compile(r"(?:^|\.)(?=(?:vision_model|text_model|visual)\.)")
# Attributes that hold an average of the weights or a frozen copy, by usual names.
_COPY = re.compile(r"ema|teacher|momentum|average|shadow|target|swa", re.IGNORECASE)
# Heads that belong to a layout of their own.
_HEADS = ("classification_head.",)


@dataclass(frozen=True)
class Unwrapped:
    """The keys of the CLIP in a file.

    Attributes:
        keys: Keys in the file by the CLIP's own names.
        note: What was taken and what was left out; ``None`` if the file holds a CLIP and nothing else.
    """

    keys: dict[str, str]
    note: str | None = None


def unwrap(keys: Iterable[str], part: str | None = None) -> Unwrapped:
    """Find the CLIP among the keys of a file.

    Args:
        keys: Keys as they stand in the file.
        part: The attribute to take, if several hold the same parameters; ``None`` for the first.

    Returns:
        Its keys. A prefix that all of them share is kept, because families know how to skip it.

    Raises:
        CheckpointError: If nothing lies under ``part``.

    Example:
        >>> unwrap(["clip.visual.proj", "clip.logit_scale", "head.weight"]).keys
        {'visual.proj': 'clip.visual.proj', 'logit_scale': 'clip.logit_scale'}
    """
    listed = list(keys)
    if part is not None:
        return _under(listed, f"{part}.")
    prefixes = _prefixes(listed)
    if not prefixes or any(key.startswith(_HEADS) for key in listed):
        return Unwrapped({key: key for key in listed})
    owned = {prefix: _owned(listed, prefix, prefixes) for prefix in prefixes}
    names: dict[str, str] = {}
    taken, copies = [], []
    for prefix, mine in owned.items():
        found = {key.removeprefix(prefix): key for key in mine}
        if names.keys() & found.keys():
            copies.append(prefix)
        else:
            taken.append(prefix)
            names |= found
    known, copied = set(names.values()), tuple(filter(None, copies))
    outside = [key for key in listed if key not in known and not key.startswith(copied)]
    if len(taken) == 1 and not copies and not outside:
        return Unwrapped({key: key for key in listed})
    return Unwrapped(names, _note(taken, copies, outside))


def _under(keys: list[str], prefix: str) -> Unwrapped:
    names = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
    if not names:
        firsts = dict.fromkeys(key.partition(".")[0] for key in keys)
        raise CheckpointError(f"nothing lies under '{prefix[:-1]}'; its keys begin with {shorten(firsts)}")
    return Unwrapped(names)


def _prefixes(keys: list[str]) -> list[str]:
    """Prefixes of the towers, the most common first, ties in the file's order; averages and copies last."""
    found = (match for match in map(_TOWER.search, keys) if match)
    commonest = [prefix for prefix, _ in Counter(match.string[: match.end()] for match in found).most_common()]
    return sorted(commonest, key=lambda prefix: bool(_COPY.search(prefix)))


def _owned(keys: list[str], prefix: str, prefixes: list[str]) -> list[str]:
    """Keys with this prefix, and with no longer one."""
    longer = tuple(other for other in prefixes if len(other) > len(prefix) and other.startswith(prefix))
    return [key for key in keys if key.startswith(prefix) and not (longer and key.startswith(longer))]


def _note(taken: list[str], copies: list[str], outside: list[str]) -> str:
    notes = []
    if any(taken):
        notes.append(f"the CLIP is what lies under {' and '.join(prefix[:-1] or 'no name' for prefix in taken)}")
    if copies:
        other = copies[0][:-1]
        notes.append(
            f"{shorten(copy[:-1] for copy in copies)} holds the same parameters (--state-key {other} takes it)"
        )
    if outside:
        notes.append(f"{len(outside)} tensors beside it are not part of a CLIP and are left out: {shorten(outside, 3)}")
    return "; ".join(notes)
