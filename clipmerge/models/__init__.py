"""Models that turn images and class prompts into logits, one module per library."""

from __future__ import annotations

import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import batch_norm

from clipmerge.errors import CheckpointError, ClipmergeError
from clipmerge.families import Family
from clipmerge.files.safetensors import require_finite
from clipmerge.types import Json, Names, Tensors

# With fewer input channels, torch 2.13 computes strided 1x1 convolutions wrongly in channels last.
_FEW_CHANNELS = 16
# Names of modules that look up tokens in text towers.
_WORDS = ("token_embedding", "word_embeddings")
_COPY_PROCESSOR = "copy the base model's processor and tokenizer files into it"
# Settings of weight formats and of kernels. transformers would fetch and run the code of a kernel.
_LEFT_OUT = re.compile(
    r"_implementation|^(torch_)?dtype$|^quantization_config$|^compression_config$"
)


class ImageTextModel(ABC):
    """A model in eval mode, whose weights other modules set; each library has its own subclass.

    Attributes:
        module: The model, float32.
        parameters: Parameters by canonical name, including the statistics of batch norms.
        folder: The folder of the processor and the tokenizer.
        layout: Memory format of images.
        head: The head of an image tower that classifies without prompts; ``None`` for two towers.
        row_names: Class names of a head's rows, if they are known.
    """

    head: torch.nn.Linear | None = None
    row_names: Names = ()

    def __init__(self, family: Family, folder: Path, module: Any) -> None:
        freeze_batch_norms(module)
        keep_depthwise_in_float32(module)
        self.module, self.folder = module, folder
        self.layout = image_layout(module)
        named: dict[str, torch.nn.Parameter] = dict(module.named_parameters())
        keys = family.by_canonical_name(named)
        self.parameters = {name: named[key] for name, key in keys.items()}

    def load(self, read: Callable[[str], Tensor], source: str) -> None:
        """Load every parameter by canonical name; errors name the ``source``."""
        for name, parameter in self.parameters.items():
            try:
                value = read(name)
            except KeyError:
                raise CheckpointError(
                    f"{source}: has no {name}, which a model needs to embed images and prompts;"
                    " give a full CLIP checkpoint"
                ) from None
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"{source}: config.json does not match the weights: {name} is"
                    f" {tuple(value.shape)}, but the config says {tuple(parameter.shape)}"
                )
            require_finite(value, name, source)
            parameter.data.copy_(value)

    def pixels(self, images: list[Image]) -> Tensor:
        """Preprocess images: float32, images along the first dimension."""
        with explain_errors(f"{self.folder}: its images cannot be prepared", _COPY_PROCESSOR):
            return self.prepare(images)

    def tokens(self, prompts: list[str]) -> Tensors:
        """Tokenise prompts: ``input_ids`` and other inputs of the text tower, int64, prompts along
        the first dimension.
        """
        with explain_errors(f"{self.folder}: its prompts cannot be prepared", _COPY_PROCESSOR):
            tokens = self.tokenize(prompts)
        token = int(tokens["input_ids"].max())
        for name, table in self.module.named_modules():
            is_table = name.endswith(_WORDS) and isinstance(table, torch.nn.Embedding)
            # on a GPU, an unknown token would end the process
            if is_table and token >= table.num_embeddings:
                raise CheckpointError(
                    f"{self.folder}: its tokenizer has token {token}, but its text tower knows"
                    f" {table.num_embeddings}; copy the base model's tokenizer files into it"
                )
        return tokens

    @abstractmethod
    def prepare(self, images: list[Image]) -> Tensor:
        """Preprocess images as the checkpoint's library does: see `pixels`."""

    def tokenize(self, prompts: list[str]) -> Tensors:
        """Tokenise prompts as the checkpoint's library does: see `tokens`."""
        raise CheckpointError(f"{self.folder}: a tower with a head reads no prompts")

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed images: (batch, width), unit length."""

    def text_features(self, tokens: Tensors) -> Tensor:
        """Embed prompts: (prompts, width), unit length."""
        raise NotImplementedError  # a tower with a head has no prompts to embed

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """Score images, (batch, width), against classes, (classes, width), both of unit length:
        (batch, classes).
        """
        if hasattr(self.module, "temperature"):  # ALIGN divides by it
            return torch.div(images @ classes.T, self.module.temperature)
        logits: Tensor = self.module.logit_scale.exp() * images @ classes.T
        bias = getattr(self.module, "logit_bias", None)
        return logits if bias is None else logits + bias


def model_for(
    family: Family,
    config: Json,
    folder: Path,
    build: Callable[[Family, Json, Path], ImageTextModel] | None = None,
) -> ImageTextModel:
    """Build a model without weights, which `load` then sets; by default both towers of a family."""
    build = build or import_module(f"{__name__}.{family.model}").build
    with _refuse_code():
        return build(family, _architecture_settings(config), folder)


def image_layout(model: torch.nn.Module) -> torch.memory_format:
    """Choose the memory format of images: convolutions are faster with the channels last."""
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    # the backward pass of such a layer, as in MobileCLIP's S models, writes outside its memory
    corrupts_memory = any(
        tuple(each.kernel_size) == (1, 1)
        and max(each.stride) > 1
        and each.in_channels < _FEW_CHANNELS
        for each in convolutions
    )
    # a transformer has one convolution, for patches
    if len(convolutions) < 2 or corrupts_memory:
        return torch.contiguous_format
    return torch.channels_last


class FrozenBatchNorm(torch.nn.Module):
    """A batch norm in eval mode that has gradients for its running statistics, too."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: torch.nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name).detach().clone()
            self.register_parameter(name, torch.nn.Parameter(value))
        # timm's batch norms include the activation
        self.act: torch.nn.Module = getattr(norm, "act", torch.nn.Identity())

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (batch, channels, height, width), and activate if the batch norm did."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        # a fused operation, forward and backward, multiplies by `scale` and adds `shift`
        still = torch.zeros_like(scale), torch.ones_like(scale)
        normalised: Tensor = self.act(
            batch_norm(inputs, *still, scale, shift, training=False, eps=0.0)
        )
        return normalised


