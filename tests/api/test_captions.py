"""Images with captions in place of classes: the verdict and what is refused, by the functions."""

import io
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

import clipmerge
from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import DataError
from clipmerge.evaluation.accuracy import load_model
from clipmerge.images.dataset import open_images
from clipmerge.images.image_set import CaptionedImages
from clipmerge.report.text import answer_text
from tests.api.test_callback import trainer_for
from tests.support.command import clipmerge as command
from tests.support.tiny_clip import Folders

WORDS = ("red", "green", "blue", "dark", "pale", "warm")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty noisy pictures with a caption each; ten captions are there twice."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 256, (40, 36, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        of = number % 50
        caption = (
            f"a {WORDS[of % 6]} picture of {WORDS[of // 6 % 6]} number {'abcdefghij'[of % 10]}"
        )
        (folder / f"{number:02}.txt").write_text(f"{caption}\n")
    return folder


def recall_at_one(checkpoint: Path, images: CaptionedImages) -> np.ndarray[Any, Any]:
    """Image by image, by a sort in Python: whether each finds its caption, and is found by it."""
    model = load_model(open_checkpoint(str(checkpoint)))
    with torch.inference_mode():
        pixels = torch.cat([model.pixels([images.image(at)]) for at in range(len(images))])
        features = model.image_features(pixels).double()
        texts = model.text_features(model.tokens([own[0] for own in images.captions])).double()
    scores = (features @ texts.T).tolist()
    shares = []
    for number, row in enumerate(scores):
        column = [other[number] for other in scores]
        finds = max(range(len(row)), key=lambda at: (row[at], -at)) == number
        found = max(range(len(column)), key=lambda at: (column[at], -at)) == number
        shares.append((finds + found) / 2)
    return np.array(shares)


def test_the_verdict_of_captions_is_recall_at_one(
    pair: Folders, pictures: Path, tmp_path: Path
) -> None:
    result = clipmerge.merge(*pair, "wise-ft", data=str(pictures), output=tmp_path / "out")
    effect = result.plan.effect
    assert effect is not None
    assert (effect.images, effect.captions) == (60, 60)
    images = open_images(str(pictures))
    assert isinstance(images, CaptionedImages)
    expected = [recall_at_one(path, images).mean() for path in (*pair, tmp_path / "out")]
    measured = (effect.zeroshot, effect.finetuned[0], effect.merged)
    # equal captions are equally good, and which of them comes first may depend on the order
    assert [each.clean.value for each in measured] == pytest.approx(expected, abs=0.05)
    for model in measured:
        low, high = model.clean.interval
        assert low <= model.clean.value <= high
    for name, found in zip(effect.models, measured, strict=True):
        ways = effect.recall[name]
        mean = (ways["image_to_text"]["1"] + ways["text_to_image"]["1"]) / 2
        assert mean == pytest.approx(found.clean.value)
        assert ways["image_to_text"]["1"] <= ways["image_to_text"]["10"]
    assert effect.over_finetuned.clean.value == pytest.approx(
        effect.merged.clean.value - effect.finetuned[0].clean.value
    )
    assert any(warning.kind == "recall" for warning in result.plan.warnings)


def test_all_images_with_one_caption_measure_nothing(pair: Folders, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("the same caption for all")
    with pytest.raises(DataError, match="all images have the same captions"):
        clipmerge.plan(*pair, "wise-ft", data=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("straggler-outlier", ["measure.nodes=2"]),
        ("auto", ["measure.steps=4", "measure.batch=8"]),
    ],
)
def test_recipes_measure_and_learn_on_captions(
    pair: Folders, pictures: Path, recipe: str, changes: list[str]
) -> None:
    """Images held back from the decision are judged, and both stages say how many captions."""
    plan = clipmerge.plan(*pair, recipe, data=str(pictures), set=changes)
    assert plan.calibration is not None
    assert plan.calibration.images == 48
    assert 38 <= plan.calibration.classes < 48  # captions, of which ten are there twice in all
    assert plan.calibration.templates == ("{}",)
    assert plan.effect is not None
    assert (plan.effect.images, plan.effect.captions) == (12, 12)
    if recipe == "auto":  # the images of the answer choose too
        assert plan.measurements.choice.images == 12 + 10
        assert plan.effect.choosers == 12
    assert plan.layers
    again = clipmerge.plan(*pair, recipe, data=str(pictures), set=changes)
    assert again.layers == plan.layers


