"""The picture that a file carries in its metadata."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path

from lib_trainer.refusals import ModelError
from lib_trainer.toolbox.source import open_source

THUMBNAIL, COVERS = "modelspec.thumbnail", "ssmd_cover_images"
"""modelspec's (a data address), and a list as sd-webui-additional-networks writes it (base64)."""


def carried_in(metadata: Mapping[str, str]) -> bytes | None:
    """The picture's bytes, as they lie there; None where there is none, or none that can be read."""
    told = metadata.get(THUMBNAIL) or ""
    try:
        covers = json.loads(metadata.get(COVERS) or "[]") if not told else []
        if isinstance(covers, list) and covers and isinstance(covers[0], str):
            told = covers[0]
        return base64.b64decode(told.rpartition(",")[2], validate=True) or None
    except (ValueError, binascii.Error, RecursionError):
        return None


def carried_by(path: Path) -> bytes | None:
    """As `carried_in`, of a file; None for one that cannot be read."""
    try:
        return carried_in(open_source(path).metadata)
    except ModelError:
        return None
