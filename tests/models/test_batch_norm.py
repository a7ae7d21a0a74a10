"""Batch norms and the layout of images, and where 16 bits are used."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from clipmerge.models import FrozenBatchNorm, image_layout
from clipmerge.models.passes import dtype_of, multiplies_bfloat16


def test_images_have_their_channels_last_only_where_there_are_many_sound_convolutions() -> None:
    """MobileCLIP's S models have a layer of few channels that corrupts memory so."""
    one, few, many = nn.Conv2d(3, 3, 2), *(nn.Conv2d(n, 64, 1, stride=2) for n in (3, 16))
    assert image_layout(nn.Sequential(one, nn.Linear(3, 3))) == torch.contiguous_format
    assert image_layout(nn.Sequential(few, nn.Conv2d(64, 3, 2))) == torch.contiguous_format
    assert image_layout(nn.Sequential(many, nn.Conv2d(64, 3, 2))) == torch.channels_last


def test_a_frozen_batch_norm_is_torchs_with_gradients_in_all_five_arguments() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3).double().eval()
    names = ("weight", "bias", "running_mean", "running_var")
    values = [torch.rand(3).double() + 0.5 for _ in names]
    plain.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    ours = FrozenBatchNorm(plain)
    inputs = torch.randn(4, 3, 5, 5).double()
    assert torch.allclose(ours(inputs), plain(inputs))

    def run(inputs: Tensor, *values: Tensor) -> Tensor:
        found: Tensor = functional_call(ours, dict(zip(names, values, strict=True)), (inputs,))
        return found

    assert gradcheck(run, [value.requires_grad_() for value in (inputs, *values)])


@pytest.mark.parametrize("device", ["cuda", "xpu"])
@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_used_where_a_card_has_it_in_hardware(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool
) -> None:
    monkeypatch.setattr(
        getattr(torch, device),
        "is_bf16_supported",
        lambda including_emulation: native or including_emulation,
    )
    place = torch.device(device)
    assert multiplies_bfloat16(place) == native
    assert not multiplies_bfloat16(torch.device("mps"))
    other = torch.float16 if device == "cuda" else torch.float32
    assert dtype_of(place, "auto") == (torch.bfloat16 if native else other)
    assert dtype_of(torch.device("mps"), "auto") == dtype_of(place, "float32") == torch.float32
