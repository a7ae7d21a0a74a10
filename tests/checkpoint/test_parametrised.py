"""Weights stored in parts: formed as torch forms them, merged as weights, and written plainly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from transformers import CLIPModel

from clipmerge.checkpoint import open_checkpoint
from clipmerge.errors import CheckpointError
from tests.support.command import clipmerge as run
from tests.support.command import done, refused
from tests.support.raw_safetensors import edit
from tests.support.tiny_clip import Folders

LAYER = "vision_model.encoder.layers.1.mlp.fc1"
KEY = f"{LAYER}.weight"


class Geometric(nn.Module):
    """A linear layer as a length and a direction, as geometric parametrisation has it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.r = nn.Parameter(linear.weight.norm(dim=1, keepdim=True))
        self.theta = nn.Parameter(linear.weight / self.r * 3)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        return self.r * nn.functional.normalize(self.theta, p=2, dim=1)


def used(module: nn.Module) -> nn.Module:
    """Run a layer once: the older spectral norm makes its weight only then."""
    module(torch.zeros(1, module.in_features))
    return module


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": old_weight_norm,
    "weight norm of all": lambda module: old_weight_norm(module, dim=None),
    "weight norm, new": parametrizations.weight_norm,
    "spectral norm": lambda module: used(old_spectral_norm(module).eval()),
    "spectral norm, new": lambda module: parametrizations.spectral_norm(module).eval(),
    "pruning": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "GmP": Geometric,
}


def with_parts(folder: Path, form: Callable[[nn.Module], nn.Module]) -> Tensor:
    """Save a layer of a checkpoint in parts; the weight that torch makes of them."""
    model = CLIPModel.from_pretrained(folder)
    model.vision_model.encoder.layers[1].mlp.fc1 = form(
        model.vision_model.encoder.layers[1].mlp.fc1
    )
    state = {
        name: value.detach().clone().contiguous() for name, value in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert KEY not in state
    weight: Tensor = model.vision_model.encoder.layers[1].mlp.fc1.weight
    return weight.detach()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_formed_as_torch_forms_it_and_merged_as_a_weight(
    copies: Folders, tmp_path: Path, form: str
) -> None:
    before = load_file(copies[1] / "model.safetensors").keys()
    expected = with_parts(copies[1], FORMS[form])
    zeroshot = load_file(copies[0] / "model.safetensors")[KEY]
    out = tmp_path / "out"
    flags = ("-r", "wise-ft", "--set", "method.alpha=0.5", "--allow", "swapped", "-o", out)
    outcome = done("merge", *copies, *flags)  # small random weights tell no order
    merged = load_file(out / "model.safetensors")
    assert merged.keys() == before
    assert torch.allclose(merged[KEY], (zeroshot + expected) / 2, rtol=1e-5, atol=1e-7)
    assert "1 weight is formed from the parts that it holds" in outcome.err


def test_a_pair_in_parts_is_merged_as_weights_not_as_parts(copies: Folders, tmp_path: Path) -> None:
    weights = [with_parts(folder, FORMS["GmP"]) for folder in copies]
    done("merge", *copies, "-r", "wise-ft", "--set", "method.alpha=0.5", "-o", tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")[KEY]
    assert torch.allclose(merged, (weights[0] + weights[1]) / 2, rtol=1e-5, atol=1e-7)
    lengths = [weight.norm(dim=1, keepdim=True) for weight in weights]
    directions = [weight / length for weight, length in zip(weights, lengths, strict=True)]
    direction = (directions[0] + directions[1]) / 2
    of_parts = (lengths[0] + lengths[1]) / 2 * direction / direction.norm(dim=1, keepdim=True)
    assert not torch.allclose(merged, of_parts, rtol=1e-5, atol=1e-7)


def test_half_precision_is_formed_in_float32_and_rounded_once(copies: Folders) -> None:
    with_parts(copies[1], FORMS["GmP"])
    file = copies[1] / "model.safetensors"
    half = {name: value.bfloat16() for name, value in load_file(file).items()}
    save_file(half, file)
    formed = open_checkpoint(str(copies[1]))
    theta, r = (half[f"{LAYER}.{part}"].double() for part in ("theta", "r"))
    exact = r * theta / theta.norm(dim=1, keepdim=True)
    assert formed.entries[KEY].dtype == "BF16"
    assert torch.equal(formed.tensor(KEY), exact.float())


def test_parts_that_nobody_can_form_are_refused_with_the_way_out(copies: Folders) -> None:
    with_parts(copies[1], lambda module: parametrizations.orthogonal(module))
    with pytest.raises(
        CheckpointError, match=r"holds parts that PyTorch makes weights from .*remov"
    ):
        open_checkpoint(str(copies[1]))


def test_a_weight_in_an_unknown_form_is_never_taken_for_zeroshot(
    copies: Folders, tmp_path: Path
) -> None:
    """`missing=keep-zeroshot` would write zero-shot bytes and call them fine-tuned."""
    file = copies[1] / "model.safetensors"
    weights = load_file(file)
    weights[f"{LAYER}.kernel"] = weights.pop(KEY)
    save_file(weights, file)
    for missing in ("error", "keep-zeroshot", "keep-finetuned"):
        line = refused(
            run(
                "merge",
                *copies,
                "-r",
                "wise-ft",
                "--set",
                f"missing={missing}",
                "-o",
                tmp_path / "o",
            )
        )
        assert (
            f"1 module has its weight in another form than in {copies[0]}; first {LAYER}:" in line
        )


def test_what_stays_zeroshot_and_what_is_lost_is_named(copies: Folders, tmp_path: Path) -> None:
    file = copies[1] / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if name.startswith("vision_model.encoder.layers.2.mlp.")]:
        del weights[name]
    weights["vision_model.encoder.layers.2.adapter.weight"] = torch.ones(100, 100)
    save_file(weights, file)
    outcome = done(
        *("merge", *copies, "-r", "wise-ft", "--set", "missing=keep-zeroshot"),
        *("--set", "method.alpha=1", "-o", tmp_path / "out"),
    )
    share = 10_000 / sum(value.numel() for value in weights.values())
    assert f"1 tensor that the zero-shot model lacks ({share:.1%} of its numbers)" in outcome.err
    assert "is a mixture of both: 4 of 6 of vision.2.mlp" in outcome.err
    assert "parameters of 1 layer stay zero-shot, because the fine-tuned" in outcome.out
    record = (tmp_path / "out" / "clipmerge.json").read_text()
    assert '"partly-zeroshot"' in record


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("change", ["a weight beside its parts", "parts of other shapes"])
def test_parts_that_are_not_those_of_a_weight_form_none(copies: Folders, change: str) -> None:
    weight = with_parts(copies[1], old_weight_norm)
    if change == "a weight beside its parts":
        edit(copies[1], **{KEY.replace(".", "__"): weight.contiguous()})
    else:
        edit(copies[1], **{f"{LAYER}.weight_g".replace(".", "__"): torch.ones(3, 3)})
    with pytest.raises(CheckpointError, match=rf"makes weights from \({LAYER}\.weight_g"):
        open_checkpoint(str(copies[1]))
