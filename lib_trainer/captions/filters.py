"""The filter language: which pictures are meant.

    long hair AND (smile OR open mouth) AND NOT *boy*
    folder:10_cat tokens>75            names with a value, and numbers that are compared
    "saber (fate)", /^(red|blue) eyes$/   quotes keep brackets and commas, slashes hold an expression

Words up to the next operator are one tag. `AND`, `,` and `&` are the same, so are `OR` and `|`, and `NOT`, `!` and a
leading `-`. NOT binds tighter than AND, AND tighter than OR.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from lib_trainer.captions.document import Caption, cached_key
from lib_trainer.captions.edit_base import Memory
from lib_trainer.captions.tags import TagPatterns, compile_expression, searched
from lib_trainer.refusals import ConfigError, Sentence

Value = TypeVar("Value")
NUMBERS = ("tokens", "tags", "width", "height", "pixels", "aspect", "score")
TEXTS = ("folder", "name", "origin", "trouble", "caption", "tag", "group")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip
_TOKEN = re.compile(
    r'\s*(?:(?P<quote>"(?:\\.|[^"\\])*")'
    r"|(?P<slash>(?:[a-z]+:)?/(?:\\.|[^/\\])+/)"
    rf"|(?P<number>(?:{'|'.join(NUMBERS)})(?:\([^()]*\))?\s*(?:>=|<=|>|<|=)\s*[\d.]+)"
    rf'|(?P<text>(?:{"|".join(TEXTS)}):(?:"(?:\\.|[^"\\])*"|[^\s,()|&]*))'
    r"|(?P<open>\()|(?P<close>\))|(?P<and>AND\b|&+|,)|(?P<or>OR\b|\|(?!_\||\|_)\|?)|(?P<not>NOT\b|!(?=[\w\"(/*])|-(?=[\w\"(/*]))"
    r"|(?P<word>(?!\")(?:\\.|_\([^()]*\)|[^\s,()|&])+|\|_\||\|\|_\|\|))"
)


@dataclass(frozen=True)
class Record:
    """What a filter sees of a picture. What is not known is None, and no comparison with it holds.

    `size`: (width, height) in pixels; `origins`: {tag_key: 'hand' or a model's name}; `troubles`: names of findings.
    """

    key: str
    folder: str
    caption: Caption
    tokens: int | None = None
    size: tuple[int, int] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    troubles: Collection[str] = ()


def keyed(values: Mapping[str, Value]) -> dict[str, Value]:
    """The same by `tag_key`."""
    return {cached_key(tag): value for tag, value in values.items()}


Predicate: TypeAlias = Callable[[Record], bool]


@dataclass(frozen=True)
class Filter:
    """A parsed filter. `needs`: which costly facts of a record it reads: 'tokens', 'size', 'scores', 'troubles'.

    `reading`: how it was understood, with every operator written out.
    """

    text: str
    matches: Predicate
    needs: frozenset[str]
    reading: str = ""

    def misread(self) -> Sentence:
        """For a filter that lets nothing through: how it was read, and how it would be written as a tag."""
        text = self.text.strip()
        if '"' not in text and re.search(r"[\s(),&|!-]", text):
            return Sentence("filter.reading_and_tag", reading=self.reading, text=text)
        return Sentence("filter.reading", reading=self.reading)


@dataclass(frozen=True)
class _Part:
    """A part of a filter. `tag`: what it says where it is nothing but one tag."""

    matches: Predicate
    reading: str
    tag: str = ""


def parse_filter(text: str, group: Callable[[str], str] = lambda key: "other") -> Filter:
    """Parse a filter; an empty text lets everything through.

    `group`: the kind of a tag, for `group:hair`. Raises `ConfigError` that says where it stopped understanding.
    """
    parser = _Parser(text, group)
    if not text.strip():
        return Filter(text, lambda record: True, frozenset())
    part = parser.alternatives()
    if parser.kind != "end":
        extra = parser.kind == "close"
        raise parser.trouble(Sentence("filter.extra_bracket" if extra else "filter.no_operator"))
    return Filter(text, part.matches, frozenset(parser.needs), part.reading)


class _Parser:
    def __init__(self, text: str, group: Callable[[str], str]) -> None:
        self._text, self._group = text, group
        self._place = self._next = self._end = 0
        self.kind, self._value = "end", ""
        self.needs: set[str] = set()
        self._depth = 0
        self._advance()

    def trouble(self, what: Sentence) -> ConfigError:
        if self.kind == "end":
            return ConfigError("filter.at_the_end", what=what)
        return ConfigError("filter.before", what=what, text=self._text[self._place :].strip()[:30])

    def _advance(self) -> None:
        self._place = self._next
        if not self._text[self._place :].strip():
            self.kind, self._value = "end", ""
            return
        match = _TOKEN.match(self._text, self._place)
        if match is None:
            self.kind = "bad"
            raise self.trouble(Sentence("filter.unreadable"))
        self.kind, self._value = str(match.lastgroup), match[match.lastgroup or 0]
        self._next = match.end()

    def alternatives(self) -> _Part:
        parts = [self._all_of()]
        while self.kind == "or":
            self._advance()
            parts.append(self._all_of())
        if len(parts) == 1:
            return parts[0]
        tests = [part.matches for part in parts]
        return _Part(lambda record: any(test(record) for test in tests), " OR ".join(part.reading for part in parts))

    def _all_of(self) -> _Part:
        parts = [self._one_or_bracketed()]
        while self.kind not in ("or", "close", "end"):
            if self.kind == "and":
                self._advance()
                if self.kind == "end":  # a comma at the end is how people leave off
                    break
            parts.append(self._one_or_bracketed())
        if len(parts) == 1:
            return parts[0]
        tests = [part.matches for part in parts]
        readings = (f"({part.reading})" if " OR " in part.reading else part.reading for part in parts)
        return _Part(lambda record: all(test(record) for test in tests), " AND ".join(readings))

    def _one_or_bracketed(self) -> _Part:
        """`slime (substance)` is also the tag of that name, which nobody thinks of quoting."""
        negated = self.kind == "not"
        if negated:
            self._depth += 1
            if self._depth > 50:
                raise self.trouble(Sentence("filter.too_many_nots"))
            self._advance()
        start = self._place
        part = self._one_or_bracketed() if self.kind == "not" else self._one()
        self._depth -= negated
        if not part.tag or self.kind != "open":
            return _not(part) if negated else part
        inside = self._one()
        first = _not(part) if negated and not inside.tag else part
        both = [first.matches, inside.matches]
        reading = f"{first.reading} AND {inside.reading}"
        if not inside.tag:
            return _Part(lambda record: all(test(record) for test in both), reading)
        whole = self._text[start : self._end].strip()
        key = cached_key(whole)
        either = _Part(
            lambda record: record.caption.has(key) or all(test(record) for test in both),
            f'"{whole}" OR ({reading})',
        )
        return _not(either) if negated else either

    def _one(self) -> _Part:
        if self.kind == "open":
            return self._bracket()
        if self.kind in ("and", "or", "close", "end"):
            raise self.trouble(Sentence("filter.no_tag"))
        kind, value = self.kind, self._value
        self._advance()
        if kind == "word":
            while self.kind == "word":
                value += " " + self._value
                self._advance()
            return _Part(_tag(value), value, value)
        if kind == "quote":
            key = cached_key(_unquoted(value))
            return _Part(lambda record: record.caption.has(key), value)
        if kind == "number":
            return _Part(self._number(value), value.strip())
        name, _, rest = value.partition(":") if kind == "text" or not value.startswith("/") else ("", "", value)
        return _Part(self._named(name, _unquoted(rest)) if name else _tag(value), value)

    def _bracket(self) -> _Part:
        self._depth += 1
        if self._depth > 50:
            raise self.trouble(Sentence("filter.too_deep"))
        self._advance()
        inside = self.alternatives()
        if self.kind != "close":
            raise self.trouble(Sentence("filter.no_bracket"))
        self._depth -= 1
        self._end = self._next
        self._advance()
        return _Part(inside.matches, f"({inside.reading})" if " " in inside.reading else inside.reading, inside.tag)

    def _number(self, text: str) -> Predicate:
        match = re.fullmatch(r"(\w+)(?:\((.*)\))?\s*(>=|<=|>|<|=)\s*([\d.]+)", text)
        assert match is not None  # the token's pattern is stricter
        name, tag, sign, digits = match.groups()
        try:
            limit = float(digits)
        except ValueError:
            raise self.trouble(Sentence("filter.no_number", digits=digits)) from None
        if (name == "score") != (tag is not None):
            raise self.trouble(Sentence("filter.score"))
        compare = _COMPARE[sign]
        read = self._reader(name, tag or "")

        def holds(record: Record) -> bool:
            value = read(record)
            return value is not None and compare(value, limit)

        return holds

    def _reader(self, name: str, tag: str) -> Callable[[Record], float | None]:
        if name == "tags":
            return lambda record: len(record.caption.tags)
        if name == "tokens":
            self.needs.add("tokens")
            return lambda record: record.tokens
        if name == "score":
            self.needs.add("scores")
            key = cached_key(tag)
            return lambda record: record.scores.get(key)
        self.needs.add("size")
        of_size: dict[str, Callable[[tuple[int, int]], float]] = {
            "width": lambda size: size[0],
            "height": lambda size: size[1],
            "pixels": lambda size: size[0] * size[1],
            "aspect": lambda size: size[0] / size[1],
        }
        value = of_size[name]
        return lambda record: None if record.size is None else value(record.size)

    def _named(self, name: str, value: str) -> Predicate:
        if name not in TEXTS:
            raise self.trouble(Sentence("filter.no_name", name=name, names=TEXTS))
        if name == "caption":
            return _caption(value)
        if name == "tag":
            return _tag(value)
        glob = re.compile(fnmatch.translate(value.casefold().replace("[", "[[]")))
        if name == "folder":
            return lambda record: glob.match(record.folder.casefold()) is not None
        if name == "name":
            return lambda record: glob.match(record.key.rpartition("/")[2].casefold()) is not None
        if name == "group":
            return lambda record: any(glob.match(self._group(key)) for key in record.caption.keys)
        if name == "origin":
            self.needs.add("scores")
            return lambda record: _has_origin(record, glob)
        self.needs.add("troubles")
        return lambda record: any(glob.match(trouble) for trouble in record.troubles)


def _not(part: _Part) -> _Part:
    reading = f"({part.reading})" if " OR " in part.reading else part.reading
    return _Part(lambda record: not part.matches(record), f"NOT {reading}")


def _has_origin(record: Record, glob: re.Pattern[str]) -> bool:
    origins = [record.origins.get(key, "").casefold() for key in record.caption.keys]
    # any model is meant by 'model'; what nobody recorded is 'unknown', and where others are, by hand too
    unrecorded = ("unknown", "hand") if record.origins else ("unknown",)
    names = [unrecorded if not one else (one,) if one == "hand" else (one, "model") for one in origins]
    return any(glob.match(name) for some in names for name in some)


def _tag(text: str) -> Predicate:
    patterns = TagPatterns.of([text], "Filter")
    if patterns.keys:
        key = next(iter(patterns.keys))
        return lambda record: record.caption.has(key)
    memory = Memory(patterns.matches)
    return lambda record: any(memory(cached_key(tag)) for tag in record.caption.tags)


def _caption(value: str) -> Predicate:
    if len(value) > 2 and value.startswith("/") and value.endswith("/"):
        expression = compile_expression(value[1:-1], "Filter")
        memory = Memory(lambda text: searched(expression, text) is not None)
        return lambda record: bool(memory(record.caption.text))
    folded = value.casefold()
    return lambda record: folded in record.caption.text.casefold()


def _unquoted(text: str) -> str:
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
