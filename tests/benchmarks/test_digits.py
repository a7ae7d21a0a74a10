"""Training of the demo's models: styles, captions, the tokenizer, the loss, and the same bytes in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.digits import __main__ as command
from benchmarks.digits import styles, training
from benchmarks.digits.training import Training
from clipmerge.demo.data import ink_of
from clipmerge.images.digits import CLASS_NAMES, as_images, as_rgb


def clean() -> tuple[torch.Tensor, torch.Tensor]:
    """Digits as the training takes them."""
    ink, digits = ink_of("train")
    return ink.float(), digits


BRIEF = Training(zeroshot_steps=3, zeroshot_batch=8, finetune_steps=2, finetune_batch=8)


def test_a_caption_names_a_style_of_its_image_or_none() -> None:
    words = list(styles._STYLES)
    digits = torch.arange(10).repeat_interleave(len(words)).repeat(5)
    chosen = torch.eye(len(words), dtype=torch.bool).repeat(50, 1)
    captions = styles._describe(digits, chosen, torch.Generator().manual_seed(0))
    named = 0
    for caption, digit, row in zip(captions, digits.tolist(), chosen.tolist(), strict=True):
        said = [word for word in caption.removesuffix(".").split() if word in words]
        assert said in ([], [words[row.index(True)]])
        assert caption.endswith(f"{CLASS_NAMES[digit]}.")
        named += len(said)
    assert 0.6 < named / len(captions) < 0.73, "two in three"


def test_styles_are_seeded_and_captions_name_the_digit() -> None:
    ink, digits = clean()
    first = styles.styled_batch(ink[:200], digits[:200], torch.Generator().manual_seed(3))
    again = styles.styled_batch(ink[:200], digits[:200], torch.Generator().manual_seed(3))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert -1e-6 <= first[0].min() <= first[0].max() <= 1 + 1e-6, "off by rounding at most"
    assert set(first[1]) <= set(styles.captions())
    for caption, digit in zip(first[1], digits[:200].tolist(), strict=True):
        assert caption.endswith(f" {CLASS_NAMES[digit]}.")


def test_without_styles_images_are_clean_and_captions_plain() -> None:
    ink, digits = clean()
    pixels, captions = styles.styled_batch(ink[:50], digits[:50], torch.Generator().manual_seed(0), rate=0.0)
    assert torch.equal(pixels, ink[:50].expand(-1, 3, -1, -1))
    assert not [text for text in captions if any(style in text.split() for style in styles._STYLES)]


@pytest.mark.parametrize("style", styles._STYLES)
def test_each_style_stays_in_range_and_does_something(style: str) -> None:
    ink, _ = clean()
    pixels = as_rgb(ink[:64])
    styled = styles._STYLES[style](pixels, torch.Generator().manual_seed(0))
    assert styled.shape == pixels.shape
    assert -1e-6 <= styled.min() <= styled.max() <= 1 + 1e-6
    assert ((styled - pixels).abs().amax(dim=(1, 2, 3)) > 0.02).all()


# --- tokenizer and processor


def test_every_word_of_the_captions_is_one_token() -> None:
    tokenizer = training.caption_tokenizer(styles.captions())
    for caption in styles.captions():
        words = caption.removesuffix(".").split()
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in [*words, "."]]


def test_other_text_falls_into_letters_and_nothing_is_unknown() -> None:
    tokenizer = training.caption_tokenizer(styles.captions())
    text = "hello, 42 zebras: ça va?"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_the_tokenizer_is_the_same_every_time() -> None:
    one, two = (training.caption_tokenizer(styles.captions()) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()


def test_training_sees_what_the_processor_makes() -> None:
    processor = training.processor(styles.captions())
    pixels = as_rgb(ink_of("test")[0][:20])
    processed = processor.image_processor(as_images(pixels), return_tensors="pt")["pixel_values"]
    # an 8-bit file is at most half a level off, in units of half the range
    assert (processed - training.normalised(pixels)).abs().max() <= 1.01 / 255


# --- training


def test_the_loss_equals_clips_own_when_captions_differ() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = training.contrastive_loss(logits, torch.arange(6))
    assert torch.allclose(ours, image_text_contrastive_loss(logits.T), rtol=0, atol=1e-12)


def test_a_shared_caption_shares_its_softmax() -> None:
    logits = torch.tensor([[2.0, 0.5], [1.0, 0.0], [0.0, 1.5]], dtype=torch.float64)
    target = [0, 0, 1]
    # three images and their three captions written out, the first two captions being the same
    full = [[row[caption] for caption in target] for row in logits.exp().tolist()]
    own = [full[0][0] + full[0][1], full[1][0] + full[1][1], full[2][2]]
    to_text = -sum(np.log(mine / sum(row)) for mine, row in zip(own, full, strict=True)) / 3
    columns = [sum(row[0] for row in full), sum(row[2] for row in full)]
    first = -(np.log(full[0][0] / columns[0]) + np.log(full[1][0] / columns[0])) / 2
    second = -np.log(full[2][2] / columns[1])
    expected = (to_text + (first + second) / 2) / 2
    assert training.contrastive_loss(logits, torch.tensor(target)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_training_is_seeded_and_moves_both_towers_but_not_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr(command, "Training", lambda **_: BRIEF)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.setattr(command, "MODELS", folder)
        command.main()
        written.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert written[0] == written[1]
    before, after = (load_file(tmp_path / "one" / f"{name}.safetensors") for name in ("zeroshot", "finetuned"))
    assert before.keys() == after.keys()
    assert torch.equal(before["logit_scale"], after["logit_scale"])
    for name in ("text_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.5.mlp.fc1.weight"):
        assert not torch.equal(before[name], after[name])
