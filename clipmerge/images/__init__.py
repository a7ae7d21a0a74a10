"""Images with classes or captions: `dataset` opens a source of any kind, one module per kind;
`image_set` samples, `split` holds back, `batches` preprocesses.
"""

from clipmerge.images.image_set import ImageSource
from clipmerge.images.source import Columns

__all__ = ["Columns", "ImageSource"]
