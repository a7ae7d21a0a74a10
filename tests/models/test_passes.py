"""Forward passes in 16 bits, memory that a process may use, and what happens when it runs out."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from clipmerge.models import keep_depthwise_in_float32
from clipmerge.models.passes import (
    MicroBatcher,
    affordable_images,
    embed_with_graph,
    in_precision,
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 80 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB). Tried to allocate 2 GB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes. Error 12"
        ),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_images_go_through_in_halves_until_memory_suffices(error: Exception) -> None:
    said: list[str] = []
    pieces, pixels = MicroBatcher(said.append), torch.arange(10.0)[:, None]

    def model_for_most(most: int) -> Callable[[Tensor], Tensor]:
        def model(images: Tensor) -> Tensor:
            if len(images) > most:
                raise error
            return images * 2

        return model

    for _ in range(2):  # the second time without another attempt
        assert torch.equal(pieces.forward(model_for_most(3), pixels), pixels * 2)
    assert said == [
        f"memory does not suffice for {count} images at once: going on with {count // 2}"
        for count in (10, 5)
    ]
    with pytest.raises(type(error)):
        pieces.forward(model_for_most(0), pixels)
    assert pieces.max_images == 1


def test_as_many_images_are_sent_as_activations_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the memory; weights do not count, nor does a card."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 100), torch.nn.Tanh(), torch.nn.Linear(100, 1))
    image = torch.zeros(1, 8)
    kept = 4 * (8 + 100)  # the input and what tanh returns, float32
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4 * kept}.get(name, 7))
    assert affordable_images(module, module, image) == 7
    assert affordable_images(module, module, image.to("meta")) is None


@pytest.mark.parametrize("at_once", [4, 1], ids=["kept", "computed again"])
def test_a_convolution_of_single_channels_is_float32s_under_autocast(at_once: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 8, 9, 9)
    plain = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
    ours = deepcopy(plain)
    keep_depthwise_in_float32(ours)
    for module, precision in ((plain, "float32"), (ours, "bfloat16")):
        with in_precision(torch.device("cpu"), precision):
            features = embed_with_graph(module, images.split(at_once))
        features.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-3)
