"""Run a module in several processes of one run, as torchrun does, but import torch and transformers
once for all.

A launcher is forked from a server that has imported them, and forks the processes. The first one
that fails ends the others with SIGTERM, and SIGTERM to the launcher ends all. torchrun itself runs
in the tests of README and of endings.
"""

import gc
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import torch

ROOT = Path(__file__).parents[2]
STREAMS = ("stdout", "stderr")
#: What takes long to import, and computes nothing when it is imported.
IMPORTED = (
    "accelerate",
    "torch.distributed",
    "transformers.models.clip.image_processing_clip",
    "transformers.models.clip.modeling_clip",
    "clipmerge.api.merge",
    "clipmerge.api.sweep",
    "clipmerge.cli.app",
    "clipmerge.measures.learned_coefficients",
    "clipmerge.report.figures",
)
#: Forks processes from a server with these modules. A process has one server, and it imports what
#: was asked for last: so this is the one place.
context = get_context("forkserver")
context.set_forkserver_preload([__name__, *IMPORTED])


def several(
    count: int, module: str, *arguments: object, env: Mapping[str, str] = os.environ
) -> CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENTS`` to its end in so many processes, each with one thread."""
    words = [module, *map(str, arguments)]
    with TemporaryDirectory() as folder:
        launcher = context.Process(
            target=launch, args=(count, words, dict(env), folder), daemon=True
        )
        launcher.start()
        launcher.join(900)
        assert launcher.exitcode is not None, "it still runs"
        output = [Path(folder, name).read_text() for name in STREAMS]
    return CompletedProcess(words, launcher.exitcode, *output)


def launch(count: int, words: list[str], env: dict[str, str], folder: str) -> None:
    """In a process of its own: fork, wait for all, and fail if one failed."""
    gc.freeze()  # a search for garbage would copy what was imported
    torch.set_num_threads(1)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    for stream, name in enumerate(STREAMS, 1):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    if "COVERAGE_PROCESS_START" in env:
        import coverage

        coverage.process_startup()
    if count == 1:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update(
        {name: str(value) for name, value in run.items()}, TORCHELASTIC_USE_AGENT_STORE="True"
    )
    running = set[int]()
    for rank in range(count):
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        process = os.fork()
        if not process:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            return
        running.add(process)
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)

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
    sys.exit(failed)
