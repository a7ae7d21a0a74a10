from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import logging

from clipmerge.demo import data as demo_data
from clipmerge.demo import training as demo_training
from clipmerge.demo.pair import (
    CLASS_NAMES,
    SHIFTS,
    TEMPLATE,
    DemoPair,
    Training,
    _quiet_transformers,
    prepare,
)
from clipmerge.errors import DataError
from clipmerge.images.dataset import load_images
from clipmerge.images.digits import as_images, as_rgb, read_digits

BRIEF = Training(zeroshot_steps=3, zeroshot_batch=8, finetune_steps=2, finetune_batch=8)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> DemoPair:
    """A whole demo folder whose models have seen a handful of images; read only."""
    return prepare(tmp_path_factory.mktemp("demo") / "pair", training=BRIEF)


# --- digits


def test_splits_are_disjoint_and_cover_all_images() -> None:
    everything, digits = read_digits()
    parts = [demo_data.ink_of(split) for split in ("train", "calibration", "test")]
    assert len(everything) == 1797
    assert [len(ink) for ink, _ in parts] == [1100, 297, 400]
    # two writers' digits can coincide pixel by pixel, so images are compared as multisets
    joined = torch.cat([ink for ink, _ in parts]).flatten(1)
    assert sorted(map(bytes, joined.numpy())) == sorted(map(bytes, everything.flatten(1).numpy()))
    assert torch.equal(torch.cat([each for _, each in parts]).bincount(), digits.bincount())


def test_images_are_the_bundled_digits_light_on_dark() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    loaded = load_images("digits")
    images = [loaded.image(number) for number in range(50)]
    assert list(loaded.labels) == bunch.target.tolist()
    assert {(image.size, image.mode) for image in images} == {((32, 32), "RGB")}
    for image, small in zip(images, bunch.images[:50], strict=True):
        shrunk = np.asarray(image)[:, :, 0].reshape(8, 4, 8, 4).mean(axis=(1, 3)) / 255
        assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.97


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    read_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'clipmerge\[demo\]'"):
        load_images("digits")


def test_importing_the_demo_stays_light() -> None:
    heavy = "import sys, clipmerge.demo.pair; print({'torch', 'transformers', 'sklearn', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- shifts and styles


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_repeats_itself_and_changes_every_image(shift: str) -> None:
    ink, _ = demo_data.ink_of("test")
    pixels = demo_data.shifted_pixels(shift, ink)
    assert pixels.shape == (400, 3, 32, 32)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert torch.equal(pixels, demo_data.shifted_pixels(shift, ink))
    assert ((pixels - as_rgb(ink)).abs().amax(dim=(1, 2, 3)) > 0.1).all()


def test_inversion_is_exact() -> None:
    ink, _ = demo_data.ink_of("test")
    assert torch.equal(demo_data.shifted_pixels("inversion", ink), 1 - ink.expand(-1, 3, -1, -1))


def test_blur_is_a_gaussian_of_the_given_width() -> None:
    dot = torch.zeros(2, 1, 32, 32)
    dot[:, :, 16, 16] = 1
    blurred = demo_data._blurred(dot, torch.tensor([1.0, 2.0]))
    for image, sigma in zip(blurred[:, 0].double(), (1.0, 2.0), strict=True):
        axis = torch.arange(32, dtype=torch.float64) - 16
        assert image.sum().item() == pytest.approx(1, abs=1e-5)
        assert (image.sum(dim=0) * axis**2).sum().item() == pytest.approx(sigma**2, rel=1e-3)


def test_positive_degrees_turn_counter_clockwise() -> None:
    page = torch.zeros(1, 1, 32, 32)
    page[:, :, :8] = 1
    turned = demo_data._posed(page, torch.tensor([90.0]), torch.ones(1), torch.zeros(1, 2))
    assert torch.allclose(turned, torch.rot90(page, dims=(2, 3)), atol=1e-4)


def test_a_caption_names_a_style_of_its_image_or_none() -> None:
    styles = list(demo_data._STYLES)
    digits = torch.arange(10).repeat_interleave(len(styles)).repeat(5)
    chosen = torch.eye(len(styles), dtype=torch.bool).repeat(50, 1)
    captions = demo_data._describe(digits, chosen, torch.Generator().manual_seed(0))
    named = 0
    for caption, digit, row in zip(captions, digits.tolist(), chosen.tolist(), strict=True):
        said = [word for word in caption.removesuffix(".").split() if word in styles]
        assert said in ([], [styles[row.index(True)]])
        assert caption.endswith(f"{CLASS_NAMES[digit]}.")
        named += len(said)
    assert 0.6 < named / len(captions) < 0.73, "two in three"


def test_styles_are_seeded_and_captions_name_the_digit() -> None:
    ink, digits = demo_data.ink_of("train")
    first = demo_data.styled_batch(ink[:200], digits[:200], torch.Generator().manual_seed(3))
    again = demo_data.styled_batch(ink[:200], digits[:200], torch.Generator().manual_seed(3))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert -1e-6 <= first[0].min() <= first[0].max() <= 1 + 1e-6, "off by rounding at most"
    assert set(first[1]) <= set(demo_data.captions())
    for caption, digit in zip(first[1], digits[:200].tolist(), strict=True):
        assert caption.endswith(f" {CLASS_NAMES[digit]}.")


def test_without_styles_images_are_clean_and_captions_plain() -> None:
    ink, digits = demo_data.ink_of("train")
    pixels, captions = demo_data.styled_batch(ink[:50], digits[:50], torch.Generator().manual_seed(0), rate=0.0)
    assert torch.equal(pixels, ink[:50].expand(-1, 3, -1, -1))
    assert not [text for text in captions if any(style in text.split() for style in demo_data._STYLES)]


