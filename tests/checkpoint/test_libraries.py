"""Outputs in other libraries, where these are installed: they say what transformers says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel

import clipmerge
from tests.support.tiny_clip import Folders

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
TEXTS = ["a bird", "b, c."]


def merged(pair: Folders, finetuned: Path, output: Path) -> tuple[Path, Any]:
    """A merge, and what transformers reads in some texts."""
    clipmerge.merge(pair[0], finetuned, "wise-ft", alpha=0.5, output=output)
    words = CLIPProcessor.from_pretrained(output)(
        text=TEXTS, return_tensors="pt", padding="max_length"
    )
    with torch.no_grad():
        return output, CLIPModel.from_pretrained(output).text_model(words["input_ids"])


@pytest.mark.parametrize("folder", ["", "0_CLIPModel"])
def test_sentence_transformers(pair: Folders, tmp_path: Path, folder: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    if folder == "":
        library.SentenceTransformer(str(pair[1])).save(str(tmp_path / "tuned"))
    else:
        CLIPModel.from_pretrained(pair[1]).save_pretrained(tmp_path / "tuned" / folder)
    output, expected = merged(pair, tmp_path / "tuned", tmp_path / "out")
    model = CLIPModel.from_pretrained(output)
    found = library.SentenceTransformer(str(output)).encode(TEXTS, convert_to_tensor=True)
    with torch.no_grad():
        features = model.text_projection(expected.pooler_output)
    torch.testing.assert_close(found.cpu(), features, rtol=0, atol=1e-5)


def test_a_text_encoder_of_diffusers(pair: Folders, tmp_path: Path) -> None:
    library = pytest.importorskip("diffusers")
    pipeline = tmp_path / "pipeline"
    CLIPTextModel.from_pretrained(pair[1]).save_pretrained(pipeline / "text_encoder")
    output, expected = merged(pair, pipeline, tmp_path / "out")
    parts = dict.fromkeys(
        ("vae", "unet", "scheduler", "safety_checker", "feature_extractor", "image_encoder")
    )
    pipe = library.StableDiffusionPipeline(
        text_encoder=CLIPTextModel.from_pretrained(output),
        tokenizer=CLIPProcessor.from_pretrained(output).tokenizer,
        requires_safety_checker=False,
        **parts,
    )
    found, _ = pipe.encode_prompt(TEXTS, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(found, expected.last_hidden_state, rtol=0, atol=1e-5)
