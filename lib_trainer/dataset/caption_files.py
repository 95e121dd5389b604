"""Which files beside a picture hold its captions, and with which chances one of several texts is told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib_trainer.captions.document import Caption, Lines
from lib_trainer.dataset.folder import CAPTION, EXTENSIONS, Listing, as_number
from lib_trainer.refusals import ConfigError

Chances = tuple[tuple[str, float], ...]
"""Texts, or endings of files, each with its share; the shares need not add up to anything."""

USUAL: Chances = ((CAPTION, 1.0),)
_ENTRY = re.compile(r"(\.[^\s:=]+)(?:\s*[:=\s]\s*([0-9]*\.?[0-9]+))?")


@dataclass(frozen=True)
class CaptionRules:
    """What a picture's captions are.

    `files`: endings of the files that hold them, with their chances; a picture may lack any of them. `lines` says what
    is made of several lines, and with `marks` the `|||` in them stays (`Caption.trained`). `second`: the ending of the
    file that holds what the second text encoder is told; empty: what the first one is told.
    """

    lines: Lines = "all"
    marks: bool = False
    files: Chances = USUAL
    second: str = ""

    def of(self, listing: Listing, picture: str, read: Callable[[str], Caption]) -> tuple[Chances, Chances]:
        """The texts of a picture, at least one, and those for the second encoder, where it has any; each with a chance.

        `read` is asked for the document of a name in the folder.
        """
        there = [(name, chance) for ending, chance in self.files if (name := file_of(listing, picture, ending))]
        found: dict[str, float] = {}
        for name, chance in there:
            own = read(name).alternatives(self.lines, self.marks)
            total = sum(share for _, share in own)
            for text, share in own:
                found[text] = found.get(text, 0.0) + chance * share / total
        second = file_of(listing, picture, self.second) if self.second else None
        others = () if second is None else read(second).alternatives(self.lines, self.marks)
        return tuple(found.items()) or (("", 1.0),), others


def file_of(listing: Listing, picture: str, ending: str) -> str | None:
    """The file beside a picture that has its name and this ending."""
    if ending.lower() == CAPTION:
        return listing.captions.get(picture)
    return listing.files.like(os.path.splitext(picture)[0] + ending)


def caption_files(text: str, field: str) -> Chances:
    """'.txt 0.7, .caption 0.3' as endings with chances; an ending alone has the chance 1, an empty text means .txt.

    Raises `ConfigError` naming `field`.
    """
    found: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise ConfigError("caption_files.entry", field=field, text=part)
        ending = checked_ending(match[1], field)
        if ending.lower() in (one.lower() for one in found):
            raise ConfigError("caption_files.twice", field=field, ending=ending)
        found[ending] = as_number(match[2]) if match[2] else 1.0
        if not found[ending]:
            raise ConfigError("caption_files.never", field=field, ending=ending)
    return tuple(found.items()) or USUAL


def checked_ending(text: str, field: str) -> str:
    """The ending of a file of captions. Raises `ConfigError` naming `field`."""
    if not re.fullmatch(r"\.[^\s/\\:*?\"<>|,]+", text):
        raise ConfigError("caption_files.ending", field=field, text=text)
    if text.lower() in EXTENSIONS:
        raise ConfigError("caption_files.picture", field=field, ending=text)
    return text


def unless_alike(chances: Sequence[float]) -> tuple[float, ...]:
    """Nothing where all chances are the same."""
    return () if len({round(one, 9) for one in chances}) < 2 else tuple(chances)
