"""The merge at the end of a real training with transformers' Trainer."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel, Trainer, TrainingArguments, default_data_collator

import clipmerge
from clipmerge import ClipmergeError, Progress, RobustMergeCallback
from tests.support.tiny_clip import Folders, tiny_processor

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def captioned() -> list[dict[str, torch.Tensor]]:
    """Eight random pictures with a word each."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    inputs = tiny_processor()(text=list("abcdefgh"), images=list(pictures), return_tensors="pt")
    return [{name: rows[number] for name, rows in inputs.items()} for number in range(8)]


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
        model,
        args,
        train_dataset=captioned(),
        data_collator=lambda rows: {**default_data_collator(rows), "return_loss": True},
        callbacks=[callback],
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
    assert callback.result.record is not None
    assert callback.result.record.command == (
        "clipmerge merge zeroshot 'CLIPModel in memory' --recipe wise-ft --alpha 0.25"
        f" --data {images.name} --allow at-chance --allow swapped --output merged"
    )
    trainer.save_model(str(tmp_path / "trained"))
    clipmerge.merge(
        pair[0], tmp_path / "trained", alpha=0.25, output=tmp_path / "same", progress=Progress()
    )
    merged, same, zeroshot = (
        (folder / "model.safetensors").read_bytes()
        for folder in (tmp_path / "run" / "merged", tmp_path / "same", pair[0])
    )
    assert merged == same != zeroshot
    assert (tmp_path / "run" / "merged" / "tokenizer.json").is_file()  # it loads as a whole
    assert next(iter(trainer.state.log_history[-1])) == "clipmerge/verdict"
    logged = [entry for entry in trainer.state.log_history if "clipmerge" in str(entry)]
    verdict = callback.result.verdict
    assert verdict is not None
    accuracy = verdict.target.models["merged"].value
    assert [entry["clipmerge/target_accuracy_merged"] for entry in logged] == [accuracy]


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
