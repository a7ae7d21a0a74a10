"""Images and prompts prepared by a checkpoint's own processor, which may fail because of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from torch import Tensor, nn

from clipmerge.errors import CheckpointError, ClipmergeError

_WORDS = ("token_embedding", "word_embeddings")


@contextmanager
def blaming(line: Callable[[str], str]) -> Iterator[None]:
    """Attribute to a checkpoint's files whatever a library raises while it works with them.

    Args:
        line: Makes the error message from the reason.

    Raises:
        CheckpointError: If anything is raised, except for lack of memory and clipmerge's own errors.
    """
    try:
        yield
    except (MemoryError, ClipmergeError):
        raise
    except Exception as error:  # an odd configuration can make it raise anything
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:160]
        raise CheckpointError(line(reason)) from None


def preparing(folder: Path, what: str) -> AbstractContextManager[None]:
    """Attribute failures to the files of a processor that loads, but fails when it is used; see `blaming`.

    Args:
        folder: Folder of the files.
        what: ``images`` or ``prompts``.
    """
    return blaming(
        lambda reason: (
            f"{folder}: its {what} cannot be prepared ({reason}); copy the base model's processor and tokenizer files "
            "into it"
        )
    )


def check_words(folder: Path, ids: Tensor, module: nn.Module) -> None:
    """Check that a text tower has embeddings for a tokenizer's tokens, before it looks them up.

    Args:
        folder: Folder of the tokenizer.
        ids: Its tokens, any shape, int64.
        module: The model.

    Raises:
        CheckpointError: If a token has no embedding.
    """
    tables = [each for name, each in module.named_modules() if name.endswith(_WORDS) and isinstance(each, nn.Embedding)]
    known = min((table.num_embeddings for table in tables), default=None)
    if known is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < known:
        raise CheckpointError(
            f"{folder}: its tokenizer has token {int(ids.max())}, but its text tower knows {known}; copy the base "
            "model's tokenizer files into it"
        )
