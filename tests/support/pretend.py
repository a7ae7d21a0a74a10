"""Make torch believe in a card, before it is imported: ``python -m tests.support.pretend KIND
MODULE ARGUMENTS`` runs a module where ``cuda`` or ``mps`` exists.

A few lines of C++ are compiled once per version of torch; without a compiler nothing can be
pretended, and ``cuda`` not beside a torch that knows it.
"""

import ctypes
import hashlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

KINDS = ("cuda", "mps")
_SOURCE = Path(__file__).with_name("pretended_card.cpp")
_VERSION = version("torch")
_RELEASE = tuple(map(int, _VERSION.split(".")[:2]))


def refusal(kind: str) -> str:
    """Why the device cannot be pretended here; empty if it can."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "needs Linux and g++"
    if kind == "cuda" and "+cpu" not in _VERSION:
        return "needs a torch without CUDA"
    least = {"cuda": (2, 9), "mps": (2, 6)}[kind]
    return "" if least <= _RELEASE else f"needs torch {least[0]}.{least[1]}"


def load(kind: str) -> None:
    """Make the device exist in this process, which has not imported torch yet."""
    if "torch" in sys.modules or refusal(kind):
        raise RuntimeError(refusal(kind) or "torch is imported already")
    ctypes.CDLL(str(_compiled(kind)), ctypes.RTLD_GLOBAL)
    from tests.support import pretended_device

    pretended_device.register(kind)


def _compiled(kind: str) -> Path:
    """The library, compiled unless it is there."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    key = hashlib.sha256(f"{kind} {_VERSION} {torch}".encode() + _SOURCE.read_bytes()).hexdigest()
    target = Path(tempfile.gettempdir(), f"clipmerge-pretended-{os.getuid()}", f"{key[:16]}.so")
    if not target.exists():
        target.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, target.name)
            libraries = ["-L", torch / "lib", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
            flags = ["-std=c++20", "-shared", "-fPIC", f"-DPRETEND_{kind.upper()}"]
            # as the package index's were compiled
            flags += ["-D_GLIBCXX_USE_CXX11_ABI=0"] if _RELEASE < (2, 7) else []
            command = ["g++", *flags, _SOURCE, "-I", torch / "include", *libraries, "-o", made]
            subprocess.run(command, check=True)
            made.rename(target)
    return target


if __name__ == "__main__":
    from tests.support import pretend  # the one module of this name

    _, chosen, module, *arguments = sys.argv
    pretend.load(chosen)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
