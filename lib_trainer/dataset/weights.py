"""The file `weights.csv` beside pictures: how often single ones are shown, and how much their loss counts."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lib_trainer.dataset.folder import as_number
from lib_trainer.refusals import DatasetError

WEIGHTS = "weights.csv"
COLUMNS = ("picture", "repeats", "weight")
MOST = 1000.0
"""Of repeats and weights."""
MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Rule:
    """A line: which names it is for (`*` and `?` stand for letters), and what it says of them; None: nothing."""

    line: int
    pattern: str
    repeats: float | None
    weight: float | None


@dataclass(frozen=True)
class Weights:
    """A folder's rules. The last one that says something of a picture counts."""

    path: Path
    rules: tuple[Rule, ...] = ()

    def repeats(self, name: str, usual: float) -> float:
        """How often an epoch shows a picture of this name."""
        return next((r.repeats for r in reversed(self.rules) if r.repeats is not None and _means(r, name)), usual)

    def weight(self, name: str) -> float:
        """The factor on its loss."""
        return next((r.weight for r in reversed(self.rules) if r.weight is not None and _means(r, name)), 1.0)

    def idle(self, names: Iterable[str]) -> list[str]:
        """The patterns that no name fits."""
        known = list(names)
        return [rule.pattern for rule in self.rules if not any(_means(rule, name) for name in known)]


def _means(rule: Rule, name: str) -> bool:
    return rule.pattern == name or fnmatchcase(name, rule.pattern)


def read_weights(path: Path) -> Weights:
    """Read the file: a table with the columns `picture` and `repeats`, `weight` or both, parted by commas, semicolons
    or tabs. An empty cell says nothing. Raises `DatasetError` that names the line."""
    lines = _text(path).splitlines()
    between = next((sign for sign in ";\t" if lines and sign in lines[0]), ",")
    rows = csv.reader(lines, delimiter=between)
    try:
        head = [cell.strip().lower() for cell in next(rows, [])]
        if "picture" not in head or not {"repeats", "weight"} & set(head) or not set(head) <= set(COLUMNS):
            raise DatasetError("picture_weights.head", path=path, columns=COLUMNS)
        return Weights(path, tuple(rule for row in rows if (rule := _rule(path, rows.line_num, head, row))))
    except csv.Error as error:
        raise DatasetError("picture_weights.unreadable", path=path, reason=error) from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise DatasetError("picture_weights.too_large", path=path)
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError("picture_weights.unreadable", path=path, reason=error) from error


def _rule(path: Path, line: int, head: list[str], row: list[str]) -> Rule | None:
    cells = dict(zip(head, (cell.strip() for cell in row), strict=False))
    if not any(cells.values()):
        return None
    if len(row) > len(head):
        raise DatasetError("picture_weights.cells", path=path, line=line, count=len(row), columns=len(head))
    if not cells.get("picture"):
        raise DatasetError("picture_weights.no_picture", path=path, line=line)
    numbers = [_number(path, line, name, cells.get(name, "")) for name in ("repeats", "weight")]
    return Rule(line, cells["picture"], *numbers)


def _number(path: Path, line: int, column: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST:
        raise DatasetError("picture_weights.number", path=path, line=line, column=column, text=text, most=int(MOST))
    return as_number(text)
