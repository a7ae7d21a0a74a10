"""Checkpoints as other libraries write them, read or named: state dicts of timm, open_clip and
transformers."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.utils import CheckpointSaver
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from clipmerge.checkpoint import align_checkpoints, open_checkpoint
from clipmerge.learning.objective import Batch
from clipmerge.report.text import texts_of
from tests.support.command import Outcome, clipmerge, refused
from tests.support.small_objective import objective_for
from tests.support.tasks import inputs_of
from tests.support.tiny_clip import Folders
from tests.support.tiny_open_clip import (
    ARCHITECTURES,
    VISION,
    build,
    model_config,
    save_open_clip_pair,
    stir,
)

Weights = dict[str, Tensor]
OPEN_CLIP = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def open_clip_pair(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return save_open_clip_pair(tmp_path_factory.mktemp("open-clip"), model_config())


def merge(zeroshot: Path, finetuned: Path, output: Path, alpha: float = 1.0, *more: str) -> Outcome:
    flags = ("--recipe", "wise-ft", "--set", f"method.alpha={alpha}", "--output", output)
    return clipmerge("merge", zeroshot, finetuned, *flags, *more)


def merged(
    zeroshot: Path, finetuned: Path, output: Path, alpha: float = 1.0, *more: str
) -> Weights:
    done = merge(zeroshot, finetuned, output, alpha, *more)
    assert done.code == 0, done.err
    return load_file(next(output.glob("*.safetensors")))


def equal(found: Weights, expected: Weights) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


def timm_vit(classes: int, seed: int = 0) -> torch.nn.Module:
    """timm's own class for `vit_base_patch32_clip_224`, in the size of the tiny OpenCLIP model."""
    torch.manual_seed(seed)
    size = {
        "depth": VISION["layers"],
        "embed_dim": VISION["width"],
        "num_heads": 2,
        "mlp_ratio": VISION["mlp_ratio"],
    }
    shape = {"patch_size": VISION["patch_size"], "img_size": VISION["image_size"]}
    model: torch.nn.Module = timm.create_model(
        "vit_base_patch32_clip_224", num_classes=classes, **size, **shape
    )
    stir(model, 0.1)
    return model.eval()


def saved_by(how: str, model: torch.nn.Module, folder: Path) -> Path:
    if how == "a state dict":
        torch.save(model.state_dict(), folder / "x.pth")
        return folder / "x.pth"
    if how == "a checkpoint":
        saver = CheckpointSaver(
            model,
            torch.optim.SGD(model.parameters()),
            argparse.Namespace(model="vit"),
            checkpoint_dir=str(folder),
        )
        saver.save_checkpoint(3, 0.7)
        return folder / "last.pth.tar"
    save_for_hf(
        model,
        folder / "hub",
        model_config={"label_names": ["a", "b", "c"]},
        safe_serialization=True,
    )
    return folder / "hub"


@torch.no_grad()
def before_projection(visual: Any, pixels: Tensor) -> Tensor:
    """The features of an OpenCLIP tower that its projection reads, which are those that timm's head
    reads."""
    projection, visual.proj = visual.proj, None
    features: Tensor = visual(pixels)
    visual.proj = projection
    return features


@pytest.mark.parametrize("how", ["a state dict", "a checkpoint", "a Hub folder"])
def test_a_timm_vit_with_a_head_keeps_it_and_timms_layout(
    open_clip_pair: Folders, tmp_path: Path, how: str
) -> None:
    finetuned, output = timm_vit(3, seed=1), tmp_path / "one"
    source = saved_by(how, finetuned, tmp_path)
    assert equal(merged(open_clip_pair[0], source, output), finetuned.state_dict())
    assert json.loads((output / "clipmerge.json").read_text())["family"] == "timm"
    assert (output / "config.json").is_file() is (how == "a Hub folder")
    if how == "a Hub folder":
        card = (output / "README.md").read_text()
        assert "library_name: timm" in card
        assert 'timm.create_model("local-dir:."' in card


