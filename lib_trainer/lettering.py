"""The writing in pictures that are made here: which font draws a text, and what is written where none does.

No box stands for a letter that a font lacks: a sentence is then written in English, and of other texts, as prompts are,
each such letter is a question mark.
"""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from lib_trainer.refusals import Sentence, spoken

LETTERS = 14
"""Height of the writing in pixels."""

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"

CHINESE = (
    ("msyh.ttc", 0), ("simhei.ttf", 0), ("simsun.ttc", 0), ("PingFang.ttc", 0), ("Hiragino Sans GB.ttc", 0),
    ("STHeiti Light.ttc", 0), ("NotoSansCJK-Regular.ttc", 2), ("NotoSansCJKsc-Regular.otf", 0),
    ("NotoSansSC-Regular.otf", 0), ("NotoSansSC-Regular.ttf", 0), ("SourceHanSansCN-Regular.otf", 0),
    ("wqy-microhei.ttc", 0), ("wqy-zenhei.ttc", 0), ("DroidSansFallbackFull.ttf", 0), ("DroidSansFallback.ttf", 0),
)  # fmt: skip
"""Fonts that Windows, macOS and Linux have, each with its number within its file."""


def said(sentence: Sentence) -> str:
    """A sentence as it is written into a picture: in the language of pages where a font draws that, else in English."""
    text = sentence.text(spoken())
    return text if any(draws(font, text) for font in _fonts()) else sentence.text()


def font_of(text: str) -> Font:
    """What draws a text: the first font that has all of its letters, or else the one that most people have."""
    return next((font for font in _fonts() if draws(font, text)), _plain())


def legible(text: str) -> str:
    """The text, with a question mark for each letter that its font lacks."""
    font = font_of(text)
    return "".join(letter if draws(font, letter) else "?" for letter in text)


def length(text: str) -> int:
    """Pixels across."""
    return int(font_of(text).getlength(text))


def draws(font: Font, text: str) -> bool:
    """Whether a font has all letters of a text."""
    return all(_has(font, letter) for letter in set(text))


@functools.lru_cache(1 << 13)
def _has(font: Font, letter: str) -> bool:
    if not isinstance(font, ImageFont.FreeTypeFont):  # the font of last resort has no other letters
        return ord(letter) < 256
    if letter.isascii() or letter.isspace() or unicodedata.category(letter) in ("Mn", "Cf"):
        return True
    return _shape(font, letter) != _shape(font, "\U0010fffe")


def _shape(font: Font, letter: str) -> bytes:
    """What is drawn for a letter. One that no font has gives the box."""
    sheet = Image.new("L", (3 * LETTERS, 3 * LETTERS))
    ImageDraw.Draw(sheet).text((LETTERS, LETTERS), letter, fill=255, font=font)
    return bytes(sheet.tobytes())


def _fonts() -> tuple[Font, ...]:
    chinese = _chinese()
    return (_plain(),) if chinese is None else (_plain(), chinese)


@functools.cache
def _plain() -> Font:
    """DejaVu of matplotlib, which gradio brings along; else what the system or Pillow has.

    matplotlib is not imported: what its import leaves behind holds the frames of who asked, and so all of a run.
    """
    found = importlib.util.find_spec("matplotlib")
    folders = [] if found is None else list(found.submodule_search_locations or ())
    beside = (str(Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf") for folder in folders)
    for place in (*beside, "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(place, LETTERS)
        except OSError:
            continue
    return ImageFont.load_default()


@functools.cache
def _chinese() -> ImageFont.FreeTypeFont | None:
    """The first of the system's fonts that has Chinese letters; None where there is none."""
    for name, number in CHINESE:
        try:
            return ImageFont.truetype(name, LETTERS, number)
        except (OSError, ImportError):
            continue
    return None
