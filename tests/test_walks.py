"""The modules that a value passes: from image to batch, from coefficient to arithmetic, from request to output."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL.Image import Image

from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation.accuracy import load_model
from clipmerge.images.batches import Batch, read_batches
from clipmerge.images.dataset import load_images
from clipmerge.planning.layer_plan import LayerPlan
from clipmerge.planning.plan import Plan
from clipmerge.request import MergeRequest, Run
from tests.support.command import clipmerge
from tests.support.image_files import png
from tests.support.tiny_clip import Folders

ALPHA = 0.3141
PACKAGE = "clipmerge."


@contextmanager
def walked(is_it: Callable[[Any], bool]) -> Iterator[list[str]]:
    """Collect the modules in which a function takes or returns a value, or a container of it, in the order met."""
    rooms: list[str] = []

    def see(frame: FrameType, event: str, value: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event not in ("call", "return") or not module.startswith(PACKAGE) or module.removeprefix(PACKAGE) in rooms:
            return
        code = frame.f_code
        starred = bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
        named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + starred]
        taken = [frame.f_locals.get(name) for name in named]
        if any(holds(each, is_it) for each in (taken if event == "call" else [value])):
            rooms.append(module.removeprefix(PACKAGE))

    threading.setprofile(see)  # of the threads that decode
    sys.setprofile(see)
    try:
        yield rooms
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def holds(value: Any, is_it: Callable[[Any], bool], depth: int = 2) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return is_it(value) or (depth > 0 and any(holds(each, is_it, depth - 1) for each in inner))


def test_an_image_passes_six_modules_to_its_batch(pair: Folders, tmp_path: Path) -> None:
    """As its path, as its encoded bytes, decoded, and as pixels."""

    def is_image(value: Any) -> bool:
        if isinstance(value, str | Path):
            return Path(value).name == "0.png"
        return isinstance(value, Image | Batch | torch.Tensor) or (isinstance(value, dict) and "bytes" in value)

    for number in range(8):
        file = tmp_path / str(number % 2) / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(number))
    model = load_model(open_checkpoint(str(pair[0])))
    with walked(is_image) as rooms:
        (batch,) = read_batches(load_images(str(tmp_path)).sample(8, seed=0), 8, model.pixels)
    assert len(batch) == 8
    assert {"images.decoding", "images.batches", "models.transformers_clip"} <= set(rooms)
    assert len(rooms) <= 6, rooms


def test_a_coefficient_passes_five_modules_to_the_arithmetic(pair: Folders, tmp_path: Path) -> None:
    """It is a float, alone, in a layer's plan or in the plan.

    The walk begins with a method's `Decision`, which `api.plan` makes a plan of.
    """

    def is_alpha(value: Any) -> bool:
        if isinstance(value, Plan):
            return any(layer.alpha == ALPHA for layer in value.layers.values())
        return (value.alpha if isinstance(value, LayerPlan) else value) == ALPHA

    with walked(lambda value: isinstance(value, float | LayerPlan | Plan) and is_alpha(value)) as rooms:
        assert not clipmerge(
            "merge", *pair, "--set", f"method.alpha={ALPHA}", "-r", "wise-ft", "-o", tmp_path / "out"
        ).code
    rooms.remove("api.plan")
    walk = rooms[rooms.index("methods.wise_ft") + 1 : rooms.index("merging.formula") + 1]
    assert "methods" not in walk
    assert len(walk) <= 5, walk


def test_a_merge_request_passes_fifteen_modules(pair: Folders, images: Path, tmp_path: Path) -> None:
    with walked(lambda value: isinstance(value, MergeRequest | Run)) as rooms:
        ended = clipmerge("merge", *pair, "-r", "straggler-outlier", "--data", images, "-o", tmp_path / "out")
    assert not ended.code, ended.err
    assert len(rooms) <= 15, rooms
