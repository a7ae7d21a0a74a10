"""The merge at the end of a real training with transformers' Trainer."""

import copy
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import CLIPModel, Trainer, TrainerState, TrainingArguments

import clipmerge as api
from clipmerge import RobustMergeCallback
from clipmerge.errors import (
    CheckpointError,
    ClipmergeError,
    OutputError,
    RecipeError,
    UsageError,
)
from clipmerge.progress import Progress
from clipmerge.report.text import answer_text
from tests.support.hub_double import serving
from tests.support.tiny_clip import Folders, tiny_processor
from tests.support.told import Told

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
        return {
            "pixel_values": self.pixels[index],
            "input_ids": self.tokens[index],
            "return_loss": True,
        }


def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    tensors = {
        name: torch.stack([row[name] for row in rows]) for name in ("pixel_values", "input_ids")
    }
    return {**tensors, "return_loss": True}


def trainer_for(
    model: torch.nn.Module, folder: Path, *callbacks: RobustMergeCallback, **changes: Any
) -> Trainer:
    settings = {
        "max_steps": 3,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "report_to": [],
    }
    args = TrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", **(settings | changes)
    )
    return Trainer(
        model, args, train_dataset=Captioned(), data_collator=collated, callbacks=list(callbacks)
    )


def test_training_ends_with_the_merge_that_the_command_makes_and_pushes_it(
    pair: Folders,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    merge: dict[str, Any] = {"recipe": "wise-ft", "set": {"method.alpha": 0.25}}
    with (
        serving(tmp_path, monkeypatch) as hub,
        caplog.at_level(logging.WARNING, logger="clipmerge"),
    ):
        callback = RobustMergeCallback(
            pair[0], **merge, data=images, push_to="acme/robust", private=True
        )
        trainer = trainer_for(CLIPModel.from_pretrained(pair[0]), tmp_path / "run", callback)
        trainer.train()
        assert callback.error is None
        pushed = hub.content("acme/robust", "model.safetensors")
        assert b"clipmerge" in hub.content("acme/robust", "README.md")
        assert (
            len([entry for entry in hub.log if entry[0] == "POST" and "/commit/" in entry[1]]) == 1
        )
    merged = tmp_path / "run" / "merged"
    assert callback.result.path == merged
    trainer.save_model(str(tmp_path / "trained"))
    api.merge(pair[0], tmp_path / "trained", **merge, output=tmp_path / "same", progress=Progress())
    zeroshot, trained, same = (
        load_file(folder / "model.safetensors")
        for folder in (pair[0], tmp_path / "trained", tmp_path / "same")
    )
    assert any(not torch.equal(value, zeroshot[name]) for name, value in trained.items())
    found = load_file(merged / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in same.items())
    assert pushed == (merged / "model.safetensors").read_bytes()
    assert (merged / "tokenizer.json").is_file()  # it loads as a whole
    effect = callback.result.plan.effect
    assert answer_text(effect) in caplog.text
    assert "acme/robust" in caplog.text
    (entry,) = [
        entry for entry in trainer.state.log_history if "clipmerge/clean_accuracy_merged" in entry
    ]
    assert entry["clipmerge/clean_accuracy_merged"] == effect.merged.clean.value
    assert entry["clipmerge/corrupted_accuracy_zeroshot"] == effect.zeroshot.corrupted.value
    assert entry["step"] == 3
    trainer.save_state()
    assert (
        "clipmerge/clean_accuracy_merged" in (tmp_path / "run" / "trainer_state.json").read_text()
    )


def test_a_clip_inside_a_model_of_ones_own_and_a_base_in_memory(
    pair: Folders, tmp_path: Path
) -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip, self.head = CLIPModel.from_pretrained(pair[0]), torch.nn.Linear(16, 2)

        def forward(
            self, pixel_values: torch.Tensor, input_ids: torch.Tensor, return_loss: bool
        ) -> dict[str, Any]:
            found = self.clip(
                pixel_values=pixel_values, input_ids=input_ids, return_loss=return_loss
            )
            return {"loss": found.loss + self.head(found.image_embeds).square().mean()}

    model = Own()
    callback = RobustMergeCallback(
        copy.deepcopy(model.clip), "wise-ft", output=tmp_path / "out", progress=Progress()
    )
    trainer_for(model, tmp_path / "run", callback).train()
    assert callback.error is None
    assert CLIPModel.from_pretrained(tmp_path / "out").config.projection_dim == 16


def test_without_a_recipe_it_is_the_one_that_merge_would_choose(
    pair: Folders, tmp_path: Path
) -> None:
    callback = RobustMergeCallback(
        pair[0], alpha=0.25, output=tmp_path / "out", progress=Progress()
    )
    trainer_for(CLIPModel.from_pretrained(pair[0]), tmp_path / "run", callback).train()
    assert callback.error is None
    assert callback.result.record.recipe.method == {"name": "wise-ft", "alpha": 0.25}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft with this version of transformers
def test_an_adapter_is_merged_with_its_base(pair: Folders, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        CLIPModel.from_pretrained(pair[0]), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    )
    callback = RobustMergeCallback(pair[0], "wise-ft", output=tmp_path / "out", progress=Progress())
    trainer_for(model, tmp_path / "run", callback).train()
    assert callback.error is None
    merged, base = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pair[0])
    )
    changed = {name for name, value in merged.items() if not torch.equal(value, base[name])}
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft with this version of transformers
def test_the_model_that_peft_changes_in_place_is_refused(pair: Folders, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = CLIPModel.from_pretrained(pair[0])
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    callback = RobustMergeCallback(base, "wise-ft", output=tmp_path / "out", progress=Progress())
    with pytest.raises(UsageError, match="zeroshot is the model that is trained"):
        trainer_for(model, tmp_path / "run", callback).train()


@pytest.mark.parametrize("option", ["data", "keep", "unlabelled", "classes"])
def test_images_that_are_not_there_are_reported_before_training(
    pair: Folders, images: Path, tmp_path: Path, option: str
) -> None:
    wrong = tmp_path / "valll"
    options: dict[str, Any] = {"data": images, option: {"x": wrong} if option == "keep" else wrong}
    callback = RobustMergeCallback(
        pair[0], "auto", output=tmp_path / "out", progress=Progress(), **options
    )
    with pytest.raises(ClipmergeError, match="valll"):
        trainer_for(CLIPModel.from_pretrained(pair[0]), tmp_path / "run", callback).train()


def test_what_can_be_known_is_reported_before_training(pair: Folders, tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        RobustMergeCallback(pair[0], "wise-fd")
    with pytest.raises(UsageError, match="recipe 'auto' measures, and needs labelled images"):
        RobustMergeCallback(pair[0], "auto")
    model = CLIPModel.from_pretrained(pair[0])
    (tmp_path / "run" / "merged").mkdir(parents=True)
    (tmp_path / "run" / "merged" / "notes.txt").write_text("mine")
    apart: dict[str, Any] = {"output": tmp_path / "apart", "push_to": "not a name"}
    for zeroshot, options, error, told in (
        (tmp_path / "nowhere", {}, CheckpointError, "no such folder or file"),
        (model, {}, UsageError, "zeroshot is the model that is trained"),
        (pair[0], {}, OutputError, "merged"),
        (pair[0], apart, UsageError, "not a name on the Hub"),
    ):
        callback = RobustMergeCallback(zeroshot, "wise-ft", **options)
        with pytest.raises(error, match=told):
            trainer_for(model, tmp_path / "run", callback).train()
    sharded = SimpleNamespace(deepspeed="zero3.json", output_dir=str(tmp_path))
    for trained, arguments, told in (
        (
            torch.nn.Linear(2, 2),
            None,
            "Linear is not a model of transformers or open_clip, and does not contain one",
        ),
        (None, sharded, "with DeepSpeed or FSDP no process holds the whole model"),
    ):
        with pytest.raises(UsageError, match=told):
            RobustMergeCallback(pair[0], "wise-ft").on_train_begin(
                arguments, None, None, model=trained
            )


def test_a_failure_at_the_end_is_logged_and_costs_no_training(
    pair: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = CLIPModel.from_pretrained(pair[0])
    callback = RobustMergeCallback(pair[0], "wise-ft", output=tmp_path / "out", progress=Progress())
    trainer = trainer_for(
        model, tmp_path / "run", callback, learning_rate=1e38
    )  # ends in infinities
    with caplog.at_level(logging.ERROR, logger="clipmerge"):
        trainer.train()
    assert callback.result is None
    assert isinstance(callback.error, CheckpointError)
    assert str(callback.error) in caplog.text
    assert "training itself succeeded" in caplog.text
    assert not (tmp_path / "out").exists()
    assert json.dumps(trainer.state.log_history)  # the trainer goes on


def test_another_process_logs_no_merge(pair: Folders, tmp_path: Path) -> None:
    told = Told()
    callback = RobustMergeCallback(pair[0], "wise-ft", output=tmp_path / "out", progress=told)
    args, state = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]), TrainerState()
    state.is_world_process_zero = False
    callback.on_train_end(args, state, None, model=CLIPModel.from_pretrained(pair[1]))
    assert callback.error is None
    assert not any("the merged model is in" in line for line in told.lines)
