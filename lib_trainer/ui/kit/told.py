"""Sentences as the pages show them."""

from __future__ import annotations

from lib_trainer.config.fields import label_of
from lib_trainer.refusals import Sentence


def told(sentence: Sentence | str) -> str:
    """The sentence with the labels of options in place of their paths in a job file."""
    return sentence.text(named=label_of) if isinstance(sentence, Sentence) else sentence
