"""Plan a merge of random weights at real sizes, one architecture after another: does each one run?

``nice python -m benchmarks.architectures ViT-S-32-alt RN50 transformers:siglip``

Each architecture is saved twice, the second time with every weight moved a little, and planned with
the recipe ``auto`` in two steps on eight random images: opening, checking, measuring in both
precisions, learning and judging run at the sizes that users have. A run that ends by a signal, as
from a fault in a library's kernel, is told apart from one that ends by an error. Names are
open_clip's, or ``transformers:`` and a key of `TRANSFORMERS`. Without names all of `OPEN_CLIP` and
`TRANSFORMERS` run, an hour or two of one core; an architecture that has ended well before is not
run again, unless its line is removed from the file of results. ``--page`` runs nothing, and lists
the results in `docs/reference/families.md`.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import string
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file

import clipmerge

RESULTS = Path(__file__).parent / "results" / "architectures.json"
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "families.md"
# first words of the paragraph of the page that lists the results
_PARAGRAPH = "With random weights"
#: One of each design of a tower, in small sizes, the fastest first.
OPEN_CLIP = (
    "ViT-S-32-alt",
    "ViT-M-16-alt",
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "MobileCLIP2-S0",
    "vit_medium_patch16_gap_256",
    "ViTamin-S",
    "RN50",
    "convnext_tiny",
    "PE-Core-T-16-384",
    "coca_ViT-B-32",
    "roberta-ViT-B-32",
    "vit_relpos_medium_patch16_cls_224",
    "MobileCLIP-S1",
    "MobileCLIP-B",
    "EVA02-B-16",
    "swin_base_patch4_window7_224",
    "ViT-B-16-SigLIP",
    "ViT-B-32-SigLIP2-256",
    "xlm-roberta-base-ViT-B-32",
    "nllb-clip-base",
    "mt5-base-ViT-B-32",
    "ViTamin-S-LTT",
    "ViT-B-16-plus-240",
    "coca_roberta-ViT-B-32",
    "convnext_base",
    "RN101-quickgelu",
    "ViT-L-14-CLIPA",
)
STEPS = ("measure.steps=2", "measure.batch=4", "measure.strong_aug=2")
# what clipmerge asks for where images are patches of any aspect ratio
UNCHANGED_IMAGES = ("measure.weak_aug=0", "measure.augmentations=[]")
_LETTERS = [*string.ascii_lowercase, *".,"]


def _clip_tokenizer() -> Any:
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _bert_tokenizer() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    vocabulary = {word: index for index, word in enumerate(words)}
    return hf.BertTokenizer(vocab=vocabulary, model_max_length=64)


def _gemma_tokenizer() -> Any:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *_LETTERS]
    vocabulary = {word: index for index, word in enumerate(words)}
    return hf.Siglip2Tokenizer(
        vocab=vocabulary, merges=[], model_max_length=64, padding_side="right"
    )


def _xlm_tokenizer() -> Any:
    words = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *_LETTERS, "<mask>"]
    vocabulary = [(word, -float(index)) for index, word in enumerate(words)]
    return hf.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=64)


#: Hugging Face's text towers of open_clip at their published sizes, by part of the model's name,
#: and a tokenizer whose padding has the same number.
TEXT_TOWERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "xlm-roberta-base": (
        lambda: hf.XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514),
        _xlm_tokenizer,
    ),
    "roberta-": (
        lambda: hf.RobertaConfig(vocab_size=50265, max_position_embeddings=514),
        _xlm_tokenizer,
    ),
    "nllb-clip-base": (
        lambda: hf.M2M100Config(
            vocab_size=256206, d_model=1024, encoder_layers=12, encoder_ffn_dim=4096
        ),
        _xlm_tokenizer,
    ),
    "mt5-base": (
        lambda: hf.MT5Config(
            vocab_size=250112, d_model=768, d_ff=2048, num_layers=12, num_heads=12
        ),
        _gemma_tokenizer,
    ),
}


def _of_clip(config: Any, model: Any, **vision: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        tokenizer = _clip_tokenizer()
        ends = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        return model(config(text_config=ends, vision_config=vision)), tokenizer

    return make


def _dual(vision: Any, text: Any, tokenizer: Callable[[], Any]) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(vision(), text())
        return hf.VisionTextDualEncoderModel(config), tokenizer()

    return make


#: Models of transformers at the sizes of their classes, with tokenizers of a few letters.
TRANSFORMERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clip": _of_clip(hf.CLIPConfig, hf.CLIPModel),
    "clip-16": _of_clip(hf.CLIPConfig, hf.CLIPModel, patch_size=16),
    "metaclip-2": _of_clip(hf.MetaClip2Config, hf.MetaClip2Model),
    "siglip-32": lambda: (
        hf.SiglipModel(hf.SiglipConfig(vision_config={"patch_size": 32, "image_size": 256})),
        _gemma_tokenizer(),
    ),
    "siglip": lambda: (hf.SiglipModel(hf.SiglipConfig()), _gemma_tokenizer()),
    "siglip-2": lambda: (hf.Siglip2Model(hf.Siglip2Config()), _gemma_tokenizer()),
    "chinese-clip": lambda: (hf.ChineseCLIPModel(hf.ChineseCLIPConfig()), _bert_tokenizer()),
    "altclip": lambda: (hf.AltCLIPModel(hf.AltCLIPConfig()), _xlm_tokenizer()),
    "align": lambda: (
        hf.AlignModel(hf.AlignConfig(vision_config={"image_size": 289})),
        _bert_tokenizer(),
    ),
    "vit-and-bert": _dual(hf.ViTConfig, hf.BertConfig, _bert_tokenizer),
    "clip-and-roberta": _dual(
        hf.CLIPVisionConfig,
        lambda: hf.RobertaConfig(vocab_size=50265, max_position_embeddings=514),
        _xlm_tokenizer,
    ),
    "dinov2-and-bert": _dual(
        lambda: hf.Dinov2Config(image_size=224), hf.BertConfig, _bert_tokenizer
    ),
}


def _images_of(config: Any) -> Any:
    """An image processor for a model."""
    if not hasattr(config, "image_size"):  # any aspect ratio, as patches
        return hf.Siglip2ImageProcessor(patch_size=config.patch_size)
    side = config.image_size
    square = {"height": side, "width": side}
    return hf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square)


def _pair(name: str, folder: Path) -> list[Path]:
    """Save an architecture with random weights, and again with every weight moved a little."""
    torch.manual_seed(0)
    paths = [folder / "zeroshot", folder / "finetuned"]
    model: Any
    if name.startswith("transformers:"):
        model, tokenizer = TRANSFORMERS[name.partition(":")[2]]()
        for path in paths:
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            _images_of(model.config.vision_config).save_pretrained(path)
            _move(model)
        return paths
    config = open_clip.get_model_config(name)
    text, tokenizer = config["text_cfg"], None
    if "hf_model_name" in text:
        make, tokenize = next(made for part, made in TEXT_TOWERS.items() if part in name)
        text["hf_model_name"] = str(folder / "text")
        make().save_pretrained(folder / "text")
        tokenizer = tokenize()
    elif "hf_tokenizer_name" in text:
        bert = text["hf_tokenizer_name"].startswith("bert")
        tokenizer = _bert_tokenizer() if bert else _gemma_tokenizer()
    model = _built(config)
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    described = json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing})
    for path in paths:
        path.mkdir()
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(weights, path / "open_clip_model.safetensors")
        (path / "open_clip_config.json").write_text(described, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        _move(model)
    return paths


def _built(config: dict[str, Any]) -> Any:
    """A model of open_clip, as `open_clip.create_model` builds it, from its configuration."""
    settings = json.loads(json.dumps(config))
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
    if "hf_model_name" in settings["text_cfg"]:
        settings["text_cfg"]["hf_model_pretrained"] = False
    if not custom:
        return open_clip.CLIP(**settings)
    return (open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP)(
        **settings
    )


@torch.no_grad()
def _move(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(0.02 * parameter.abs().mean() * torch.randn(parameter.shape))


def _images(folder: Path) -> Path:
    chance = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels = chance.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def plan_one(name: str, folder: Path) -> None:
    """Plan one architecture, and write what happened into a file of the folder."""
    pair, images = _pair(name, folder), _images(folder / "images")
    gc.collect()
    size = sum(path.stat().st_size for path in pair[0].glob("*.safetensors"))
    result: dict[str, Any] = {"parameters": size // 4}
    report = folder / "result.json"
    report.write_text(json.dumps(result))
    began = time.process_time()
    settings = (*STEPS, *(UNCHANGED_IMAGES if name == "transformers:siglip-2" else ()))
    try:
        zeroshot, finetuned = pair
        planned = clipmerge.plan(zeroshot, finetuned, "auto", data=images, set=settings, hash=False)
    except clipmerge.ClipmergeError as error:
        result["error"] = str(error)
    else:
        result["layers"] = len(planned.layers)
        result["judged"] = planned.effect is not None
    result["processor_seconds"] = round(time.process_time() - began, 1)
    report.write_text(json.dumps(result))


def tried(name: str, seconds: float) -> dict[str, Any]:
    """Plan one architecture in a process of its own, and say how it ended."""
    with tempfile.TemporaryDirectory() as temporary:
        # a fork has everything imported, which would take longer than planning a small model
        child = multiprocessing.get_context("fork").Process(
            target=plan_one, args=(name, Path(temporary))
        )
        child.start()
        child.join(seconds)
        if child.is_alive():
            child.kill()
        report = Path(temporary) / "result.json"
        result = json.loads(report.read_text()) if report.exists() else {}
    return {"ended": child.exitcode == 0 and "error" not in result, "exit": child.exitcode} | result


def paragraph(results: dict[str, dict[str, Any]]) -> str:
    """The paragraph of the page: what ended well, and what did not."""
    well = [name for name, result in results.items() if result["ended"]]
    badly = [name for name in results if name not in well]
    ours = [name for name in well if ":" not in name]
    theirs = [name.partition(":")[2] for name in well if ":" in name]
    text = (
        f"{_PARAGRAPH} of real size `plan --recipe auto` ran to its end, in a few steps, on"
        f" {len(ours)} architectures of OpenCLIP ({', '.join(sorted(ours))}) and"
        f" {len(theirs)} of transformers ({', '.join(sorted(theirs))}):"
        " `python -m benchmarks.architectures` (siglip-2 without augmentations)."
    )
    if badly:
        text += f" It did not end on {', '.join(sorted(badly))}."
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def with_paragraph(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with the paragraph of these results in place of an earlier one."""
    parts = page.split("\n\n")
    (place,) = (number for number, part in enumerate(parts) if part.startswith(_PARAGRAPH))
    parts[place] = paragraph(results)
    return "\n\n".join(parts).rstrip("\n") + "\n"


def main() -> None:
    """Try the architectures named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=1800, help="the longest wait for one")
    parser.add_argument("--json", type=Path, default=RESULTS, help="results, earlier ones too")
    parser.add_argument("--page", action="store_true", help="list the results on the page")
    arguments = parser.parse_args()
    names = arguments.names or [*OPEN_CLIP, *(f"transformers:{name}" for name in TRANSFORMERS)]
    path: Path = arguments.json
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if arguments.page:
        PAGE.write_text(with_paragraph(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
        return
    for name in names:
        if not results.get(name, {}).get("ended"):
            results[name] = tried(name, arguments.seconds)
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({name: results[name]}), flush=True)
    sys.exit(not all(results[name]["ended"] for name in names))


if __name__ == "__main__":
    main()
