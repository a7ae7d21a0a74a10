"""Accuracy and recall on a folder of CLIP_benchmark are those that the package `clip-benchmark`
itself finds there."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.support.benchmark_sets import classification_set, save_files, webdataset
from tests.support.command import done
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import model_config, save_open_clip_pair

MISSING = "the package clip-benchmark is missing: pip install 'clipmerge[dev]'"
builder = pytest.importorskip("clip_benchmark.datasets.builder", reason=MISSING)
zeroshot_classification = pytest.importorskip(
    "clip_benchmark.metrics.zeroshot_classification", reason=MISSING
)
zeroshot_retrieval = pytest.importorskip(
    "clip_benchmark.metrics.zeroshot_retrieval", reason=MISSING
)
models = pytest.importorskip("clip_benchmark.models", reason=MISSING)

# of the packages that clip_benchmark imports
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
NAMES = ("tench", "sea_lion", "great white shark", "cock", "hen")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return save_open_clip_pair(tmp_path_factory.mktemp("pair"), model_config(), change=0.1)


def by_the_package(
    measure: Any, checkpoint: Path, root: Path, task: str, **options: Any
) -> dict[str, float]:
    """What ``clip_benchmark eval --dataset wds/NAME --dataset_root ROOT`` does, in its own words
    and in float32."""
    model, transform, tokenizer = models.load_clip(
        model_type="open_clip",
        model_name=f"local-dir:{checkpoint}",
        pretrained=None,
        cache_dir=None,
        device="cpu",
    )
    images = builder.build_dataset(
        "wds/own", root=str(root), transform=transform, split="test", task=task
    )
    loader = DataLoader(images.batched(16), batch_size=None, shuffle=False, num_workers=0)
    if task == "zeroshot_classification":
        options |= {"classnames": images.classes, "templates": images.templates}
    found: dict[str, float] = measure(
        model.eval(), loader, tokenizer, device="cpu", amp=False, **options
    )
    return found


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `accuracy` makes a number of an array of one entry, which numpy refuses since 2.4:
    this is the fix."""
    source = inspect.getsource(zeroshot_classification.accuracy)
    assert ".cpu().numpy())" in source
    names = dict(vars(zeroshot_classification))
    exec(source.replace(".cpu().numpy())", ".cpu().item())"), names)
    monkeypatch.setattr(zeroshot_classification, "accuracy", names["accuracy"])


@pytest.mark.usefixtures("patched")
def test_accuracy_is_that_of_the_package_to_the_image(checkpoints: Folders, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, 60).tolist()
    root = save_files(tmp_path / "wds_fish", classification_set(tmp_path / "made", labels, NAMES))
    found = set()
    for checkpoint in checkpoints:
        expected = by_the_package(
            zeroshot_classification.evaluate, checkpoint, root, "zeroshot_classification"
        )["acc1"]
        found.add(expected)
        for source in (root, f"{root}:test"):
            ended = done("evaluate", checkpoint, "--data", f"fish={source}", "--json")
            assert ended.json["images"] == {"fish": 60}
            assert ended.json["accuracy"]["fish"] * 60 == pytest.approx(expected * 60, abs=1e-9)
    assert all(0 < share < 1 for share in found)


def test_recall_is_that_of_the_package(checkpoints: Folders, tmp_path: Path) -> None:
    words = [f"{first}{second}" for first in "abcdef" for second in "klmnopqrst"]
    captions = [
        "\n".join(f"{word}{ending}" for ending in "uvx"[: 1 + number % 3])
        for number, word in enumerate(words)  # letters, which the tiny tokenizer tells apart
    ]
    shards, texts = (captions[:20], captions[20:]), {"dataset_type.txt": ["retrieval"]}
    files = webdataset(tmp_path / "made", shards, "txt", texts)
    root = save_files(tmp_path / "wds_captions", files)
    for checkpoint in checkpoints:
        expected = by_the_package(
            zeroshot_retrieval.evaluate,
            checkpoint,
            root,
            "zeroshot_retrieval",
            recall_k_list=[1, 5, 10],
        )
        ended = done("evaluate", checkpoint, "--data", f"captions={root}", "--json")
        recall = ended.json["recall"]["captions"]
        for rank in ("1", "5", "10"):
            assert recall["text_to_image"][rank] == pytest.approx(
                expected[f"image_retrieval_recall@{rank}"], abs=1e-6
            )
            assert recall["image_to_text"][rank] == pytest.approx(
                expected[f"text_retrieval_recall@{rank}"], abs=1e-6
            )
