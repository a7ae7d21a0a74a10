"""Controls and baselines of the benchmarks, as plugins of clipmerge.

Each is one file, as CONTRIBUTING.md describes; with ``CLIPMERGE_PLUGINS=benchmarks/plugins`` the
command line knows them too.
"""

import os
from pathlib import Path


def use() -> None:
    """Let this process, and those that it starts, find the plugins."""
    os.environ["CLIPMERGE_PLUGINS"] = str(Path(__file__).parent)
