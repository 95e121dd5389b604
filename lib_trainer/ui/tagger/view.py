"""The Tagger's results as HTML. Pure functions, apart from the thumbnails: escaped markup comes out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from lib_trainer.captions.tags import split_tags, tag_key
from lib_trainer.counts import counted
from lib_trainer.dataset.pictures import PictureError, load_picture
from lib_trainer.refusals import Sentence
from lib_trainer.tagging.captions.effect import Border, Opened, Preview, TagCount
from lib_trainer.tagging.models.labels import CHARACTER, GENERAL, RATING
from lib_trainer.tagging.scores.table import ScoreTable, Thresholds, lines_of
from lib_trainer.ui.kit.jobs import bar, panel
from lib_trainer.ui.kit.notices import told
from lib_trainer.ui.kit.pictures import jpeg_uri
from lib_trainer.work.monitor import JobView

ROWS = 300
"""Lines of the frequency table that are sent at a time."""

THUMB = 144
LEFT_OUT_SHOWN = 20
LOOK = "tagger"
"""How classes begin."""
KEPT = "Stopping; what is done is kept"
BARS = 60


def job_html(view: JobView | None, device: Sentence | None, prefix: str) -> str:
    """The panel of the job under way. The script reads whether to poll."""
    if view is None:
        empty = '<div class="tagger-empty">Choose a folder and press Tag. Nothing is written before you say so.</div>'
        return panel(None, LOOK, prefix, empty)
    ended = view.told or view.failure
    sentence = f'<div class="tagger-told tagger-{view.state}">{escape(told(ended))}</div>' if ended else ""
    notes = "".join(f'<div class="tagger-note">{escape(told(note))}</div>' for note in view.notes)
    if not view.notes and device and view.active:
        notes = f'<div class="tagger-note">{escape(told(device))}</div>'
    waiting = KEPT if view.stopping else "Opening the model"
    shown = bar(view, LOOK, waiting=waiting, before=f"{KEPT} · " if view.stopping else "")
    return panel(view, LOOK, prefix, f"{shown}{sentence}{notes}{_left_out(view)}")


def mark_html(mark: Sequence[int]) -> str:
    """What `tagger.js` compares to know that there is something new to see."""
    return f'<div class="tagger-mark" data-mark="{escape(str(list(mark)))}"></div>'


def _left_out(view: JobView) -> str:
    if not view.left_out:
        return ""
    lines = [f"{escape(str(item.path))}: {escape(told(item.reason))}" for item in view.left_out[:LEFT_OUT_SHOWN]]
    more = len(view.left_out) - len(lines)
    lines += [f"and {more} more"] if more > 0 else []
    items = "".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<details class="tagger-left-out"><summary>Left out: {len(view.left_out)}</summary><ul>{items}</ul></details>'
    )


def summary_html(opened: Opened, preview: Preview) -> str:
    """What writing would do, in one line."""
    total = len(opened.paths)
    facts = [
        ("Pictures", f"{total:,}"),
        ("Captions changed", f"{preview.changed:,}"),
        ("Tags added", f"{preview.added:,}"),
        ("Tags removed", f"{preview.removed:,}"),
        ("Without a tag", f"{preview.untagged:,}"),
    ]
    if preview.withheld:
        facts.append(("Removed by hand, kept out", f"{preview.withheld:,}"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    skipped = ""
    if opened.skipped:
        lines = "".join(
            f"<li>{escape(item.path.name)}: {escape(told(item.reason))}</li>"
            for item in opened.skipped[:LEFT_OUT_SHOWN]
        )
        skipped = (
            f'<details class="tagger-left-out"><summary>Left as they are: {len(opened.skipped)}</summary>'
            f"<ul>{lines}</ul></details>"
        )
    return f'<div class="tagger-summary"><dl class="tagger-facts">{cells}</dl>{skipped}</div>'


def table_html(preview: Preview, total: int, chosen: str) -> str:
    """The frequency table; a line is clicked to see its pictures."""
    changed = [line for line in preview.tags if line.added or line.removed]
    lines = [*changed, *(line for line in preview.tags if not line.added and not line.removed)]
    lines.sort(key=lambda line: (-line.after, -line.before, line.tag))
    shown = lines[:ROWS]
    shown += [line for line in lines[ROWS:] if line.tag == chosen]
    body = "".join(_line(line, total, chosen) for line in shown)
    more = (
        f'<div class="tagger-more">{len(lines) - len(shown)} rarer tags are not shown.</div>'
        if len(lines) > len(shown)
        else ""
    )
    head = "<tr><th>Tag</th><th>Share</th><th>Now</th><th>Then</th><th>Added</th><th>Removed</th></tr>"
    return f'<div class="tagger-table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>{more}'


def _line(line: TagCount, total: int, chosen: str) -> str:
    width = 100 * line.after / total if total else 0
    marks = " ".join(
        name
        for name, on in (("tagger-chosen", line.tag == chosen), ("tagger-changed", line.added + line.removed))
        if on
    )
    added = f"+{line.added}" if line.added else ""
    removed = f"−{line.removed}" if line.removed else ""
    return (
        f'<tr class="{marks}" data-tag="{escape(line.tag)}" tabindex="0"><td>{escape(line.tag)}</td>'
        f'<td><span class="tagger-share" style="width: {width:.1f}%"></span></td><td>{line.before or ""}</td>'
        f'<td>{line.after or ""}</td><td class="tagger-plus">{added}</td><td class="tagger-minus">{removed}</td></tr>'
    )


def captions_html(items: Sequence[tuple[Path, str, str]]) -> str:
    """(picture, caption now, caption then) of the first that change."""
    if not items:
        return '<div class="tagger-empty">No caption changes.</div>'
    cards = []
    for path, before, after in items:
        now = f'<div class="tagger-old">{_marked(before, after, "del")}</div>' if before else _NONE
        cards.append(
            f'<div class="tagger-caption">{_picture(path)}<div><b>{escape(path.name)}</b>{now}'
            f'<div class="tagger-new">{_marked(after, before, "ins")}</div></div></div>'
        )
    return f'<div class="tagger-captions">{"".join(cards)}</div>'


_NONE = '<div class="tagger-old">(none)</div>'


def _marked(text: str, other: str, mark: str) -> str:
    """A caption in which the tags that the other one lacks stand between marks."""
    known = {tag_key(tag) for tag in split_tags(other)}
    tags = [(escape(tag), tag_key(tag) in known) for tag in split_tags(text)]
    return ", ".join(tag if same else f"<{mark}>{tag}</{mark}>" for tag, same in tags)


def examples_html(opened: Opened, line: TagCount | None, tag: str, preview: Preview) -> str:
    """Pictures that get or lose the chosen tag."""
    if not tag:
        return '<div class="tagger-empty">Click a tag in the table to see its pictures.</div>'
    rows = opened.examples(preview, tag)
    if line is None or not rows:
        return f'<div class="tagger-empty">No caption gets or loses “{escape(tag)}”.</div>'
    cards = "".join(
        f"<figure>{_picture(opened.paths[row])}<figcaption>{escape(opened.paths[row].name)}</figcaption></figure>"
        for row in rows
    )
    told = f"“{escape(tag)}” goes into {counted(line.added, 'caption')} and out of {line.removed:,}."
    return f'<div class="tagger-examples"><div>{told}</div><div class="tagger-figures">{cards}</div></div>'


def border_html(opened: Opened, border: Sequence[Border], tag: str, most: int = 24) -> str:
    """Cards to judge, the nearest to the line first. Keys: A accepts, R rejects, U takes back, arrows move."""
    if not tag:
        return '<div class="tagger-empty">Click a tag in the table to judge the pictures near its line.</div>'
    if not border:
        return f'<div class="tagger-empty">No score is within 0.05 of the line for “{escape(tag)}”.</div>'
    cards = []
    for item in border[:most]:
        mark = {True: "tagger-accepted", False: "tagger-rejected", None: ""}[item.accepted]
        cards.append(
            f'<figure class="tagger-card {mark}" tabindex="0" data-content="{opened.contents[item.row]}" '
            f'data-tag="{escape(item.tag)}">{_picture(opened.paths[item.row])}<figcaption>'
            f"<b>{escape(item.tag)}</b> {item.score:.3f} <span>line {item.line:.2f}</span><br>"
            f"{escape(opened.paths[item.row].name)}</figcaption>"
            '<div class="tagger-judge"><button type="button" data-verdict="accept">Accept (A)</button>'
            '<button type="button" data-verdict="reject">Reject (R)</button></div></figure>'
        )
    told = f"{len(border)} within 0.05 of the line" + (f", the nearest {most}" if len(border) > most else "")
    keys = "<kbd>A</kbd> accept, <kbd>R</kbd> reject, <kbd>U</kbd> take back, <kbd>←</kbd> <kbd>→</kbd> move."
    keys = f"Click a picture, then {keys}"
    return (
        f'<div class="tagger-border"><div>{told}. {keys}</div><div class="tagger-figures">{"".join(cards)}</div></div>'
    )


def scores_html(table: ScoreTable, thresholds: Thresholds, chosen: Sequence[bool]) -> str:
    """One picture's scores as bars: rating, characters, general."""
    groups = []
    names, lines = table.labels.spaced, lines_of(table, thresholds)
    for name, category in (("Rating", RATING), ("Characters", CHARACTER), ("General", GENERAL)):
        entries = [
            (float(table.values[n]), n, bool(chosen[n]))
            for n in range(len(table.values))
            if table.categories[n] == category and (category == RATING or table.values[n] >= 0.05)
        ]
        entries.sort(reverse=True)
        bars = "".join(
            f'<div class="tagger-bar {"tagger-on" if on else ""}"><span>{escape(names[table.columns[n]])}</span>'
            f'<i><u style="width: {100 * score:.1f}%"></u>'
            + (f'<s style="left: {100 * lines[n]:.1f}%"></s>' if category != RATING else "")
            + f"</i><b>{score:.3f}</b></div>"
            for score, n, on in entries[:BARS]
        )
        groups.append(f"<div><h4>{name}</h4>{bars or '<p>none</p>'}</div>")
    return f'<div class="tagger-scores">{"".join(groups)}</div>'


def _picture(path: Path) -> str:
    try:
        status = path.stat()
        source = thumbnail(path, status.st_mtime_ns, status.st_size)
    except OSError:
        source = ""
    return f'<img alt="" src="{source}">' if source else '<div class="tagger-no-picture"></div>'


@lru_cache(maxsize=512)
def thumbnail(path: Path, changed: int, size: int) -> str:
    """A small JPEG as a data address; empty where the picture cannot be read. `changed` and `size` tell a new one."""
    try:
        image = load_picture(path)
    except PictureError:
        return ""
    image.thumbnail((THUMB, THUMB), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return jpeg_uri(buffer.getvalue())
