"""Tags as text: splitting and joining captions, one spelling to compare by, and lists of patterns.

Booru tags are written `long_hair` on the site, `long hair` in captions and `saber \\(fate\\)` in prompts: all of these
are the same tag here.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex

from lib_trainer.refusals import ConfigError

KAOMOJI = frozenset(
    {
        "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^",
        "o_o", "u_u", "x_x", "|_|", "||_||",
    }
)  # fmt: skip
"""Tags whose underscore is a mouth or a nose, as the boards spell them."""

MATCH_SECONDS = 0.2
"""How long one regular expression may run on one tag before it is refused."""


def split_tags(caption: str) -> list[str]:
    """A caption's tags in order, without the white space around them; empty ones are dropped."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def with_spaces(tag: str) -> str:
    """`long_hair` → `long hair`; `>_<` stays."""
    return tag if tag in KAOMOJI else tag.replace("_", " ")


def escape(tag: str) -> str:
    """`saber (fate)` → `saber \\(fate\\)`, so that a prompt does not read the brackets as emphasis."""
    return re.sub(r"([\\()\[\]])", r"\\\1", tag)


def unescape(tag: str) -> str:
    """The inverse of `escape`; captions for training are not escaped."""
    return re.sub(r"\\([\\()\[\]])", r"\1", tag)


def either_spelling(tag: str) -> str:
    """A regular expression for a tag as it is written with and without escaped brackets."""
    return re.sub(r"\\([()\[\]])", r"\\\\?\\\1", re.escape(unescape(tag)))


@lru_cache(maxsize=1 << 16)  # a large set asks for the same few thousand tags a million times
def tag_key(tag: str) -> str:
    """What two spellings of one tag have in common: case, underscores, escapes and runs of spaces do not count."""
    return " ".join(with_spaces(unescape(tag.strip())).split()).casefold()


@dataclass(frozen=True)
class TagPatterns:
    """A list of tags, wildcards (`* hair`, `?girls`) and regular expressions (`/^(red|blue) eyes$/`).

    Plain entries and wildcards compare by `tag_key`; a regular expression is searched for in the key.
    """

    keys: frozenset[str] = frozenset()
    wildcards: tuple[re.Pattern[str], ...] = ()
    expressions: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, text: str, field: str = "The list of tags") -> TagPatterns:
        """Read entries that are separated by commas or lines; `/…/` may itself hold commas.

        Raises `ConfigError` naming `field` and the expression that is not one.
        """
        entries = [entry.strip() for entry in re.findall(r"/(?:\\.|[^/\n\\])+/(?=\s*(?:,|\n|$))|[^,\n]+", text)]
        return cls.of([entry for entry in entries if entry], field)

    @classmethod
    def of(cls, entries: Sequence[str], field: str = "The list of tags") -> TagPatterns:
        keys, wildcards, expressions = set(), [], []
        for entry in entries:
            if len(entry) > 2 and entry.startswith("/") and entry.endswith("/"):
                expressions.append(compile_expression(entry[1:-1], field))
            elif re.search(r"[*?]", entry) and tag_key(entry) not in ("?", "??", "!?"):  # these are tags themselves
                literal = tag_key(entry).replace("[", "[[]")
                wildcards.append(re.compile(fnmatch.translate(literal)))
            else:
                keys.add(tag_key(entry))
        return cls(frozenset(keys), tuple(wildcards), tuple(expressions))

    def __bool__(self) -> bool:
        return bool(self.keys or self.wildcards or self.expressions)

    def matches(self, tag: str) -> bool:
        """Raises `ConfigError` for an expression that takes too long."""
        key = tag_key(tag)
        if key in self.keys or any(pattern.match(key) for pattern in self.wildcards):
            return True
        return any(searched(expression, key) is not None for expression in self.expressions)


def compile_expression(source: str, field: str) -> Any:
    """A regular expression without regard to case. Raises `ConfigError` naming `field` if it is not one."""
    try:
        return regex.compile(source, regex.IGNORECASE)
    except regex.error as error:
        raise ConfigError("expression.wrong", what=field, source=source, reason=error) from None


def searched(expression: Any, text: str) -> Any:
    """The first match or None. Raises `ConfigError` if the expression takes longer than `MATCH_SECONDS`."""
    try:
        return expression.search(text, timeout=MATCH_SECONDS)
    except TimeoutError:
        raise ConfigError("expression.too_slow", pattern=expression.pattern) from None
