"""transformers' ``CLIPModel``: pixels and prompts to features, in float32."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import AutoProcessor, CLIPConfig, CLIPModel

from clipmerge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL.Image import Image


# A tower's block and the hidden states that enter it.
Prefix = tuple[int, Tensor]


class TransformersClip:
    """A CLIP in eval mode whose weights are set from outside.

    Attributes:
        module: The ``CLIPModel``, float32.
        parameters: Canonical parameter name to parameter.
    """

    def __init__(self, config: dict[str, Any], processor_folder: Path) -> None:
        """Build the model without weights; `set_parameter` fills them in.

        Args:
            config: Parsed ``config.json`` of a full CLIP.
            processor_folder: Folder with the processor and the tokenizer.

        Raises:
            CheckpointError: If there is no processor there.
        """
        self.processor = _load_processor(processor_folder)
        settings = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
        with torch.device("meta"):
            module = CLIPModel(CLIPConfig.from_dict(settings))
        # position_ids is the one buffer; it is counted, not stored
        self.module = module.to_empty(device="cpu").float().eval()
        for embeddings in (self.module.vision_model.embeddings, self.module.text_model.embeddings):
            ids = embeddings.position_ids
            embeddings.position_ids = torch.arange(ids.shape[-1]).expand_as(ids).clone()
        self.parameters: dict[str, torch.nn.Parameter] = dict(self.module.named_parameters())

    def load(self, read: Callable[[str], Tensor]) -> None:
        """Fill in every weight.

        Args:
            read: Canonical parameter name to tensor.

        Raises:
            CheckpointError: If a parameter of the config's model is not there, or has another shape.
        """
        for name, parameter in self.parameters.items():
            try:
                value = read(name)
            except KeyError:
                raise CheckpointError(
                    f"the zero-shot checkpoint has no {name}; measuring needs a full CLIP as ZEROSHOT"
                ) from None
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"config.json does not fit the weights: {name} is {tuple(value.shape)}, the config says "
                    f"{tuple(parameter.shape)}"
                )
            parameter.data.copy_(value)

    def pixels(self, images: list[Image]) -> Tensor:
        """Preprocess as the checkpoint does.

        Args:
            images: RGB images.

        Returns:
            (batch, 3, height, width), float32.
        """
        processed = self.processor.image_processor(images, return_tensors="pt")
        return torch.as_tensor(processed["pixel_values"], dtype=torch.float32)

    def tokens(self, prompts: list[str]) -> dict[str, Tensor]:
        """Tokenise prompts, padded to the longest and cut at the text tower's length.

        Args:
            prompts: Texts.

        Returns:
            ``input_ids`` and ``attention_mask``, both (prompts, length) int64.
        """
        length = self.module.config.text_config.max_position_embeddings
        encoded = self.processor.tokenizer(
            prompts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def image_features(self, pixels: Tensor, prefix: Prefix | None = None) -> Tensor:
        """Embed images.

        Args:
            pixels: (batch, 3, height, width).
            prefix: A block and the hidden states that enter it; the blocks below do not run.

        Returns:
            (batch, projection_dim), unit length.
        """
        with _starting_at(self.module.vision_model.encoder, prefix):
            output = self.module.vision_model(pixel_values=pixels)
        return torch.nn.functional.normalize(self.module.visual_projection(output.pooler_output), dim=-1)

    def text_features(self, tokens: dict[str, Tensor], prefix: Prefix | None = None) -> Tensor:
        """Embed prompts.

        Args:
            tokens: As `tokens` returns them.
            prefix: As in `image_features`.

        Returns:
            (prompts, projection_dim), unit length.
        """
        with _starting_at(self.module.text_model.encoder, prefix):
            output = self.module.text_model(**tokens)
        return torch.nn.functional.normalize(self.module.text_projection(output.pooler_output), dim=-1)

    @torch.no_grad()
    def hidden_states(self, tower: Literal["vision", "text"], **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a tower and keep what enters each of its blocks.

        Args:
            tower: Which.
            inputs: ``pixel_values``, or what `tokens` returns.

        Returns:
            Hidden states before block 0, 1, ... and after the last, each (batch, tokens, width).
        """
        output = getattr(self.module, f"{tower}_model")(**inputs, output_hidden_states=True)
        states: tuple[Tensor, ...] = output.hidden_states
        return states

    def logit_scale(self) -> Tensor:
        """The factor of the cosine similarities, a scalar."""
        scale: Tensor = self.module.logit_scale.exp()
        return scale


@contextmanager
def _starting_at(encoder: torch.nn.Module, prefix: Prefix | None) -> Iterator[None]:
    """Let an encoder start at a block, with the hidden states given, whatever its tower feeds it."""
    if prefix is None:
        yield
        return
    block, hidden = prefix
    blocks = encoder.layers
    encoder.layers = blocks[block:]  # type: ignore[index]
    feed = encoder.register_forward_pre_hook(
        lambda _module, _args, rest: ((hidden,), {key: value for key, value in rest.items() if key != "inputs_embeds"}),
        with_kwargs=True,
    )
    try:
        yield
    finally:
        feed.remove()
        encoder.layers = blocks


def _load_processor(folder: Path) -> Any:
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0][:160]
        raise CheckpointError(
            f"{folder}: its processor cannot be loaded ({reason}); measuring needs preprocessor_config.json or "
            "processor_config.json and the tokenizer's files beside the weights"
        ) from None
    if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise CheckpointError(
            f"{folder}: holds {type(processor).__name__}, not a processor for images and text; copy the base "
            "model's processor and tokenizer files into it"
        )
    return processor
