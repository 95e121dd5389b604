"""What the tab Models shows, as HTML. Pure functions: escaped markup comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from lib_trainer.dataset.pictures import PictureError, load_picture, read_size
from lib_trainer.families.family import Unet
from lib_trainer.refusals import Named, Sentence
from lib_trainer.toolbox.carried import carried_by
from lib_trainer.toolbox.shares import BASE
from lib_trainer.ui.kit.jobs import bar, panel
from lib_trainer.ui.kit.notices import told
from lib_trainer.ui.kit.pictures import shown_small, small_uri
from lib_trainer.work.monitor import JobView

LOOK = "models"
"""How classes begin."""
CARRIED = 256
"""Width of a picture that a file carries, in pixels."""
MOST_CARRIED = 1 << 24
"""Pixels of one that is decoded: whoever made the file has written it, too."""
STEP_WIDTH, HEIGHT = 30, 90
"""Of the drawing of block weights, in pixels: a block's width, and the height from 0 to 1."""


def job_html(view: JobView | None, prefix: str, named: Named) -> str:
    """The panel of the job under way, or of the last one. The script reads whether to poll."""
    if view is None:
        empty = '<div class="models-empty">Nothing is under way. Files that exist are never written over.</div>'
        return panel(None, LOOK, prefix, empty)
    ended = view.told or view.failure
    sentence = f'<div class="models-ended models-{view.state}">{escape(told(ended, named))}</div>' if ended else ""
    body = f"{bar(view, LOOK)}{sentence}{_said(view, named)}{_picture(view)}"
    return panel(view, LOOK, prefix, body, lambda sentence: told(sentence, named))


def _picture(view: JobView) -> str:
    """A grid that was drawn."""
    path = view.output
    if view.active or path is None or path.suffix != ".png" or not path.is_file():
        return ""
    return f'<img src="{shown_small(path)}" alt="{escape(path.name)}">'


def tried_html(tried: Sentence | None) -> str:
    """What the loaded model holds in place of its own weights."""
    return f'<div class="models-tried" role="status">{escape(told(tried))}</div>' if tried is not None else ""


def _said(view: JobView, named: Named) -> str:
    """Its notes, or while it runs what it has told so far."""
    notes = view.notes if not view.active else tuple(line.told for line in view.lines)
    items = [
        _carried(note, named) if isinstance(note, Sentence) and note.code == "look.picture" else
        _duplicates(note) if isinstance(note, Sentence) and note.code == "duplicates.same" else
        f"<li>{escape(told(note, named))}</li>"
        for note in notes
    ]  # fmt: skip
    return f'<ul class="models-notes">{"".join(items)}</ul>' if items else ""


def _carried(note: Sentence, named: Named) -> str:
    """That a file brings a picture, and the picture itself."""
    path = Path(note.facts["path"])
    source = _shown(path, path.stat().st_mtime_ns if path.is_file() else 0)
    picture = f'<img src="{source}" alt="{escape(path.name)}">' if source else ""
    return f"<li>{escape(told(note, named))}{picture}</li>"


@lru_cache(maxsize=8)
def _shown(path: Path, changed: int) -> str:
    """The picture that a file carries, small and anew, as an address; empty where it is none. `changed` tells a new
    file."""
    data = carried_by(path)
    try:
        if not data or math.prod(read_size(path, data)) > MOST_CARRIED:
            return ""
        return small_uri(load_picture(path, data), CARRIED)
    except PictureError:
        return ""


def _duplicates(note: Sentence) -> str:
    """Files that hold the same, with a box for each: what is ticked is to go to the trash."""
    kept, others = Path(note.facts["kept"]), [Path(path) for path in note.facts["paths"]]
    boxes = "".join(
        f'<label><input type="checkbox" data-trash="{escape(str(path))}"> {escape(str(path))}</label>'
        for path in (kept, *others)
    )
    return f'<li class="models-same">{escape(told(note))}<div class="models-boxes">{boxes}</div></li>'


def lines_html(lines: Sequence[Sentence], named: Named, number: int) -> str:
    """What would be done."""
    items = "".join(f"<li>{escape(told(line, named))}</li>" for line in lines)
    return (
        f'<div class="trainer-notice trainer-notice-info" role="status" data-number="{number}">'
        f'<p>This would be done:</p><ul class="models-notes">{items}</ul></div>'
    )


def blocks_html(field: str, unet: Unet, weights: Mapping[str, float], start: float, presets: Sequence[str]) -> str:
    """A slider for each block, and the curve that they make; the script writes them into the field of this id.

    `start`: what a block has that `weights` does not name. A slider shows its number to a step of 0.05, and keeps it
    exactly until it is moved.
    """
    names = [BASE, *unet.blocks]
    values = [weights.get(name, start) for name in names]
    told = [value for value in values if math.isfinite(value)]
    low, high = math.floor(min(0, *told)), math.ceil(max(1, *told))
    points = " ".join(
        f"{(n + 0.5) * STEP_WIDTH:g},{HEIGHT * (high - value) / (high - low):g}" for n, value in enumerate(values)
    )
    width = len(names) * STEP_WIDTH
    middle = f'<line x1="0" x2="{width}" y1="{HEIGHT / 2:g}" y2="{HEIGHT / 2:g}"/>'
    drawing = (
        f'<svg viewBox="0 -4 {width} {HEIGHT + 8}" width="{width}" height="{HEIGHT + 8}" role="img" '
        f'aria-label="Weights by block">{middle}<polyline points="{points}"/></svg>'
    )
    sliders = "".join(
        f'<label><i>{round(value, 2):g}</i><input type="range" min="{low}" max="{high}" step="0.05" '
        f'value="{value:g}" data-exact="{exactly(value)}" orient="vertical" '
        f'aria-label="{escape(short_name(name))}"><span>{escape(short_name(name))}</span></label>'
        for name, value in zip(names, values, strict=True)
    )
    choices = "".join(f"<option>{escape(name)}</option>" for name in presets)
    chooser = f'<select aria-label="Preset"><option value="">Preset…</option>{choices}</select>' if presets else ""
    clear = '<button type="button" class="models-clear">One weight for all</button>'
    return (
        f'<details class="models-blocks" data-field="{escape(field)}"><summary>Sliders and curve by block</summary>'
        f'<div class="models-blocks-tools">{chooser}{clear}</div><div class="models-blocks-scroll">'
        f'<div style="width: {width}px">{drawing}<div class="models-sliders">{sliders}</div></div></div></details>'
    )


def exactly(value: float) -> str:
    return str(float(value)).removesuffix(".0")


def short_name(block: str) -> str:
    """A block as lists of weights call it."""
    side, _, number = block.partition("_")
    return {"input": f"IN{int(number or 0):02}", "output": f"OUT{int(number or 0):02}", "middle": "M00"}.get(
        side, block.upper()
    )
