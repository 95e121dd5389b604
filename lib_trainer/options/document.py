"""Declared options in words: `python -m lib_trainer options` and docs/options.md."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from lib_trainer.options.describe import FieldSpec

Specs = Mapping[str, FieldSpec]
COMMAND = "python -m lib_trainer options --markdown > docs/options.md"


def options_text(specs: Specs, width: int = 100) -> str:
    """For the terminal: the option with its default, what is allowed, and its help below."""
    lines: list[str] = []
    for section, inside in _sections(specs):
        lines.append(f"{section}")
        for spec in inside:
            lines.append(f"  {spec.path} = {toml_value(spec.default)}    ({allowed(spec)})")
            text = f"{spec.label}. {spec.help}{_condition(spec)}"
            lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines)


def options_markdown(
    job: Specs,
    tagger: Specs,
    edits: Mapping[str, tuple[str, Specs]],
) -> str:
    """The text of docs/options.md. `edits`: {name: (what it does, its options)}."""
    lines = [
        "# Options",
        "",
        f"Made from the declarations by `{COMMAND}`; do not edit by hand.",
        "",
        "- [Of a job](#of-a-job)",
        "- [Of the Tagger](#of-the-tagger)",
        "- [Of the edits of captions](#of-the-edits-of-captions)",
        "",
        "## Of a job",
        "",
        "A job file is TOML: a table for each section below, and `version = 3` at its top. What is left out has its "
        "default, and an unknown key is an error. In a file given to `python -m lib_trainer train`, relative paths are "
        "meant from the file's own folder. A preset is a job file that says something of some options alone: "
        "`--preset FILE` puts it over a job, and `--set network.rank=16` sets a single option.",
    ]
    for section, inside in _sections(job):
        table, kinds = inside[0].path.partition(".")[0], _shared_kinds(inside)
        lines += ["", f"### {section} `[{table}]`", ""]
        if kinds:
            lines += [f"Read by these kinds of training: {', '.join(kinds)}.", ""]
        lines += _table(inside, kinds)
    lines += ["", "## Of the Tagger", ""]
    lines += ["As flags of `python -m lib_trainer tag`, which takes the folder without a flag.", ""]
    lines += _table([spec for path, spec in tagger.items() if path != "folder"], flags=True)
    lines += ["", "## Of the edits of captions", "", "As flags of `python -m lib_trainer captions FOLDER EDIT`."]
    for name, (title, specs) in edits.items():
        lines += ["", f"### {title} `{name}`", ""]
        lines += _table(specs.values(), flags=True) if specs else ["It has no options."]
    return "\n".join(lines) + "\n"


def allowed(spec: FieldSpec) -> str:
    """What is allowed, with its unit where it has one."""
    return f"{spec.allowed}, in {spec.unit}" if spec.unit else str(spec.allowed)


def toml_value(value: Any) -> str:
    """A default as a job file writes it."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _table(specs: Iterable[FieldSpec], kinds: tuple[str, ...] = (), *, flags: bool = False) -> list[str]:
    lines = ["| Option | Default | Allowed | What it does |", "|---|---|---|---|"]
    for spec in specs:
        told = f"**{spec.label}.** {spec.help}{_condition(spec, kinds)}"
        cells = (f"`{spec.argument if flags else spec.name}`", f"`{toml_value(spec.default)}`", allowed(spec), told)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _condition(spec: FieldSpec, known: tuple[str, ...] = ()) -> str:
    """When it is read, as far as nobody has said so of its section."""
    told = [when.words for when in spec.when if when.values != known]
    if told:
        return f" Only {' and '.join(told)}."
    return " By every kind." if known and not spec.when else ""


def _shared_kinds(specs: list[FieldSpec]) -> tuple[str, ...]:
    """The kinds that read most options of a section; none where that is every kind. A switch is told with each option
    that it shows."""
    found = Counter(spec.when[0].values if spec.when and spec.when[0].values != (True,) else () for spec in specs)
    return found.most_common(1)[0][0]


def _sections(specs: Specs) -> Iterator[tuple[str, list[FieldSpec]]]:
    for section, inside in groupby(specs.values(), key=lambda spec: spec.section):
        yield section, list(inside)
