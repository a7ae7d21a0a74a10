"""Every reader on files that were found and on damaged ones, each in a fork: ``python -m tests.fuzz.every_reader``.

One process imports, and each reader has a copy of it: what is tried must not take more memory than it may, nor end the
other readers. A line of JSON for each reader has what is wrong with its files, by the way that they came.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

from tests.fuzz.targets import SLOW, TARGETS
from tests.fuzz.worker import corpus, fuzz, verdict

#: Damaged files of a reader, and of a slow one.
EXECUTIONS, FEW = 500, 50


def wrong_with(name: str, folder: Path) -> dict[str, list[str]]:
    """What is wrong with the files of a reader: those that were ``found`` once, and ``damaged`` ones."""
    found = {verdict(name, data, folder) for data in corpus(name)} - {""}
    damaged = list[str]()
    fuzz(name, 1e9, "0.0", most=FEW if name in SLOW else EXECUTIONS, note=lambda *_: None, found=damaged.append)
    return {"found": sorted(found), "damaged": damaged}


def main() -> None:
    """Try every reader; one that ends its fork has ``ended`` the process."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for reader in TARGETS:
            verdict(reader, b"", folder)  # imports what it needs
        for reader in TARGETS:
            child = os.fork()
            if not child:
                os.write(1, json.dumps({reader: wrong_with(reader, folder)}).encode() + b"\n")
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                sys.stdout.write(json.dumps({reader: {"ended": ["the process"]}}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
