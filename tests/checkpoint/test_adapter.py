"""peft adapters as the fine-tuned side: peft's own merge's weights; what is unsupported or broken
is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPVisionModel

from clipmerge.checkpoint import Checkpoint, align_checkpoints, open_checkpoint
from clipmerge.checkpoint.adapter import MAX_PATTERNS
from clipmerge.errors import CheckpointError
from clipmerge.report.text import texts_of
from tests.support.command import clipmerge, done, one_line, refused
from tests.support.hub_double import FakeHub, upload
from tests.support.raw_safetensors import edit_json, shard
from tests.support.tiny_clip import Folders
from tests.test_parallel import merged

LINEAR = ["q_proj", "fc1", "visual_projection"]


def save_adapter(base: Path, folder: Path, model: Any = CLIPModel, **options: Any) -> Path:
    """Save an adapter with all tensors moved, as if by training."""
    torch.manual_seed(0)
    settings = {"target_modules": LINEAR, "r": 4, "lora_alpha": 6, **options}
    adapted = get_peft_model(model.from_pretrained(base), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder)
    return folder


def configure(adapter: Path, **changes: Any) -> Path:
    edit_json(adapter / "adapter_config.json", **changes)
    return adapter


Q = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
pytestmark = pytest.mark.filterwarnings("ignore")  # of peft
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every kind of module": {
        "target_modules": [*LINEAR, "patch_embedding", "token_embedding", "position_embedding"]
    },
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"(q|k)_proj": 2, r"vision_model\.encoder\.layers\.\d+\.mlp\.fc[12]": 6},
        "alpha_pattern": {
            "layers.2.self_attn.q_proj": 1,
            "fc1": 48,
            "text_model.encoder.layers.0.mlp.fc1": 3,
        },
    },
    "dora": {"use_dora": True, "target_modules": [*LINEAR, "patch_embedding", "token_embedding"]},
    "modules to save": {"modules_to_save": ["text_projection", "layer_norm1"]},
    "all biases": {"bias": "all"},
    "lora's biases": {"bias": "lora_only"},
    "biases of B": {"lora_bias": True, "target_modules": ["q_proj", "fc1"]},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.fixture(scope="module")
def plain(pair: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(pair[0], tmp_path_factory.mktemp("plain") / "adapter")


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """An adapter that a test may change."""
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def merged_by_peft(base: Path, adapter: Path, model: Any = CLIPModel) -> dict[str, Tensor]:
    merged = PeftModel.from_pretrained(model.from_pretrained(base), adapter).merge_and_unload()
    return dict(merged.state_dict())


def adapted_to(base: Path, adapter: Path) -> Checkpoint:
    return open_checkpoint(str(adapter), base=open_checkpoint(str(base)))


def same(found: Tensor, expected: Tensor) -> bool:
    # products of ranks up to 8, summed in another order
    return torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_is_what_peft_makes_of_the_base(pair: Folders, tmp_path: Path, kind: str) -> None:
    adapter = save_adapter(pair[0], tmp_path / "adapter", **CONFIGS[kind])
    expected = merged_by_peft(pair[0], adapter)
    base = open_checkpoint(str(pair[0]))
    adapted, again = (open_checkpoint(str(adapter), base=base) for _ in range(2))
    assert adapted.entries.keys() == base.entries.keys()
    changed = set()
    for key in adapted.entries:
        found, flat = adapted.tensor(key), adapted.tensor(key).flatten()
        assert same(found, expected[key])
        # any run of elements has the same bits
        for start, stop in ((0, len(flat) // 3), (len(flat) // 3, len(flat))):
            assert torch.equal(again.tensor(key, start, stop), flat[start:stop])
        if not torch.equal(base.tensor(key), found):
            changed.add(key)
    assert changed
    assert changed == {
        key for key in base.entries if not torch.equal(base.tensor(key), expected[key])
    }


@pytest.mark.uncounted
@pytest.mark.parametrize(("kind", "sharded"), [("plain", False), ("dora", True)])
def test_the_output_is_a_full_checkpoint(
    copies: Folders, tmp_path: Path, kind: str, sharded: bool
) -> None:
    base = copies[0]
    adapter = save_adapter(base, tmp_path / "adapter", **CONFIGS[kind])
    expected = merged_by_peft(base, adapter)
    if sharded:
        shard(base)
    start = open_checkpoint(str(base))
    for alpha in (0, 0.5):
        output = tmp_path / f"at-{alpha}"
        flags = (
            "--recipe",
            "wise-ft",
            "--set",
            f"method.alpha={alpha}",
            "--output",
            output,
            "--json",
        )
        outcome = done("merge", base, adapter, *flags)
        loaded, info = CLIPModel.from_pretrained(output, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for key, tensor in loaded.state_dict().items():
            theta_0 = start.tensor(key)
            assert same(tensor, torch.lerp(theta_0, expected[key], alpha)), key
            assert alpha != 0 or torch.equal(tensor, theta_0)
        side = {f.name for f in base.iterdir() if f.suffix != ".safetensors"}
        assert side <= {f.name for f in output.iterdir()}
        assert len(list(output.glob("*.safetensors"))) == (3 if sharded else 1)
        assert outcome.json["finetuned"][0]["files"].keys() == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }


def test_an_adapter_of_a_tower_alone_merges_into_the_full_model(
    pair: Folders, tmp_path: Path
) -> None:
    """Both towers here have the same shapes, so only the recorded class distinguishes them."""
    torch.manual_seed(1)
    CLIPVisionModel.from_pretrained(pair[0]).save_pretrained(tmp_path / "tower")
    adapter = save_adapter(
        tmp_path / "tower", tmp_path / "adapter", CLIPVisionModel, target_modules=["q_proj"]
    )
    expected = merged_by_peft(tmp_path / "tower", adapter, CLIPVisionModel)
    base, adapted = open_checkpoint(str(pair[0])), adapted_to(pair[0], adapter)
    for key in base.entries:
        name = key.removeprefix("vision_model.")
        tensor = (
            expected.get(key, expected.get(name))
            if key.startswith("vision_model.")
            else base.tensor(key)
        )
        assert tensor is not None
        assert same(adapted.tensor(key), tensor), key
    assert not torch.equal(adapted.tensor(Q), base.tensor(Q))
    with pytest.raises(
        CheckpointError, match=r"fit text_model\. and vision_model\. of .* add auto_mapping"
    ):
        adapted_to(pair[0], configure(adapter, auto_mapping=None))


def test_wrappers_of_the_base_and_the_trained_model_do_not_matter(
    pair: Folders, adapter: Path, tmp_path: Path
) -> None:
    expected = merged_by_peft(pair[0], adapter)
    wrapped = {
        f"module.clip.{key}": tensor
        for key, tensor in load_file(pair[0] / "model.safetensors").items()
    }
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    adapted = adapted_to(tmp_path / "wrapped.safetensors", adapter)
    assert all(same(adapted.tensor(f"clip.{key}"), tensor) for key, tensor in expected.items())
    file = adapter / "adapter_model.safetensors"
    renamed = {
        k.replace("base_model.model.", "base_model.model.backbone."): v
        for k, v in load_file(file).items()
    }
    save_file(renamed, file)
    adapted = adapted_to(pair[0], adapter)
    assert all(same(adapted.tensor(key), tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_base_is_rounded_once(
    copies: Folders, tmp_path: Path, dtype: torch.dtype
) -> None:
    base, output = copies[0], tmp_path / "out"
    adapter = save_adapter(base, tmp_path / "adapter")
    half = {key: tensor.to(dtype) for key, tensor in load_file(base / "model.safetensors").items()}
    save_file(half, base / "model.safetensors", metadata={"format": "pt"})
    done("merge", base, adapter, "--recipe", "wise-ft", "--output", output, "-q")
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (
        factors[f"base_model.model.{Q.replace('weight', f'lora_{x}.weight')}"].double()
        for x in "AB"
    )
    exact = half[Q].double() + 0.5 * 6 / 4 * (b @ a)
    written = load_file(output / "model.safetensors")[Q]
    assert written.dtype == dtype
    # a float32 value close to the middle between two halves may fall to either
    assert (written != exact.to(dtype)).double().mean() < 0.01


def test_a_plan_is_bound_to_the_adapters_scale_and_its_output_never_replaces_it(
    pair: Folders, tmp_path: Path
) -> None:
    adapter, plan = save_adapter(pair[0], tmp_path / "earlier" / "adapter"), tmp_path / "plan.json"
    flags = ("--recipe", "wise-ft", "-q")
    done("merge", pair[0], adapter, *flags, "--output", tmp_path / "merged")
    done("plan", pair[0], adapter, *flags, "--output", plan)
    done("apply", plan, "--output", tmp_path / "applied", "-q")
    merged, applied = (tmp_path / name / "model.safetensors" for name in ("merged", "applied"))
    assert merged.read_bytes() == applied.read_bytes()
    (tmp_path / "earlier" / "clipmerge.json").write_text('{"files": {"adapter": null}}')
    line = refused(clipmerge("apply", plan, "--output", tmp_path / "earlier", "--overwrite"))
    assert f"holds {adapter}, which this command reads" in line
    configure(adapter, lora_alpha=7)
    line = refused(clipmerge("apply", plan, "--output", tmp_path / "again"))
    assert "sha256 of adapter_config.json differs" in line


def test_another_base_than_recorded_is_reported(pair: Folders, adapter: Path) -> None:
    base = open_checkpoint(str(pair[0]))
    assert open_checkpoint(str(adapter), base=base).notes == ()
    configure(adapter, base_model_name_or_path="openai/clip-vit-base-patch32")
    adapted = open_checkpoint(str(adapter), base=base)
    (note,) = texts_of(adapted.notes)
    assert f"trained on 'openai/clip-vit-base-patch32' and is applied to {pair[0]}" in note
    assert adapted.notes[0] in align_checkpoints(base, [adapted]).notes


def test_an_adapter_from_the_hub_and_one_of_before_safetensors(
    hub: FakeHub, pair: Folders, adapter: Path
) -> None:
    expected = adapted_to(pair[0], adapter).tensor(Q)
    sha = upload(hub, "alice/lora", adapter)
    adapted = open_checkpoint("alice/lora", base=open_checkpoint(str(pair[0])))
    assert adapted.revision == sha
    assert torch.equal(adapted.tensor(Q), expected)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert torch.equal(adapted_to(pair[0], adapter).tensor(Q), expected)


def test_it_is_the_same_on_several_threads(pair: Folders, adapter: Path, tmp_path: Path) -> None:
    sources = [pair[0], adapter]
    assert merged("magnitude", sources, tmp_path / "5", 5) == merged(
        "magnitude", sources, tmp_path / "1", 1
    )


def test_a_head_that_the_base_lacks_is_taken_from_the_adapter(pair: Folders, adapter: Path) -> None:
    configure(adapter, modules_to_save=["classifier"])
    file, head = adapter / "adapter_model.safetensors", torch.arange(6.0).reshape(2, 3)
    save_file({**load_file(file), "base_model.model.classifier.weight": head}, file)
    adapted = adapted_to(pair[0], adapter)
    assert adapted.entries["classifier.weight"].shape == (2, 3)
    assert torch.equal(adapted.tensor("classifier.weight"), head)
    adapted.release("classifier.weight")  # no page of the base is mapped for it


NOT_LORA = "not a LoRA configuration"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "LOHA"}, "type LOHA; clipmerge reads LORA.*merge_and_unload"),
    "pissa": (
        {"init_lora_weights": "pissa_niter_4"},
        "init_lora_weights='pissa_niter_4', which changes the base",
    ),
    "replication": ({"layer_replication": [[0, 2]]}, "uses layer_replication, whose arithmetic"),
    "rank 0": ({"r": 0}, NOT_LORA),
    "an endless alpha": ({"alpha_pattern": {"a": float("inf")}}, NOT_LORA),
    "another rank": (
        {"r": 8},
        "has rank 4, but adapter_config.json says 8; the scale would be wrong",
    ),
    "many patterns": (
        {"rank_pattern": {f"layer{number}": 4 for number in range(MAX_PATTERNS + 1)}},
        rf"{MAX_PATTERNS + 1} patterns, more than {MAX_PATTERNS}",
    ),
    # patterns that could take long
    **{
        pattern: ({"rank_pattern": {pattern: 2}}, NOT_LORA)
        for pattern in (
            "(a+)+b",
            ".*.*.*.*x",
            "a" * 501,
            "[",
        )
    },
}


def refuse(adapter: Path | str, base: Path, message: str) -> None:
    with one_line(CheckpointError, message):
        open_checkpoint(str(adapter), base=open_checkpoint(str(base)))


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_understood_is_refused(pair: Folders, adapter: Path, what: str) -> None:
    changes, message = REFUSED[what]
    refuse(configure(adapter, **changes), pair[0], message)


def test_a_broken_configuration_is_refused(pair: Folders, adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    cannot_be_read = r"adapter_config.json: not a LoRA configuration"
    for text in ("[]", "{", '{"peft_type": "LORA", "lora_alpha": 1, "r": 1e999}'):
        file.write_text(text)
        refuse(adapter, pair[0], cannot_be_read)
    file.unlink()
    refuse(adapter, pair[0], cannot_be_read)


A = f"base_model.model.{Q.replace('weight', 'lora_A.weight')}"
LENGTH = A.replace("A.weight", "magnitude_vector")

TENSORS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "half a pair": ({A: None}, "the LoRA of .*q_proj.weight is incomplete"),
    "torch's attention": (
        {
            "base_model.model.transformer.resblocks.0.attn.base_layer.out_proj.lora_A.weight": (
                torch.zeros(4, 32)
            )
        },
        r"LoRA on torch's MultiheadAttention is not supported\. merge it where it was trained",
    ),
    "an unknown factor": (
        {A.replace("lora_A", "lora_E"): torch.zeros(4)},
        "lora_E.weight is of an unknown kind",
    ),
    "an unknown module": (
        {"base_model.model.vision_model.adapter.weight": torch.zeros(2)},
        (
            r"1 of the parameters it changes are not in .*: vision_model\.adapter\.weight; give the"
            r" base"
        ),
    ),
    "another width": (
        {A: torch.zeros(4, 31)},
        r"the LoRA of .* is \(32, 4\) by \(4, 31\), the base's \(32, 32\)",
    ),
    "no matrix A": ({A: torch.ones(4)}, r"the LoRA of .*q_proj\.weight is"),
    "integers": ({A: torch.zeros(4, 32, dtype=torch.int64)}, "is not a float on both sides"),
    "another shape": (
        {"base_model.model.text_projection.weight": torch.zeros(16, 31)},
        r"text_projection\.weight is \(16, 31\), the base's",
    ),
    "another number of lengths": (
        {LENGTH: torch.ones(31)},
        r"magnitude_vector.* is \(31,\), the base's .*\(32, 32\)",
    ),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit_are_refused(pair: Folders, adapter: Path, what: str) -> None:
    changes, message = TENSORS[what]
    tensors = {**load_file(adapter / "adapter_model.safetensors"), **changes}
    save_file(
        {key: t for key, t in tensors.items() if t is not None},
        adapter / "adapter_model.safetensors",
    )
    refuse(adapter, pair[0], message)


def test_an_adapter_alone_is_no_checkpoint_and_beside_a_model_it_is_ambiguous(
    copies: Folders, plain: Path
) -> None:
    line = refused(clipmerge("inspect", plain))
    assert "is a LoRA adapter, not a full model; make a checkpoint from it and its base" in line
    folder = Path(shutil.copytree(plain, copies[1], dirs_exist_ok=True))
    refuse(folder, copies[0], "holds both model.safetensors and adapter_model.safetensors")
    assert open_checkpoint(str(folder / "model.safetensors")).source.endswith("model.safetensors")
    refuse(folder / "adapter_model.safetensors", plain.parent, "no model.safetensors")
