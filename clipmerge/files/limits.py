"""All limits on the size, cost and time of files and answers from outside, in one place.

Each limit is far above the needs of real checkpoints and data sets. Exceeding one is an error of
one line that names the limit. docs/contributing/reliability.md lists them for users.
"""

from __future__ import annotations

MIB = 1 << 20

# Texts and JSON: configurations, indices, class names, records, evaluations
#: Bytes of a JSON file.
MAX_JSON_BYTES = 64 * MIB
#: Values in a JSON file, counted by its commas and opening brackets: a short text can make a large
#: object.
MAX_VALUES = 2_500_000
#: Values in a plan or a record, some of which become objects; those of a large CLIP have some
#: 20,000.
MAX_RECORD_VALUES = 250_000
#: Layers in a plan or a record; those of a large CLIP are some 100. A page draws a bar for each
#: measured number.
MAX_LAYERS = 1000
#: Measured numbers in a record: layers times statistics; a large CLIP has some 1000.
MAX_MEASURED = 10_000
#: Digits of a whole number in JSON or YAML; longer ones take quadratic time. Tokenizers write one
#: of 31.
MAX_DIGITS = 100
#: Bytes of a text file: class names, a list, a data set's card.
MAX_TEXT_BYTES = 16 * MIB
#: Bytes of a recipe, and of the value of a ``--set``.
MAX_RECIPE_BYTES = 64 << 10
#: Bytes of a file that is copied beside the weights, such as a tokenizer.
MAX_SIDE_FILE_BYTES = 256 * MIB
#: Bytes of the YAML metadata at the top of a data set's card.
MAX_FRONT_MATTER_BYTES = MIB

# Checkpoints
#: Bytes of the header of a safetensors file; 20,000 tensors take about 3 MB.
MAX_HEADER_BYTES = 16 * MIB
#: Tensors of one checkpoint; the largest CLIPs have some 2,000.
MAX_TENSORS = 20_000
#: Dimensions of a tensor; torch itself has no more.
MAX_DIMENSIONS = 64
#: Characters of a tensor's name, and of the name of a function called by a pickle.
MAX_NAME_LENGTH = 1000
#: Bytes of the pickle in a file that torch.save wrote; the tensors are stored outside the pickle.
MAX_PICKLE_BYTES = 64 * MIB
#: Largest ratio of the bytes spanned by all tensors to the bytes in the file; it is two if all
#: weights are tied.
MAX_SHARING = 8
#: Patterns over module names in an adapter's configuration; and characters, groups, repeats and
#: choices in one.
MAX_PATTERNS, MAX_PATTERN_LENGTH, MAX_GROUPS, MAX_REPEATS, MAX_CHOICES = 1000, 500, 3, 2, 64

#: A model built from a configuration has at most this many times as many numbers as its weight
#: files, plus this many. open_clip's are built twice, and of a text tower with a decoder, such as
#: NLLB's or mT5's, the decoder is built and dropped: 3.5 times the weights, each time.
MAX_TIMES_THE_WEIGHTS, MAX_SPARE_NUMBERS = 10, 1 << 24
#: Pixels of one side of a model's input images, according to its image processor.
MAX_SIDE = 2048

# Prompts
#: Characters of a prompt; a text tower reads some hundred words. Longer captions are cut.
MAX_PROMPT_LENGTH = 2000
#: Prompts of a data set: its classes times its templates.
MAX_PROMPTS = 2_000_000

# Images
#: Bytes of an encoded image.
MAX_IMAGE_BYTES = 256 * MIB
#: Pixels of an image; 8192 times 8192.
MAX_PIXELS = 1 << 26
#: How many times one side of an image may be as long as the other: a processor makes the shorter
#: one some hundred pixels long.
MAX_STRETCHED = 30
#: Number of scans over the whole image, as in progressive JPEGs; real ones have about ten.
MAX_SCANS = 50
#: Images of one source.
MAX_IMAGES = 3_000_000
#: Bytes of images from Parquet held at once, or declared for one row group, if that is more than
#: `MAX_INFLATION` times the file.
MAX_HELD_BYTES = 512 * MIB
#: Bytes of a label in a tar archive: a number, a name, a JSON object.
MAX_LABEL_BYTES = MIB
#: Bytes of a tar header with a long name or with attributes.
MAX_TAR_HEADER_BYTES = MIB
#: Largest ratio of the decompressed size of a large row group in Parquet to the size of its file.
MAX_INFLATION = 8
#: Structures in the footer of a Parquet file: row groups, columns and their descriptions.
MAX_FOOTER_PARTS = 200_000
#: Bytes of a Parquet file's footer.
MAX_FOOTER_BYTES = 16 * MIB

# The Hub
#: Bytes of an answer that is not a file: a listing, a commit, an error.
MAX_ANSWER_BYTES = 64 * MIB
#: Files in a listing.
MAX_FILES = 100_000
