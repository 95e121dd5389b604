"""The lower half of the Dataset tab: edits, plans, the check, buckets and the history, as HTML."""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Iterable
from html import escape

from lib_trainer.captions.edits import EDITS, edit_specs
from lib_trainer.captions.knowledge import GROUPS
from lib_trainer.captions.plans import SCHOOLS, Implied, Trait, warnings
from lib_trainer.counts import counted
from lib_trainer.dataset.editor import TRASH
from lib_trainer.dataset.file_moves import Change
from lib_trainer.dataset.previews import Altered, Preview
from lib_trainer.options.describe import FieldSpec
from lib_trainer.refusals import Sentence
from lib_trainer.ui.dataset.buckets import buckets_html
from lib_trainer.ui.dataset.html import button, command
from lib_trainer.ui.dataset.report import report_html
from lib_trainer.ui.dataset.view import View
from lib_trainer.ui.kit.jobs import clock
from lib_trainer.ui.kit.notices import told
from lib_trainer.work.events import Phase

EXAMPLES = 20
TITLES = {"edit": "Edit", "prune": "Prune", "check": "Check", "buckets": "Buckets", "history": "History"}


def work_html(view: View) -> str:
    """The tabs below the pictures, with the one that is open."""
    if view.open is None:
        return ""
    tabs = "".join(
        f'<button type="button" role="tab" aria-selected="{str(name == view.tab).lower()}" '
        f'class="dataset-tab{" dataset-on" if name == view.tab else ""}" '
        f"{command('tab', tab=name)}>{title}</button>"
        for name, title in TITLES.items()
    )
    body = {
        "edit": edit_html, "prune": prune_html, "check": check_html, "buckets": buckets_html, "history": history_html,
    }[view.tab](view)  # fmt: skip
    return f'<div class="dataset-tabs" role="tablist">{tabs}</div><div class="dataset-work">{body}</div>'


def edit_html(view: View) -> str:
    """Every edit of the registry with its form; the script shows the chosen one."""
    choices = "".join(f'<option value="{name}">{escape(EDITS[name].__doc__ or name)}</option>' for name in EDITS)
    forms = "".join(_form(name, view.trigger) for name in EDITS)
    return (
        '<div class="dataset-row"><label>Edit '
        f'<select id="dataset_edit_kind" class="dataset-input" data-shows="dataset-edit">{choices}</select></label>'
        f"{scope_html(view)}</div>{forms}"
    )


def scope_html(view: View) -> str:
    """Which captions an edit is for."""
    options = {
        "everything": "everything",
        "filter": f"what the filter shows ({len(view.keys()):,})",
        "selection": f"the selection ({len(view.selected):,})",
    }
    chosen = "selection" if len(view.selected) > 1 else "filter" if view.text or view.only else "everything"
    inner = "".join(
        f'<option value="{name}"{" selected" if name == chosen else ""}>{text}</option>'
        for name, text in options.items()
    )
    return f'<label>for <select id="dataset_scope" class="dataset-input">{inner}</select></label>'


def _form(name: str, trigger: str) -> str:
    hidden = "" if name == next(iter(EDITS)) else " hidden"
    fields = "".join(_field(name, one, trigger) for one in edit_specs(name).values())
    return (
        f'<form class="dataset-edit" data-name="{name}" data-check="edit"{hidden}><div class="dataset-fields">{fields}'
        f'</div><div class="dataset-hint"></div>{button("Preview", "preview", kind="main", edit=name)}</form>'
    )


def _field(edit: str, one: FieldSpec, trigger: str) -> str:
    value = trigger if (edit, one.name) == ("trigger", "word") else one.default
    common = f'name="{one.name}" class="dataset-input" aria-label="{escape(one.label)}"'
    if one.kind == "choice":
        inner = "".join(
            f"<option{' selected' if choice == one.default else ''}>{escape(choice)}</option>" for choice in one.choices
        )
        entry = f"<select {common}>{inner}</select>"
    elif one.kind == "bool":
        entry = f'<input type="checkbox" {common}{" checked" if one.default else ""}>'
    else:
        entry = f'<input {common} value="{escape(str(value))}" spellcheck="false">'
    return f"<label>{escape(one.label)} {entry}<small>{escape(one.help)}</small></label>"


