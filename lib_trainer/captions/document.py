"""One caption file as tags and what stands between them, so that an edit changes what it names and nothing else.

A file's bytes are split into a byte order mark, tags and gaps: `gap tag gap tag … gap`. Gaps are commas, line breaks,
white space and the keep-token separator `|||` (sd-scripts' `keep_tokens_separator`: what stands before it is never
shuffled). Put together again they are the file, byte for byte.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from lib_trainer.captions.tags import tag_key
from lib_trainer.refusals import DatasetError

KEEP = "|||"
"""sd-scripts' usual keep-token separator."""

Lines = Literal["all", "first", "random"]
"""What training makes of a caption of several lines: one text of all of them, the first one, or one drawn at random."""

MOST_BYTES = 1 << 20
"""A larger file is no caption."""

_CHANCE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*::\s*")
_SETTINGS = re.compile(r"^Steps: \d+, (?:.*, )?Sampler: |^Negative prompt:", re.MULTILINE)

_PARTS = re.compile(r"(,|\|\|\||\r\n|\r|\n)")
_UNUSUAL = re.compile(r"[^\S ]|  | ,|\|\|\|")  # what the short way of splitting cannot take

cached_key = lru_cache(maxsize=1 << 17)(tag_key)
"""`tag_key`, remembered: a set repeats its tags many times over."""


class CaptionError(DatasetError):
    """A caption file is not UTF-8 text. `guess` is an encoding that reads it, or an empty text."""

    def __init__(self, path: Path | str, guess: str) -> None:
        if guess:
            super().__init__("caption.other_encoding", path=path, encoding=guess)
        else:
            super().__init__("caption.no_encoding", path=path)
        self.path, self.guess = path, guess

    def converted(self, data: bytes, encoding: str = "") -> bytes:
        """The file's bytes in UTF-8, read as `encoding` or as guessed. Raises `DatasetError` where it does not fit."""
        name = encoding.strip() or self.guess
        try:
            return data.decode(name).encode("utf-8")
        except (UnicodeError, LookupError):
            if name:
                raise DatasetError("caption.not_in_encoding", path=self.path, encoding=name) from None
            raise DatasetError("caption.in_no_encoding", path=self.path) from None


