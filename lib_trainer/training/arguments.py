"""Arguments as people type them: `betas=(0.9, 0.99) eps=1e-8`."""

from __future__ import annotations

import ast
import re
from typing import Any

from lib_trainer.refusals import ConfigError

NAME = re.compile(r"(?:^|[\s,;])([A-Za-z_]\w*)\s*=(?!=)")
"""Of an argument, with its sign; between two of them stands the first one's value."""
WORDS = {"true": "True", "false": "False", "none": "None"}
"""As other languages write them."""
FIELD = "optimizer.arguments"


def parse_arguments(text: str) -> dict[str, Any]:
    """{name: value} of `name=value` pairs, separated by spaces, commas or lines; values are Python's literals.

    Raises `ConfigError` for what is none, and for a name that stands twice.
    """
    found = list(NAME.finditer(text))
    before = text[: found[0].start()] if found else text
    if before.strip():
        raise ConfigError("arguments.form", field=FIELD, text=before.strip())
    values: dict[str, Any] = {}
    ends = [one.start() for one in found[1:]] + [len(text)]
    for match, end in zip(found, ends):
        name, value = match.group(1), text[match.end() : end].strip().rstrip(",;").strip()
        if name in values:
            raise ConfigError("arguments.twice", field=FIELD, name=name)
        try:
            values[name] = ast.literal_eval(WORDS.get(value.lower(), value))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ConfigError("arguments.value", field=FIELD, name=name, value=value) from None
    return values
