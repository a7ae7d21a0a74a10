"""The forward pass: images and class prompts to logits, one file a family."""

from clipmerge.models.transformers_clip import TransformersClip

__all__ = ["TransformersClip"]
