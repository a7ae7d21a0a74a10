"""Make a fine-tuned CLIP robust again by merging it with its zero-shot self, layer by layer."""

__version__ = "0.1.0"