def preview_html(view: View) -> str:
    """The dry run: how many captions change, which tags go and come, examples, and the button that writes."""
    preview = view.preview
    if preview is None:
        return ""
    if preview.steps:
        return _steps_html(preview)
    count = len(preview.altered)
    if not count:
        return (
            f'<div class="dataset-preview"><b>{escape(preview.label)}</b>: none of {preview.total:,} captions would '
            f"change. {button('Close', 'cancel')}</div>"
        )
    examples = "".join(f"<li><code>{escape(one.path)}</code> {diff_html(one)}</li>" for one in _spread(preview))
    return (
        f'<div class="dataset-preview" role="status"><b>{escape(preview.label)}</b>: '
        f'<span class="dataset-changes">{count:,} of {preview.total:,} captions would change.</span> '
        f"{_counts('Removed', preview.gone())}{_counts('New', preview.added())}"
        f'<div class="dataset-row">{button("Apply", "apply", kind="main")}{button("Cancel", "cancel")}</div>'
        f'<ul class="dataset-diffs">{examples}</ul>'
        + (f"<p>… and {count - EXAMPLES:,} more</p>" if count > EXAMPLES else "")
        + "</div>"
    )


def _steps_html(preview: Preview) -> str:
    """The dry run of what goes to the trash, gets another name, or is written in another encoding."""
    done, lines = "", []
    for step in preview.steps[:EXAMPLES]:
        path = f"<code>{escape(step.path)}</code>"
        if isinstance(step, Change):
            done = "be written as UTF-8"
            lines.append(f"<li>{path} {escape((step.after or b'').decode('utf-8', 'replace'))}</li>")
        elif step.target.startswith(TRASH):
            done = "go to the set's trash"
            lines.append(f"<li>{path}</li>")
        else:
            done = "be renamed"
            lines.append(f"<li>{path} → <code>{escape(step.target)}</code></li>")
    count = len(preview.steps)
    would = f"{count:,} file{'' if count == 1 else 's'} would {done}."
    return (
        f'<div class="dataset-preview" role="status"><b>{escape(preview.label)}</b>: '
        f'<span class="dataset-changes">{would}</span>'
        f'<div class="dataset-row">{button("Apply", "apply", kind="main")}{button("Cancel", "cancel")}</div>'
        f'<ul class="dataset-diffs">{"".join(lines)}</ul>'
        + (f"<p>… and {count - EXAMPLES:,} more</p>" if count > EXAMPLES else "")
        + "</div>"
    )


def _spread(preview: Preview) -> list[Altered]:
    """Examples from all over the set."""
    step = max(len(preview.altered) / EXAMPLES, 1)
    return [preview.altered[int(place * step)] for place in range(min(EXAMPLES, len(preview.altered)))]


def _counts(title: str, counts: Counter[str]) -> str:
    if not counts:
        return ""
    shown = ", ".join(f"{escape(key)} ({count:,})" for key, count in counts.most_common(12))
    more = f" and {len(counts) - 12:,} more" if len(counts) > 12 else ""
    return f"<div>{title}: {shown}{more}</div>"


def diff_html(one: Altered) -> str:
    """A caption's tags before and after, in one line."""
    before, after = one.before.tags, one.after.tags
    if before == after:
        return f"<ins>{escape(repr(one.after.text))}</ins>"
    parts: list[str] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            parts += [escape(tag) for tag in before[a:b]]
            continue
        parts += [f"<del>{escape(tag)}</del>" for tag in before[a:b]]
        parts += [f"<ins>{escape(tag)}</ins>" for tag in after[c:d]]
    return ", ".join(parts)


