"""The Dataset tab's panels as HTML. Pure functions: a view goes in, escaped markup comes out.

An element with `data-do` holds the command that `javascript/dataset.js` sends when it is pressed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from lib_trainer.captions.document import KEEP, cached_key
from lib_trainer.captions.tokens import LIMITS
from lib_trainer.counts import counted
from lib_trainer.dataset.pictures import PictureError, load_picture
from lib_trainer.ui.dataset.view import PAGE, View
from lib_trainer.ui.kit.notices import told
from lib_trainer.ui.kit.pictures import jpeg_uri

TAG_ROWS = 300
LARGE = 640
"""Longest side of the picture beside its tags, in pixels."""


def command(do: str, **values: Any) -> str:
    """The attribute that sends a command."""
    return f'data-do="{escape(json.dumps({"do": do, **values}))}"'


def button(text: str, do: str, *, kind: str = "", title: str = "", disabled: bool = False, **values: Any) -> str:
    """A button that sends a command. `kind`: 'main', 'bad' or nothing."""
    off = " disabled" if disabled else ""
    hint = f' title="{escape(title)}"' if title else ""
    style = f"dataset-button dataset-{kind}" if kind else "dataset-button"
    return f'<button type="button" class="{style}"{hint}{off} {command(do, **values)}>{escape(text)}</button>'


def bar_html(view: View) -> str:
    """The line above everything: what is open, the filter, selection, undo and redo."""
    if view.open is None:
        return ""
    editor, keys = view.open.editor, view.keys()
    entries = editor.history.entries()
    done = [entry for entry in entries if not entry.undone]
    undone = [entry for entry in entries if entry.undone]
    found = f"{len(keys):,} of {len(editor.items):,} pictures"
    only = f'<span class="dataset-only">{escape(view.only_title)} {button("×", "clear")}</span>' if view.only else ""
    undo_title = f"Undo: {done[-1].label}" if done else "Nothing to undo"
    redo_title = f"Redo: {undone[0].label}" if undone else "Nothing to redo"
    return (
        '<div class="dataset-bar">'
        f'<input id="dataset_filter" class="dataset-input" data-enter="filter" data-check="filter" '
        f'value="{escape(view.text)}" placeholder="Filter: long hair AND NOT (smile OR *boy*), tokens>75, trouble:*" '
        'aria-label="Filter" spellcheck="false" title="Key: /">'
        f"{button('Filter', 'filter', field='dataset_filter')}{button('Clear', 'clear', title='Show everything')}{only}"
        f'<span class="dataset-found">{found}</span>'
        f'<span class="dataset-chosen" data-selected="{len(view.selected)}">{len(view.selected):,} selected</span>'
        f"{button('All', 'select', what='all', title='Select what the filter shows (Ctrl+A)')}"
        f"{button('None', 'select', what='none', title='Select nothing (Esc)')}"
        f"{button('Invert', 'select', what='invert')}"
        '<span class="dataset-gap"></span>'
        f"{button('Undo', 'undo', title=undo_title + ' (Ctrl+Z)', disabled=not done)}"
        f"{button('Redo', 'redo', title=redo_title + ' (Ctrl+Y)', disabled=not undone)}"
        "</div>"
        '<div class="dataset-hint" id="dataset_filter_hint"></div>'
    )


def tags_html(view: View) -> str:
    """The frequency table of what the filter shows."""
    if view.open is None:
        return ""
    counts, total = view.counts(), len(view.keys())
    spellings, group = view.open.editor.spellings(), view.open.knowledge.group
    needle = cached_key(view.tag_search)
    rows = [(key, count) for key, count in counts.most_common() if needle in key]
    lines = []
    for key, count in rows[:TAG_ROWS]:
        share = count / total if total else 0
        name = escape(spellings.get(key, key))
        lines.append(
            f'<tr><td class="dataset-tag dataset-group-{group(key)}" {command("tag", tag=key)} '
            f'title="{group(key)}: show the pictures that have it">{name}</td><td class="dataset-count">'
            f'<i style="width:{share:.0%}"></i><b>{count:,}</b></td>'
            f"<td>{button('without', 'tag', tag=key, without=True, title='Show the pictures without it')}</td></tr>"
        )
    more = f"<p>and {len(rows) - TAG_ROWS:,} more: search for them</p>" if len(rows) > TAG_ROWS else ""
    return (
        f'<div class="dataset-head"><b>{counted(len(counts), "tag")}</b>'
        f'<input id="dataset_tag_search" class="dataset-input" data-typed="tags" value="{escape(view.tag_search)}" '
        'placeholder="Search tags" aria-label="Search tags"></div>'
        f'<div class="dataset-scroll"><table class="dataset-tags"><tbody>{"".join(lines)}</tbody></table>{more}</div>'
    )


def gallery_html(view: View) -> str:
    """One page of pictures. Which of them are selected is not part of it, so that a click sends little."""
    if view.open is None:
        return ""
    keys = view.keys()
    if not keys:
        read = f": {view.filter.misread()}" if view.text else ""
        return f'<div class="dataset-empty">No picture passes this filter{escape(read)}.</div>'
    page = keys[view.page * PAGE : (view.page + 1) * PAGE]
    facts = view.open.facts.get(page)
    cells = []
    for key in page:
        one = facts[key]
        inner = (
            f'<img src="{jpeg_uri(one.small)}" alt="" loading="lazy">'
            if one.small
            else f"<em>{escape(one.reason)}</em>"
        )
        badge = "" if view.open.editor.caption(key).tags else '<span class="dataset-badge">no tags</span>'
        cells.append(
            f'<figure class="dataset-cell" tabindex="-1" data-key="{escape(key)}" title="{escape(key)}">{inner}{badge}'
            f"<figcaption>{escape(key.rpartition('/')[2])}</figcaption></figure>"
        )
    return f'{_pager(view, len(keys))}<div class="dataset-grid">{"".join(cells)}</div>'


def _pager(view: View, count: int) -> str:
    pages = (count - 1) // PAGE + 1
    if pages == 1:
        return ""
    return (
        '<div class="dataset-pager">'
        f"{button('‹', 'page', to=view.page - 1, disabled=view.page == 0, title='Page before (Page Up)')}"
        f'<span>page <input id="dataset_page_number" class="dataset-input" data-enter="page" value="{view.page + 1}" '
        f'aria-label="Page"> of {pages}</span>'
        f"{button('›', 'page', to=view.page + 1, disabled=view.page >= pages - 1, title='Next page (Page Down)')}</div>"
    )


def picture_html(view: View) -> str:
    """The current picture, large, and its caption as chips."""
    if view.open is None or not view.current:
        return ""
    editor, key, caption = view.open.editor, view.current, view.caption()
    item = editor.items[key]
    size = view.open.facts.size(key)
    tokens = view.open.count_tokens(caption)
    over = sum(tokens > limit for limit in LIMITS)
    facts = [f"{size[0]} × {size[1]}" if size else "cannot be read", counted(len(caption.tags), "tag")]
    scores = {cached_key(tag): score for tag, score in editor.scores.scores(editor.root / key).items()}
    origins = {cached_key(tag): origin for tag, origin in editor.scores.origins(editor.root / key).items()}
    chips = []
    for index, tag in enumerate(caption.tags):
        if index and KEEP in caption.gaps[index]:
            chips.append(f'<span class="dataset-keep" title="Tags before it are never shuffled">{KEEP}</span>')
        chips.append(_chip(view, index, tag, scores.get(cached_key(tag)), origins.get(cached_key(tag), "")))
    if item.caption in editor.unreadable:
        error = escape(str(editor.unreadable[item.caption]))
        body = f'<div class="trainer-notice trainer-notice-error">{error}</div>'
        body += button("Convert to UTF-8", "convert", path=item.caption, kind="main")
    else:
        body = (
            f'<div class="dataset-chips" data-seen="{escape(caption.text)}">{"".join(chips)}'
            '<input id="dataset_new_tag" class="dataset-input" data-new-tag="1" list="dataset_known_tags" '
            'placeholder="Add a tag" aria-label="Add a tag" autocomplete="off" title="Key: A"></div>'
        )
    return (
        f'<div class="dataset-head"><b title="{escape(key)}">{escape(key)}</b></div>'
        f'<div class="dataset-large">{_large(view, key)}</div>'
        f'<div class="dataset-facts">{" · ".join(facts)} · '
        f'<span class="dataset-over{over}">{tokens} tokens</span></div>{body}'
        f'<div class="dataset-row">{button("Previous", "move", by=-1, title="Key: ←")}'
        f"{button('Next', 'move', by=1, title='Key: →')}"
        f"{button('To the trash', 'trash', keys=[key], kind='bad', title='Picture and caption; can be undone')}</div>"
        '<details class="dataset-keys"><summary>Keys</summary>← → pictures · Page Up/Down pages · Space select · '
        "Shift or Ctrl with a click select more · / filter · A add a tag · Delete or Backspace on a tag removes it · "
        "Alt+← Alt+→ on a tag move it · Enter or a double click on a tag rewrite it · Ctrl+Z undo · Ctrl+Y redo"
        "</details>"
    )


def _chip(view: View, index: int, tag: str, score: float | None, origin: str) -> str:
    group = view.open.knowledge.group(cached_key(tag)) if view.open else "other"
    told = [group] + ([f"score {score:.2f}"] if score is not None else []) + ([f"by {origin}"] if origin else [])
    return (
        f'<span class="dataset-chip dataset-group-{group}" tabindex="0" draggable="true" data-index="{index}" '
        f'title="{escape(", ".join(told))}"><span>{escape(tag)}</span>'
        f'<button type="button" tabindex="-1" aria-label="Remove {escape(tag)}" '
        f"{command('chip', op='remove', index=index)}>×</button></span>"
    )


def _large(view: View, key: str) -> str:
    assert view.open is not None
    if view.large[0] != key:
        view.large = key, _decoded(view, key)
    return view.large[1]


def _decoded(view: View, key: str) -> str:
    assert view.open is not None
    try:
        picture = load_picture(view.open.editor.root / key)
    except PictureError as error:
        return f"<em>{escape(told(error.reason))}</em>"
    picture.thumbnail((LARGE, LARGE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f'<img src="{jpeg_uri(buffer.getvalue())}" alt="{escape(key)}">'


def marks_html(view: View, hint: str = "", focus: str = "", number: int = 0) -> str:
    """What the script needs to know: which pictures are selected, a hint for what is being typed, where to type on.

    Args:
        number: Of the answer: no two answers are the same text, so the browser always sees that there is a new one.
    """
    keys = view.keys()[view.page * PAGE : (view.page + 1) * PAGE]
    marks = {
        "selected": [key for key in keys if key in view.selected],
        "current": view.current,
        "hint": hint,
        "focus": focus,
        "number": number,
    }
    return f'<div class="dataset-marks" data-marks="{escape(json.dumps(marks))}"></div>'


def known_tags_html(spellings: Sequence[str]) -> str:
    """What the box for a new tag offers."""
    options = "".join(f'<option value="{escape(tag)}">' for tag in spellings[:500])
    return f'<datalist id="dataset_known_tags">{options}</datalist>'
