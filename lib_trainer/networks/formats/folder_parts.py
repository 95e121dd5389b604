"""The files of one part of a diffusers folder (its UNet, say): which of them hold its weights."""

from __future__ import annotations

import re
from pathlib import Path

NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Of a part's file."""
PREFERRED = ("", "fp16", "bf16")
LAST = "non_ema"
"""Names of variants."""
_FILE = re.compile(
    rf"(?P<name>{'|'.join(NAMES)})(?:\.(?P<variant>[\w.]+?))?(?P<piece>-\d+-of-\d+)?(?:\.(?P<behind>\w+))?", re.ASCII
)
"""`model`, `model.fp16`, `model.fp16-00001-of-00002`, and `model-00001-of-00002.fp16` as older versions wrote it."""


def chosen(folder: Path) -> list[Path]:
    """Of a part's files those of one variant, .safetensors where there are any; none where it has none.

    The one without a name; else `fp16`, `bf16`, the first by name, and `non_ema`, whose weights no picture is drawn
    with, last. A whole file goes before pieces.
    """
    found: dict[tuple[int, str, bool, int], list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        match = _FILE.fullmatch(path.stem)
        if match is not None:
            named = _variant(match)
            place = PREFERRED.index(named) if named in PREFERRED else len(PREFERRED)
            order = place + (named == LAST), named, match["piece"] is not None, NAMES.index(match["name"])
            found.setdefault(order, []).append(path)
    return found[min(found)] if found else []


def variant(folder: Path) -> str | None:
    """The name of the variant whose files are `chosen`; None for the one without a name."""
    match = next((_FILE.fullmatch(path.stem) for path in chosen(folder)), None)
    return None if match is None else _variant(match) or None


def _variant(match: re.Match[str]) -> str:
    return match["variant"] or match["behind"] or ""
