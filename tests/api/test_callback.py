"""The merge at the end of a real training with transformers' Trainer."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import CLIPModel, Trainer, TrainingArguments

import clipmerge
from clipmerge import ClipmergeError, Progress, RobustMergeCallback
from tests.support.tiny_clip import Folders, tiny_processor

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


class Captioned(Dataset[dict[str, Any]]):
    """Eight random pictures with three words each."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(8, 3, 32, 32, generator=generator)
        ends = torch.full((8, 1), tiny_processor().tokenizer.eos_token_id)
        self.tokens = torch.cat([torch.randint(20, (8, 3), generator=generator), ends], dim=1)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels, tokens = self.pixels[index], self.tokens[index]
        return {"pixel_values": pixels, "input_ids": tokens, "return_loss": True}


def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("pixel_values", "input_ids")
    return {name: torch.stack([row[name] for row in rows]) for name in names} | {
        "return_loss": True
    }


def train(model: torch.nn.Module, folder: Path, callback: RobustMergeCallback) -> Trainer:
    args = TrainingArguments(
        str(folder),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        max_steps=3,
        learning_rate=1e-3,
        report_to=[],
    )
    trainer = Trainer(
        model, args, train_dataset=Captioned(), data_collator=collated, callbacks=[callback]
    )
    trainer.train()
    return trainer


def test_training_ends_with_the_merge_of_what_was_trained(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"alpha": 0.25, "data": images, "allow": ("at-chance", "swapped")}
    callback = RobustMergeCallback(pair[0], **options, progress=Progress())
    trainer = train(CLIPModel.from_pretrained(pair[0]), tmp_path / "run", callback)
    assert callback.error is None
    assert callback.result is not None
    assert callback.result.path == tmp_path / "run" / "merged"
    assert callback.result.record is not None
    assert callback.result.record.command == (
        "clipmerge.merge('zeroshot', 'CLIPModel in memory', recipe='wise-ft', alpha=0.25,"
        f" data={images.name!r}, allow=['at-chance', 'swapped'], output='merged')"
    )
    trainer.save_model(str(tmp_path / "trained"))
    clipmerge.merge(
        pair[0], tmp_path / "trained", alpha=0.25, output=tmp_path / "same", progress=Progress()
    )
    found, same, zeroshot = (
        load_file(folder / "model.safetensors")
        for folder in (callback.result.path, tmp_path / "same", pair[0])
    )
    assert all(torch.equal(found[name], value) for name, value in same.items())
    assert any(not torch.equal(found[name], value) for name, value in zeroshot.items())
    assert (callback.result.path / "tokenizer.json").is_file()  # it loads as a whole
    logged = [entry for entry in trainer.state.log_history if "clipmerge" in str(entry)]
    verdict = callback.result.verdict
    assert verdict is not None
    (entry,) = logged
    assert entry["clipmerge/target_accuracy_merged"] == verdict.target.models["merged"].value


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft with this version of transformers
def test_an_adapter_is_merged_with_its_base(pair: Folders, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = CLIPModel.from_pretrained(pair[0])
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    wrong = RobustMergeCallback(base, "wise-ft", progress=Progress())
    with pytest.raises(ClipmergeError, match="zeroshot is the model that is trained"):
        train(model, tmp_path / "no", wrong)
    callback = RobustMergeCallback(pair[0], "wise-ft", output=tmp_path / "out", progress=Progress())
    train(model, tmp_path / "run", callback)
    assert callback.error is None
    merged, zeroshot = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pair[0])
    )
    changed = {name for name, value in merged.items() if not torch.equal(value, zeroshot[name])}
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)


def test_what_would_fail_at_the_end_fails_at_the_beginning(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    model = CLIPModel.from_pretrained(pair[0])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for options, said in (
        ({"zeroshot": tmp_path / "nowhere"}, "no such folder or file"),
        ({"output": tmp_path / "taken"}, "taken"),
        ({"data": "nowhere"}, "nowhere: no such folder"),
        ({"data": images, "ood": {"a": "nowhere"}}, "nowhere: no such folder"),
    ):
        given: dict[str, Any] = {"zeroshot": pair[0], "output": tmp_path / "out"} | options
        callback = RobustMergeCallback(**given, progress=Progress())
        with pytest.raises(ClipmergeError, match=said):
            train(model, tmp_path / "run", callback)
    with pytest.raises(ClipmergeError, match="Did you mean 'wise-ft'"):
        RobustMergeCallback(pair[0], "wiseft")


def test_a_failure_at_the_end_costs_no_training(
    pair: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = RobustMergeCallback(pair[0], alpha=1e39, output=tmp_path / "out")
    with caplog.at_level(logging.ERROR, logger="clipmerge"):
        trainer = train(CLIPModel.from_pretrained(pair[0]), tmp_path / "run", callback)
    assert trainer.state.global_step == 3
    assert isinstance(callback.error, ClipmergeError)
    assert "training itself succeeded" in caplog.text
    other = RobustMergeCallback(pair[0], "wise-ft")
    with pytest.raises(ClipmergeError, match="no process holds the whole model"):
        other.on_train_begin(SimpleNamespace(fsdp="full", deepspeed=None), None, None, None)
