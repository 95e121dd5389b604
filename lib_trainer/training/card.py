"""What lies beside a result for the WebUI's cards: the words that call it, and a picture.

The WebUI reads `<name>.json` ("activation text", "preferred weight", "sd version"; its Lora extension's
ui_edit_user_metadata.py) and shows `<name>.preview.png` (modules/ui_extra_networks.py, find_preview). Not `<name>.png`:
in the folder of embeddings a picture of that name is taken for an embedding.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lib_trainer.families.family import Family
from lib_trainer.files import write_atomically
from lib_trainer.refusals import printable

PICTURES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "jxl", "avif")
"""Endings of pictures that a card may show."""
SIDE = 512
logger = logging.getLogger(__name__)


def sidecars(result: Path) -> list[Path]:
    """The files that `write_card` makes for a result, whether they are there or not."""
    return [result.with_name(f"{result.stem}.json"), result.with_name(f"{result.stem}.preview.png")]


def write_card(result: Path, words: Sequence[str], family: Family, cover: Image.Image | None) -> None:
    """Write what is missing beside a result; what is there is the user's and stays. A failure is logged alone.

    `words` are what the card puts into a prompt beside the call.
    """
    facts, picture = sidecars(result)
    try:
        if words:
            card = {"sd version": family.card, "activation text": ", ".join(words), "preferred weight": 1.0}
            _write(facts, json.dumps(card, ensure_ascii=False, indent=4).encode())
        if cover is not None and not _has_picture(result):
            small, data = cover.convert("RGB"), io.BytesIO()
            small.thumbnail((SIDE, SIDE))
            small.save(data, "PNG")
            _write(picture, data.getvalue())
    except OSError as error:
        logger.warning("The card of %s could not be written (%s)", printable(str(result)), error)


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data, overwrite=False)
    except FileExistsError:
        return


def _has_picture(result: Path) -> bool:
    names = [f"{result.stem}{middle}.{ending}" for middle in ("", ".preview") for ending in PICTURES]
    return any(result.with_name(name).exists() for name in names)
