"""Parts that several files hold, and files of which another one holds everything."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lib_trainer.files import TRASH
from lib_trainer.refusals import ConfigError, Count, ModelError, Sentence
from lib_trainer.toolbox.desk import Done, Prepared
from lib_trainer.toolbox.facts import facts_of
from lib_trainer.toolbox.identity import SHOWN, components, glance, identity
from lib_trainer.toolbox.inspect_settings import DuplicatesSettings
from lib_trainer.toolbox.output import discard
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.published import published
from lib_trainer.toolbox.source import open_source

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
FOLDER = "model_index.json"
"""What makes a folder a model."""


@dataclass(frozen=True)
class Found:
    """A file and its parts. `size` in bytes; `kind` as `Facts` have it.

    The file itself is not held open: under Windows one that is cannot be moved, and all of them together would be
    counted as memory.
    """

    path: Path
    size: int
    parts: dict[str, str]
    kind: str


@dataclass(frozen=True)
class Report:
    """`shared`: (part, hash, the files that hold it, what it was published as or nothing); `same`: files that hold the
    same parts, the largest first."""

    shared: tuple[tuple[str, str, tuple[Path, ...], str], ...]
    same: tuple[tuple[Found, ...], ...]
    unread: tuple[Path, ...]

    @property
    def free(self) -> int:
        """Bytes that all but one of each group take."""
        return sum(one.size for group in self.same for one in group[1:])


def prepare(settings: DuplicatesSettings) -> Prepared:
    """Raises `ConfigError` for a folder that is none."""
    if not settings.folders:
        raise ConfigError("duplicates.no_folder", field="folders")
    folders = [Path(folder.strip().strip('"')).expanduser().absolute() for folder in settings.folders]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError("duplicates.not_a_folder", field="folders", path=folder)
    files = distinct(sorted({path for folder in folders for path in models_in(folder)}))
    trash = [Path(path).expanduser().absolute() for path in settings.trash]
    lines = (Sentence("duplicates.files", count=Count(len(files)), folders=folders),)
    return Prepared(lines, lambda progress: _work(files, trash, progress), quiet=True)


def models_in(folder: Path) -> Iterable[Path]:
    """Model files below a folder; a diffusers folder counts as one. Links to folders are followed, after what is below
    the folder itself, and no folder is gone through twice."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        for place, below, names in os.walk(waiting.pop(0)):
            real = os.path.realpath(place)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            if FOLDER in names:
                below.clear()
                yield Path(place)
                continue
            below[:] = sorted(name for name in below if name != TRASH)
            waiting += [Path(place) / name for name in below if os.path.islink(os.path.join(place, name))]
            yield from (Path(place) / name for name in names if name.lower().endswith(ENDINGS))


def models_beside(path: Path) -> list[Path]:
    """A model file or folder and those that lie in the same folder, without what is below that."""
    try:
        entries = sorted(path.parent.iterdir())
    except OSError:
        return []
    return [one for one in entries if one.name.lower().endswith(ENDINGS) or (one / FOLDER).is_file()]


def distinct(paths: Sequence[Path]) -> list[Path]:
    """Each file once, under its own name before that of a link: a link takes no room, and leads nowhere without it."""
    seen: set[tuple[int, int]] = set()
    found = []
    for path in sorted(paths, key=lambda one: (one.is_symlink(), one)):
        try:
            told = path.stat()
        except OSError:  # a link that leads nowhere: it is read, and named as what cannot be
            found.append(path)
            continue
        same = told.st_dev, told.st_ino
        if same not in seen:
            found.append(path)
        if told.st_ino:  # 0 where a file system has no such numbers
            seen.add(same)
    return sorted(found)


