"""Measuring and evaluating OpenCLIP checkpoints: the same numbers as open_clip's own, and as
transformers'."""

import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation.accuracy import load_model
from tests.support.command import clipmerge, refused
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import ARCHITECTURES, load, model_config, save_open_clip_pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folders]:
    """A pair of each kind."""
    folder = tmp_path_factory.mktemp("pairs")
    return {
        name: save_open_clip_pair(folder / str(number), model_config(**ARCHITECTURES[name]))
        for number, name in enumerate(ARCHITECTURES)
    }


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_features_and_logits_are_open_clips_own(pairs: dict[str, Folders], kind: str) -> None:
    folder = pairs[kind][1]
    ours, theirs = load_model(open_checkpoint(str(folder))), load(folder)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    picture = Image.radial_gradient("L").convert("RGB").resize((90, 75))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a cat", "two dogs"])
    pixels, prompts = ours.pixels([picture]), ours.tokens(["a cat", "two dogs"])
    assert torch.equal(pixels, transform(picture)[None])
    assert torch.equal(prompts["input_ids"], tokens)
    images, texts = (
        theirs.encode_image(pixels, normalize=True),
        theirs.encode_text(tokens, normalize=True),
    )
    logits = theirs.logit_scale.exp() * images @ texts.T
    if getattr(theirs, "logit_bias", None) is not None:
        logits = logits + theirs.logit_bias
    found = ours.logits(ours.image_features(pixels), ours.text_features(prompts))
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)


def test_without_open_clip_one_line_says_what_to_install(
    pairs: dict[str, Folders], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    line = refused(clipmerge("evaluate", pairs["vit"][0], "--data", f"val={images}"))
    assert "install clipmerge[open-clip]" in line


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("", "", "copy the files of acme/tiny's tokenizer beside the weights"),
        (
            '"hf_tokenizer_name": "acme/tiny"',
            '"pad_id": 0',
            "its tokenizer has token 49407, but its text tower knows 58",
        ),
    ],
)
def test_a_tokenizer_that_is_not_there_is_an_error_of_one_line(
    images: Path, tmp_path: Path, before: str, after: str, told: str
) -> None:
    folder = save_open_clip_pair(tmp_path, model_config())[0]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace(before, after))
    assert told in refused(clipmerge("evaluate", folder, "--data", f"val={images}"))
