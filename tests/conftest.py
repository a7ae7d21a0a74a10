"""Fixtures for several test files: a small checkpoint pair and images, made once per session."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING
from unittest.mock import Mock, create_autospec

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.support.hub_double import FakeHub

os.environ["HF_HUB_OFFLINE"] = (
    "0"  # huggingface_hub reads it at import; a Hub double is the only Hub here
)
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = (
    "1"  # this too; the command line sets it before its client is imported
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
gc.set_threshold(
    50_000, 20, 50
)  # looking for garbage among the objects of torch and transformers took a twentieth

TESTS = Path(__file__).parent
#: Folder of tests of pictures and of pages with pictures.
DRAWN = TESTS / "report"

# the same examples in every run, none kept on the disk; `--hypothesis-profile default` looks
# further however busy the machine is: slowness is no fault
settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Do not use the user's caches: one temporary cache per run, shared by the worker processes."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="clipmerge-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["XDG_CACHE_HOME"] = folder.name
        os.environ["HF_HOME"] = str(Path(folder.name) / "huggingface")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests, so that no process works alone at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection: going through them takes half a second each
    time."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Otherwise triton, which comes with torch for CUDA, ends with a list of uncollected objects."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Stop counting lines during a test marked `uncounted`, and while its fixtures are made."""
    coverage = sys.modules.get("coverage")
    counting = (
        coverage.Coverage.current() if coverage and item.get_closest_marker("uncounted") else None
    )
    if counting is None:
        return (yield)
    counting.stop()
    try:
        return (yield)
    finally:
        counting.start()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a zero-shot and a fine-tuned tiny CLIP; read only."""
    from tests.support.tiny_clip import save_pair

    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def copies(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of `pair` that a test may change."""
    zeroshot, finetuned = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in pair)
    return zeroshot, finetuned


@pytest.fixture(scope="session")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a smaller pair, between which the loss bends; read only."""
    from tests.support.small_objective import save_ends

    return save_ends(tmp_path_factory.mktemp("ends"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty Hub, to which the client in this process speaks."""
    from tests.support.hub_double import serving

    with serving(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def merged(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A whole output to publish."""
    from tests.support.merge_records import save_output

    return save_output(pair[1], tmp_path / "merged")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of a zero-shot tiny CLIP and three models fine-tuned from it; read only."""
    from tests.support.tiny_clip import save_family

    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def family_pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Folders of the zero-shot and the fine-tuned model of a kind in `TINY`, made on first use;
    read only."""
    from transformers.utils import logging

    from tests.support.tiny_families import save_pair

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return cache(lambda kind: save_pair(kind, tmp_path_factory.mktemp("pair")))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 30 images in three classes; read only."""
    from tests.support.tiny_clip import save_images

    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str], Mock]:
    """Watches the calls of a function or a method of an object, which works as before."""

    def spy(owner: object, name: str) -> Mock:
        real = getattr(owner, name)
        watched: Mock = create_autospec(real, side_effect=real)
        monkeypatch.setattr(owner, name, watched)
        return watched

    return spy


@pytest.fixture(autouse=True)
def frames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw only in tests of pictures, which lie in a folder of their own or are marked.

    The others save an empty frame of a picture's size: drawing takes half the time of a sweep.
    """
    path = request.node.path
    drawn = path.is_relative_to(DRAWN) or not path.is_relative_to(TESTS)
    if not drawn and not request.node.get_closest_marker("draws"):
        from matplotlib.figure import Figure
        from PIL import Image

        def save_frame(figure: Figure, file: IO[bytes], *, format: str, **_: object) -> None:
            width, height = (round(72 * inches) for inches in figure.get_size_inches())
            Image.new("RGB", (width, height), "white").save(file, format)

        monkeypatch.setattr(Figure, "savefig", save_frame)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
