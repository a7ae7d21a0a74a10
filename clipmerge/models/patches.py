"""Images as sequences of patches (SigLIP 2 at any aspect ratio), packed into one tensor per batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pack(processed: Mapping[str, Any]) -> Tensor:
    """Concatenate patches, their mask and the images' shapes.

    Args:
        processed: ``pixel_values`` (batch, patches, entries), ``pixel_attention_mask`` (batch, patches) and
            ``spatial_shapes`` (batch, 2), counts of patches, which float32 holds exactly.

    Returns:
        (batch, patches, entries + 3), float32.
    """
    patches = torch.as_tensor(processed["pixel_values"], dtype=torch.float32)
    mask = torch.as_tensor(processed["pixel_attention_mask"], dtype=torch.float32)[..., None]
    shapes = torch.as_tensor(processed["spatial_shapes"], dtype=torch.float32)[:, None].expand(-1, patches.shape[1], -1)
    return torch.cat([patches, mask, shapes], dim=-1)


def unpack(pixels: Tensor) -> dict[str, Tensor]:
    """Inverse of `pack`: the arguments of the vision tower."""
    patches, mask, shapes = torch.split(pixels, [pixels.shape[-1] - 3, 1, 2], dim=-1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": mask[..., 0].round().int(),
        "spatial_shapes": shapes[:, 0].round().long(),
    }