def test_the_tower_of_a_timm_vit_is_that_of_openclip_and_of_transformers(
    open_clip_pair: Folders, pair: Folders, tmp_path: Path
) -> None:
    finetuned, pixels = timm_vit(3, seed=1), torch.randn(2, 3, 32, 32)
    source = saved_by("a state dict", finetuned, tmp_path)
    config = CLIPConfig.from_pretrained(pair[0])
    config.vision_config.hidden_act = "gelu"  # timm's, to compare weights and not activations
    with torch.no_grad():
        ours = before_projection(
            open_clip.create_model(f"local-dir:{open_clip_pair[0]}").eval().visual, pixels
        )
        theirs = (
            CLIPModel.from_pretrained(pair[0], config=config)
            .eval()
            .vision_model(pixels)
            .pooler_output
        )
        for base, expected in ((open_clip_pair[0], ours), (pair[0], theirs)):
            model = timm_vit(3, seed=9)
            model.load_state_dict(
                merged(base, source, tmp_path / base.parent.name, 0.0), strict=True
            )
            found = model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(model.head.weight, finetuned.head.weight)  # type: ignore[union-attr,arg-type]


def test_a_timm_vit_without_a_head_goes_into_the_whole_model(
    open_clip_pair: Folders, tmp_path: Path
) -> None:
    finetuned = timm_vit(0, seed=1)
    found = merged(
        open_clip_pair[0], saved_by("a state dict", finetuned, tmp_path), tmp_path / "out"
    )
    base, weights = load_file(open_clip_pair[0] / OPEN_CLIP), finetuned.state_dict()
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in base.items()
    }
    assert torch.equal(found["visual.class_embedding"], weights["cls_token"][0, 0])
    assert torch.equal(found["visual.positional_embedding"], weights["pos_embed"][0])
    assert torch.equal(
        found["visual.transformer.resblocks.1.attn.in_proj_bias"], weights["blocks.1.attn.qkv.bias"]
    )
    others = [key for key in base if not key.startswith("visual.") or key.endswith("proj")]
    assert all(torch.equal(found[key], base[key]) for key in others)


def test_two_timm_vits_merge_and_heads_of_other_classes_stay(tmp_path: Path) -> None:
    for folder, classes in (("base", 16), ("same", 3), ("tuned", 3)):
        (tmp_path / folder).mkdir()
        saved_by("a state dict", timm_vit(classes, seed=classes), tmp_path / folder)
    ends = [tmp_path / name / "x.pth" for name in ("base", "same", "tuned")]
    other, same, tuned = (timm_vit(classes, seed=classes).state_dict() for classes in (16, 3, 3))
    found = merged(ends[0], ends[2], tmp_path / "out", 0.5)
    assert torch.equal(found["head.weight"], tuned["head.weight"])
    torch.testing.assert_close(found["norm.bias"], (other["norm.bias"] + tuned["norm.bias"]) / 2)
    assert equal(merged(ends[1], ends[2], tmp_path / "both", 0.0), same)


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm vit", "timm efficientnet"])
def test_the_state_dict_of_a_vision_tower_is_never_the_text_tower(
    tmp_path: Path, kind: str
) -> None:
    zeroshot, finetuned = save_open_clip_pair(tmp_path, model_config(**ARCHITECTURES[kind]))
    whole = load_file(finetuned / OPEN_CLIP)
    visual = {key: value for key, value in whole.items() if key.startswith("visual.")}
    bare = {key.removeprefix("visual."): value for key, value in visual.items()}
    save_file(bare, tmp_path / "tower.safetensors")
    torch.save(
        {"encoder." + key: value for key, value in bare.items()} | {"fc.bias": torch.ones(2)},
        tmp_path / "x.pt",
    )
    for source in (tmp_path / "tower.safetensors", tmp_path / "x.pt"):
        inputs = inputs_of((zeroshot, source))
        assert inputs.tower == "vision"
        assert inputs.finetuned_keys[0].keys() == visual.keys()
        assert all(torch.equal(inputs.theta_1(key), value) for key, value in visual.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_a_compiled_tower_openais_integers_and_old_masks_are_read(
    open_clip_pair: Folders, tmp_path: Path
) -> None:
    weights = load_file(open_clip_pair[1] / OPEN_CLIP)
    model = build(model_config())
    model.load_state_dict(weights)
    model.visual = torch.compile(model.visual)  # type: ignore[assignment,arg-type]
    state = model.state_dict()
    assert any("._orig_mod." in key for key in state)
    counts = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(32),
        "vocab_size": torch.tensor(58),
    }
    torch.save({**state, **counts, "attn_mask": torch.zeros(32, 32)}, tmp_path / "x.pt")
    assert equal(merged(open_clip_pair[0], tmp_path / "x.pt", tmp_path / "out"), weights)


