"""CLIPs as their own libraries load them: to fine-tune one, and to judge what a merge wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPModel, CLIPProcessor

from benchmarks.make_pairs.pictures import Source, pixels_of

_OPEN_CLIP = "open_clip_config.json"
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Pictures computed at once: a batch of 64 in one piece takes more than twice as long on a CPU.
_PIECE = 16


@dataclass(frozen=True)
class Model:
    """A CLIP of either library.

    Attributes:
        network: The module.
        size: Side of a picture.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        tokenize: Turns prompts into the arguments of ``embed_text``.
        embed_image: Unit embeddings of pixels, shape (N, width).
        embed_text: Unit embeddings of tokens, shape (C, width).
        write: Writes the model into a folder.
    """

    network: nn.Module
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    tokenize: Callable[[Sequence[str]], Any]
    embed_image: Callable[[Tensor], Tensor]
    embed_text: Callable[[Any], Tensor]
    write: Callable[[Path], None]

    def input(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels of pictures, shape (N, 3, size, size), channels last in memory."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        shares = pixels_of(images, self.size).float() / 255
        return (shares - mean) / std

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts."""
        return self.embed_text(self.tokenize(prompts))

    @property
    def scale(self) -> Tensor:
        """Inverse temperature."""
        return self.network.logit_scale.exp()

    @torch.no_grad()
    def embedded(self, pixels: Tensor) -> Tensor:
        """Embeddings of pictures, shape (N, width)."""
        seen = [self.embed_image(piece.to(_DEVICE)) for piece in pixels.split(_PIECE)]
        return torch.cat(seen).cpu()

    @torch.no_grad()
    def logits(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Logits of pictures, shape (N, C)."""
        texts = self.texts(prompts).cpu()
        return self.scale.cpu() * self.embedded(pixels) @ texts.T


def load(folder: Path) -> Model:
    """Load an OpenCLIP or a transformers folder."""
    return _open_clip(folder) if (folder / _OPEN_CLIP).is_file() else _transformers(folder)


def _open_clip(folder: Path) -> Model:
    config = json.loads((folder / _OPEN_CLIP).read_text(encoding="utf-8"))
    network = CLIP(**config["model_cfg"]).eval()
    network.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    network.to(_DEVICE).visual.to(memory_format=torch.channels_last)
    length = config["model_cfg"]["text_cfg"].get("context_length", 77)
    return Model(
        network,
        config["model_cfg"]["vision_cfg"]["image_size"],
        config["preprocess_cfg"]["mean"],
        config["preprocess_cfg"]["std"],
        lambda prompts: open_clip.tokenize(list(prompts), context_length=length).to(_DEVICE),
        lambda pixels: network.encode_image(pixels, normalize=True),
        lambda tokens: network.encode_text(tokens, normalize=True),
        lambda into: save_open_clip(network, config, into),
    )


def save_open_clip(network: CLIP, config: Mapping[str, Any], folder: Path) -> None:
    """Write an OpenCLIP folder, completely or not at all."""
    scratch = folder.with_name(f".{folder.name}")
    scratch.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, value in network.state_dict().items():
        weights[name] = value.detach().contiguous()
    save_file(weights, scratch / "open_clip_model.safetensors")
    text = json.dumps(config, indent=1) + "\n"
    (scratch / _OPEN_CLIP).write_text(text, encoding="utf-8")
    scratch.rename(folder)


def _transformers(folder: Path) -> Model:
    # over 17 patches the fused kernel's backward pass takes ten times as long
    network = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval().to(_DEVICE)
    tools = CLIPProcessor.from_pretrained(folder)
    seen = tools.image_processor

    def features(found: Any) -> Tensor:
        return normalize(getattr(found, "pooler_output", found), dim=1)

    def write(into: Path) -> None:
        scratch = into.with_name(f".{into.name}")
        network.save_pretrained(scratch)
        tools.save_pretrained(scratch)
        scratch.rename(into)

    return Model(
        network,
        seen.crop_size["height"],
        seen.image_mean,
        seen.image_std,
        lambda prompts: tools.tokenizer(list(prompts), padding=True, return_tensors="pt").to(
            _DEVICE
        ),
        lambda pixels: features(network.get_image_features(pixel_values=pixels)),
        lambda tokens: features(network.get_text_features(**tokens)),
        write,
    )


def prompts_of(classes: Sequence[str], template: str) -> list[str]:
    """One prompt for each class."""
    return [template.format(name) for name in classes]


def interpolated(
    zeroshot: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """WiSE-FT: every weight the same share of the way."""
    return {
        name: start + alpha * (finetuned[name] - start) if start.is_floating_point() else start
        for name, start in zeroshot.items()
    }


@dataclass(frozen=True)
class Regime:
    """Settings of fine-tuning.

    Attributes:
        rate: Peak learning rate.
        epochs: Passes over the pictures.
        text: Whether the text tower is trained too.
        mirror: Whether every second picture is mirrored.
        move: Largest shift of a picture, in pixels.
        batch: Pictures per step.
        l2_sp: Weight of half the squared distance to the start (arXiv 1802.01483).
        ema: Decay of an exponential moving average of the weights, which is then the result.
    """

    rate: float
    epochs: float
    text: bool = False
    mirror: bool = True
    move: int = 8
    batch: int = 64
    l2_sp: float = 0
    ema: float = 0


def finetune(
    start: Path, how: Regime, seed: int, source: Source, template: str, folder: Path
) -> None:
    """Fine-tune by cross-entropy over the class prompts and write the model, unless it exists.

    Batch normalization and the temperature stay as they are.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        model = load(start)
        _train(model, how, source, template)
    model.write(folder)


def _train(model: Model, how: Regime, source: Source, template: str) -> None:
    pixels, labels = model.input(source.images), source.labels
    tokens = model.tokenize(prompts_of(source.classes, template))
    learned = []
    for name, value in model.network.named_parameters():
        is_seeing = name.startswith(("visual", "vision"))
        if is_seeing or (how.text and name != "logit_scale"):
            learned.append(value)
    steps = max(2, int(how.epochs * len(pixels) / how.batch))
    warm_up = 0.1 if steps >= 20 else 0.15
    start = [value.detach().clone() for value in learned]
    average = [value.clone() for value in start]
    optimizer = torch.optim.AdamW(learned, lr=how.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, how.rate, total_steps=steps, pct_start=warm_up
    )
    passes = range(int(how.epochs) + 1)
    order = torch.cat([torch.randperm(len(pixels)) for _ in passes])
    with torch.no_grad():
        fixed = model.embed_text(tokens)
    for step in range(steps):
        at = order[step * how.batch : (step + 1) * how.batch]
        images = _moved(pixels[at], how).to(_DEVICE)
        optimizer.zero_grad()
        texts = model.embed_text(tokens) if how.text else fixed
        _add_gradients(model, images, labels[at].to(_DEVICE), texts)
        for value, first in zip(learned, start, strict=True):
            if how.l2_sp and value.grad is not None:
                value.grad += how.l2_sp * (value.detach() - first)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, learned, 1 - how.ema)
    if how.ema:
        with torch.no_grad():
            torch._foreach_copy_(learned, average)


def _add_gradients(model: Model, images: Tensor, labels: Tensor, texts: Tensor) -> None:
    """Gradients of the mean cross-entropy of a batch, piece by piece."""
    scale = model.scale.detach()
    leaf = texts.detach().requires_grad_(texts.requires_grad)
    for piece, wanted in zip(images.split(_PIECE), labels.split(_PIECE), strict=True):
        logits = scale * model.embed_image(piece) @ leaf.T
        loss = cross_entropy(logits, wanted, reduction="sum")
        (loss / len(images)).backward()
    if leaf.grad is not None:
        texts.backward(leaf.grad)


def _moved(images: Tensor, how: Regime) -> Tensor:
    """Mirror every second picture, and move all of them a few pixels."""
    if how.mirror:
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    down, aside = torch.randint(-how.move, how.move + 1, (2,)).tolist()
    rolled = images.roll((down, aside), (2, 3))
    return rolled.contiguous(memory_format=torch.channels_last)
