"""`python -m lib_trainer tag FOLDER`: score a folder's pictures and write captions beside them."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lib_trainer.cli.interrupts import stopping_at_interrupt
from lib_trainer.counts import counted
from lib_trainer.options.arguments import add_arguments, given_values
from lib_trainer.refusals import TaggerError
from lib_trainer.tagging.settings import TaggerSettings, tagger_specs

if TYPE_CHECKING:
    from lib_trainer.dataset.folder import Skipped
    from lib_trainer.tagging.captions.style import Style
    from lib_trainer.tagging.choices import How
    from lib_trainer.tagging.desk import TaggerDesk
    from lib_trainer.tagging.models.registry import Tagger
    from lib_trainer.tagging.pictures import Folder
    from lib_trainer.tagging.reports import WriteReport
    from lib_trainer.tagging.run import Scored
    from lib_trainer.tagging.scores.store import ScoreStore
    from lib_trainer.tagging.scores.table import Thresholds
    from lib_trainer.work.events import Phase

DONE, FAILED = 0, 1
SETTINGS = {name: spec for name, spec in tagger_specs().items() if name != "folder"}
"""Those that are flags; the folder is an argument of its own."""

DESCRIPTION = """Score pictures with a WD14 tagger and write captions beside them. Scores are kept in
FOLDER/.trainer, so that another threshold or a second run costs nothing. Ctrl-C keeps what is done. Exit codes: 0 done
or stopped, 1 some pictures or captions were left out, 2 refused."""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "tag", help="tag the pictures of a folder", description=DESCRIPTION
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--models", type=Path, default=Path("models"), metavar="DIR", help="where taggers are looked for"
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch a known model that is not there into --models/wd-tagger"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of the model (default: its own choice)")
    parser.add_argument("--dry-run", action="store_true", help="score, show what would change, and write nothing")
    add_arguments(parser.add_argument_group("settings"), SETTINGS.values(), untold=["general"])
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit code; raises `TrainerError` for what is refused before it starts."""
    from lib_trainer.tagging.pictures import list_pictures
    from lib_trainer.tagging.scores.store import ScoreStore

    given = given_values(options, SETTINGS)
    settings = TaggerSettings(**given)
    style = settings.style_where(tagger_specs()["exclude"].argument)
    folder = list_pictures(options.folder, recursive=settings.recursive, template=style.template)
    stop = threading.Event()
    with stopping_at_interrupt(stop.set), contextlib.closing(_Bar()) as bar:
        taggers = _taggers(options, settings, stop, bar)
        if "general" not in given:
            settings = msgspec.structs.replace(settings, general=_preset([tagger.name for tagger in taggers]))
        thresholds = settings.thresholds
        with ScoreStore(folder.root) as store:
            return _run(options, settings.how, folder, store, taggers, thresholds, style, stop, bar)


def _run(
    options: argparse.Namespace,
    how: How,
    folder: Folder,
    store: ScoreStore,
    taggers: Sequence[Tagger],
    thresholds: Thresholds,
    style: Style,
    stop: threading.Event,
    bar: _Bar,
) -> int:
    from lib_trainer.tagging.captions.effect import Opened
    from lib_trainer.tagging.run import score_folder, write_scored

    for note in [*folder.notes, *(note for tagger in taggers for note in tagger.notes)]:
        bar.say(str(note))
    scored = score_folder([_opened(tagger) for tagger in taggers], store, folder, stop=stop.is_set, listener=bar)
    bar.close()
    unknown = {tagger.fingerprint for tagger in taggers} - store.models().keys()
    if scored.stopped and (options.dry_run or unknown):
        _tell_scored(scored)
        return _tell_end(None, scored.left_out, True)
    opened = Opened.read(store, folder.pictures, [t.fingerprint for t in taggers], style, how)
    if options.dry_run:
        _tell_scored(scored)
        _show(opened, thresholds, style)
        return _tell_end(None, scored.left_out, False)
    # after Ctrl-C, too: what is scored is written, and a second Ctrl-C ends it
    written, left_out = write_scored(opened, scored, thresholds, style, stop=lambda: False, listener=bar)
    bar.close()
    _tell_scored(scored)  # only now: whoever reads the output may close it, and the captions are written nevertheless
    return _tell_end(written, left_out, stop.is_set())