def with_lora(model: Any) -> Weights:
    return dict(get_peft_model(model, LoraConfig(target_modules=["c_fc"], r=2)).state_dict())


#: What a file holds instead of a CLIP's weights, and what is said of it.
NO_WEIGHTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "the prompts of CoOp": (
        lambda _: {
            "state_dict": {"ctx": torch.ones(2, 3), "token_prefix": torch.ones(1, 3)},
            "val_result": None,
        },
        "holds prompts that CoOp or a method like it has learned (ctx)",
    ),
    "a model with LoRA": (
        with_lora,
        "holds factors of LoRA that are not part of the weights yet (base_model.",
    ),
    "a linear probe": (
        lambda _: torch.nn.Linear(4, 3).state_dict(),
        "but weight, bias; give the fine-tuned model as a whole, or one of its towers",
    ),
    "a ViT that is not CLIP's": (
        lambda _: timm.create_model("test_vit").state_dict(),
        "holds no parameter of the ",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of the libraries
@pytest.mark.parametrize("what", NO_WEIGHTS)
def test_what_is_not_a_clips_weights_is_named(
    open_clip_pair: Folders, tmp_path: Path, what: str
) -> None:
    content, said = NO_WEIGHTS[what]
    torch.save(content(build(model_config())), tmp_path / "x.pt")
    line = refused(merge(open_clip_pair[0], tmp_path / "x.pt", tmp_path / "out"))
    assert said in line
    assert "missing=" not in line
    assert "SigLIP" not in line


def test_a_folder_of_another_model_of_timm_is_named(
    open_clip_pair: Folders, tmp_path: Path
) -> None:
    save_for_hf(timm.create_model("test_efficientnet"), tmp_path / "hub", safe_serialization=True)
    line = refused(merge(open_clip_pair[0], tmp_path / "hub", tmp_path / "out"))
    assert (
        "hub: is timm's 'test_efficientnet'; of timm's models clipmerge reads the ViTs of CLIP"
        in line
    )


def test_other_positions_are_named(open_clip_pair: Folders, tmp_path: Path) -> None:
    """Long-CLIP's longer texts, beside its second table of positions; and larger images."""
    weights = load_file(open_clip_pair[1] / OPEN_CLIP)
    table = torch.randn(248, 32)
    long = {**weights, "positional_embedding": table, "positional_embedding_res": table}
    torch.save(long, tmp_path / "long.pt")
    line = refused(merge(open_clip_pair[0], tmp_path / "long.pt", tmp_path / "out"))
    assert (
        f"{tmp_path / 'long.pt'} reads texts of another length (Long-CLIP has 248 tokens)" in line
    )
    assert "that of " in line
    assert line.endswith("give the zero-shot model with 248 positions that was fine-tuned")
    torch.save(long, tmp_path / "base.pt")
    assert equal(merged(tmp_path / "base.pt", tmp_path / "long.pt", tmp_path / "both"), long)
    torch.save(
        {**weights, "visual.positional_embedding": torch.randn(50, 32)}, tmp_path / "large.pt"
    )
    assert "reads images of another size" in refused(
        merge(open_clip_pair[0], tmp_path / "large.pt", tmp_path / "out")
    )


def test_a_folder_of_diffusers_is_its_text_encoder_or_names_them(
    pair: Folders, tmp_path: Path
) -> None:
    base, tuned = pair
    text = CLIPTextModel.from_pretrained(tuned)
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline"}'
    )
    assert "no model.safetensors in this folder" in refused(
        merge(base, tmp_path / "pipe", tmp_path / "no")
    )
    text.save_pretrained(tmp_path / "pipe" / "text_encoder")
    found = merged(base, tmp_path / "pipe", tmp_path / "out")
    assert "CLIPTextModel.from_pretrained" in (tmp_path / "out" / "clipmerge.json").read_text()
    for key, value in load_file(tmp_path / "pipe" / "text_encoder" / "model.safetensors").items():
        assert torch.equal(found[key], value), key
    text.save_pretrained(tmp_path / "pipe" / "text_encoder_2")
    line = refused(merge(base, tmp_path / "pipe", tmp_path / "no"))
    assert "is a folder of diffusers with 2 encoders; give the one that you mean" in line
    assert "text_encoder_2" in line