def prune_html(view: View) -> str:
    """The plans, and the proposal of the one that was asked for."""
    cards = "".join(
        f'<div class="dataset-card"><b>{school.title}</b><p>{escape(school.cost)}</p>'
        f"{button('Propose', 'plan', plan=name)}</div>"
        for name, school in SCHOOLS.items()
    )
    cards += (
        '<div class="dataset-card"><b>Implied tags</b><p>A sword is a weapon: the child stays, the parent says nothing '
        "new and goes. From the table, and from what this set never shows apart.</p>"
        f"{button('Propose', 'implied')}</div>"
    )
    proposal = _traits(view) if view.proposal else _implied(view.implied) if view.implied else ""
    if view.plan and not proposal:
        proposal = '<p class="dataset-empty">There is nothing to prune here.</p>'
    return (
        '<div class="dataset-row" id="dataset_plan_form"><label>Trigger word '
        f'<input id="dataset_trigger" class="dataset-input" value="{escape(view.trigger)}"></label>'
        f'<label>Share <input id="dataset_share" class="dataset-input dataset-short" value="{escape(view.share)}"> %'
        '</label><label>Protected <input id="dataset_protected" class="dataset-input" '
        f'value="{escape(view.protected)}" placeholder="tags that stay: * hair"></label>'
        f"{scope_html(view)}</div>"
        f'<div class="dataset-cards">{cards}</div>{proposal}'
    )


def _traits(view: View) -> str:
    school = SCHOOLS[view.plan]
    groups = []
    for group in GROUPS:
        members = [trait for trait in view.proposal if trait.group == group]
        if members:
            groups.append(f"<fieldset><legend>{group}</legend>{''.join(map(_trait, members))}</fieldset>")
    warned = "".join(f"<li>{escape(told(one))}</li>" for one in warnings(view.proposal))
    return (
        f'<div class="dataset-proposal"><h4>{school.title}</h4>'
        f"<p>Ticked tags are removed and the trigger word takes their meaning. {escape(school.cost)}</p>"
        f'<div class="dataset-groups">{"".join(groups)}</div>'
        + (f'<ul class="dataset-warnings">{warned}</ul>' if warned else "")
        + ("" if any(trait.proposed for trait in view.proposal) else f"<p>{escape(_why_nothing(view))}</p>")
        + button("Preview", "plan-preview", kind="main")
        + "</div>"
    )


def _why_nothing(view: View) -> str:
    """Why a plan ticks nothing."""
    groups = SCHOOLS[view.plan].groups
    if not groups:
        return "Nothing is ticked: this plan keeps every tag. Tick what the trigger word is to take all the same."
    named = f"{', '.join(sorted(groups)[:-1])} or {sorted(groups)[-1]}" if len(groups) > 1 else next(iter(groups))
    if any(trait.group in groups for trait in view.proposal):
        return "Nothing is ticked: the tags that the plan would take are protected."
    return (
        f"Nothing is ticked: no tag of {named} stands on {view.share}% of these pictures or more. Lower the share, or "
        "tick what the trigger word is to take."
    )


def _trait(trait: Trait) -> str:
    tick = " checked" if trait.proposed else ""
    part = ' class="dataset-partial" title="Only on part of the pictures"' if trait.share < 0.9 else ""
    return (
        f'<label{part}><input type="checkbox" data-choice value="{escape(trait.key)}"{tick}> {escape(trait.key)} '
        f"<small>{trait.share:.0%}</small></label>"
    )


def _implied(pairs: Iterable[Implied]) -> str:
    rows = "".join(
        f'<label><input type="checkbox" data-choice value="{escape(one.child)}\t{escape(one.parent)}"'
        f"{'' if one.learned else ' checked'}> {escape(one.child)} → drop <b>{escape(one.parent)}</b> "
        f"<small>{one.count:,}{' · learned from this set' if one.learned else ''}</small></label>"
        for one in list(pairs)[:300]
    )
    return (
        '<div class="dataset-proposal"><h4>Implied tags</h4><p>What is learned from the set may be chance: look before '
        f'you tick it.</p><div class="dataset-pairs">{rows}</div>'
        f"{button('Preview', 'implied-preview', kind='main')}</div>"
    )


