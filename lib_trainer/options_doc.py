"""Every option of a job in words, from the schema: `python -m lib_trainer options` and docs/options.md."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from lib_trainer.config import FieldSpec, field_specs

COMMAND = "python -m lib_trainer options --markdown > docs/options.md"


def options_text(width: int = 100) -> str:
    """For the terminal: the option with its default, what is allowed, and its help below."""
    lines: list[str] = []
    for section, specs in _sections():
        lines.append(f"{section}")
        for spec in specs:
            lines.append(f"  {spec.path} = {toml_value(spec.default)}    ({allowed(spec)})")
            text = f"{spec.label}. {spec.help}"
            lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines)


def options_markdown() -> str:
    """The text of docs/options.md."""
    lines = [
        "# Options of a job",
        "",
        f"Made from the schema by `{COMMAND}`; do not edit by hand.",
        "",
        "A job file is TOML: a table for each section below, and `version = 1` at its top. What is left out has its "
        "default, and an unknown key is an error. In a file given to `python -m lib_trainer train`, relative paths are "
        "meant from the file's own folder.",
    ]
    for section, specs in _sections():
        lines += ["", f"## {section} `[{specs[0].path.partition('.')[0]}]`", ""]
        lines += ["| Option | Default | Allowed | What it does |", "|---|---|---|---|"]
        for spec in specs:
            name = spec.path.partition(".")[2]
            cells = (f"`{name}`", f"`{toml_value(spec.default)}`", allowed(spec), f"**{spec.label}.** {spec.help}")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def allowed(spec: FieldSpec) -> str:
    """What is allowed, with its unit where it has one."""
    return f"{spec.allowed}, in {spec.unit}" if spec.unit else str(spec.allowed)


def toml_value(value: Any) -> str:
    """A default as a job file writes it."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _sections() -> Iterator[tuple[str, list[FieldSpec]]]:
    for section, specs in groupby(field_specs().values(), key=lambda spec: spec.section):
        yield section, list(specs)
