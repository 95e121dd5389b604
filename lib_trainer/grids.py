"""Pictures side by side, with what stands for their rows and columns written beside them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from lib_trainer.files import write_atomically
from lib_trainer.lettering import LETTERS, font_of, legible, length
from lib_trainer.refusals import SaveError

GAP = 6
"""Pixels between pictures."""
LINES = 4
"""Of writing beside a row, at most."""
MOST_PIXELS = 1 << 26
"""Of a grid. Larger ones are made of smaller pictures."""
INK, PAPER, EMPTY = "#1f2937", "#ffffff", "#e5e7eb"


def write_painted(
    path: Path, columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[Image.Image | None]]
) -> Path:
    """`painted` as a PNG file, whole or not at all. Raises `SaveError`."""
    try:
        buffer = io.BytesIO()
        painted(columns, rows, cells).save(buffer, "PNG", compress_level=1)
        write_atomically(path, buffer.getvalue())
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise SaveError("file.not_written", path=path, reason=reason) from error
    return path


def painted(columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[Image.Image | None]]) -> Image.Image:
    """One picture of `cells[row][column]`; None leaves a cell empty.

    A column is as wide as its widest picture, a row as high as its highest. Labels may be empty; where all of an axis
    are, there is no room for them.
    """
    across, down = _sides(columns, rows, cells)
    scale = min(1.0, (MOST_PIXELS / max(1, sum(across) * sum(down))) ** 0.5)
    widths, heights = [max(1, round(one * scale)) for one in across], [max(1, round(one * scale)) for one in down]
    above = [_wrapped(text, width) for text, width in zip(columns, widths, strict=True)]
    top = GAP + max((len(lines) for lines in above), default=0) * (LETTERS + 4)
    side = max(160, max(widths, default=0) // 2)
    beside = [_wrapped(text, side) for text in rows]
    left = GAP + max((length(line) for lines in beside for line in lines), default=0)
    left += GAP if left > GAP else 0
    lefts = [left + sum(widths[:number]) + number * GAP for number in range(len(widths) + 1)]
    tops = [top + sum(heights[:number]) + number * GAP for number in range(len(heights) + 1)]
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, lines in enumerate(above):
        _write(pen, lines, lefts[column] + widths[column] / 2, top - GAP / 2, centred=True)
    for row, lines in enumerate(beside):
        _write(pen, lines, GAP, tops[row] + (heights[row] + len(lines) * (LETTERS + 4)) / 2)
        for column, cell in enumerate(cells[row]):
            room = widths[column], heights[row]
            if cell is None:
                pen.rectangle(_box(lefts[column], tops[row], room), fill=EMPTY)
            else:
                fitted = _fitted(cell.convert("RGB"), scale, room)
                aside, below = ((of - its) // 2 for of, its in zip(room, fitted.size, strict=True))
                sheet.paste(fitted, (lefts[column] + aside, tops[row] + below))
    return sheet


def _sides(
    columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[Image.Image | None]]
) -> tuple[list[int], list[int]]:
    """Of columns and rows in pixels. One without pictures is as large as the first picture."""
    first = next((cell.size for row in cells for cell in row if cell is not None), (64, 64))
    drawn = [[(number, cell.size) for number, cell in enumerate(row) if cell is not None] for row in cells]
    across = [
        max((size[0] for row in drawn for number, size in row if number == column), default=first[0])
        for column in range(len(columns))
    ]
    return across, [max((size[1] for _, size in drawn[row]), default=first[1]) for row in range(len(rows))]


def _box(left: int, top: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    return left, top, left + size[0] - 1, top + size[1] - 1


def _fitted(picture: Image.Image, scale: float, room: tuple[int, int]) -> Image.Image:
    if scale == 1:
        return picture
    sides = (max(1, min(of, round(its * scale))) for of, its in zip(room, picture.size, strict=True))
    return picture.resize((next(sides), next(sides)))


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[str], x: float, bottom: float, *, centred: bool = False) -> None:
    for number, line in enumerate(lines):
        left = x - length(line) / 2 if centred else x
        pen.text((left, bottom - (len(lines) - number) * (LETTERS + 4)), line, fill=INK, font=font_of(line))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines that fit, the last one cut short where there are too many."""
    text = legible(text)
    wide = text if len(text) and length(text) > len(text) * length("n" * 20) / 20 else "n" * 20  # as Chinese is
    letters = max(4, int(width / max(1.0, length(wide) / len(wide))))
    return textwrap.wrap(text, letters, max_lines=LINES, placeholder="...")
