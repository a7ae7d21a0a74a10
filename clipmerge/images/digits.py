"""scikit-learn's handwritten digits, which need no files."""

from __future__ import annotations

from clipmerge.images.store import Held, Labelled


def load_digits() -> Labelled:
    """Load all of them; needs the extra ``demo``."""
    import datasets

    from clipmerge.demo.data import CLASS_NAMES, digit_images

    images, labels = digit_images("all")
    encoded = tuple(datasets.Image().encode_example(image) for image in images)
    names = tuple(f"digits, image {number}" for number in range(len(encoded)))
    return Labelled(Held(encoded, names), tuple(labels), CLASS_NAMES)
