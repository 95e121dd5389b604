"""Captions as other programs and other keyboards leave them: what training would take amiss, and edits that mend it.

Two kinds: the text that the WebUI saves beside a picture (prompt, negative prompt, settings), and punctuation of
Chinese or Japanese keyboards, which parts tags for a reader and not for a program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lib_trainer.captions.document import Caption, prompt_of
from lib_trainer.captions.edit_base import Facts, Plain
from lib_trainer.refusals import Sentence, few

COMMAS = "，、；､﹐﹑﹔︐︑،"
"""Signs that stand between tags and are no commas: full-width, ideographic, small, vertical and Arabic ones."""

_COMMA = re.compile(rf"[^\S\r\n]*[{COMMAS}][^\S\r\n]*")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>\r\n]*>")


def has_settings(text: str) -> bool:
    """Whether there is more than a prompt: a negative prompt, settings, or a call of a network."""
    return prompt_of(text) != text or _NETWORK.search(text) is not None


def has_foreign_commas(text: str) -> bool:
    return any(sign in text for sign in COMMAS)


@dataclass(frozen=True)
class PromptOnly(Plain):
    """Keep the prompt of the WebUI's text files"""

    def label(self) -> str:
        return "Keep the prompt alone"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        """Without the negative prompt, the settings, and calls of networks such as `<lora:name:1>`."""
        text = prompt_of(caption.text)
        if text != caption.text and caption.text.endswith("\n"):
            text += "\r\n" if caption.text.endswith("\r\n") else "\n"
        plain = _NETWORK.sub("", text)
        if plain == caption.text:
            return caption
        done = Caption.parse(plain, caption.bom)
        if plain == text:
            return done
        calls = {index for index, tag in enumerate(Caption.parse(text).tags) if not _NETWORK.sub("", tag).strip()}
        bare = Caption.parse(text, caption.bom).without(calls)
        return bare.retag([" ".join(_NETWORK.sub(" ", tag).split()) for tag in bare.tags])


@dataclass(frozen=True)
class PlainCommas(Plain):
    """Full-width commas to plain ones"""

    def label(self) -> str:
        return "Plain commas in place of full-width ones"

    def apply(self, caption: Caption, facts: Facts) -> Caption:
        text = caption.text
        return caption if not has_foreign_commas(text) else Caption.parse(_plain_commas(text), caption.bom)


def _plain_commas(text: str) -> str:
    def comma(found: re.Match[str]) -> str:
        return "," if found.end() == len(text) or text[found.end()] in "\r\n" else ", "

    return _COMMA.sub(comma, text)


def foreign_notes(texts: Mapping[str, str]) -> list[Sentence]:
    """Sentences on captions ({name: text}) that a run reads."""
    said = []
    if names := [name for name, text in texts.items() if prompt_of(text) != text]:
        said.append(Sentence("scan.settings", count=len(names), names=few(names)))
    if names := [name for name, text in texts.items() if has_foreign_commas(text)]:
        said.append(Sentence("scan.foreign_commas", count=len(names), names=few(names)))
    return said
