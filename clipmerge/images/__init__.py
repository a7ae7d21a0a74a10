"""Images with classes or captions: `dataset` opens a source of any kind, one module per kind;
`image_set` samples, `split` holds back, `batches` preprocesses.
"""