def test_a_sweep_draws_recall_at_one(pair: Folders, pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(pictures.glob("*.png"))[:20]:
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other / path.name)
        text = path.with_suffix(".txt")
        (other / text.name).write_text(text.read_text())
    result = clipmerge.sweep(
        *pair, id={"own": str(pictures)}, ood={"other": str(other)}, alphas=(0.0, 1.0)
    )
    images = open_images(str(pictures))
    assert isinstance(images, CaptionedImages)
    for row, checkpoint in zip(result.record["curve"], pair, strict=True):
        expected = recall_at_one(checkpoint, images).mean()
        assert row["accuracy"]["own"] == pytest.approx(expected, abs=0.05)
        assert row["id"] == row["accuracy"]["own"]
    assert result.correct["other"].shape == (2, 20)
    assert sum("recall at 1" in warning for warning in result.warnings) == 2


@pytest.mark.slow
def test_examples_are_what_both_models_find(pair: Folders, pictures: Path, tmp_path: Path) -> None:
    """Image by image, by a sort in Python, among the images held back."""
    result = clipmerge.merge(*pair, "wise-ft", data=str(pictures), output=tmp_path / "out")
    effect = result.plan.effect
    assert effect is not None
    assert len(effect.examples) == 4
    opened = open_images(str(pictures))
    thumbnails = [
        Image.open(io.BytesIO(b64decode(content))).convert("RGB") for content in effect.thumbnails
    ]

    def place(number: int) -> int:
        """Position of the image that a thumbnail shows: the nearest by its pixels."""
        shown = np.asarray(thumbnails[number], dtype=float)
        distances = []
        for at in range(len(opened)):
            image = opened.image(at)
            image.thumbnail(thumbnails[number].size)
            distances.append(np.abs(np.asarray(image, dtype=float) - shown).mean())
        return int(np.argmin(distances))

    for checkpoint, which in ((pair[1], "finetuned"), (tmp_path / "out", "merged")):
        model = load_model(open_checkpoint(str(checkpoint)))
        with torch.inference_mode():
            pixels = torch.cat([model.pixels([opened.image(at)]) for at in range(len(opened))])
            features = model.image_features(pixels).double()
            texts = model.text_features(model.tokens([each.caption for each in effect.examples]))
        for example, text in zip(effect.examples, texts.double(), strict=True):
            scores = (features @ text).tolist()
            best = sorted(range(len(scores)), key=lambda at: -scores[at])[:3]
            assert [place(number) for number in getattr(example, which)] == best
            assert example.caption in opened.captions[place(example.image)]  # type: ignore[union-attr]
    assert "For 4 captions of the held-out images" in (tmp_path / "out/report.html").read_text()


def test_a_training_ends_with_a_merge_that_captions_in_memory_judge(
    pair: Folders, pictures: Path, tmp_path: Path
) -> None:
    opened = open_images(str(pictures))
    assert isinstance(opened, CaptionedImages)
    data = [(opened.image(at), opened.captions[at][0]) for at in range(30)]
    callback = clipmerge.RobustMergeCallback(
        str(pair[0]), "wise-ft", data=data, output=tmp_path / "out"
    )
    trainer_for(CLIPModel.from_pretrained(pair[0]), tmp_path / "run", callback).train()
    assert callback.error is None
    assert callback.result is not None
    effect = callback.result.plan.effect
    assert effect is not None
    assert (effect.images, effect.captions) == (30, 30)
    assert "30 captions the merged model has a recall at 1 of" in answer_text(effect)


def test_the_result_of_an_evaluation_shows_recalls(pair: Folders, pictures: Path) -> None:
    result = clipmerge.evaluate(pair[0], {"shop": pictures})
    ways = result.recall["shop"]
    found = [100 * ways[way]["1"] for way in ("image_to_text", "text_to_image")]
    said = f"shop R@1 {found[0]:.1f}% image to text, {found[1]:.1f}% text to image"
    assert repr(result) == f"EvaluateResult({said})"
    row = result.to_frame().loc["shop"]
    assert (row["images"], row["image_to_text R@5"]) == (60, ways["image_to_text"]["5"])


def test_recalls_are_printed_with_the_size_of_the_gallery(pair: Folders, pictures: Path) -> None:
    ended = command("evaluate", pair[0], "--data", f"shop={pictures}")
    assert ended.code == 0
    rows = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert rows[0] == "source images recall"
    assert sum("60, 60 captions" in row for row in rows) == 6
    # the tests' tokenizer knows letters alone
    assert ended.err.count("spells the captions nearly letter by letter") == 1
