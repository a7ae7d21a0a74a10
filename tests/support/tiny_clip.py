"""Small real CLIP checkpoints with processor and tokenizer, made on the spot."""

import string
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from clipmerge.families import layers_of

#: Two folders, of a zero-shot and a fine-tuned model.
Folders = tuple[Path, Path]
CLASSES = ("bird", "cat", "dog")
START, END = "<|startoftext|>", "<|endoftext|>"


def layer_of(name: str) -> str:
    """The layer of one of CLIP's parameters."""
    return layers_of([name])[name]


def vocabulary() -> dict[str, int]:
    letters = list(string.ascii_lowercase + ".,")
    words = [*letters, *(letter + "</w>" for letter in letters), START, END]
    return {word: index for index, word in enumerate(words)}


def tiny_config(blocks: int = 3, width: int = 32, **changes: str) -> CLIPConfig:
    vocab = vocabulary()
    tower = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        **changes,
    }
    text = {
        "vocab_size": len(vocab),
        "max_position_embeddings": 32,
        "bos_token_id": vocab[START],
    }
    ends = {"eos_token_id": vocab[END], "pad_token_id": vocab[END]}
    vision = {"image_size": 32, "patch_size": 8}
    return CLIPConfig(
        text_config={**tower, **text, **ends}, vision_config={**tower, **vision}, projection_dim=16
    )


def tiny_processor() -> CLIPProcessor:
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = CLIPTokenizer(vocab=vocabulary(), merges=[], model_max_length=32)
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


@torch.no_grad()
def stir(model: torch.nn.Module, amount: float) -> None:
    """Move every entry, the statistics of batch norms too, so that nothing is left at 0 or 1."""
    for parameter in model.parameters():
        parameter.add_(amount * torch.randn(parameter.shape))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(amount * torch.randn(buffer.shape))
        elif name.endswith("running_var"):
            buffer.mul_(1 + amount * torch.rand(buffer.shape))
        elif name.endswith("num_batches_tracked"):
            buffer.add_(7)


def save_pair(
    folder: Path, *, change: float = 0.05, blocks: int = 3, seed: int = 0
) -> tuple[Path, Path]:
    """Save ``zeroshot`` and ``finetuned``: random weights, and the same with every entry moved a
    little."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = CLIPModel(tiny_config(blocks))
    processor = tiny_processor()
    paths = (folder / "zeroshot", folder / "finetuned")
    for path in paths:
        model.save_pretrained(path)
        processor.save_pretrained(path)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(change * (parameter.abs().mean() + 0.01) * noise)
    return paths


def save_family(folder: Path, *, change: float = 0.3) -> list[Path]:
    """Save ``zeroshot`` and ``finetuned0`` to ``finetuned2``: one base, and three changes that share
    a part."""
    torch.manual_seed(7)
    model = CLIPModel(tiny_config(2, 16))
    base = {name: value.clone() for name, value in model.state_dict().items()}
    shared = {name: torch.randn(value.shape) for name, value in base.items()}
    processor = tiny_processor()
    paths = [folder / "zeroshot", *(folder / f"finetuned{number}" for number in range(3))]
    for number, path in enumerate(paths):
        state = dict(base)
        if number:
            for name, value in base.items():
                size = change * (value.abs().mean() + 0.01)
                state[name] = value + size * (shared[name] + torch.randn(value.shape))
        model.load_state_dict(state)
        model.save_pretrained(path)
        processor.save_pretrained(path)
    return paths


def save_classifiers(folder: Path, *names: tuple[str, ...]) -> list[Path]:
    """Save ``0``, ``1`` ...: a tower with a head, and the same with every weight moved a little,
    each with names of its own for its rows."""
    torch.manual_seed(0)
    config = tiny_config(2)
    config.num_labels = len(names[0])
    model = CLIPForImageClassification(config)
    for number, rows in enumerate(names):
        # with texts as keys, as a configuration has that was read, and written sorted as texts
        model.config.id2label = {str(row): name for row, name in enumerate(rows)}
        model.save_pretrained(folder / str(number))
        tiny_processor().image_processor.save_pretrained(folder / str(number))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
    return [folder / str(number) for number in range(len(names))]


def save_images(
    folder: Path, *, each: int = 10, classes: tuple[str, ...] = CLASSES, seed: int = 0
) -> Path:
    """Save random PNGs, one subfolder per class; each class has its own mean colour."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            pixels = rng.integers(0, 100, (40, 36, 3)) + 50 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


def save_captions(folder: Path, *, each: int = 10, seed: int = 0) -> Path:
    """Save the images of `save_images` in one folder, each beside its class and number as a
    caption."""
    save_images(folder, each=each, seed=seed)
    for number, image in enumerate(sorted(folder.rglob("*.png"))):
        image.rename(folder / f"{number:04}.png")
        (folder / f"{number:04}.txt").write_text(f"{image.parent.name} {number}")
    for name in CLASSES:
        (folder / name).rmdir()
    return folder
