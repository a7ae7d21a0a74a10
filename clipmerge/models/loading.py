"""Load a checkpoint's weights, and prepare images and prompts as its files say; their faults are
named.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from clipmerge.errors import CheckpointError, ClipmergeError

_WORDS = ("token_embedding", "word_embeddings")


def load_parameters(
    parameters: dict[str, torch.nn.Parameter], read: Callable[[str], Tensor], source: str
) -> None:
    """Load every parameter by canonical name into a model that was built without weights."""
    for name, parameter in parameters.items():
        try:
            value = read(name)
        except KeyError:
            raise CheckpointError(
                f"{source}: has no {name}, which a model needs to embed images and prompts; give a"
                " full CLIP checkpoint"
            ) from None
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{source}: config.json does not match the weights: {name} is {tuple(value.shape)},"
                f" but the config says {tuple(parameter.shape)}"
            )
        parameter.data.copy_(value)


@contextmanager
def blaming_files(what: str, advice: str = "correct it") -> Iterator[None]:
    """Attribute to a checkpoint's files whatever a library raises while it works with them."""
    try:
        yield
    except (MemoryError, ClipmergeError):
        raise
    except Exception as error:  # an odd configuration can make it raise anything
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        reason = textwrap.shorten(first, 160, placeholder=" ...")
        raise CheckpointError(f"{what} ({reason}); {advice}") from None


def blaming_processor(folder: Path, what: str) -> AbstractContextManager[None]:
    """Attribute failures to the files of a processor that loads, but fails when it is used; see
    `blaming_files`.
    """
    advice = "copy the base model's processor and tokenizer files into it"
    return blaming_files(f"{folder}: its {what} cannot be prepared", advice)


def check_words(folder: Path, ids: Tensor, module: nn.Module) -> None:
    """Check that a text tower has embeddings for a tokenizer's tokens, before it looks them up."""
    tables = [
        submodule
        for name, submodule in module.named_modules()
        if name.endswith(_WORDS) and isinstance(submodule, nn.Embedding)
    ]
    known = min((table.num_embeddings for table in tables), default=None)
    if known is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < known:
        raise CheckpointError(
            f"{folder}: its tokenizer has token {int(ids.max())}, but its text tower knows {known};"
            " copy the base model's tokenizer files into it"
        )
