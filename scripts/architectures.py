"""Merge one shrunk model of every kind that open_clip lists, and compare it with open_clip's own:
`python scripts/architectures.py [WORD]`.

Two configurations are of one kind if they differ in sizes alone. Each kind is built with few
blocks and random weights, moved a little, merged with alpha 0.25 and loaded by `open_clip`, and by
clipmerge for measuring; features of both towers must be those of the average in memory.
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers
from safetensors.torch import save_file

import clipmerge
from clipmerge.checkpoint import open_checkpoint
from clipmerge.evaluation.accuracy import load_model

ALPHA = 0.25
LENGTH, WORDS = 16, 49408  # words of CLIP's own tokenizer
# Settings in which models of one kind differ.
SIZES = re.compile(
    r"width|heads|layers|size|ratio|queries|dropout|drop_path|length|tokeniz|pretrain"
)
SMALL_TEXT = {"context_length": LENGTH, "vocab_size": WORDS, "width": 64, "heads": 2, "layers": 2}
SMALL_BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {
    "mt5": {"d_model": 64, "d_ff": 96, "d_kv": 32, "num_layers": 2, "num_heads": 2},
    "m2m_100": {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96},
}
# What makes timm's towers small, by the start of their names.
FEW_BLOCKS = {
    "vit": {"depth": 2},
    "eva": {"depth": 2},
    "convnext": {"depths": (1, 1, 1, 1)},
    "swin": {"depths": (2, 2, 2, 2)},
    "fastvit": {"layers": (1, 1, 1, 1)},
}
timm_model = timm.create_model


def create_small(name: str, **options: Any) -> Any:
    """`timm.create_model` with few blocks."""
    few = FEW_BLOCKS.get(re.split(r"[_\d]", name)[0], {})
    try:
        return timm_model(name, **options, **few)
    except (TypeError, AssertionError, AttributeError):  # built from other parts, such as ViTamin
        return timm_model(name, **options)


def kind_of(config: dict[str, Any]) -> str:
    """A configuration without sizes."""
    vision, text, *_ = parts = [config["vision_cfg"], config["text_cfg"], config]
    kept: list[Any] = [type(vision.get("layers")).__name__, "multimodal_cfg" in config]
    kept.append(re.split(r"[_\d]", vision.get("timm_model_name", ""))[0])
    kept.append(re.split(r"-", text.get("hf_model_name", ""))[0])
    for part in parts:
        for key, value in sorted(part.items()):
            if not (SIZES.search(key) or key.endswith(("_cfg", "_name", "embed_dim"))):
                kept.append((key, value))
    return json.dumps(kept)


def shrink(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same kind of model with few blocks."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    elif isinstance(vision["layers"], list):
        vision.update(layers=[1, 1, 1, 1], width=16, image_size=64)
    else:
        vision.update(layers=2, width=64, head_width=32, image_size=32, patch_size=8)
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):  # of files that are not here
        text.pop(key, None)
    if "hf_model_name" in text:
        text.update(hf_model_name=small_text(text["hf_model_name"], folder))
        text.update(hf_model_pretrained=False)
    else:
        text.update(SMALL_TEXT)
    if text.get("proj_type") == "none":  # its features are as wide as the embedding
        text["width"] = config["embed_dim"]
    if "multimodal_cfg" in config:
        config["multimodal_cfg"].update(SMALL_TEXT)
    return config


def small_text(name: str, folder: Path) -> str:
    """A folder with the configuration of a small text tower of transformers."""
    marks = {"mt5": "mt5", "nllb": "m2m_100", "xlm": "xlm-roberta", "roberta": "roberta"}
    kind = next(kind for mark, kind in marks.items() if mark in name)
    sizes = SMALL.get(kind, {**SMALL_BERT, "intermediate_size": 96})
    config = transformers.AutoConfig.for_model(kind, vocab_size=WORDS, **sizes)
    config.save_pretrained(folder / kind)
    return str(folder / kind)


@torch.no_grad()
def stir(model: torch.nn.Module, amount: float) -> None:
    """Move every weight a little."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(amount * torch.rand_like(value))


@torch.no_grad()
def outputs(model: Any, size: Any, text: dict[str, Any]) -> list[torch.Tensor]:
    """Unit features of noise and of a text, and their logits."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *open_clip.model.to_2tuple(size), generator=generator)
    ids = torch.randint(3, WORDS - 1, (2, LENGTH), generator=generator)
    ids[:, 12] = text.get("eos_id", 2) if text.get("pool_type") == "eos" else WORDS - 1
    image = model.encode_image(images, normalize=True)
    words = model.encode_text(ids, normalize=True)
    return [image, words, model.logit_scale.exp() * image @ words.T]


def largest_difference(config: dict[str, Any], work: Path) -> float:
    """Merge a pair of one kind, and compare features and logits with the average in memory."""
    (work / "small.json").write_text(json.dumps(config))
    open_clip.add_model_config(work / "small.json")
    torch.manual_seed(0)
    model = open_clip.create_model("small", pretrained_hf=False).eval()
    stir(model, 0.05)
    states = []
    for name in ("zeroshot", "finetuned"):
        (work / name).mkdir()
        tensors = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
        states.append(tensors)
        save_file(tensors, work / name / "open_clip_model.safetensors")
        stated = {"model_cfg": config, "preprocess_cfg": {}}
        (work / name / "open_clip_config.json").write_text(json.dumps(stated))
        stir(model, 0.01)
    out = work / "out"
    clipmerge.merge(work / "zeroshot", work / "finetuned", "wise-ft", alpha=ALPHA, output=out)
    for key, value in states[0].items():
        if value.is_floating_point():
            value.lerp_(states[1][key], ALPHA)
    model.load_state_dict(states[0])
    size, text = model.visual.image_size, config["text_cfg"]
    expected = outputs(model, size, text)
    loaded = open_clip.create_model(f"local-dir:{out}").eval()
    ours = load_model(open_checkpoint(str(out)))
    found = outputs(loaded, size, text) + outputs(ours.module, size, text)
    pairs = zip(found, expected * 2, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def main() -> None:
    """Print a line per kind, and the largest difference."""
    timm.create_model = create_small
    open_clip.timm_model.timm.create_model = create_small
    kinds: dict[str, str] = {}
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    names = [name for name in open_clip.list_models() if word in name]
    for name in names:
        kinds.setdefault(kind_of(open_clip.get_model_config(name)), name)
    worst = 0.0
    for name in kinds.values():
        with tempfile.TemporaryDirectory() as folder:
            config = shrink(open_clip.get_model_config(name), Path(folder))
            difference = largest_difference(config, Path(folder))
        worst = max(worst, difference)
        print(f"{difference:8.1e}  {name}", flush=True)
    print(f"{len(kinds)} kinds of {len(names)} models, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