@pytest.mark.parametrize("style", demo_data._STYLES)
def test_each_style_stays_in_range_and_does_something(style: str) -> None:
    ink, _ = demo_data.ink_of("train")
    pixels = as_rgb(ink[:64])
    styled = demo_data._STYLES[style](pixels, torch.Generator().manual_seed(0))
    assert styled.shape == pixels.shape
    assert -1e-6 <= styled.min() <= styled.max() <= 1 + 1e-6
    assert ((styled - pixels).abs().amax(dim=(1, 2, 3)) > 0.02).all()


# --- tokenizer and processor


def test_every_word_of_the_captions_is_one_token() -> None:
    tokenizer = demo_training.caption_tokenizer(demo_data.captions())
    for caption in demo_data.captions():
        words = caption.removesuffix(".").split()
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in [*words, "."]]


def test_other_text_falls_into_letters_and_nothing_is_unknown() -> None:
    tokenizer = demo_training.caption_tokenizer(demo_data.captions())
    text = "hello, 42 zebras: ça va?"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_the_tokenizer_is_the_same_every_time() -> None:
    one, two = (demo_training.caption_tokenizer(demo_data.captions()) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()


def test_training_sees_what_the_processor_makes(untrained: DemoPair) -> None:
    from transformers import CLIPProcessor

    processor = CLIPProcessor.from_pretrained(untrained.zeroshot)
    ink, _ = demo_data.ink_of("test")
    pixels = as_rgb(ink[:20])
    processed = processor.image_processor(as_images(pixels), return_tensors="pt")["pixel_values"]
    # an 8-bit file is at most half a level off, in units of half the range
    assert (processed - demo_training.normalised(pixels)).abs().max() <= 1.01 / 255


# --- training


def test_the_loss_equals_clips_own_when_captions_differ() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = demo_training.contrastive_loss(logits, torch.arange(6))
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
    assert demo_training.contrastive_loss(logits, torch.tensor(target)).item() == pytest.approx(expected, abs=1e-12)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
def test_training_is_seeded_and_leaves_the_callers_state_alone(untrained: DemoPair, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = prepare(tmp_path / "again", training=BRIEF)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 2
    for ours, theirs in ((untrained.zeroshot, again.zeroshot), (untrained.finetuned, again.finetuned)):
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def test_fine_tuning_moves_both_towers_but_not_the_scale(untrained: DemoPair) -> None:
    from safetensors.torch import load_file

    theta_0 = load_file(untrained.zeroshot / "model.safetensors")
    theta_1 = load_file(untrained.finetuned / "model.safetensors")
    assert theta_0.keys() == theta_1.keys()
    assert torch.equal(theta_0["logit_scale"], theta_1["logit_scale"])
    for name in ("text_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.5.mlp.fc1.weight"):
        assert not torch.equal(theta_0[name], theta_1[name])


# --- the folder


def test_both_checkpoints_load_as_ordinary_ones(untrained: DemoPair) -> None:
    from transformers import CLIPModel, CLIPProcessor

    for folder in (untrained.zeroshot, untrained.finetuned):
        model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        tokenizer = CLIPProcessor.from_pretrained(folder).tokenizer
        config = model.config.text_config
        assert config.vocab_size == len(tokenizer)
        assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert config.eos_token_id != 2, "2 would make transformers pool at the highest id instead"
        assert config.max_position_embeddings == tokenizer.model_max_length
        assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_padding_does_not_change_a_prompt(untrained: DemoPair) -> None:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(untrained.zeroshot)
    tokenizer = CLIPProcessor.from_pretrained(untrained.zeroshot).tokenizer
    prompt = TEMPLATE.format("seven")
    alone = tokenizer([prompt], return_tensors="pt")
    padded = tokenizer([prompt], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        features = [model.text_model(**tokens).pooler_output for tokens in (alone, padded)]
    assert torch.allclose(*features, atol=1e-5)


def test_images_lie_in_a_folder_a_class(untrained: DemoPair) -> None:
    folders = {"calibration": untrained.calibration, "clean": untrained.clean, **untrained.shifted}
    assert tuple(untrained.shifted) == SHIFTS
    for name, folder in folders.items():
        assert folder.name == name
        assert sorted(each.name for each in folder.iterdir()) == sorted(CLASS_NAMES)
        assert len(list(folder.glob("*/*.png"))) == (297 if name == "calibration" else 400)


def test_shifted_files_pair_up_with_the_clean_ones(untrained: DemoPair) -> None:
    clean = sorted(path.relative_to(untrained.clean) for path in untrained.clean.glob("*/*.png"))
    for folder in untrained.shifted.values():
        assert sorted(path.relative_to(folder) for path in folder.glob("*/*.png")) == clean
    for path in clean[::50]:
        upright = np.asarray(Image.open(untrained.clean / path), dtype=int)
        inverted = np.asarray(Image.open(untrained.shifted["inversion"] / path), dtype=int)
        assert np.abs(upright + inverted - 255).max() <= 1


def test_progress_goes_up_to_one_and_names_the_stages(tmp_path: Path) -> None:
    reports: list[tuple[str, float]] = []
    prepare(tmp_path / "demo", training=BRIEF, advance=lambda stage, done: reports.append((stage, done)))
    shares = [done for _, done in reports]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len({stage for stage, _ in reports}) == 3


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path / "demo", training=BRIEF)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_is_quiet_for_a_while_and_then_as_before(bars: bool) -> None:
    before, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        with _quiet_transformers():
            assert not logging.is_progress_bar_enabled()
            assert logging.get_verbosity() == logging.ERROR
        assert logging.is_progress_bar_enabled() is bars
        assert logging.get_verbosity() == verbosity
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
