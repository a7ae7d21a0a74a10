"""`evaluate` answers every image as plain transformers and plain open_clip do, whatever kind of
picture it is.

Every image is labelled with the reference's answer, so that an accuracy of 1 is agreement to the
image.
"""

import io
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

from tests.support import tiny_families
from tests.support.command import done
from tests.support.image_files import save_tar, saved
from tests.support.tiny_open_clip import ARCHITECTURES, load, model_config, save_open_clip_pair

# short, because the tiny tokenizers write a token per letter and cut what is longer
BEGINNINGS, ENDINGS = (
    ("b", "ca", "fi", "h", "o", "tr", "w"),
    ("an", "at", "ee", "ig", "ok", "ur", "x"),
)
NAMES = [f"{beginning}{ending}" for beginning in BEGINNINGS for ending in ENDINGS]
TEMPLATE = "a photo of a {}."
Picture = tuple[str, bytes, Image.Image]


def pictures() -> list[Picture]:
    """Ending, file, and picture for the library of 48 images, six in each of eight forms."""
    return [picture(form, number) for number in range(6) for form in FORMS]


FORMS = (
    "RGB",
    "grey",
    "palette",
    "transparent",
    "palette with a hole",
    "CMYK",
    "16 bits",
    "turned",
)


def picture(form: str, number: int) -> Picture:
    rng = np.random.default_rng([FORMS.index(form), number])
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8))
    plain = small.resize((60, 40), Image.Resampling.BICUBIC)
    grey, palette = plain.convert("L"), plain.quantize(16)
    if form == "16 bits":  # the libraries would clip it
        wide = (np.asarray(grey).astype(np.uint16) << 8) + 77
        eight = np.rint(wide.astype(np.float64) / 65535 * 255).astype(np.uint8)
        return "png", saved(Image.fromarray(wide), "PNG"), Image.fromarray(eight)
    if form == "turned":  # the libraries would leave it on its side
        turned = Image.Exif()
        turned[0x0112] = 6  # to be turned by 90 degrees clockwise
        return "png", saved(plain, "PNG", exif=turned), plain.transpose(Image.Transpose.ROTATE_270)
    clear = plain.copy()
    clear.putalpha(grey)
    cmyk = Image.merge("CMYK", (*plain.split(), grey))
    content = {
        "RGB": lambda: saved(plain, "PNG"),
        "grey": lambda: saved(grey, "PNG"),
        "palette": lambda: saved(palette, "PNG"),
        "transparent": lambda: saved(clear, "PNG"),
        "palette with a hole": lambda: saved(palette, "PNG", transparency=3),
        "CMYK": lambda: saved(cmyk, "TIFF"),
    }[form]()
    return "tif" if form == "CMYK" else "png", content, Image.open(io.BytesIO(content))


@torch.no_grad()
def by_transformers(folder: Path, texts: list[str], name: str) -> torch.Tensor:
    """(images, texts): logits of the library's model with the library's processor."""
    model, processor = (
        AutoModel.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    padding = {"padding": "max_length", "max_length": 24} if name == "SigLIP" else {"padding": True}
    tokens = processor.tokenizer(texts, truncation=True, return_tensors="pt", **padding)
    if name == "SigLIP":  # as it was trained: padding is text
        tokens.pop("attention_mask")
    pixels = [
        processor.image_processor([picture], return_tensors="pt")["pixel_values"]
        for _, _, picture in pictures()
    ]
    logits: torch.Tensor = model(**tokens, pixel_values=torch.cat(pixels)).logits_per_image
    return logits


@torch.no_grad()
def by_open_clip(folder: Path, texts: list[str], _: str) -> torch.Tensor:
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model, tokenizer = load(folder), open_clip.get_tokenizer(f"local-dir:{folder}")
    classes = normalize(model.encode_text(tokenizer(texts)), dim=-1)
    pixels = torch.stack([transform(picture) for _, _, picture in pictures()])
    return normalize(model.encode_image(pixels), dim=-1) @ classes.T


@pytest.fixture(
    scope="module", params=["CLIP", "SigLIP", "ChineseCLIP", "vit", "timm convnext", "timm siglip"]
)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoint")
    if request.param in tiny_families.TINY:
        return request.param, tiny_families.save_pair(request.param, folder)[1]
    return request.param, save_open_clip_pair(
        folder, model_config(**ARCHITECTURES[request.param]), change=0.1
    )[1]


def variety(logits: torch.Tensor) -> int:
    return len(logits.argmax(dim=1).unique())


@pytest.mark.slow
def test_every_image_is_answered_as_by_the_library(
    checkpoint: tuple[str, Path], tmp_path: Path
) -> None:
    name, folder = checkpoint
    reference = by_transformers if name in tiny_families.TINY else by_open_clip
    logits = reference(folder, [TEMPLATE.format(thing) for thing in NAMES], name)
    # eight classes that a model of random weights finds about equally likely, so that the answers
    # differ
    order = logits.mean(dim=0).argsort()
    chosen = max(
        (order[at : at + 8] for at in range(len(order) - 7)),
        key=lambda few: variety(logits[:, few]),
    )
    answers = logits[:, chosen].argmax(dim=1).tolist()
    assert variety(logits[:, chosen]) >= 4
    members: dict[str, bytes] = {}
    for number, (kind, content, _) in enumerate(pictures()):
        members |= {
            f"{number:02}.{kind}": content,
            f"{number:02}.cls": str(answers[number]).encode(),
        }
    tar = save_tar(tmp_path / "x.tar", members)
    (tmp_path / "names.txt").write_text("\n".join(NAMES[at] for at in chosen))
    told = done(
        "evaluate",
        folder,
        "--data",
        f"all={tar}",
        "--classes",
        tmp_path / "names.txt",
        "--json",
        "--batch-size",
        "7",
    )
    assert told.json["images"] == {"all": len(answers)}
    assert told.json["accuracy"]["all"] == 1
