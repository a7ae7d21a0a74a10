"""Run a module in several processes of one run, as torchrun does, but import torch and transformers once for all.

``python -m tests.support.several COUNT MODULE ARGUMENTS`` starts them, by a fork of what has imported them. The first
one that fails ends the others with SIGTERM, and SIGTERM from outside ends all. torchrun itself runs in the tests of
README and of endings.
"""

import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What takes long to import, and computes nothing when it is imported.
IMPORTED = (
    "accelerate",
    "torch.distributed",
    "transformers.models.clip.image_processing_clip",
    "transformers.models.clip.modeling_clip",
    "clipmerge.api.merge",
    "clipmerge.cli.app",
    "clipmerge.measures.learned_coefficients",
)


def several(
    count: int, module: str, *arguments: object, env: Mapping[str, str] = os.environ, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENTS`` in so many processes, each with one thread."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.several", str(count), module, *map(str, arguments)],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        **options,
    )


def main(count: int, module: str) -> int:
    """Fork, wait for all, and return 1 if one failed."""
    for imported in IMPORTED:
        import_module(imported)
    from torch.distributed import TCPStore

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if count == 1:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0
    run = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in run.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    running = set[int]()
    for rank in range(count):
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        process = os.fork()
        if not process:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            return 0
        running.add(process)
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)

    def end_all(*_: object) -> None:
        for other in running:
            os.kill(other, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end_all)
    failed = False
    while running:
        process, status = os.wait()
        running.remove(process)
        if status and not failed:
            failed = True
            end_all()
    del store
    return int(failed)


if __name__ == "__main__":
    number, name = int(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    sys.exit(main(number, name))
