"""Read every bomb: ``python -m tests.bombs [NAME ...]`` prints a line of JSON for each, with what is wrong and seconds.

Each is made and read in forks of one process, in which libraries are imported already, so that memory above the start
and processor time are those of the reading alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.bombs.files import BOMBS, Bomb
from tests.fuzz.__main__ import apart, verdict
from tests.fuzz.targets import seeds


def _read(bomb: Bomb, path: Path, folder: Path) -> tuple[str, float]:
    data = path.read_bytes()
    path.unlink()  # the reader writes it once more
    begin = time.process_time()
    return verdict(bomb.reader, data, folder), time.process_time() - begin


def main() -> int:
    """Read the bombs asked for; 1 if one did harm."""
    parser = argparse.ArgumentParser(prog="python -m tests.bombs", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BOMBS, []], help="some of the bombs; all by default")
    names = parser.parse_args().names or list(BOMBS)
    warnings.simplefilter("ignore")
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for reader in {BOMBS[each].reader for each in names}:
            for data in seeds(reader):
                verdict(reader, data, folder)  # imports what it imports
        for each in names:
            bomb, path = BOMBS[each], folder / BOMBS[each].name
            apart(lambda bomb=bomb, path=path: bomb.make(path))
            found = apart(lambda bomb=bomb, path=path: _read(bomb, path, folder))
            wrong, seconds = found if isinstance(found, list) else (found, 0.0)
            path.unlink(missing_ok=True)
            failed |= bool(wrong)
            sys.stdout.write(json.dumps({"bomb": each, "wrong": wrong, "seconds": round(seconds, 1)}) + "\n")
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
