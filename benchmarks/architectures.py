"""Plan a merge of random weights at real sizes, one architecture after another: does each one run?

``python -m benchmarks.architectures ViT-S-32-alt RN50 transformers:siglip --json tried.json``

Each architecture is saved twice, the second time with every weight moved a little, and planned with
the recipe ``auto`` in a few steps on a few random images: opening, measuring in both precisions,
learning and judging run at the sizes that users have. A run that ends by a signal, as from a fault
in a library's kernel, is told apart from one that ends by an error. Names are open_clip's, or
``transformers:`` and a key of `TRANSFORMERS`. Without names all small ones run, a few hours of one
core.
"""

from __future__ import annotations

import argparse
import gc
import json
import string
import subprocess
import sys
import tempfile
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

SMALL = (
    *("ViT-S-32-alt", "ViT-S-32", "ViT-M-32-alt", "ViT-M-32", "ViT-S-16-alt", "ViT-M-16-alt"),
    *("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-32-256", "RN50", "RN50-quickgelu", "RN101"),
    *("coca_ViT-B-32", "MobileCLIP2-S0", "MobileCLIP-S1", "MobileCLIP-S2", "ViTamin-S"),
    *("PE-Core-T-16-384", "convnext_tiny", "vit_medium_patch16_gap_256", "EVA02-B-16"),
)
STEPS = ("measure.steps=2", "measure.batch=4", "measure.strong_aug=2")


def _words(*special: str) -> dict[str, int]:
    letters = [*special, *string.ascii_lowercase, *".,"]
    return {word: index for index, word in enumerate(letters)}


def _clip_tokenizer() -> Any:
    letters = [*string.ascii_lowercase, *".,"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _bert_tokenizer() -> Any:
    words = _words("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return hf.BertTokenizer(vocab=words, model_max_length=64)


def _gemma_tokenizer() -> Any:
    words = _words("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581")
    return hf.Siglip2Tokenizer(vocab=words, merges=[], model_max_length=64, padding_side="right")


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


def _dual() -> tuple[Any, Any]:
    towers = hf.ViTConfig(), hf.BertConfig()
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(*towers)
    return hf.VisionTextDualEncoderModel(config), _bert_tokenizer()


#: Models of transformers at the sizes of their classes, with tokenizers of a few letters.
TRANSFORMERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clip": _of_clip(hf.CLIPConfig, hf.CLIPModel),
    "clip-16": _of_clip(hf.CLIPConfig, hf.CLIPModel, patch_size=16),
    "clip-64-pixels": _of_clip(hf.CLIPConfig, hf.CLIPModel, patch_size=16, image_size=64),
    "metaclip-2": _of_clip(hf.MetaClip2Config, hf.MetaClip2Model),
    "siglip": lambda: (hf.SiglipModel(hf.SiglipConfig()), _gemma_tokenizer()),
    "siglip-32": lambda: (
        hf.SiglipModel(hf.SiglipConfig(vision_config={"patch_size": 32, "image_size": 256})),
        _gemma_tokenizer(),
    ),
    "chinese-clip": lambda: (
        hf.ChineseCLIPModel(hf.ChineseCLIPConfig()),
        _bert_tokenizer(),
    ),
    "align": lambda: (hf.AlignModel(hf.AlignConfig()), _bert_tokenizer()),
    "vit-and-bert": _dual,
}


def _pair(name: str, folder: Path) -> list[Path]:
    """Save an architecture with random weights, and again with every weight moved a little."""
    torch.manual_seed(0)
    paths = [folder / "zeroshot", folder / "finetuned"]
    model: Any
    if name.startswith("transformers:"):
        model, tokenizer = TRANSFORMERS[name.partition(":")[2]]()
        side = model.config.vision_config.image_size
        square = {"height": side, "width": side}
        images = hf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square)
        for path in paths:
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            images.save_pretrained(path)
            _move(model)
        return paths
    config = open_clip.get_model_config(name)
    model = open_clip.create_model(name)
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    described = json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing})
    for path in paths:
        path.mkdir()
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(weights, path / "open_clip_model.safetensors")
        (path / "open_clip_config.json").write_text(described, encoding="utf-8")
        _move(model)
    return paths


@torch.no_grad()
def _move(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(0.02 * parameter.abs().mean() * torch.randn(parameter.shape))


def _images(folder: Path) -> Path:
    chance = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = chance.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def tried(name: str, seconds: float) -> dict[str, Any]:
    """Plan one architecture, and say how it ended."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pair, images = _pair(name, folder), _images(folder / "images")
        gc.collect()
        command = [sys.executable, "-m", "clipmerge", "plan", *map(str, pair), "--recipe", "auto"]
        command += ["--data", str(images), "--output", str(folder / "plan.json")]
        command += [word for setting in STEPS for word in ("--set", setting)]
        begin = time.perf_counter()
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
            code, line = ended.returncode, ended.stderr.strip().splitlines()[-1:]
        except subprocess.TimeoutExpired:
            code, line = None, [f"no end within {seconds:g} seconds"]
        took = time.perf_counter() - begin
    return {"name": name, "code": code, "seconds": round(took, 1), "line": (line or [""])[0]}


def main() -> None:
    """Try the architectures named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=1800, help="the longest wait for one")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    names = arguments.names or [*SMALL, *(f"transformers:{name}" for name in TRANSFORMERS)]
    results = []
    for name in names:
        results.append(tried(name, arguments.seconds))
        print(json.dumps(results[-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(result["code"] != 0 for result in results))


if __name__ == "__main__":
    main()