def freeze_batch_norms(module: torch.nn.Module) -> None:
    """Replace every batch norm in a module that has running statistics, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d) and child.track_running_stats:
                setattr(parent, name, FrozenBatchNorm(child))


def keep_depthwise_in_float32(module: torch.nn.Module) -> None:
    """Make the depthwise convolutions of a module compute in float32 under a CPU's autocast, in
    place: their backward pass takes six times as long in bfloat16.
    """
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d) and part.groups == part.in_channels > 1:
            part.forward = partial(_forward_in_float32, part.forward)  # type: ignore[method-assign]


def _forward_in_float32(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Call a layer in float32 under a CPU's autocast; the output has the inputs' dtype."""
    if not torch.is_autocast_enabled("cpu"):
        return forward(images)
    with torch.autocast("cpu", enabled=False):
        return forward(images.float()).to(images.dtype)


@contextmanager
def explain_errors(what: str, advice: str = "correct it") -> Iterator[None]:
    """Raise a library's error about a checkpoint's files as an error of one line.

    Args:
        what: The files, and what fails.
        advice: The user's next step.
    """
    try:
        yield
    except (MemoryError, ClipmergeError):
        raise
    except Exception as error:  # odd files can make a library raise anything
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        reason = textwrap.shorten(first, 160, placeholder=" ...")
        raise CheckpointError(f"{what} ({reason}); {advice}") from None


@contextmanager
def _refuse_code() -> Iterator[None]:
    """Make transformers refuse code that a checkpoint's files name.

    Otherwise it asks on the terminal whether to run the code, and a "y" on standard input agrees.
    """
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def _architecture_settings(config: Any) -> Any:
    """Copy a configuration without its settings of attention kernels, dtypes and quantisation."""
    if not isinstance(config, dict):
        return config
    return {
        key: _architecture_settings(value)
        for key, value in config.items()
        if not _LEFT_OUT.search(key)
    }