def check_html(view: View) -> str:
    """The report, or how far it is."""
    assert view.open is not None
    job = view.open.checks.view()
    if job is not None and job.active:
        phase = job.progress or Phase(Sentence("phase.looking"), 0, len(view.open.editor.items))
        share = phase.done / phase.total if phase.total else 0.0
        return (
            f'<div class="dataset-busy" data-poll="1"><div class="trainer-status"><div class="trainer-head">Looking at '
            f"{phase.done:,} of {phase.total:,} pictures · {clock(phase.left)} left</div>"
            f'<div class="trainer-bar" role="progressbar" aria-label="Looking at the pictures" aria-valuemin="0" '
            f'aria-valuemax="100" aria-valuenow="{100 * share:.0f}">'
            f'<div class="trainer-fill" style="width:{share:.1%}"></div></div></div>'
            f"{button('Stop', 'check-stop')}</div>"
        )
    form = (
        '<div class="dataset-row" id="dataset_check_form"><label>Training width <input id="dataset_width" '
        f'class="dataset-input dataset-short" value="{escape(view.size[0])}"></label><label>height <input '
        f'id="dataset_height" class="dataset-input dataset-short" value="{escape(view.size[1])}"></label>'
        '<label><input type="checkbox" id="dataset_mirrored"> '
        f"pictures are mirrored in training</label>{button('Check the set', 'check', kind='main')}"
        + (button("Save as HTML", "export") if view.open.report else "")
        + "</div>"
    )
    error = f'<div class="trainer-notice trainer-notice-error">{escape(job.error)}</div>' if job and job.error else ""
    return form + error + (report_html(view.open.report, view.open.report_version) if view.open.report else "")


def history_html(view: View) -> str:
    """Every transaction, the newest first, and the snapshots."""
    assert view.open is not None
    history = view.open.editor.history
    rows = "".join(
        f'<tr class="{"dataset-undone" if entry.undone else ""}"><td>{_when(entry.time)}</td>'
        f"<td>{escape(entry.label)}</td><td>{counted(entry.files, 'file')}</td>"
        f"<td>{'undone' if entry.undone else ''}</td></tr>"
        for entry in reversed(history.entries()[-200:])
    )
    shots = "".join(
        f"<tr><td>{_when(one.time)}</td><td>{escape(one.name)}</td><td>{counted(one.files, 'caption')}</td>"
        f"<td>{button('Compare', 'compare', name=one.name)}</td></tr>"
        for one in reversed(history.snapshots())
    )
    return (
        '<div class="dataset-row"><label>Name <input id="dataset_snapshot" class="dataset-input" data-enter="snapshot">'
        f"</label>{button('Take a snapshot', 'snapshot', field='dataset_snapshot', kind='main')}"
        f"{button('Look for changes on the disk', 'outside')}</div>"
        f'<div class="dataset-two"><div><h4>Edits</h4><table class="dataset-list"><tbody>{rows}</tbody></table>'
        f"{'' if rows else '<p>No edits yet.</p>'}</div><div><h4>Snapshots</h4>"
        f'<table class="dataset-list"><tbody>{shots}</tbody></table>'
        f"{'' if shots else '<p>No snapshots yet.</p>'}</div></div>"
    )


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def conflict_html(view: View) -> str:
    """Captions that another program has changed: what was expected, what is there, and what can be done."""
    if not view.conflicts:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(one.path)}</code></td><td>{_bytes(one.expected)}</td><td>{_bytes(one.found)}</td></tr>"
        for one in view.conflicts[:EXAMPLES]
    )
    mine = ""
    if view.mine is not None:
        mine = (
            f"<p>Yours: <code>{escape(view.mine[1].text)}</code> "
            f"{button('Keep mine', 'keep-mine', kind='main', title='The other version stays in the history')}</p>"
        )
    return (
        '<div class="dataset-conflict" role="alert"><b>Changed outside of this editor; nothing was overwritten.</b>'
        '<table class="dataset-list"><thead><tr><th>Caption</th><th>Known here</th><th>On the disk</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>{mine}{button('Read the folder again', 'reload')} "
        + (button("Undo the others", "undo-others", title="These captions stay as they are") if view.undoing else "")
        + "</div>"
    )


def _bytes(data: bytes | None) -> str:
    return "<i>no file</i>" if data is None else escape(data.decode("utf-8", "replace"))