def _tell_scored(scored: Scored) -> None:
    for report in scored.reports:
        print(f"{report.name}: {report.scored} scored on {report.device}, {report.cached} known before.")
    for note in scored.notes:
        print(note)


def _opened(tagger: Tagger) -> Callable[[], contextlib.AbstractContextManager[Tagger]]:
    return lambda: contextlib.nullcontext(tagger)


def _show(opened: Any, thresholds: Thresholds, style: Style) -> None:
    preview = opened.preview(thresholds, style)
    added = counted(preview.added, "tag")
    print(f"{counted(preview.changed, 'caption')} would change: {added} added, {preview.removed} removed.")
    if preview.withheld:
        print(f"Removed by hand, left out: {counted(preview.withheld, 'tag')}; --restore brings them back.")
    print(f"{'tag':40} {'before':>7} {'after':>7} {'added':>7} {'removed':>7}")
    for line in preview.tags:
        print(f"{line.tag[:40]:40} {line.before:7} {line.after:7} {line.added:7} {line.removed:7}")


def _tell_end(written: WriteReport | None, left_out: Sequence[Skipped], stopped: bool) -> int:
    if written is not None:
        print(written.sentence)
        if written.written:
            print("`captions FOLDER undo` takes it back.")
    if stopped:
        print("Stopped; the same command goes on from here.")
    for item in left_out:
        print(f"left out: {item.path} ({item.reason})", file=sys.stderr)
    return FAILED if left_out else DONE


def _taggers(options: argparse.Namespace, settings: TaggerSettings, stop: threading.Event, bar: _Bar) -> list[Tagger]:
    from lib_trainer.tagging.models.download import download
    from lib_trainer.tagging.models.folders import at, find_taggers, pick
    from lib_trainer.tagging.models.registry import SUGGESTED, known_model

    found = find_taggers([options.models])
    # one that is broken comes last, and says so where no other is to be fetched
    wanted = settings.models or [item.name for item in found if not (item.problem and options.download)][:1]
    if not wanted and not options.download:
        raise TaggerError("tagger.none_below", folder=options.models, suggested=SUGGESTED)
    taggers = []
    for name in wanted or [SUGGESTED]:
        known = known_model(name)
        if options.download and known and not any(item.name == name and not item.problem for item in found):
            place = download(known, options.models / "wd-tagger", stop=stop.is_set, listener=bar)
            bar.close()
            item = at(place)
        else:
            item = pick(found, name)
        taggers.append(item.open(threads=options.threads, device=settings.device))
    return taggers


def _preset(names: Sequence[str]) -> float:
    from lib_trainer.tagging.models.registry import threshold_of

    return sum(threshold_of(name) for name in names) / len(names)


def make_desk(root: Path) -> TaggerDesk:
    """The standalone page's: taggers are looked for in ./models and in `root`/models, where downloads go, too."""
    from lib_trainer.tagging.desk import TaggerDesk
    from lib_trainer.tagging.views import Places

    return TaggerDesk(
        Places(lambda: [Path("models").absolute(), root / "models"], lambda: root / "models" / "wd-tagger")
    )


class _Bar:
    """A listener: one bar for each thing that is done, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._what: object = ""

    def __call__(self, phase: Phase) -> None:
        from tqdm import tqdm

        if phase.name != self._what:
            self.close()
            self._what = phase.name
            byte = {"unit": "B", "unit_scale": True} if phase.unit == "bytes" else {"unit": "picture"}
            seconds = 0.1 if sys.stderr.isatty() else 15.0
            self._bar = tqdm(total=phase.total, desc=str(phase.name), file=sys.stderr, mininterval=seconds, **byte)
        self._bar.update(phase.done - self._bar.n)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._what = None, ""
