"""The command `captions`: the Dataset tab's edits and plans for scripts.

python -m lib_trainer captions FOLDER remove --tags "weapon, * background" --dry-run
python -m lib_trainer captions FOLDER plan delete-all --trigger zorb --protected "smile"
python -m lib_trainer captions FOLDER check --html report.html
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_trainer.captions.edits import EDITS, edit_specs, make_edit
from lib_trainer.captions.filters import Record, keyed, parse_filter
from lib_trainer.captions.findings import all_findings, pictures_of
from lib_trainer.captions.knowledge import read_knowledge
from lib_trainer.captions.plans import (
    SCHOOLS,
    DropImplied,
    fold,
    implied_pairs,
    learned_pairs,
    several_concepts,
    traits,
    warnings,
)
from lib_trainer.captions.tokens import TokenCounter
from lib_trainer.counts import counted
from lib_trainer.dataset.folder import checked_folder
from lib_trainer.files import write_atomically
from lib_trainer.options.arguments import add_arguments, given_values
from lib_trainer.refusals import ConfigError, SaveError
from lib_trainer.tagging.scores.known import known_tags

if TYPE_CHECKING:
    from lib_trainer.dataset.editor import Editor
    from lib_trainer.dataset.previews import Preview
    from lib_trainer.dataset.report import Report

EXAMPLES = 5
DONE = 0


@lru_cache(maxsize=1 << 16)
def clip_tokens(word: str) -> int:
    """The tokens of one word as CLIP counts them."""
    from lib_trainer.host.standalone.tokenizer import load_tokenizer

    return len(load_tokenizer()(word, add_special_tokens=False).input_ids)


def add_parser(commands: Any) -> None:
    """Add the command to the command line's parser."""
    parser = commands.add_parser(
        "captions",
        help="edit and prune the captions of a training set",
        description="Edit and prune the captions of a training set. Every edit is a transaction that undo takes back.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--filter", default="", help="only these pictures, as on the page: 'long hair AND NOT 1boy'")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, kind in EDITS.items():
        edit = _action(actions, name, str(kind.__doc__), _edit)
        edit.set_defaults(edit=name)
        add_arguments(edit, edit_specs(name).values())
    plan = _action(actions, "plan", "fold traits into the trigger word by one of the schools", _plan)
    plan.add_argument("school", choices=list(SCHOOLS))
    plan.add_argument("--trigger", required=True, help="the word that takes the tags' meaning")
    plan.add_argument("--share", type=float, default=0.5, help="tags on at least this share of the pictures (0.5)")
    plan.add_argument("--protected", default="", help="tags, wildcards, /expressions/ that stay")
    implied = _action(actions, "implied", "keep the child, drop the parent: sword stays, weapon goes", _implied)
    implied.add_argument("--learned", action="store_true", help="also what this set alone implies")
    _action(actions, "undo", "take back the last edit", _undo)
    _action(actions, "redo", "do again what was taken back", _redo)
    _action(actions, "history", "list edits and snapshots", _history)
    _action(actions, "convert", "write captions that are not UTF-8 again as UTF-8", _convert)
    _action(
        actions, "rename", "give files that are meant as captions the name that is read: a.caption, a.png.txt", _rename
    )
    snapshot = _action(actions, "snapshot", "keep the captions as they are under a name", _snapshot)
    snapshot.add_argument("name")
    restore = _action(actions, "restore", "bring the captions of a snapshot back", _restore)
    restore.add_argument("name")
    _action(actions, "tags", "list the tags with the number of pictures", _tags)
    check = _action(actions, "check", "look at every picture and caption, and list what is wrong", _check)
    check.add_argument("--html", type=Path, metavar="FILE", help="also write the report with charts")
    check.add_argument("--width", type=int, default=512, help="training width in pixels (512)")
    check.add_argument("--height", type=int, default=512, help="training height in pixels (512)")
    check.add_argument("--mirrored", action="store_true", help="training mirrors pictures")


def _action(actions: Any, name: str, help: str, run: Any) -> Any:
    parser = actions.add_parser(name, help=help[0].lower() + help[1:], description=help)
    parser.add_argument("--dry-run", action="store_true", default=argparse.SUPPRESS, help="change nothing")
    parser.set_defaults(run=lambda options: _run(run, options))
    return parser


