"""Fixtures for tests of images: a Hub with the organisations of public data sets.

`datasets` reads the variables of its caches when it is imported, so it is imported late.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

if TYPE_CHECKING:
    from tests.support.hub_double import FakeHub


@pytest.fixture
def hub(hub: "FakeHub", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "FakeHub":
    """The double, to which `datasets` speaks too, with a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return hub


@pytest.fixture(scope="session")
def digit_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's fine-tuned model, which recognises some digits in noise."""
    from clipmerge.demo.pair import prepare

    return prepare(tmp_path_factory.mktemp("demo") / "demo").finetuned


@pytest.fixture(scope="session")
def recognised(digit_model: Path) -> Callable[[Sequence[Any], Sequence[str]], list[int]]:
    """The class of each picture by that model, as `transformers` alone finds it."""
    model: Any = CLIPModel.from_pretrained(digit_model).eval()
    processor: Any = CLIPProcessor.from_pretrained(digit_model)

    def classes(pictures: Sequence[Any], names: Sequence[str]) -> list[int]:
        prompts = [f"a photo of a {name}." for name in names]
        inputs = processor(text=prompts, images=pictures, return_tensors="pt", padding=True)
        with torch.no_grad():
            found: list[int] = model(**inputs).logits_per_image.argmax(dim=1).tolist()
        return found

    return classes


@pytest.fixture(autouse=True)
def _quiet() -> None:
    import datasets

    datasets.disable_progress_bars()
