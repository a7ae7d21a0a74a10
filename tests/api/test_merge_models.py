"""Models in memory: the same weights as from files, and nothing changed or left behind."""

import copy
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

import clipmerge
from clipmerge.api._in_memory import _original_folder, as_sources
from clipmerge.errors import UsageError
from clipmerge.progress import Progress
from clipmerge.request import with_state_key
from tests.merging.test_tensor import same_bits
from tests.support import tiny_open_clip
from tests.support.tiny_clip import Folders
from tests.support.tiny_families import TINY, perturb

QUIET: dict[str, Any] = {"progress": Progress()}
#: Settings with which a measure and a method are quick.
QUICK = {
    "set": {"measure.nodes": 1, "measure.tolerance": 100, "method.bootstraps": 5},
    "verdict": False,
}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both have the same tensors, bit for bit."""
    return one.keys() == other.keys() and all(
        same_bits(tensor, other[name]) for name, tensor in one.items()
    )


def merged_by_files(
    folders: tuple[Path, ...], recipe: str, output: Path, **options: Any
) -> dict[str, Tensor]:
    result = clipmerge.merge(folders[0], folders[1:], recipe, output=output, **options, **QUIET)
    (weights,) = output.glob("*.safetensors")
    assert result.path == output
    return load_file(weights)


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "CLIP classifier"])
def test_models_of_transformers_get_the_weights_that_files_give(kind: str, tmp_path: Path) -> None:
    zeroshot, finetuned = TINY[kind].make(), TINY[kind].make()
    perturb(finetuned, 1)
    before = [copy.deepcopy(model.state_dict()) for model in (zeroshot, finetuned)]
    folders = (tmp_path / "zeroshot", tmp_path / "finetuned")
    for model, folder in zip((zeroshot, finetuned), folders, strict=True):
        model.save_pretrained(folder)
    for recipe, options in (("wise-ft", {"set": {"method.alpha": 0.3}}), ("monosoup", {})):
        expected = merged_by_files(folders, recipe, tmp_path / recipe, **options)
        merged = clipmerge.merge_models(zeroshot, finetuned, recipe, **options, **QUIET)
        assert type(merged) is type(finetuned)
        assert same({name: merged.state_dict()[name] for name in expected}, expected)
    assert all(
        same(model.state_dict(), old)
        for model, old in zip((zeroshot, finetuned), before, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["no_grad", "inference_mode", "float64"])
def test_what_the_caller_has_set_changes_nothing(pair: Folders, images: Path, setting: str) -> None:
    options: dict[str, Any] = {
        "data": images,
        "images": 12,
        "verdict": False,
        "set": {"measure.steps": 2},
        "allow": ["at-chance"],
    }
    expected = clipmerge.plan(*pair, "auto", **options, **QUIET).loaded_tensors
    if setting == "float64":
        torch.set_default_dtype(torch.float64)
    try:
        with {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(
            setting, nullcontext
        )():
            found = clipmerge.plan(*pair, "auto", **options, **QUIET).loaded_tensors
    finally:
        torch.set_default_dtype(torch.float32)
    assert expected
    assert same(dict(found), dict(expected))


@pytest.mark.slow
def test_models_are_measured_on_data_in_memory_like_files(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    zeroshot, finetuned = (CLIPModel.from_pretrained(folder) for folder in pair)
    processor = CLIPProcessor.from_pretrained(pair[0])
    expected = merged_by_files(
        pair, "straggler-outlier", tmp_path / "out", data=images, batch_size=5, **QUICK
    )

    def pixels(image: Any) -> Tensor:
        return processor.image_processor(image, return_tensors="pt")["pixel_values"][0]

    sources: dict[str, Any] = {
        "data set of images": ImageFolder(images),
        "data set of pixels": ImageFolder(images, transform=pixels),
        "loader": DataLoader(ImageFolder(images, transform=pixels), batch_size=7),
    }
    for name, data in sources.items():
        options = {"data": data, "batch_size": 5, **QUICK, **QUIET}
        merged = clipmerge.merge_models(zeroshot, finetuned, "straggler-outlier", **options)
        assert same(merged.state_dict(), expected), name


def test_a_model_that_was_not_loaded_needs_its_processor(pair: Folders, images: Path) -> None:
    models = [CLIPModel(CLIPConfig.from_pretrained(pair[0])) for _ in range(2)]
    for model in models:
        model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(clipmerge.CheckpointError, match="processor cannot be loaded"):
        clipmerge.merge_models(*models, "straggler-outlier", data=images, **QUIET)
    for processor in (CLIPProcessor.from_pretrained(pair[0]), pair[0]):
        clipmerge.merge_models(
            *models, "straggler-outlier", data=images, processor=processor, **QUICK, **QUIET
        )
    with pytest.raises(clipmerge.UsageError, match=r"'no/such': is not a folder, and not in the"):
        clipmerge.merge_models(*models, "wise-ft", processor="no/such", **QUIET)
    with pytest.raises(clipmerge.UsageError, match="Identity is not a processor of transformers"):
        clipmerge.merge_models(*models, "wise-ft", processor=torch.nn.Identity(), **QUIET)


def test_models_of_open_clip_get_the_weights_that_files_give(images: Path, tmp_path: Path) -> None:
    config = tiny_open_clip.model_config(**tiny_open_clip.ARCHITECTURES["vit"])
    folders = tiny_open_clip.save_open_clip_pair(tmp_path, config)
    zeroshot, finetuned = map(tiny_open_clip.load, folders)
    expected = merged_by_files(
        folders, "straggler-outlier", tmp_path / "out", data=images, batch_size=10, **QUICK
    )
    options: dict[str, Any] = {"data": images, "batch_size": 10, **QUICK, **QUIET}
    merged = clipmerge.merge_models(
        zeroshot, finetuned, "straggler-outlier", processor=folders[0], **options
    )
    assert same({name: merged.state_dict()[name] for name in expected}, expected)
    plain = clipmerge.merge_models(zeroshot, finetuned, "wise-ft", **QUIET)
    assert same(plain.state_dict(), merged_by_files(folders, "wise-ft", tmp_path / "plain"))
    configured = clipmerge.merge_models(zeroshot, finetuned, "wise-ft", processor=config, **QUIET)
    assert same(configured.state_dict(), plain.state_dict())
    with pytest.raises(clipmerge.CheckpointError, match="measuring needs the open_clip_config"):
        clipmerge.merge_models(zeroshot, finetuned, "straggler-outlier", **options)
    with pytest.raises(clipmerge.UsageError, match="no model of this name"):
        clipmerge.merge_models(zeroshot, finetuned, "wise-ft", processor="ViT-Z-32", **QUIET)
    with pytest.raises(clipmerge.UsageError, match="no such folder"):
        clipmerge.merge_models(zeroshot, finetuned, "wise-ft", processor=tmp_path / "no", **QUIET)
    with pytest.raises(clipmerge.UsageError, match="Identity does not say what open_clip builds"):
        clipmerge.merge_models(zeroshot, finetuned, processor=torch.nn.Identity(), **QUIET)


def test_mode_device_wrappers_and_dtype(pair: Folders) -> None:
    zeroshot, finetuned = (CLIPModel.from_pretrained(folder) for folder in pair)
    finetuned.train()
    wrapped = torch.nn.DataParallel(finetuned)
    merged = clipmerge.merge_models(
        torch.compile(zeroshot, backend="eager"), wrapped, "wise-ft", **QUIET
    )
    assert isinstance(merged, CLIPModel)
    assert merged.training
    half = clipmerge.merge_models(zeroshot, finetuned, "wise-ft", dtype="bfloat16", **QUIET)
    assert half.dtype == torch.bfloat16
    assert finetuned.dtype == torch.float32
    rounded = {name: tensor.bfloat16() for name, tensor in merged.state_dict().items()}
    assert same(half.state_dict(), rounded)


def test_nothing_is_left_in_a_temporary_folder(
    pair: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    models = [CLIPModel.from_pretrained(folder) for folder in pair]
    clipmerge.merge_models(*models, "wise-ft", **QUIET)
    with torch.no_grad():
        models[1].logit_scale.fill_(float("nan"))
    with pytest.raises(
        clipmerge.CheckpointError, match="CLIPModel in memory: tensor logit_scale holds NaN"
    ):
        clipmerge.merge_models(*models, "wise-ft", **QUIET)
    assert list(tmp_path.iterdir()) == []


def test_models_in_memory_are_merged_planned_and_applied_into_folders(
    pair: Folders, tmp_path: Path
) -> None:
    models = [CLIPModel.from_pretrained(folder) for folder in pair]
    result = clipmerge.merge(*models, "wise-ft", output=tmp_path / "merged", **QUIET)
    assert result.record.zeroshot.source == "CLIPModel in memory"
    assert (
        "'<CLIPModel in memory>' '<CLIPModel in memory>' --recipe wise-ft" in result.record.command
    )
    assert "clipmerge-" not in (tmp_path / "merged" / "README.md").read_text()
    plan = clipmerge.plan(*models, "wise-ft", **QUIET)
    with pytest.raises(
        clipmerge.PlanError, match="models in memory; give them as zeroshot= and finetuned="
    ):
        clipmerge.apply(plan, output=tmp_path / "applied", **QUIET)
    clipmerge.apply(
        plan, output=tmp_path / "applied", zeroshot=models[0], finetuned=models[1], **QUIET
    )
    written = [tmp_path / name / "model.safetensors" for name in ("merged", "applied")]
    assert written[0].read_bytes() == written[1].read_bytes()
    with pytest.raises(
        clipmerge.PlanError, match="is not the checkpoint that the plan was made for"
    ):
        clipmerge.apply(
            plan, output=tmp_path / "other", zeroshot=models[1], finetuned=models[0], **QUIET
        )
    assert clipmerge.inspect(*models, **QUIET).mismatches == ()


BAD_ALPHAS = ("0.5", None, True, float("nan"), float("inf"))


def test_arguments_of_another_type_are_refused_in_one_line(pair: Folders) -> None:
    model, other = CLIPModel.from_pretrained(pair[0]), torch.nn.Linear(2, 2)
    cases: list[tuple[Any, Any, Any, str]] = [
        (model, model, 3, r"^int is not a recipe; give a name, a YAML file"),
        (
            model,
            "finetuned",
            "wise-ft",
            r"^str is not a model; give torch modules here, and paths to merge\(\)$",
        ),
        (other, other, "wise-ft", "is not a model of transformers or open_clip"),
    ]
    for zeroshot, finetuned, recipe, told in cases:
        with pytest.raises(clipmerge.ClipmergeError, match=told):
            clipmerge.merge_models(zeroshot, finetuned, recipe, **QUIET)
    data: Any = 5
    with pytest.raises(UsageError, match=r'^`data` takes sources by name: data=\{"val": SOURCE\}$'):
        clipmerge.evaluate(pair[0], data)
    assert with_state_key(["a.pt"], "ema") == ("a.pt#ema",)
    with pytest.raises(UsageError, match="`state_key`: a model in memory has no parts"):
        with_state_key(["/tmp/clipmerge-in-memory-x1/CLIPModel in memory"], "ema")


def test_a_model_is_evaluated_like_its_files_with_classes_by_name(
    pair: Folders, images: Path
) -> None:
    classes = sorted(folder.name for folder in images.iterdir())
    files = clipmerge.evaluate(pair[0], {"val": images}, **QUIET)
    model = CLIPModel.from_pretrained(pair[0])
    processor = CLIPProcessor.from_pretrained(pair[0])
    found = clipmerge.evaluate(
        model, {"val": images}, processor=processor, classes=classes, **QUIET
    )
    assert found.accuracy == files.accuracy
    assert found.record["checkpoint"]["source"] == "CLIPModel in memory"


def test_a_model_from_nowhere_has_no_folder_of_origin() -> None:
    assert [
        _original_folder(name) for name in ("", "acme/never-downloaded", "a model, made by hand")
    ] == [None] * 3


def test_a_configuration_of_open_clip_is_found_by_its_name() -> None:
    model = tiny_open_clip.build(tiny_open_clip.model_config())
    model.visual.preprocess_cfg = {"size": 9}
    with as_sources([model], "ViT-B-32") as (source,):
        config = json.loads(Path(source, "open_clip_config.json").read_text())
    assert (config["model_cfg"]["embed_dim"], config["preprocess_cfg"]) == (512, {"size": 9})
    assert not Path(source).exists()
