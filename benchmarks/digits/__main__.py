"""Train the demo's two models, a minute on two cores, and write them into the package in 16
bits."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPModel

from benchmarks.digits import styles, training
from benchmarks.digits.training import Training
from clipmerge.demo.data import ink_of
from clipmerge.demo.pair import MODELS
from clipmerge.parallel import one_thread


def main() -> None:
    how = Training(images=len(ink_of("train")[0]), zeroshot_steps=220)
    generator = torch.Generator().manual_seed(how.seed)
    with one_thread():
        processor = training.processor(styles.captions())
        model = training.untrained_model(processor.tokenizer, how.seed)
        training.train_zeroshot(model, processor.tokenizer, how, generator, lambda _: None)
        _save(model, MODELS / "zeroshot.safetensors")
        training.finetune(model, processor.tokenizer, how, generator, lambda _: None)
        _save(model, MODELS / "finetuned.safetensors")
    model.config.save_pretrained(MODELS / "files")
    processor.save_pretrained(MODELS / "files")


def _save(model: CLIPModel, file: Path) -> None:
    weights = {
        name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(weights, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
