"""Accuracy and recall on a folder of CLIP_benchmark are those that the package `clip-benchmark`
itself finds there."""

import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.support.benchmark_sets import save_files
from tests.support.command import done
from tests.support.image_files import save_tar
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
TEMPLATES = ("a bad photo of a {c}.", "a photo of the {c}.", "{c}")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return save_open_clip_pair(tmp_path_factory.mktemp("pair"), model_config(), change=0.1)


def save_set(root: Path, texts: dict[str, bytes], ending: str, content: Any) -> Path:
    """A set of 60 photos of several sizes and formats in three shards, each beside a label or
    captions."""
    rng, files = np.random.default_rng(0), {**texts, "test/nshards.txt": b"3"}
    for shard in range(3):
        members: dict[str, bytes] = {}
        for key in range(20 * shard, 20 * shard + 20):
            height, width = rng.integers(30, 80, 2)
            kind, file = ("png", "jpg", "webp")[key % 3], io.BytesIO()
            noise = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(noise).save(file, {"jpg": "JPEG"}.get(kind, kind))
            members |= {
                f"s{key:07d}.{kind}": file.getvalue(),
                f"s{key:07d}.{ending}": content(rng, key),
            }
        files[f"test/{shard}.tar"] = save_tar(root.parent / f"{shard}.tar", members).read_bytes()
    return save_files(root, files)


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
    texts = {
        "classnames.txt": "\n".join(NAMES).encode(),
        "zeroshot_classification_templates.txt": "\n".join(TEMPLATES).encode(),
    }
    root = save_set(
        tmp_path / "wds_fish", texts, "cls", lambda rng, _: str(rng.integers(0, 5)).encode()
    )
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
    def captions(_: Any, key: int) -> bytes:
        word = (
            "abcdefghij"[key // 10] + "klmnopqrst"[key % 10]
        )  # letters, which the tiny tokenizer tells apart
        return "\n".join(f"{word}{ending}" for ending in "uvx"[: 1 + key % 3]).encode()

    root = save_set(tmp_path / "wds_captions", {"dataset_type.txt": b"retrieval"}, "txt", captions)
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
