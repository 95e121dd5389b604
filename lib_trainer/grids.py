"""Pictures side by side, with what stands for their rows and columns written beside them."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GAP = 6
"""Pixels between pictures."""
LETTERS = 14
"""Height of the writing in pixels."""
LINES = 4
"""Of writing beside a row, at most."""
MOST_PIXELS = 1 << 26
"""Of a grid. Larger ones are made of smaller pictures."""
INK, PAPER, EMPTY = "#1f2937", "#ffffff", "#e5e7eb"


def painted(columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[Image.Image | None]]) -> Image.Image:
    """One picture of `cells[row][column]`; None leaves a cell empty.

    The first picture's size is every cell's. Labels may be empty; where all of an axis are, there is no room for them.
    """
    first = next((cell for row in cells for cell in row if cell is not None), None)
    width, height = first.size if first is not None else (64, 64)
    count = max(1, len(columns) * len(rows))
    scale = min(1.0, (MOST_PIXELS / (count * width * height)) ** 0.5)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    above = [_wrapped(text, width) for text in columns]
    top = GAP + max((len(lines) for lines in above), default=0) * (LETTERS + 4)
    side = max(160, width // 2)
    beside = [_wrapped(text, side) for text in rows]
    left = GAP + max((_width(line) for lines in beside for line in lines), default=0)
    left += GAP if left > GAP else 0
    sheet = Image.new("RGB", (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, lines in enumerate(above):
        _write(pen, lines, left + column * (width + GAP) + width / 2, top - GAP / 2, centred=True)
    for row, lines in enumerate(beside):
        middle = top + row * (height + GAP) + (height + len(lines) * (LETTERS + 4)) / 2
        _write(pen, lines, GAP, middle)
        for column, cell in enumerate(cells[row]):
            place = left + column * (width + GAP), top + row * (height + GAP)
            if cell is None:
                pen.rectangle((*place, place[0] + width - 1, place[1] + height - 1), fill=EMPTY)
            else:
                same = cell.size == (width, height)
                sheet.paste(cell.convert("RGB") if same else cell.convert("RGB").resize((width, height)), place)
    return sheet


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[str], x: float, bottom: float, *, centred: bool = False) -> None:
    for number, line in enumerate(lines):
        left = x - _width(line) / 2 if centred else x
        pen.text((left, bottom - (len(lines) - number) * (LETTERS + 4)), line, fill=INK, font=_font())


def _wrapped(text: str, width: int) -> list[str]:
    """Lines that fit, the last one cut short where there are too many."""
    font = _font()
    if not isinstance(font, ImageFont.FreeTypeFont):  # the font of last resort has no other letters
        text = text.encode("latin-1", "replace").decode("latin-1")
    letters = max(4, int(width / max(1.0, _width("n" * 20) / 20)))
    return textwrap.wrap(text, letters, max_lines=LINES, placeholder="...")


def _width(text: str) -> int:
    return int(_font().getlength(text))


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu of matplotlib, which gradio brings along; else what the system or Pillow has."""
    places = ["DejaVuSans.ttf"]
    try:
        import matplotlib

        places.insert(0, str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))
    except ImportError:
        pass
    for place in places:
        try:
            return ImageFont.truetype(place, LETTERS)
        except OSError:
            continue
    return ImageFont.load_default()
