"""Pictures inside of HTML."""

from __future__ import annotations

import base64


def jpeg_uri(jpeg: bytes) -> str:
    """A picture as the source of an `img` element."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