def _run(action: Callable[[Editor, argparse.Namespace], int], options: argparse.Namespace) -> int:
    from lib_trainer.dataset.editor import Editor

    root = checked_folder(options.folder)
    return action(Editor(root, known_tags(root)), options)


def _keys(editor: Editor, options: argparse.Namespace) -> list[str]:
    """The pictures that --filter lets through. Raises `ConfigError` where there are none."""
    from lib_trainer.dataset.facts import FactsCache

    if editor.history.recovered:
        print(editor.history.recovered, file=sys.stderr)
    knowledge = read_knowledge([editor.root / ".trainer"])
    chosen = parse_filter(options.filter, knowledge.group)
    facts, count = FactsCache(editor.root), TokenCounter(clip_tokens)
    troubles: dict[str, set[str]] = {}
    if "troubles" in chosen.needs:
        concepts = {key: item.concept or item.folder for key, item in editor.items.items()}
        troubles = pictures_of(all_findings(editor.captions(), concepts, knowledge, mirrored=False))
    found = []
    for key, item in editor.items.items():
        caption = editor.caption(key)
        size = facts.size(key) if "size" in chosen.needs else None
        tokens = count(caption) if "tokens" in chosen.needs else None
        scores = keyed(editor.scores.scores(editor.root / key)) if "scores" in chosen.needs else {}
        origins = keyed(editor.scores.origins(editor.root / key)) if "scores" in chosen.needs else {}
        record = Record(key, item.folder, caption, tokens, size, scores, origins, troubles.get(key, ()))
        if chosen.matches(record):
            found.append(key)
    if not found:
        raise ConfigError("filter.nothing_through", filter=options.filter, misread=chosen.misread())
    return found


def _finish(editor: Editor, preview: Preview, options: argparse.Namespace, said: Sequence[str] = ()) -> int:
    """Change it unless this is a dry run, and say what changes, behind what is to be `said`: who reads the output may
    close it, as `head` does, and the edit is done nevertheless."""
    written = bool(preview.altered) and not options.dry_run
    if written:
        editor.apply(preview)
    _say(said)
    print(f"{preview.label}: {len(preview.altered)} of {preview.total} captions")
    for title, counts in (("removed", preview.gone()), ("new", preview.added())):
        if counts:
            print(f"  {title}: " + ", ".join(f"{key} ({count})" for key, count in counts.most_common(20)))
    for one in preview.altered[:EXAMPLES]:
        print(f"  {one.path}\n    - {one.before.text!r}\n    + {one.after.text!r}")
    if options.dry_run:
        print("Dry run: nothing was written.")
    elif written:
        print("Written; `captions FOLDER undo` takes it back.")
    for path, error in editor.unreadable.items():
        print(f"left alone: {path}: {error}", file=sys.stderr)
    return DONE


def _edit(editor: Editor, options: argparse.Namespace) -> int:
    values = given_values(options, edit_specs(options.edit))
    return _finish(editor, editor.preview(make_edit(options.edit, values), _keys(editor, options)), options)


def _plan(editor: Editor, options: argparse.Namespace) -> int:
    keys = _keys(editor, options)
    captions = {key: editor.caption(key) for key in keys}
    proposal = traits(
        captions, read_knowledge([editor.root / ".trainer"]), options.school,
        share=options.share, protected=options.protected, trigger=options.trigger,
    )  # fmt: skip
    said = [f"{SCHOOLS[options.school].title}: {SCHOOLS[options.school].cost}"]
    for warning in filter(None, [several_concepts({editor.items[key].concept for key in keys}), *warnings(proposal)]):
        said.append(f"warning: {warning}")
    return _finish(editor, editor.preview(fold(proposal, options.trigger, options.school), keys), options, said)


