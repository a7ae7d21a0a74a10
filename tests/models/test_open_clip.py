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
from clipmerge.learning.objective import Batch
from clipmerge.plugins import load_plugin
from tests.support.command import clipmerge, refused
from tests.support.small_objective import objective_for
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import ARCHITECTURES, load, model_config, save_open_clip_pair

AUGMENTATIONS = [*ARCHITECTURES]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folders]:
    """A pair of each kind."""
    folder = tmp_path_factory.mktemp("pairs")
    return {
        name: save_open_clip_pair(folder / str(number), model_config(**ARCHITECTURES[name]))
        for number, name in enumerate(AUGMENTATIONS)
    }


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", AUGMENTATIONS)
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


@pytest.mark.parametrize("kind", ["resnet", "timm siglip"])
def test_the_shares_of_all_layers_are_the_measured_barrier(
    pairs: dict[str, Folders], kind: str
) -> None:
    """Batch norms' statistics move along the path too: without their part the sums would be
    wrong."""
    size = ARCHITECTURES[kind].get("vision", {}).get("image_size", 32)
    generator, labels = torch.Generator().manual_seed(3), torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1]])
    pixels = torch.randn(2, 4, 3, size, size, generator=generator)
    objective = objective_for(pairs[kind], [Batch(at, pixels[at], labels[at]) for at in (0, 1)])
    found = load_plugin("measures", "path-barrier")(objective)
    for check in found.checks.values():
        assert check.sum_of_layers == pytest.approx(check.measured, rel=0.02, abs=2e-5)
    assert objective.path.layers.keys() == set(found.layers)


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
