"""Edits that put tags in, take them out, or rewrite them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import regex

from lib_trainer.captions.document import Caption, cached_key
from lib_trainer.captions.edit_base import Facts, Memory, Plain, single_tags
from lib_trainer.captions.tags import MATCH_SECONDS, TagPatterns, compile_expression, split_tags
from lib_trainer.options.declare import one_of, option
from lib_trainer.refusals import ConfigError, Field


@dataclass(frozen=True)
class AddTags(Plain):
    """Add tags"""

    tags: Annotated[str, option("Tags", "Separated by commas.")] = ""
    where: Annotated[
        Literal["front", "back", "position"], option("Where", "Front and back are of the whole caption.")
    ] = "front"
    position: Annotated[
        int,
        option(
            "Position",
            "For 'position': how many tags stand before the new ones.",
            low=0,
            when=one_of("where", "position"),
        ),
    ] = 1
    present: Annotated[
        Literal["leave", "move", "repeat"],
        option("If it is there", "Leave it where it is, move it to the new place, or have it twice."),
    ] = "leave"

    def check(self) -> None:
        single_tags(self.tags, "Tags")

    def label(self) -> str:
        place = f"position {self.position}" if self.where == "position" else f"the {self.where}"
        return f"Add {self.tags.strip()} at {place}"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        new = single_tags(self.tags, "Tags")
        if self.present == "leave":
            new = [tag for tag in new if not caption.has(cached_key(tag))]
        elif self.present == "move":
            keys = {cached_key(tag) for tag in new}
            caption = caption.remove(lambda tag: cached_key(tag) in keys)
        index = {"front": 0, "back": len(caption.tags), "position": self.position}[self.where]
        return caption.insert(index, new)


class OfTags(Plain):
    """An edit of the tags that its `tags` match."""

    tags: str

    def check(self) -> None:
        if not self._patterns:
            raise ConfigError("edit.no_tags", field=Field("tags", "Tags"))

    @cached_property
    def _patterns(self) -> TagPatterns:
        return TagPatterns.parse(self.tags, "Tags")

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self._patterns.matches)


@dataclass(frozen=True)
class RemoveTags(OfTags):
    """Remove tags"""

    tags: Annotated[str, option("Tags", "Separated by commas; wildcards (* hair) and /expressions/ too.")] = ""

    def label(self) -> str:
        return f"Remove {self.tags.strip()}"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        return caption.remove(self._memory)


@dataclass(frozen=True)
class ReplaceTags(OfTags):
    """Replace tags"""

    tags: Annotated[str, option("Tags", "What is replaced: separated by commas; wildcards and /expressions/ too.")] = ""
    by: Annotated[str, option("By", "One or more tags. They are not repeated where they stand already.")] = ""

    def check(self) -> None:
        super().check()
        single_tags(self.by, "By")

    def label(self) -> str:
        return f"Replace {self.tags.strip()} by {self.by.strip()}"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        if not any(map(self._memory, caption.tags)):
            return caption
        # what stays as it is is not written a second time
        seen = {cached_key(tag) for tag in caption.tags if not self._memory(tag)}

        def replace(tag: str) -> list[str]:
            if not self._memory(tag):
                return [tag]
            fresh = [new for new in single_tags(self.by, "By") if cached_key(new) not in seen]
            seen.update(map(cached_key, fresh))
            return fresh

        return caption.change(replace)


@dataclass(frozen=True)
class _Expression(Plain):
    expression: Annotated[str, option("Expression", "A regular expression; case does not count.")] = ""
    replacement: Annotated[str, option("Replacement", "What matches becomes this; groups are written \\1, \\2 …")] = ""
    on: ClassVar[str]

    def label(self) -> str:
        return f"{self.on}: /{self.expression}/ → {self.replacement or 'nothing'}"

    def check(self) -> None:
        if not self.expression:
            raise ConfigError("edit.no_expression", field=Field("expression", "Expression"))
        self._substituted("")
        groups = self._compiled.groups
        wanted = [int(found) for found in regex.findall(r"(?<!\\)(?:\\\\)*\\(\d+)", self.replacement)]
        if any(number > groups for number in wanted):
            raise ConfigError(
                "edit.no_group",
                field=Field("replacement", "Replacement"),
                number=max(wanted),
                expression=self.expression,
            )

    @cached_property
    def _compiled(self) -> Any:
        return compile_expression(self.expression, "Expression")

    def _substituted(self, text: str) -> str:
        try:
            result: str = self._compiled.sub(self.replacement, text, timeout=MATCH_SECONDS)
            return result
        except TimeoutError:
            raise ConfigError("expression.too_slow", pattern=self._compiled.pattern) from None
        except (regex.error, IndexError) as error:
            field = Field("replacement", "Replacement")
            raise ConfigError("edit.replacement", field=field, replacement=self.replacement, reason=error) from None


@dataclass(frozen=True)
class ExpressionOnTags(_Expression):
    """Regular expression on tags"""

    on: ClassVar[str] = "Tags"

    @cached_property
    def _memory(self) -> Memory:
        return Memory(lambda tag: split_tags(self._substituted(tag)))

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        """A tag that becomes empty is removed; a comma in the replacement makes two of it."""
        return caption.change(self._memory)


@dataclass(frozen=True)
class ExpressionOnCaption(_Expression):
    """Regular expression on whole captions"""

    on: ClassVar[str] = "Captions"

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self._substituted)

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        return Caption.parse(self._memory(caption.text), caption.bom)