@dataclass(frozen=True)
class Caption:
    """A caption file's content. `gaps` has one entry more than `tags`; tags are stripped and never empty."""

    tags: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ("",)
    bom: bool = False

    @classmethod
    def parse(cls, text: str, bom: bool = False) -> Caption:
        """Split a caption's text at commas, line breaks and `|||`."""
        body = text.strip()
        if body and not _UNUSUAL.search(body):
            tags = body.split(", ")
            if body.count(",") == len(tags) - 1 and all(tags):
                start = text.index(body[0])
                inner = (", ",) * (len(tags) - 1)
                return cls(tuple(tags), (text[:start], *inner, text[start + len(body) :]), bom)
        return cls._parse_slowly(text, bom)

    @classmethod
    def _parse_slowly(cls, text: str, bom: bool) -> Caption:
        tags: list[str] = []
        gaps: list[str] = []
        gap = ""
        for index, part in enumerate(_PARTS.split(text)):
            tag = "" if index % 2 else part.strip()
            if not tag:
                gap += part
                continue
            start = part.index(tag)
            tags.append(tag)
            gaps.append(gap + part[:start])
            gap = part[start + len(tag) :]
        return cls(tuple(tags), (*gaps, gap), bom)

    @classmethod
    def read(cls, data: bytes, path: Path | str = "caption.txt") -> Caption:
        """Raises `CaptionError` naming `path` where the bytes are not UTF-8."""
        bom = data.startswith(codecs.BOM_UTF8)
        try:
            text = data[3 if bom else 0 :].decode("utf-8")
        except UnicodeDecodeError:
            raise CaptionError(path, guess_encoding(data)) from None
        return cls.parse(text, bom)

    @property
    def text(self) -> str:
        """The caption as it stands in the file, without the byte order mark."""
        parts = [self.gaps[0]]
        for tag, gap in zip(self.tags, self.gaps[1:], strict=True):
            parts += (tag, gap)
        return "".join(parts)

    def encode(self) -> bytes:
        """The bytes of the file."""
        return (codecs.BOM_UTF8 if self.bom else b"") + self.text.encode("utf-8")

    def trained(self, lines: Lines = "all", marks: bool = False) -> tuple[str, ...]:
        """What training reads, each text on one line: several texts only where `lines` is 'random', and at least one.

        Of text that the WebUI has saved beside a picture the prompt counts alone. A line break becomes a comma, or a
        space after punctuation: in caption files, a line of its own is a tag of its own. The keep-token separator
        becomes a comma, as it is not trained as text, except with `marks`, for what shuffles tags.
        """
        return tuple(text for text, _ in self.alternatives(lines, marks))

    def alternatives(self, lines: Lines = "all", marks: bool = False) -> tuple[tuple[str, float], ...]:
        """What `trained` says, each text with its share of the chances. A line that begins with a number and two colons
        (`0.3:: a dog`, as sd-dynamic-prompts writes chances) has that share where `lines` is 'random', others have 1.
        """
        found = [" ".join(line.split()) for line in re.split(r"\r\n|\r|\n", prompt_of(self.text))]
        if lines == "all":
            return ((_joined(found, marks), 1.0),)
        if lines == "first":
            return (
                next(
                    ((line if marks else text, 1.0) for line in found if (text := _without_keep_mark(line))), ("", 1.0)
                ),
            )
        shares: dict[str, float] = {}
        for line in found:
            match = _CHANCE.match(line)
            text = line[match.end() :] if match else line
            if bare := _without_keep_mark(text):
                text = text if marks else bare
                shares[text] = shares.get(text, 0.0) + (float(match[1]) if match else 1.0)
        return tuple((text, share) for text, share in shares.items() if share > 0) or (("", 1.0),)

    @property
    def keys(self) -> list[str]:
        """`tag_key` of every tag, in order."""
        return [cached_key(tag) for tag in self.tags]

    @property
    def kept(self) -> int:
        """How many tags stand before the keep-token separator; 0 without one."""
        return next((index for index, gap in enumerate(self.gaps) if KEEP in gap), 0)

    def parts(self) -> tuple[str, Caption]:
        """The text up to the last keep-token separator and with it, which no tagger touches, and what is behind it."""
        last = max((index for index, gap in enumerate(self.gaps) if KEEP in gap), default=0)
        before, mark, after = self.gaps[last].rpartition(KEEP)
        tags, rest = self.tags[last:], self.gaps[last + 1 :]
        if not mark and tags:
            return "", self
        head = Caption(self.tags[:last], (*self.gaps[:last], before + mark))
        return head.text, Caption(tags, (after if tags else after.strip(" "), *rest), self.bom)

    @property
    def separator(self) -> str:
        """What this caption puts between two tags: its most frequent inner gap, a comma and a space by default."""
        plain = [gap for gap in self.gaps[1:-1] if KEEP not in gap]
        return Counter(plain).most_common(1)[0][0] if plain else ", "

    def has(self, key: str) -> bool:
        """Whether a tag with this `tag_key` is there."""
        return any(cached_key(tag) == key for tag in self.tags)

    def without(self, indexes: Collection[int]) -> Caption:
        """The caption without the tags at these places. Of the gaps around one the more telling stays."""
        if not indexes:
            return self
        tags: list[str] = []
        gaps = [self.gaps[0]]
        for index, tag in enumerate(self.tags):
            after = self.gaps[index + 1]
            if index not in indexes:
                tags.append(tag)
                gaps.append(after)
            elif not tags:  # nothing is left before it: the file's beginning stays
                continue
            elif index == len(self.tags) - 1 or _weight(after) > _weight(gaps[-1]):
                gaps[-1] = after
        if not tags:
            return Caption((), (self.gaps[0] + self.gaps[-1],), self.bom)
        gaps[-1] = self.gaps[-1]
        return Caption(tuple(tags), tuple(gaps), self.bom)

    def remove(self, unwanted: Callable[[str], bool]) -> Caption:
        """Without the tags of which `unwanted` (asked with the tag as written) says so."""
        return self.without({index for index, tag in enumerate(self.tags) if unwanted(tag)})

    def insert(self, index: int, added: Iterable[str], separator: str = "") -> Caption:
        """With tags put before the one at `index` (0 is the front, `len(tags)` and more the back).

        `added` must be single tags: no commas, no line breaks. `separator`: what parts them where it is not what parts
        most of the others.
        """
        new = tuple(added)
        if not new:
            return self
        if not self.tags:
            return Caption(new, ("", *(", ",) * (len(new) - 1), self.gaps[0]), self.bom)
        index = min(max(index, 0), len(self.tags))
        between = (separator or self.separator,) * len(new)
        tags = self.tags[:index] + new + self.tags[index:]
        cut = index if index == len(self.tags) else index + 1
        return Caption(tags, self.gaps[:cut] + between + self.gaps[cut:], self.bom)

    def retag(self, tags: Sequence[str]) -> Caption:
        """With as many other tags in the same places."""
        return Caption(tuple(tags), self.gaps, self.bom)

    def keep(self, count: int) -> Caption:
        """With the keep-token separator after the first `count` tags, or without one for 0."""
        plain = self.separator
        gaps = [plain if KEEP in gap and 0 < index < len(self.tags) else gap for index, gap in enumerate(self.gaps)]
        gaps = [gap.replace(KEEP, "") for gap in gaps]
        if 0 < count < len(self.tags):
            gaps[count] = f" {KEEP} "
        return Caption(self.tags, tuple(gaps), self.bom)

    def change(self, replace: Callable[[str], Sequence[str]]) -> Caption:
        """Every tag replaced by those that `replace` names: none removes it, several stand in its place."""
        answers = [replace(tag) for tag in self.tags]
        if all(len(answer) == 1 for answer in answers):
            tags = tuple([answer[0] for answer in answers])
            return self if tags == self.tags else self.retag(tags)
        result = self.retag([answer[0] if answer else tag for tag, answer in zip(self.tags, answers, strict=True)])
        for index in reversed(range(len(answers))):
            if len(answers[index]) > 1:
                result = result.insert(index + 1, answers[index][1:])
        place, unwanted = 0, set()
        for answer in answers:
            if not answer:
                unwanted.add(place)
            place += max(len(answer), 1)
        return result.without(unwanted)


