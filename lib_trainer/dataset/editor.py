"""The editor of a set: open, look, preview an edit, apply it as one transaction, undo and redo.

One editor per set and process; several threads of a page may use it. It holds the captions in memory; every change goes
through `history`, which compares the files before it writes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lib_trainer.captions.document import Caption, CaptionError, cached_key
from lib_trainer.captions.edits import Edit, Facts, count_tags
from lib_trainer.captions.knowledge import NoScores, TagScores
from lib_trainer.counts import counted
from lib_trainer.dataset.file_moves import Change, Conflict, ConflictError, Move, Step, read
from lib_trainer.dataset.history import HAND, HIDDEN, REMOVED, Entry, History, Origins
from lib_trainer.dataset.library import Item, Library, open_library
from lib_trainer.dataset.previews import Altered, Preview
from lib_trainer.refusals import DatasetError

EMPTY = Caption()
TRASH = f"{HIDDEN}/trash"


class Editor:
    """A set that is open for editing. Raises `DatasetError` where the folder cannot be used.

    `scores`: what the tagger knows of the pictures; nothing by default.
    """

    def __init__(self, folder: Path | str, scores: TagScores | None = None) -> None:
        self.lock = threading.RLock()
        self.scores: TagScores = scores or NoScores()
        self.library: Library = open_library(folder, may_be_empty=True)
        self.root = self.library.root
        if not self.library.items and not (self.root / HIDDEN / "history.sqlite").exists():
            open_library(self.root)  # raises: there is nothing to edit, nor was there ever
        self.history = History(self.root)
        self._captions: dict[str, Caption] = {}
        self.unreadable: dict[str, CaptionError | DatasetError] = {}
        self._owners: dict[str, tuple[str, ...]] = {}
        self._spellings: tuple[int, dict[str, str]] = (-1, {})
        self.version = 0  # grows with every change of what is held here
        self._take_over(self.library)
        if self.history.recovered:
            self.reload()

    def reload(self) -> None:
        """Read the folder and every caption again."""
        self._take_over(open_library(self.root, may_be_empty=True))

    def _take_over(self, library: Library) -> None:
        with self.lock:
            self.version += 1
            self._revision = self.history.revision
            self.library = library
            self.items: dict[str, Item] = {item.key: item for item in self.library.items}
            owners: dict[str, list[str]] = {}
            for item in self.library.items:
                owners.setdefault(item.caption, []).append(item.key)
            self._owners = {path: tuple(keys) for path, keys in owners.items()}
            self._captions.clear()
            self.unreadable.clear()
            for path in sorted(self.library.captions):
                self._read(path)

    def _read(self, path: str) -> None:
        try:
            self._take(path, read(f"{self.root}/{path}"))
        except OSError as error:
            self.unreadable[path] = DatasetError("caption.unreadable_here", path=self.root / path, reason=error)

    def _take(self, path: str, data: bytes | None) -> None:
        """Hold what a file says, or that it is gone."""
        self._captions.pop(path, None)
        self.unreadable.pop(path, None)
        try:
            if data is not None:
                self._captions[path] = Caption.read(data, f"{self.root}/{path}")
        except CaptionError as error:
            self.unreadable[path] = error

    def follow(self) -> bool:
        """Read again if another editor of this set has changed something. Says whether it has."""
        with self.lock:
            if self.history.revision == self._revision:
                return False
            self.reload()
            return True

    @property
    def revision(self) -> int:
        """Of the set's history, as far as it is known here."""
        return self._revision

    @property
    def keys(self) -> list[str]:
        """All pictures, in order."""
        return list(self.items)

    def caption(self, key: str) -> Caption:
        """The caption of a picture; an empty one where there is no file, or none that can be read."""
        return self._captions.get(self.items[key].caption, EMPTY)

    def captions(self) -> dict[str, Caption]:
        """{picture: caption}."""
        return {key: self._captions.get(item.caption, EMPTY) for key, item in self.items.items()}

    def has_file(self, key: str) -> bool:
        """Whether the picture has a caption file that can be read."""
        return self.items[key].caption in self._captions

    def owners(self, path: str) -> tuple[str, ...]:
        """The pictures that a caption file belongs to."""
        return self._owners.get(path, ())

    def counts(self, keys: Iterable[str] | None = None) -> Counter[str]:
        """{tag_key: on how many pictures it stands}, over `keys` or everything."""
        with self.lock:
            return count_tags(map(self.caption, self.items if keys is None else keys))

    def spellings(self) -> dict[str, str]:
        """{tag_key: how it is written most often}."""
        if self._spellings[0] == self.version:
            return self._spellings[1]
        written: Counter[str] = Counter()
        for caption in self._captions.values():
            written.update(caption.tags)
        result: dict[str, str] = {}
        for tag, _ in reversed(written.most_common()):
            result[cached_key(tag)] = tag
        self._spellings = self.version, result
        return result

    def preview(self, edit: Edit, keys: Sequence[str] | None = None) -> Preview:
        """What an edit would do to these pictures' captions. Raises `ConfigError` for an edit that cannot be."""
        edit.check()
        with self.lock:
            chosen = self.keys if keys is None else [key for key in keys if key in self.items]
            counts = self.counts(chosen)

            if not edit.needs_scores:
                facts = Facts(counts, len(chosen))
                return self.preview_function(edit.label(), lambda key, caption: edit.apply(caption, facts), chosen)

            def after(key: str, caption: Caption) -> Caption:
                scores = {cached_key(tag): score for tag, score in self.scores.scores(self.root / key).items()}
                origins = {cached_key(tag): one for tag, one in self.scores.origins(self.root / key).items()}
                # where a tagger was at work, a tag without an origin was written by a person, or came with the set
                tagged = any(one != HAND for one in origins.values())
                by_hand = frozenset(one for one in caption.keys if tagged and origins.get(one, HAND) == HAND)
                return edit.apply(caption, Facts(counts, len(chosen), scores, by_hand))

            return self.preview_function(edit.label(), after, chosen)

    def preview_function(self, label: str, after: Callable[[str, Caption], Caption], keys: Sequence[str]) -> Preview:
        """As `preview`, with any function of (picture, caption). Captions that cannot be read are left out."""
        with self.lock:
            paths = dict.fromkeys(self.items[key].caption for key in keys)
            altered = []
            for path in paths:
                if path in self.unreadable:
                    continue
                owners, before = self._owners[path], self._captions.get(path, EMPTY)
                changed = after(owners[0], before)
                if changed != before:
                    altered.append(Altered(path, owners, before, changed))
            return Preview(label, tuple(altered), len(paths), self._revision)

    def apply(self, preview: Preview) -> Entry:
        """Carry out what was previewed, as one transaction.

        Raises `ConflictError` where files have changed since, on disk or by another editor: nothing is written.
        """
        with self.lock:
            steps = [*(self._change(one) for one in preview.altered), *preview.steps]
            stale = any(self._captions.get(one.path, EMPTY) != one.before for one in preview.altered)
            if preview.revision != self._revision and (stale or preview.steps):
                raise DatasetError("history.preview_is_old")
            return self._commit(preview.label, steps, _by_hand(preview.altered))

    def _change(self, one: Altered) -> Change:
        before = one.before.encode() if one.path in self._captions else None
        return Change(one.path, before, one.after.encode())

    def _commit(self, label: str, steps: Sequence[Step], origins: Origins | None = None) -> Entry:
        entry = self.history.commit(label, steps, origins=origins)
        self._follow_steps(steps)
        return entry

    def _follow_steps(self, steps: Sequence[Step], undone: bool = False) -> None:
        """Take over what was just written, without reading everything again."""
        if any(isinstance(step, Move) or (step.path not in self._owners) for step in steps):
            self.reload()
            return
        self.version += 1
        for step in reversed(steps) if undone else steps:
            if isinstance(step, Change):
                self._take(step.path, step.before if undone else step.after)
        self._revision = self.history.revision
        existing = (self.library.captions | {step.path for step in steps}) & (
            self._captions.keys() | self.unreadable.keys()
        )
        self.library = replace(self.library, captions=existing)

    def write(self, key: str, caption: Caption, expected: Caption, *, force: bool = False) -> Entry | None:
        """Write one picture's caption. None where it says that already.

        `expected` is what the user saw when the change began. A file that says something else by now is a conflict,
        unless `force` says that the user has seen both: then the file's own version becomes part of the history.
        """
        with self.lock:
            path = self.items[key].caption
            if path in self.unreadable:
                raise self.unreadable[path]
            data = read(self.root / path)
            found = EMPTY if data is None else Caption.read(data, self.root / path)
            if found != expected and not force:
                raise ConflictError([Conflict(path, expected.encode(), data)])
            if found == caption:
                return None
            origins = _by_hand([Altered(path, (key,), found, caption)])
            return self._commit(f"Caption of {key}", [Change(path, data, caption.encode())], origins)

    def undo(self, leaving: Collection[str] = ()) -> Entry:
        """Take back the last transaction; `leaving`: captions that stay as another program left them."""
        with self.lock:
            entry = self.history.undo(leaving)
            self._follow_steps(self.history.steps(entry.id), undone=True)
            return entry

    def redo(self) -> Entry:
        """Do again what was taken back."""
        with self.lock:
            entry = self.history.redo()
            self._follow_steps(self.history.steps(entry.id))
            return entry

    def to_trash(self, keys: Sequence[str], orphans: Sequence[str] = ()) -> Entry:
        """Move pictures, with their captions, into the trash folder inside the set; orphaned captions too."""
        with self.lock:
            return self.apply(self.preview_trash(keys, orphans))

    def preview_trash(self, keys: Sequence[str], orphans: Sequence[str] = ()) -> Preview:
        """What `to_trash` would move. A caption or mask goes with the last picture that it belongs to."""
        with self.lock:
            moved = dict.fromkeys(key for key in keys if key in self.items)
            paths = dict.fromkeys(moved)
            for key in moved:
                path = self.items[key].caption
                if set(self._owners[path]) <= moved.keys() and path in self.library.captions:
                    paths[path] = None
            kept = {item.mask for key, item in self.items.items() if key not in moved}
            paths.update(dict.fromkeys(mask for key in moved if (mask := self.items[key].mask) and mask not in kept))
            movable = {*self.library.orphans, *self.library.lone_masks}
            paths.update(dict.fromkeys(path for path in orphans if path in movable))
            place = self._trash_folder()
            steps: list[Step] = [Move(path, f"{place}/{path}") for path in paths]
            what = "caption" if set(self.library.orphans) >= paths.keys() else "file"
            count = counted(len(moved), "picture") if moved else counted(len(paths), what)
            return Preview(f"Move {count} to the trash", (), len(paths), self._revision, tuple(steps))

    def _trash_folder(self) -> str:
        number = 1
        while (self.root / TRASH / str(number)).exists():
            number += 1
        return f"{TRASH}/{number}"

    def convert(self, path: str, encoding: str = "") -> Entry:
        """Write a caption that is not UTF-8 again as UTF-8; `encoding` is the guess unless the user knows better."""
        with self.lock:
            error = self.unreadable.get(path)
            data = read(self.root / path)
            if not isinstance(error, CaptionError) or data is None:
                raise DatasetError("caption.need_not_be_converted", path=path)
            return self._commit(f"Convert {path} to UTF-8", [Change(path, data, error.converted(data, encoding))])

    def convert_all(self) -> Entry:
        """Convert every caption whose encoding could be guessed, as one transaction."""
        with self.lock:
            return self.apply(self.preview_conversion())

    def preview_conversion(self) -> Preview:
        """What `convert_all` would write."""
        with self.lock:
            steps: list[Step] = []
            for path, error in self.unreadable.items():
                data = read(self.root / path)
                if isinstance(error, CaptionError) and error.guess and data is not None:
                    steps.append(Change(path, data, error.converted(data)))
            label = f"Convert {counted(len(steps), 'caption')} to UTF-8"
            return Preview(label, (), len(self.unreadable), self._revision, tuple(steps))

    def outside_changes(self) -> list[Conflict]:
        """Captions whose files say something else than this editor believes."""
        with self.lock:
            conflicts = []
            for path in self._owners:
                if path in self.unreadable:
                    continue
                data = read(self.root / path)
                known = self._captions[path].encode() if path in self._captions else None
                if data != known:
                    conflicts.append(Conflict(path, known, data))
            return conflicts

    def take_snapshot(self, name: str) -> None:
        """Keep the captions as they are under a name."""
        with self.lock:
            paths = [path for path in self._owners if path not in self.unreadable]
            self.history.take_snapshot(
                name, {path: self._captions[path].encode() if path in self._captions else None for path in paths}
            )

    def compare_snapshot(self, name: str) -> Preview:
        """What restoring a snapshot would do. Pictures that came later keep their captions."""
        with self.lock:
            kept = self.history.snapshot(name)
            altered = []
            for path, data in kept.items():
                if path not in self._owners or path in self.unreadable:
                    continue
                before = self._captions.get(path, EMPTY)
                after = EMPTY if data is None else Caption.read(data, self.root / path)
                if before != after:
                    altered.append(Altered(path, self._owners[path], before, after))
            return Preview(f"Restore the snapshot {name}", tuple(altered), len(kept), self._revision)


def _by_hand(altered: Iterable[Altered]) -> dict[str, dict[str, str]]:
    """What a person's edit says of tags: those that come are by hand, those that go stay away."""
    said = {}
    for one in altered:
        before, after = set(one.before.keys), set(one.after.keys)
        if before != after:
            said[one.path] = dict.fromkeys(after - before, HAND) | dict.fromkeys(before - after, REMOVED)
    return said