def compared(files: Sequence[Path], progress: Progress) -> Report:
    """Compare what files hold, one file open at a time. Only parts that look alike at a glance are read as a whole."""
    progress.begin(Sentence("phase.looking_through"), len(files), "files")
    held, unread = [], []
    for path in files:
        try:
            held += _glanced(path)
        except ModelError:
            unread.append(path)
        progress.advance(1)
    counts = _counted(one.parts.values() for one in held)
    alike, hashed = {glance for glance, count in counts.items() if count > 1}, []
    for one in held:
        try:
            hashed.append(_hashed(one, alike, progress))
        except ModelError:  # gone by now
            unread.append(one.path)
    holders: dict[str, list[tuple[str, Found]]] = defaultdict(list)
    groups: dict[frozenset[str], list[Found]] = defaultdict(list)
    for one in hashed:
        groups[frozenset(one.parts.values())].append(one)
        for part, digest in one.parts.items():
            holders[digest].append((part, one))
    shared = [
        (places[0][0], digest, tuple(one.path for _, one in places), _known(places))
        for digest, places in holders.items()
        if places[1:]
    ]
    same = [tuple(sorted(group, key=lambda one: (-one.size, one.path))) for group in groups.values() if group[1:]]
    return Report(tuple(sorted(shared)), tuple(same), tuple(unread))


def _glanced(path: Path) -> list[Found]:
    """A file as it looks at a glance; nothing where it has no parts. Raises `ModelError`."""
    source = open_source(path)
    facts = facts_of(source)
    glances = {part: glance(tensors) for part, tensors in components(source, facts).items()}
    return [Found(path, _size(path), glances, facts.kind)] if glances else []


def _known(places: Sequence[tuple[str, Found]]) -> str:
    """What a VAE was published as, where one of the files that hold it is a published one."""
    files = [one.path for part, one in places if part == "vae" and (one.kind == "VAE" or one.path.is_dir())]
    return next((name for path in files if (name := published(path))), "")


def _hashed(one: Found, alike: set[str], progress: Progress) -> Found:
    """With hashes of what looks `alike`. Raises `ModelError` for a file that is another by now."""
    read = [part for part, seen in one.parts.items() if seen in alike]
    if not read:
        return one
    source = open_source(one.path)
    tensors = components(source, facts_of(source))
    if not set(read) <= tensors.keys():
        raise ModelError("file.missing", path=one.path)
    total = sum(stored.nbytes for part in read for stored in tensors[part].values())
    progress.begin(Sentence("phase.reading_file", name=one.path.name), total, "bytes")
    return replace(one, parts=one.parts | {part: identity(tensors[part], progress.advance) for part in read})


def _counted(lists: Iterable[Iterable[str]]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for one in lists:
        for digest in set(one):
            counts[digest] += 1
    return counts


def _size(path: Path) -> int:
    files = (one for one in path.rglob("*") if one.is_file()) if path.is_dir() else (path,)
    return sum(one.stat().st_size for one in files)


def _work(files: Sequence[Path], trash: Sequence[Path], progress: Progress) -> Done:
    report = compared(files, progress)
    notes = [
        Sentence("duplicates.part_published", part=part, hash=digest[:SHOWN], paths=paths, name=name)
        if name
        else Sentence("duplicates.part", part=part, hash=digest[:SHOWN], paths=paths)
        for part, digest, paths, name in report.shared
    ]
    for first, *others in report.same:
        freed = Count(sum(one.size for one in others) >> 20)
        notes.append(Sentence("duplicates.same", kept=first.path, paths=[one.path for one in others], size=freed))
    notes += [Sentence("duplicates.unread", path=path) for path in report.unread]
    notes += [Sentence("duplicates.moved", path=path, place=place) for path, place in _moved(report, trash)]
    told = Sentence("duplicates.done", count=Count(len(files)), size=Count(report.free >> 20))
    return Done(told, None, tuple(notes))


def _moved(report: Report, trash: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Move files to the trash; those that are gone already are passed by. Raises `ConfigError`, and moves none, where
    one is no duplicate or all would go."""
    trash = [path for path in trash if os.path.lexists(path)]
    wanted = set(trash)
    for path in trash:
        group = next((group for group in report.same if path in [one.path for one in group]), None)
        if group is None:
            raise ConfigError("duplicates.only_one", field="trash", path=path)
        if all(one.path in wanted for one in group):
            raise ConfigError("duplicates.none_left", field="trash", path=path)
    return [(path, discard(path)) for path in dict.fromkeys(trash)]
