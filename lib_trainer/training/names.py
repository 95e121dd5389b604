"""Names of results: one rule for every file that a run writes, checked before the run.

A name is a file name on Linux, macOS and Windows alike, whichever of them the run is on: results are passed around.
(Windows: learn.microsoft.com/windows/win32/fileio/naming-a-file.) It is also what a prompt calls the result by.
"""

from __future__ import annotations

import unicodedata

from lib_trainer.refusals import ConfigError, Joined, Sentence

FORBIDDEN = '<>:"/\\|?*='
"""What Windows forbids; a colon or a bracket would also end `<lora:name:1>` early, and what has an equals sign is
no name there but an argument with one."""

LONGEST = 226
"""Bytes of UTF-8 that a name may have: file systems take 255, of which `-step00000100.safetensors` needs 25 and the
trash's `.old` 4."""

DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"]
)
"""Names that Windows keeps for itself, with any ending."""

SHOWN = 60


def check_name(field: str, name: str) -> None:
    """Raise `ConfigError`, beginning with the field, unless `name` is a file name everywhere."""
    if not name.strip():
        raise ConfigError("name.empty", field=field)
    why = what_is_wrong(name)
    if why is not None:
        shown = name if len(name) <= SHOWN else name[:SHOWN] + "…"
        raise ConfigError("name.no_file_name", field=field, name=shown, why=why, forbidden=Joined(list(FORBIDDEN)))


def what_is_wrong(name: str) -> Sentence | None:
    """The end of a sentence that begins with the name; None for a good one."""
    bad = sorted({character for character in name if character in FORBIDDEN or not character.isprintable()})
    if bad:
        shown = [character if character.isprintable() else ascii(character) for character in bad]
        return Sentence("name.contains", characters=Joined(shown))
    if len(name.encode("utf-8")) > LONGEST:
        return Sentence("name.too_long", most=LONGEST)
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        return Sentence("name.ends")
    if name.partition(".")[0].rstrip().lower() in DEVICES:
        return Sentence("name.device")
    if unicodedata.combining(name[0]):
        return Sentence("name.mark")
    return None


def numbered(name: str, number: int) -> str:
    """`name-2`, `name-3`, …; a number that is there already is replaced, and a long name is cut."""
    stem, dash, end = name.rpartition("-")
    base = stem if dash and stem and end.isascii() and end.isdigit() and len(end) < 4 else name
    ending = f"-{number}"
    while len((base + ending).encode("utf-8")) > LONGEST:
        base = base[:-1]
    return base.rstrip(" .") + ending