def _implied(editor: Editor, options: argparse.Namespace) -> int:
    keys = _keys(editor, options)
    captions = {key: editor.caption(key) for key in keys}
    knowledge = read_knowledge([editor.root / ".trainer"])
    pairs = implied_pairs(captions, knowledge)
    if options.learned:
        pairs += learned_pairs(captions, knowledge)
    said = [f"{one.child} -> {one.parent} ({one.count}{', learned' if one.learned else ''})" for one in pairs]
    edit = DropImplied(frozenset((one.child, one.parent) for one in pairs))
    return _finish(editor, editor.preview(edit, keys), options, said)


def _undo(editor: Editor, options: argparse.Namespace) -> int:
    return _turn(editor, options, "undo")


def _redo(editor: Editor, options: argparse.Namespace) -> int:
    return _turn(editor, options, "redo")


def _turn(editor: Editor, options: argparse.Namespace, what: str) -> int:
    entries = [entry for entry in editor.history.entries() if entry.undone == (what == "redo")]
    if options.dry_run and entries:
        print(f"would {what}: {(entries[-1] if what == 'undo' else entries[0]).label}")
        return DONE
    entry = editor.undo() if what == "undo" else editor.redo()
    print(f"{'undone' if entry.undone else 'done again'}: {entry.label} ({counted(entry.files, 'file')})")
    return DONE


def _history(editor: Editor, options: argparse.Namespace) -> int:
    for entry in editor.history.entries():
        print(f"{entry.id}\t{entry.label}\t{counted(entry.files, 'file')}{'	undone' if entry.undone else ''}")
    for one in editor.history.snapshots():
        print(f"snapshot\t{one.name}\t{counted(one.files, 'caption')}")
    return DONE


def _convert(editor: Editor, options: argparse.Namespace) -> int:
    said = [f"{path}: {error}" for path, error in editor.unreadable.items()]
    if said and not options.dry_run:
        said.append(editor.convert_all().label)
    return _say(said)


def _rename(editor: Editor, options: argparse.Namespace) -> int:
    from lib_trainer.dataset.mending import rename_captions

    misnamed = editor.library.misnamed
    said = [
        f"{one.name} → {one.wanted}" if one.wanted else f"{one.name}: {one.picture} has another caption"
        for one in misnamed
    ]
    if any(one.wanted for one in misnamed) and not options.dry_run:
        said.append(rename_captions(editor).label)
    return _say(said)


def _say(lines: Sequence[str]) -> int:
    for line in lines:
        print(line)
    return DONE


def _snapshot(editor: Editor, options: argparse.Namespace) -> int:
    if not options.dry_run:
        editor.take_snapshot(options.name)
    return DONE


def _restore(editor: Editor, options: argparse.Namespace) -> int:
    return _finish(editor, editor.compare_snapshot(options.name), options)


def _tags(editor: Editor, options: argparse.Namespace) -> int:
    knowledge = read_knowledge([editor.root / ".trainer"])
    for key, count in editor.counts(_keys(editor, options)).most_common():
        print(f"{count}\t{key}\t{knowledge.group(key)}")
    return DONE


def _check(editor: Editor, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from lib_trainer.dataset.facts import FactsCache
    from lib_trainer.dataset.report import make_report
    from lib_trainer.ui.dataset.report import is_report

    if options.html is not None and os.path.lexists(options.html) and not is_report(options.html):
        raise SaveError("file.exists", path=options.html)
    cache = FactsCache(editor.root)
    with tqdm(total=len(editor.items), desc="Looking at the pictures", file=sys.stderr) as bar:
        facts = cache.get(editor.keys, lambda done, total: bar.update(done - bar.n) and None)
    report = make_report(
        editor, facts, TokenCounter(clip_tokens), read_knowledge([editor.root / ".trainer"]),
        width=options.width, height=options.height, mirrored=options.mirrored,
    )  # fmt: skip
    for finding in report.findings:
        where = ", ".join((finding.pictures or finding.paths)[:5])
        print(f"{finding.level}\t{finding.kind}\t{len(finding.pictures or finding.paths)}\t{finding.text}\t{where}")
    if options.html is not None:
        _write_html(report, editor, facts, options.html)
    return DONE


def _write_html(report: Report, editor: Editor, facts: Any, path: Path) -> None:
    from lib_trainer.ui.dataset.report import report_file

    write_atomically(path, report_file(report, editor.root, facts).encode("utf-8"))
    print(f"The report is in {path}")
