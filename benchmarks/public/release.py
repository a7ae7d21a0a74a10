"""Release files: fetched by address, resumed where a download stopped, checked, and given the
configuration they lack.

Model soups and WiSE-FT save OpenAI's CLIP without its text tower and with a classification head;
the architecture of the vision tower follows from the shapes. OpenAI's models use QuickGELU and
heads of 64 channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.public.suite import Release
from clipmerge.checkpoint import open_checkpoint
from clipmerge.checkpoint.source import OPEN_CLIP_CONFIG
from clipmerge.errors import CheckpointError, HubError
from clipmerge.files.hashes import remembered_sha256
from clipmerge.files.paths import user_cache
from clipmerge.hub.download import timeout_seconds
from clipmerge.progress import Progress

#: Environment variable with the server to use instead of https://github.com, such as a mirror.
MIRROR = "CLIPMERGE_GITHUB"
_GITHUB = "https://github.com"
_PIECE = 1 << 20
#: Bytes of a release file; far above the needs of real ones.
MAX_RELEASE_BYTES = 16 << 30
_HEAD_WIDTH = 64
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.ln_1\.weight")


def path_of(release: Release) -> Path:
    """Path of a release file in the user's cache, where files of one release share a folder."""
    folder = hashlib.sha256(release.url.rpartition("/")[0].encode()).hexdigest()[:16]
    return user_cache("releases") / folder / release.name


def fetch_release(release: Release, progress: Progress) -> Path:
    """Download a release file unless it is here, from where a download stopped, and check its size
    and hash.
    """
    from filelock import FileLock

    path = path_of(release)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(
        path.with_name(f"{path.name}.lock")
    ):  # several processes of one run may need the same file
        if not path.is_file():
            _download(release, path, progress)
        size, digest = path.stat().st_size, remembered_sha256(path)
        expected = (
            f"{release.size} bytes"
            if release.size not in (None, size)
            else f"sha256 {release.sha256}"
        )
        if release.size not in (None, size) or release.sha256 not in (None, digest):
            path.unlink()
            raise CheckpointError(
                f"{release.url}: came with {size} bytes and sha256 {digest}, but {expected} is"
                " published; the file was removed, run again"
            )
    return path


def size_of(release: Release) -> int | None:
    """Size of a release file in bytes, according to the server; ``None`` if it does not say."""
    request = urllib.request.Request(_address(release), method="HEAD")
    with (
        contextlib.suppress(OSError, http.client.HTTPException, ValueError),
        urllib.request.urlopen(request, timeout=timeout_seconds()) as answer,
    ):
        return int(answer.headers["Content-Length"])
    return None


def _address(release: Release) -> str:
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    return (
        mirror + release.url.removeprefix(_GITHUB)
        if mirror and release.url.startswith(_GITHUB)
        else release.url
    )


def _download(release: Release, path: Path, progress: Progress) -> None:
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(_address(release), headers=headers)
    progress.stage(f"downloading {release.name}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds()) as answer:
            resumed = answer.status == http.client.PARTIAL_CONTENT
            done, length = have if resumed else 0, answer.headers.get("Content-Length")
            total = done + int(length) if length is not None and length.isdigit() else None
            with part.open("ab" if resumed else "wb") as file:
                while piece := answer.read(_PIECE):
                    file.write(piece)
                    done += len(piece)
                    if done > MAX_RELEASE_BYTES:
                        limit = f"{MAX_RELEASE_BYTES >> 30} GiB"
                        raise HubError(
                            f"downloading {release.url}: it is larger than {limit}. Is it the right"
                            " file?"
                        )
                    progress.advance(done, total or max(done, release.size or 0))
            if total is not None and done < total:
                raise OSError(f"the connection broke after {done} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.unlink()  # the part is not the beginning of the file on the server now
        raise HubError(
            f"downloading {release.url}: the server refused (HTTP {error.code}). Check the address."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = (
            " ".join(str(getattr(error, "reason", error)).split())[:160] or type(error).__name__
        )
        raise HubError(
            f"downloading {release.url}: {reason}. The part received is kept: check the connection"
            f" and run again. {MIRROR} names a mirror."
        ) from None
    part.replace(path)


def write_config(file: Path) -> None:
    """Write ``open_clip_config.json`` beside a release file; refuse a file that is not OpenAI's ViT
    with a head.
    """
    entries = open_checkpoint(str(file)).entries
    try:
        model = _model_config(
            {key.removeprefix("model."): entry.shape for key, entry in entries.items()}
        )
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{file}: is not a ViT of OpenAI's CLIP with a head ({error}); is it the right file?"
        ) from None
    config = {"model_cfg": model, "preprocess_cfg": {"mean": _MEAN, "std": _STD}}
    (file.parent / OPEN_CLIP_CONFIG).write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )


def _model_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    positions, _ = shapes["visual.positional_embedding"]
    _, features = shapes["visual.proj"]
    hidden, _ = shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"]
    return {
        "embed_dim": features,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": math.isqrt(positions - 1) * patch,
            "layers": sum(_BLOCK.fullmatch(key) is not None for key in shapes),
            "width": width,
            "head_width": _HEAD_WIDTH,
            "mlp_ratio": hidden / width,
            "patch_size": patch,
        },
        # the text tower is not in the file; this is the one that OpenAI trained with it
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": features,
            "heads": max(1, features // _HEAD_WIDTH),
            "layers": 12,
        },
    }
