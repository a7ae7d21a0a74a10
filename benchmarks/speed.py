"""What a plain merge costs: `python -m benchmarks.speed ZEROSHOT FINETUNED`, of one file each.

In turn, `cat` reads both files and writes one, and clipmerge merges them. The ratios of the two
times are printed in order: read the middle one. It is no test: nothing fails on a slow machine.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_COPY = 'cat "$0"/*.safetensors > /dev/null; cat "$1"/*.safetensors > "$2"'
_MERGE = '"$3" -m clipmerge merge "$0" "$1" --alpha 0.5 -q -o "$2"'


def time_command(*words: str) -> float:
    """Wall-clock seconds of a shell's command."""
    begin = time.perf_counter()
    subprocess.run(["sh", "-c", *words], check=True)
    return time.perf_counter() - begin


def main(zeroshot: str, finetuned: str) -> None:
    """Print the ratios of five rounds, after one that reads the files into memory."""
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "merged"
        for _ in range(6):
            copying = time_command(_COPY, zeroshot, finetuned, f"{scratch}/copied")
            merging = time_command(_MERGE, zeroshot, finetuned, str(output), sys.executable)
            ratios.append(f"{merging / copying:.2f}")
            shutil.rmtree(output)
    print("merge / copy:", *sorted(ratios[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
