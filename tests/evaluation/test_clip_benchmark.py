"""The accuracy of a local set of CLIP_benchmark is the one that its own evaluation gives, to the image.

The reference follows clip_benchmark 1.6.2 line by line (`datasets.builder.build_wds_dataset`,
`metrics.zeroshot_classification`): the package itself needs `requests` without saying so, and a patch for numpy 2.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from tests.support.benchmark_sets import save_files
from tests.support.command import clipmerge
from tests.support.image_files import save_tar
from tests.support.tiny_open_clip import load, model_config, save_open_clip_pair

NAMES = ("tench", "sea_lion", "great white shark", "cock", "hen")
TEMPLATES = ("a bad photo of a {c}.", "a photo of the {c}.", "{c}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """60 photos of several sizes and formats in three shards."""
    rng, key = np.random.default_rng(0), 0
    files = {
        "classnames.txt": "\n".join(NAMES).encode(),
        "zeroshot_classification_templates.txt": "\n".join(TEMPLATES).encode(),
        "test/nshards.txt": b"3",
    }
    for shard in range(3):
        members: dict[str, bytes] = {}
        for _ in range(20):
            height, width = rng.integers(30, 80, 2)
            kind, file = ("png", "jpg", "webp")[key % 3], io.BytesIO()
            noise = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(noise).save(file, {"jpg": "JPEG"}.get(kind, kind))
            members |= {f"s{key:07d}.{kind}": file.getvalue(), f"s{key:07d}.cls": str(rng.integers(0, 5)).encode()}
            key += 1
        files[f"test/{shard}.tar"] = save_tar(tmp_path / "tars" / f"{shard}.tar", members).read_bytes()
    return save_files(tmp_path / "wds_fish", files)


@torch.no_grad()
def by_clip_benchmark(checkpoint: Path, root: Path) -> list[int]:
    """Which images are recognised: its `zero_shot_classifier`, `run_classification` and `accuracy`."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{checkpoint}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{checkpoint}")
    model = load(checkpoint)
    classnames = (root / "classnames.txt").read_text().split("\n")
    templates = (root / "zeroshot_classification_templates.txt").read_text().split("\n")
    weights = []
    for classname in classnames:
        embeddings = model.encode_text(tokenizer([template.format(c=classname) for template in templates]))
        embedding = normalize(embeddings, dim=-1).mean(dim=0)
        weights.append(embedding / embedding.norm())
    classifier = torch.stack(weights, dim=1)
    right = []
    for shard in range(int((root / "test" / "nshards.txt").read_text())):
        with tarfile.open(root / "test" / f"{shard}.tar") as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        for name in sorted(name for name in members if not name.endswith(".cls")):
            image = Image.open(io.BytesIO(members[name])).convert("RGB")
            logits = 100.0 * normalize(model.encode_image(transform(image)[None]), dim=-1) @ classifier
            target = int(members[f"{name.partition('.')[0]}.cls"])
            right.append(int(logits.topk(1, 1, True, True)[1][0, 0] == target))
    return right


def test_every_image_is_answered_as_by_clip_benchmark(root: Path, tmp_path: Path) -> None:
    for checkpoint in save_open_clip_pair(tmp_path, model_config(), change=0.1):
        expected = by_clip_benchmark(checkpoint, root)
        assert 0 < sum(expected) < 60
        for source in (root, f"{root}:test"):
            ended = clipmerge("evaluate", checkpoint, "--data", f"fish={source}", "--format", "json")
            assert ended.code == 0, ended.err
            assert ended.json["images"] == {"fish": 60}
            assert ended.json["accuracy"]["fish"] * 60 == pytest.approx(sum(expected), abs=1e-9)
