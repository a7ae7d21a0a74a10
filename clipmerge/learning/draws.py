"""Random numbers that a device draws itself, from hashes: the same on every device.

A card would wait while the CPU draws as many numbers as a model has weights, and sends them. On a
CPU torch's own generator is several times as fast, and published numbers rest on it. Apple's GPUs
share the CPU's memory, and shifted whole numbers wrongly in torch 2.5 and 2.6
(https://github.com/pytorch/pytorch/issues/144190, .../147889).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draws_itself(device: torch.device) -> bool:
    """Whether a device draws its random numbers, instead of the CPU."""
    return device.type not in ("cpu", "mps")


def normal_like(tensor: Tensor, seed: int, index: int) -> Tensor:
    """Standard normal numbers in a tensor's shape, on its device; ``index`` tells the tensors of
    one seed apart.
    """
    return normal_from(_seed_key(tensor, seed, index), tensor.numel()).view(tensor.shape).to(tensor)


def signs_like(tensor: Tensor, seed: int, index: int) -> Tensor:
    """Random signs, 1 or -1, in a tensor's shape, on its device; likewise."""
    positions = torch.arange(tensor.numel(), device=tensor.device)
    hashed = _hash_numbers(_hash_numbers(positions) + _seed_key(tensor, seed, index))
    return ((hashed & 1) * 2 - 1).view(tensor.shape).to(tensor)


def _seed_key(tensor: Tensor, seed: int, index: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return torch.randint(1 << 32, (1,), generator=generator).to(tensor.device)


def normal_from(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers from a hash of a key and a position: (keys, count), the same on every
    device.

    A card draws them itself, without the time to draw them on the CPU and to send them; each row
    depends on its key alone, so that processes may share the rows.
    """
    positions = torch.arange(count + count % 2, device=keys.device)
    hashed = _hash_numbers(_hash_numbers(positions) + keys[:, None])
    first, second = hashed.tensor_split(2, dim=1)
    length = (-2 * ((first + 0.5) / (1 << 32)).log()).sqrt()
    angle = 2 * math.pi * ((second + 0.5) / (1 << 32))
    return torch.cat([length * angle.cos(), length * angle.sin()], 1)[:, :count]


def _hash_numbers(numbers: Tensor) -> Tensor:
    """Replace whole numbers by hashes of 32 bits, which change about half of their bits with each
    of the numbers'.
    """
    low = (1 << 32) - 1
    numbers &= low
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        numbers ^= numbers >> shift
        numbers *= factor
        numbers &= low
    numbers ^= numbers >> 16
    return numbers
