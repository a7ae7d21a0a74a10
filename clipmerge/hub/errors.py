"""Errors of the Hugging Face Hub's client, turned into one line that says what to do.

The client raises about twenty classes of its own, two of which wrap the real error, and passes on
errors of the network library and built-in ones. Only this module knows them, by name and by HTTP
status.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from clipmerge.errors import ClipmergeError, HubError


@contextmanager
def quiet_client() -> Iterator[None]:
    """Silence the client's own warnings: they repeat signed upload URLs, and the error says
    everything else.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # httpx2 warns of the way in which the client uploads a file
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def explained(doing: str, *, state: str = "", again: str = "") -> Iterator[None]:
    """Turn any error of the client into a one-line HubError; see ``explain``."""
    try:
        with quiet_client():
            yield
    except ClipmergeError:
        raise
    except Exception as error:
        raise explain(error, doing=doing, state=state, again=again) from error


_LOG_IN = "Log in with `hf auth login` or set HF_TOKEN."
_OTHER_TOKEN = "Use a token that has it, from https://huggingface.co/settings/tokens."
_TRY_LATER = "The network or the Hub is at fault: try again later."

# Fault and remedy by class name, looked up along the method resolution order: the client's many
# subclasses, and httpx's change of package, need no imports here.
_BY_CLASS = {
    "GatedRepoError": (
        "access to it is gated",
        "Accept its conditions on its Hub page, then log in.",
    ),
    "DisabledRepoError": ("the Hub has disabled it", "Choose another model."),
    "RevisionNotFoundError": ("no such revision", "Check the name after the @."),
    "RepositoryNotFoundError": ("not on the Hub, or private", f"Check the name. {_LOG_IN}"),
    "RemoteEntryNotFoundError": ("a file of it is missing on the Hub", "Name another revision."),
    "LocalTokenNotFoundError": ("no token", _LOG_IN),
    "OfflineModeIsEnabled": ("HF_HUB_OFFLINE is set", "Unset it to reach the Hub."),
    "ConnectError": ("the Hub cannot be reached", "Check the connection and HF_ENDPOINT."),
    "TimeoutException": (
        "no answer in time",
        f"{_TRY_LATER} CLIPMERGE_HUB_TIMEOUT sets the seconds to wait.",
    ),
    "TransportError": ("the connection broke", _TRY_LATER),
    "ConnectionError": (
        "the Hub's storage cannot be reached",
        f"{_TRY_LATER} HF_HUB_DISABLE_XET=1 avoids that storage.",
    ),
    "JSONDecodeError": (
        "the answer was not the Hub's",
        "A proxy or a login page may have answered: check the connection and HF_ENDPOINT.",
    ),
    "SafetensorsParsingError": (
        "a safetensors header cannot be read",
        "The file is damaged: upload it again.",
    ),
    "LocalEntryNotFoundError": ("it cannot be read from the Hub and is not cached", _TRY_LATER),
}
_BY_STATUS = {
    401: ("no token, or one that is not valid", _LOG_IN),
    403: ("the token has no right to do this", _OTHER_TOKEN),
    404: ("the Hub does not know it", "Check the name."),
    409: ("the name is taken", "Choose another name."),
    412: ("somebody else committed meanwhile", "Look at what changed."),
    429: ("too many requests", "Wait a few minutes."),
}
_REFUSED = ("the Hub refused", "Check the names in the command.")
_UNWELL = ("the Hub failed", _TRY_LATER)
_WRAPPERS = ("RuntimeError", "LocalEntryNotFoundError")


def explain(error: BaseException, *, doing: str, state: str = "", again: str = "") -> HubError:
    """Describe an exception of the Hub client in one line."""
    while type(error).__name__ in _WRAPPERS and error.__cause__ is not None:
        error = error.__cause__
    happened, remedy = _fault_and_remedy(error)
    parts = [f"{doing}: {happened}.", state, remedy, f"Go on with `{again}`." if again else ""]
    text = " ".join(part for part in parts if part)
    # drop anything shaped like a token, and the query of any URL: uploads are signed there
    text = re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_...", text)
    return HubError(re.sub(r"(https?://[^\s?`]+)\?[^\s`]+", r"\1", text))


def _fault_and_remedy(error: BaseException) -> tuple[str, str]:
    """Find the fault and its remedy."""
    names = [cls.__name__ for cls in type(error).__mro__]
    status = http_status(error)
    for name in names:
        if name in _BY_CLASS and not (name == "ConnectionError" and status):
            return _BY_CLASS[name]
    if status is None:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        return reason if names[0] == "ValueError" else f"{names[0]}: {reason}", ""
    happened, remedy = _BY_STATUS.get(status, _REFUSED if status < 500 else _UNWELL)
    reason = " ".join(str(getattr(error, "server_message", None) or "").split())[:200].rstrip(".")
    return f"{happened} (HTTP {status}{': ' + reason if reason else ''})", remedy


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of a client error, or None if there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def out_of_reach(error: BaseException) -> bool:
    """Return whether the Hub did not answer, or answered with a server error."""
    if type(error).__name__ == "LocalEntryNotFoundError" and error.__cause__ is not None:
        error = error.__cause__  # a failed download, wrapped after a look into the cache
    names = {cls.__name__ for cls in type(error).__mro__}
    return "TransportError" in names or (http_status(error) or 0) >= 500


def timed_out(error: BaseException) -> bool:
    """Return whether a request ran into its timeout."""
    return any(cls.__name__ == "TimeoutException" for cls in type(error).__mro__)
