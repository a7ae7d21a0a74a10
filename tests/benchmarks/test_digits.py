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
from clipmerge.images.digits import CLASS_NAMES, as_rgb

BRIEF = Training(zeroshot_steps=3, zeroshot_batch=8, finetune_steps=2, finetune_batch=8)


def test_styles_are_seeded_stay_in_range_and_are_named_in_two_captions_of_three() -> None:
    ink, digits = ink_of("train")
    ink, words = ink[:200].float(), list(styles._STYLES)
    (first, texts), again = (styles.styled_batch(ink, digits[:200], torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again[0])
    assert texts == again[1]
    assert set(texts) <= set(styles.captions())
    assert all(text.endswith(f" {CLASS_NAMES[digit]}.") for text, digit in zip(texts, digits[:200], strict=True))
    for style in styles._STYLES.values():
        styled = style(as_rgb(ink), torch.Generator().manual_seed(0))
        assert -1e-6 <= styled.min() <= styled.max() <= 1 + 1e-6, "off by rounding at most"
        assert ((styled - as_rgb(ink)).abs().amax(dim=(1, 2, 3)) > 0.02).all()
    chosen = torch.eye(len(words), dtype=torch.bool).repeat(50, 1)
    captions = styles._describe(torch.zeros(len(chosen), dtype=torch.long), chosen, torch.Generator().manual_seed(0))
    said = [[word for word in caption.removesuffix(".").split() if word in words] for caption in captions]
    assert all(named in ([], [words[row.index(True)]]) for named, row in zip(said, chosen.tolist(), strict=True))
    assert 0.6 < sum(map(len, said)) / len(said) < 0.73


def test_every_word_of_the_captions_is_one_token_and_nothing_is_unknown() -> None:
    tokenizer, again = (training.caption_tokenizer(styles.captions()) for _ in range(2))
    assert tokenizer.get_vocab() == again.get_vocab()
    for caption in styles.captions():
        words = caption.removesuffix(".").split()
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in [*words, "."]]
    text = "hello, 42 zebras: ça va?"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


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