def test_the_option_missing_is_offered_only_where_most_names_match(
    open_clip_pair: Folders, tmp_path: Path
) -> None:
    weights = load_file(open_clip_pair[1] / OPEN_CLIP)
    save_file({**weights, "visual.extra.weight": torch.ones(2)}, tmp_path / "more.safetensors")
    line = refused(merge(open_clip_pair[0], tmp_path / "more.safetensors", tmp_path / "out"))
    assert "missing=keep-finetuned" in line
    strange = {f"visual.trunk.stages.{number}.0.weight": torch.ones(2) for number in range(4)}
    save_file({**strange, "logit_scale": torch.tensor(1.0)}, tmp_path / "other.safetensors")
    line = refused(merge(open_clip_pair[0], tmp_path / "other.safetensors", tmp_path / "out"))
    assert "only 1 of its 5 keys are in" in line
    assert "missing=" not in line


#: One small model of each kind, with whether open_clip or timm projects the features.
TOWERS = (
    ("efficientnet_b0", True),
    ("convnext_atto", False),
    ("swin_tiny_patch4_window7_224", False),
    ("mobilenetv3_small_050", True),
    ("resnet18", False),
    ("fastvit_t8", False),
    ("eva02_tiny_patch14_224", False),
    ("vit_base_patch16_siglip_224", False),
    ("regnetx_002", True),
    ("densenet121", True),
    ("levit_128s", True),
    ("pvt_v2_b0", False),
    ("cait_xxs24_224", True),
    ("vgg11", True),
    ("hiera_tiny_224", False),
    ("xcit_nano_12_p16_224", True),
    ("ghostnet_050", True),
    ("mobilenetv4_conv_small", True),
    ("vitamin_small_224", False),
    ("fastvit_mci0", False),
    ("vit_pe_core_tiny_patch16_384", False),
)


@pytest.mark.parametrize(("name", "own_head"), TOWERS)
def test_every_parameter_of_a_timm_tower_has_a_layer(
    name: str, own_head: bool, tmp_path: Path
) -> None:
    pool = (
        {"timm_pool": "avg", "timm_proj": ""}
        if own_head
        else {"timm_pool": "", "timm_proj": "linear"}
    )
    with torch.device("meta"):
        model = open_clip.CLIP(
            **model_config(vision={"timm_model_name": name, "image_size": 224, **pool})
        )
    shapes = {
        key: (0, *value.shape[1:]) if value.ndim else ()
        for key, value in model.state_dict().items()
    }
    save_file(
        {key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "x.safetensors"
    )
    checkpoint = open_checkpoint(str(tmp_path / "x.safetensors"))
    inputs = align_checkpoints(checkpoint, [checkpoint])
    assert inputs.family.name == "OpenCLIP"
    assert sorted(name for names in inputs.layers.values() for name in names) == sorted(
        inputs.zeroshot_keys
    )
    assert len(inputs.zeroshot_keys) == len(shapes)
    assert inputs.tower == "full"
    strange = [note for note in texts_of(inputs.notes) if "are named after their modules" in note]
    assert bool(strange) is (name in ("regnetx_002", "densenet121", "pvt_v2_b0", "cait_xxs24_224", "vgg11",
                                      "hiera_tiny_224", "xcit_nano_12_p16_224"))  # fmt: skip


def test_a_tower_with_layers_of_unknown_names_merges_and_measures(tmp_path: Path) -> None:
    vision = {
        "timm_model_name": "xcit_nano_12_p16_224",
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 32,
    }
    zeroshot, finetuned = save_open_clip_pair(tmp_path, model_config(vision=vision))
    done = merge(zeroshot, finetuned, tmp_path / "out", 0.5)
    assert done.code == 0, done.err
    assert "layers that are not known are named after their modules: vision.blocks.0" in " ".join(
        done.err.split()
    )
    open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
    batch = Batch(0, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    objective = objective_for((zeroshot, finetuned), [batch], classes=("cat", "dog"))
    objective.weights.set_alpha(0.5)
    for layer in ("vision.blocks.3", "vision.cls_attn_blocks.1", "vision.projection"):
        loss = objective.criterion.layer_loss(batch, layer)
        before = objective.criterion.joint_loss(batch).item()
        with torch.no_grad():
            for name in (name for name in objective.weights.layers[layer] if "running" not in name):
                objective.weights.parameters[name].data.normal_()
            assert loss().item() == pytest.approx(
                objective.criterion.joint_loss(batch).item(), rel=1e-5
            )
        assert loss().item() != pytest.approx(before, rel=1e-5)  # or this test could not fail