def read_document(path: Path) -> Caption:
    """A caption file. Raises `DatasetError` where it cannot be read, is no text, or is too large for a caption."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        if path.is_symlink():
            raise DatasetError("caption.dead_link", path=path) from None
        raise DatasetError("caption.gone", path=path) from None
    except OSError as error:
        raise DatasetError("caption.unreadable", path=path, reason=error) from error
    if len(data) > MOST_BYTES:
        raise DatasetError("caption.too_large", path=path)
    return Caption.read(data, path)


def prompt_of(text: str) -> str:
    """A caption without what the WebUI writes behind a prompt when it saves a picture's text file: the negative prompt
    and the line of settings."""
    found = _SETTINGS.search(text)
    if found is None or "Steps: " not in text[found.start() :]:
        return text
    return text[: found.start()].rstrip("\r\n")


def _joined(lines: Iterable[str], marks: bool) -> str:
    result = ""
    for line in lines:
        if line and result:
            result += " " if result[-1] in ",.;:!?" else ", "
        result += line
    return result if marks else _without_keep_mark(result)


def _without_keep_mark(text: str) -> str:
    return re.sub(r"\s*,?\s*\|\|\|\s*,?\s*", ", ", text).strip(", ") if KEEP in text else text


def _weight(gap: str) -> int:
    """How much a gap says: a keep-token separator more than a line break, that more than a comma."""
    return 2 if KEEP in gap else int("\n" in gap or "\r" in gap)


def guess_encoding(data: bytes) -> str:
    """An encoding other than UTF-8 that these bytes may have; empty where none fits.

    UTF-16 and UTF-32 are known by their marks. The others are tried in turn, those first that refuse most texts which
    are not theirs; what they give is a guess, and is shown before anything is converted.
    """
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return name if _decodes(data, name) else ""
    if b"\0" in data:
        return ""
    if _decodes(data, "shift_jis") and any("\u3040" <= letter <= "\u30ff" for letter in data.decode("shift_jis")):
        return "shift_jis"  # hiragana or katakana: chance gives other signs
    if _decodes(data, "gb2312"):  # stricter than what it is read as afterwards
        return "gb18030"
    return "cp1252" if _decodes(data, "cp1252") else ""


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeError:
        return False
    return True
