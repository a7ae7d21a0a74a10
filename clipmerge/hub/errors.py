"""Errors of the Hub's client: the first line of its own message, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from clipmerge.errors import ClipmergeError, HubError

# What to do by class of the error, looked up along the method resolution order; by name, so that
# nothing need be imported, and because the client has changed its HTTP library.
_REMEDIES = {
    "GatedRepoError": "Accept its conditions on its page on the Hub, then `hf auth login`.",
    "RevisionNotFoundError": "Check the name after the @.",
    "RepositoryNotFoundError": "Check the name; if it is private, `hf auth login` or set HF_TOKEN.",
    "OfflineModeIsEnabled": "Unset HF_HUB_OFFLINE to reach the Hub.",
    "LocalEntryNotFoundError": "It is not in the cache: go online and run again.",
    "TransportError": "Check the connection and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses the cache.",
}
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
_TRY_AGAIN = "Try again later; HF_HUB_OFFLINE=1 uses what is in the cache."


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn any error of the client into a one-line HubError."""
    try:
        yield
    except ClipmergeError:
        raise
    except Exception as error:
        names = [cls.__name__ for cls in type(error).__mro__]
        is_unauthorised = getattr(getattr(error, "response", None), "status_code", None) == 401
        otherwise = _LOG_IN if is_unauthorised else _TRY_AGAIN
        remedy = next((_REMEDIES[name] for name in names if name in _REMEDIES), otherwise)
        lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
        told = [line for line in lines if not re.match(r"\d+ \w+ Error", line)]
        reason = next(iter(told or lines), names[0])
        raise HubError(f"{doing}: {reason}. {remedy}") from error
