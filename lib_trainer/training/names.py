"""Names of results: one rule for every file that a run writes, checked before the run.

A name is a file name on Linux, macOS and Windows alike, whichever of them the run is on: results are passed around.
(Windows: learn.microsoft.com/windows/win32/fileio/naming-a-file.) It is also what a prompt calls the result by.
"""

from __future__ import annotations

import unicodedata

from lib_trainer.refusals import ConfigError

FORBIDDEN = '<>:"/\\|?*'
"""What Windows forbids; a colon or a bracket would also end `<lora:name:1>` early."""

LONGEST = 226
"""Bytes of UTF-8 that a name may have: file systems take 255, of which `-step00000100.safetensors` needs 25 and the
trash's `.old` 4."""

DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"]
)
"""Names that Windows keeps for itself, with any ending."""

RULE = "take letters, digits, spaces and signs other than " + " ".join(FORBIDDEN)
SHOWN = 60


def check_name(field: str, name: str) -> None:
    """Raise `ConfigError`, beginning with the field, unless `name` is a file name everywhere."""
    if not name.strip():
        raise ConfigError(f"{field} is empty: give the result a name.")
    why = what_is_wrong(name)
    if why is not None:
        shown = name if len(name) <= SHOWN else name[:SHOWN] + "…"
        raise ConfigError(f"{field} = {shown!r} is no file name on every system, as it {why}: {RULE}.")


def what_is_wrong(name: str) -> str | None:
    """The end of a sentence that begins with the name; None for a good one."""
    bad = sorted({character for character in name if character in FORBIDDEN or not character.isprintable()})
    if bad:
        return "contains " + " ".join(character if character.isprintable() else ascii(character) for character in bad)
    if len(name.encode("utf-8")) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        return "begins or ends with a dot or a space"
    if name.partition(".")[0].rstrip().lower() in DEVICES:
        return "is the name of a device on Windows"
    if unicodedata.combining(name[0]):
        return "begins with a mark that belongs to a letter"
    return None


def numbered(name: str, number: int) -> str:
    """`name-2`, `name-3`, …; a number that is there already is replaced, and a long name is cut."""
    stem, dash, end = name.rpartition("-")
    base = stem if dash and stem and end.isascii() and end.isdigit() and len(end) < 4 else name
    ending = f"-{number}"
    while len((base + ending).encode("utf-8")) > LONGEST:
        base = base[:-1]
    return base.rstrip(" .") + ending
