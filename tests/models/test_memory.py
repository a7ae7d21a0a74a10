"""Memory that a process may use, and what happens when it runs out."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from clipmerge.distributed import device_work
from clipmerge.errors import MeasureError
from clipmerge.finding import Finding
from clipmerge.models.memory import MicroBatcher, usable_memory
from clipmerge.report.text import texts_of


def holding(most: int) -> Callable[[Tensor], Tensor]:
    """A model whose device has memory for so many images."""

    def model(pixels: Tensor) -> Tensor:
        if len(pixels) > most:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 80 GiB"
            )
        return pixels * 2

    return model


def test_images_go_through_in_halves_until_memory_suffices() -> None:
    said: list[Finding] = []
    pieces, pixels = MicroBatcher(None, said.append), torch.arange(10.0)[:, None]
    assert torch.equal(pieces.forward(holding(3), pixels), pixels * 2)
    assert texts_of(said) == [
        f"memory does not suffice for {count} images at once: going on with {count // 2}"
        for count in (10, 5)
    ]
    assert torch.equal(pieces.forward(holding(2), pixels), pixels * 2)  # without another attempt
    assert len(said) == 2
    assert torch.equal(MicroBatcher(None, said.append).forward(holding(10), pixels), pixels * 2)
    assert len(said) == 2


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 80 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB). Tried to allocate 2 GB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 8 bytes."
        " Error 12"
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
def test_one_image_too_many_is_an_error_of_one_line_that_names_what_to_lower(
    error: Exception,
) -> None:
    attempts = []

    def work(most: int) -> None:
        attempts.append(most)
        raise error

    with (
        pytest.raises(
            MeasureError, match=r"too little memory .*; lower `images_at_once` or `batch_size`"
        ),
        device_work(),
    ):
        MicroBatcher(None, str).run(9, work)
    assert attempts == [9, 4, 2, 1]


def test_other_errors_are_not_tried_again() -> None:
    attempts = []

    def work(most: int) -> None:
        attempts.append(most)
        raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="assert"), device_work():
        MicroBatcher(4, str).run(9, work)
    assert attempts == [4]


def test_a_card_that_cannot_say_what_is_free_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some of Intel's; others count what torch keeps for itself as free."""

    def unknown(_: torch.device) -> tuple[int, int]:
        raise RuntimeError("The device doesn't support querying the available free memory")

    device = torch.device("xpu")
    properties = SimpleNamespace(total_memory=1000)
    for name, value in (("memory_allocated", 100), ("memory_reserved", 150)):
        monkeypatch.setattr(torch.xpu, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda _: (500, 1000))
    assert usable_memory(device) == 550
    monkeypatch.setattr(torch.xpu, "mem_get_info", unknown)
    assert usable_memory(device) == 900
