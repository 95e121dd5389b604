"""What a folder of pictures holds, and which file belongs to which picture: the one reader of folders.

Trainer, tagger, Dataset tab and class pictures ask here, so that all of them see the same. Nothing is opened. A caption
belongs to the pictures whose name it has, up to the ending; how its ending is capitalised does not count, nor does the
Unicode form of the name (NFC or NFD, which look the same). A picture file whose name ends in a mark of `MASKS` is no
picture but the mask of those that have the rest of its name. Names that begin with a dot are passed by, links are
followed, and a link that leads back to where it lies is not.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_trainer.refusals import DatasetError, Sentence, few

EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".jfif", ".jpe", ".jif", ".jfi", ".pjpeg", ".pjp", ".apng", ".dib",
)  # fmt: skip
"""What counts as a picture, in lower case. The file's content decides how it is read."""

UNREAD = frozenset(
    (
        ".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".psd", ".psb", ".xcf", ".kra", ".clip", ".sai", ".jp2",
        ".j2k", ".jpx", ".jxr", ".tga", ".ico", ".exr", ".hdr", ".qoi", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".eps",
        ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
    )
)  # fmt: skip
"""Endings of pictures that are not read here."""

CAPTION = ".txt"
CAPTION_LIKE = frozenset((CAPTION, ".caption", ".captions", ".cap", ".tags", ".tag", ".text", ".prompt"))
"""Endings under which other programs keep captions. Only `CAPTION` is read."""

MASKS = ("-masklabel", ".mask")
"""What a mask has between the name of its picture and its own ending, in lower case. OneTrainer's is the first."""

_ANY_CASE = sys.platform in ("win32", "darwin")  # there `A.txt` is `a.txt`
NAMED = 3  # files that a sentence names before it counts the rest


@dataclass(frozen=True)
class Skipped:
    """A picture that is left out, and why."""

    path: Path
    reason: Sentence


@dataclass(frozen=True)
class Misnamed:
    """A file that is meant as the caption of `picture` and is not read under its `name`.

    `wanted`: the name that would be read; empty where that name is taken.
    """

    name: str
    picture: str
    wanted: str


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts 'b2' before 'B10'; the name itself settles ties."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def concept_of(name: str) -> tuple[float, str] | None:
    """A folder called `N_concept` as (N, concept), N a number such as 10 or 0.5; None for other names."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)_(.*)", name, re.DOTALL)
    return (as_number(match[1]), match[2].strip()) if match else None


def as_number(given: str | float) -> float:
    """A number as it is written in names and files: 10 and 10.0 are one, and told as 10."""
    value = float(given)
    return int(value) if value.is_integer() else value


class Names:
    """The files of one folder, found again under every name that means the same file."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._alike: dict[tuple[str, str], list[str]] = {}
        for name in self._names:
            self._alike.setdefault(_alike(name), []).append(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def like(self, wanted: str) -> str | None:
        """The file that counts as `wanted`: that name itself, the same with an ending in other letters (.TXT), or the
        same in another Unicode form, in this order."""
        if wanted in self._names:
            return wanted
        found = self._alike.get(_alike(wanted), [])
        stem = os.path.splitext(wanted)[0]
        return next((name for name in found if os.path.splitext(name)[0] == stem), found[0] if found else None)


def file_like(wanted: Path) -> Path | None:
    """The file that counts as `wanted`, as `Names.like` finds it, without a look at what else lies in the folder: for
    who asks for one file of many, again and again."""
    stem, ending = os.path.splitext(wanted.name)
    endings = ["".join(letters) for letters in itertools.product(*({one.lower(), one.upper()} for one in ending))]
    others = {unicodedata.normalize(form, stem) for form in ("NFC", "NFD")} - {stem}
    named = [wanted.name]
    for stems in ([stem], others):
        named += sorted((f"{one}{end}" for one in stems for end in endings), key=natural_key)
    paths = (wanted.with_name(name) for name in named)
    return next((path for path in paths if os.path.lexists(path) and not os.path.isdir(path)), None)


def _alike(name: str) -> tuple[str, str]:
    stem, ending = os.path.splitext(name)
    stem = stem if stem.isascii() else unicodedata.normalize("NFC", stem)
    return (stem.casefold() if _ANY_CASE else stem), ending.lower()


def _stem(name: str) -> str:
    """The whole name as one that means the same, whatever is behind its last dot."""
    return _alike(f"{name}.")[0]


def _owner(mask: str) -> str | None:
    """What a mask's pictures are called, up to their endings; None for a file that is not named as a mask."""
    stem = os.path.splitext(mask)[0]
    mark = next((one for one in MASKS if stem.lower().endswith(one) and len(stem) > len(one)), "")
    return stem[: -len(mark)] if mark else None


def caption_name(picture: str) -> str:
    """What the caption of a picture is called where there is none yet."""
    return os.path.splitext(picture)[0] + CAPTION


@dataclass(frozen=True)
class Listing:
    """One folder's visible entries, all in natural order.

    `captions`: {picture: the file that is its caption}, without pictures that have none. `unread`: pictures in formats
    that are not read here. `unnamed`: entries whose names are not text in the system's encoding, as they are shown.
    """

    folder: Path
    pictures: tuple[str, ...]
    files: Names
    captions: Mapping[str, str]
    folders: tuple[str, ...]
    unread: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    marked: Mapping[str, str] = field(default_factory=dict)

    def mask(self, picture: str) -> str | None:
        """The file beside it that is named as its mask."""
        return self.marked.get(_alike(picture)[0]) or self.marked.get(_stem(picture))

    def lone_masks(self) -> list[str]:
        """Files that are named as masks, and of no picture here."""
        used = {self.mask(picture) for picture in self.pictures} if self.marked else set()
        return [name for name in self.marked.values() if name not in used]

    def pictures_of(self, caption: str) -> tuple[str, ...]:
        """The pictures that a caption file belongs to; several where they differ in the ending only."""
        return tuple(picture for picture, name in self.captions.items() if name == caption)

    def partner(self, picture: str) -> str | None:
        """The picture here that makes a pair with one of another folder: of the same name, or else of the same name
        stored otherwise."""
        if picture in self.pictures:
            return picture
        stem = _alike(picture)[0]
        return next((name for name in self.pictures if _alike(name)[0] == stem), None)

    def texts(self) -> list[str]:
        """Every file that has a caption's ending, whether a picture has it or not."""
        return [name for name in self.files if name.lower().endswith(CAPTION)]

    def misnamed(self) -> list[Misnamed]:
        """The files that are meant as captions and are not read."""
        used, taken = set(self.captions.values()), set[str]()
        found = []
        by_name = {_folded(name): name for name in reversed(self.pictures)}
        by_stem = {_folded(os.path.splitext(name)[0]): name for name in reversed(self.pictures)}
        for name in self.files:
            stem, ending = os.path.splitext(name)
            if ending.lower() not in CAPTION_LIKE or name in used:
                continue
            inner, more = os.path.splitext(stem)
            bare = inner if more.lower() in CAPTION_LIKE else stem
            picture = by_name.get(_folded(stem)) or by_stem.get(_folded(bare))
            if picture is None:
                continue
            wanted = caption_name(picture)
            free = picture not in self.captions and wanted not in taken
            taken.add(wanted)
            found.append(Misnamed(name, picture, wanted if free else ""))
        return found


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem.strip()).casefold()


def list_folder(folder: Path) -> Listing:
    """Read one folder. Raises `DatasetError` where the system does not allow it."""
    try:
        with os.scandir(folder) as entries:
            visible = {entry.name: _kind(entry) for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        raise DatasetError("folder.unreadable", folder=folder, reason=error) from error
    unnamed = sorted(shown(name) for name in visible if not _is_text(name))
    names = sorted((name for name in visible if _is_text(name)), key=natural_key)
    files = [name for name in names if visible[name] == "file"]
    endings = {name: os.path.splitext(name)[1].lower() for name in files}
    named_as = {name: _owner(name) for name in files if endings[name] in EXTENSIONS}
    pictures = tuple(name for name, owner in named_as.items() if owner is None)
    marked = {_stem(owner): name for name, owner in reversed(named_as.items()) if owner is not None}
    known = Names(files)
    captions = {name: found for name in pictures if (found := known.like(caption_name(name))) is not None}
    unread = tuple(name for name in files if endings[name] in UNREAD or _REMADE.fullmatch(endings[name]))
    folders = tuple(name for name in names if visible[name] == "folder")
    return Listing(folder, pictures, known, captions, folders, unread, tuple(unnamed), marked)


_REMADE = re.compile(r"\.(png|jpe?g|webp)[^a-z0-9].*")  # .jpg_large, .png~, .jpg!d: what downloaders leave behind


def _kind(entry: os.DirEntry[str]) -> str:
    """'folder', 'file' (also a link to nothing, which is told of when it is opened), or 'other': a pipe, a device, or a
    link to a folder in which it lies itself, to be passed by."""
    try:
        if entry.is_dir():
            return "other" if entry.is_symlink() and _leads_back(entry.path) else "folder"
        if entry.is_file():
            return "file"
        status = os.stat(entry.path)
    except OSError:
        return "file"
    return "file" if stat.S_ISREG(status.st_mode) else "other"


def _leads_back(link: str) -> bool:
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return target == place or place.startswith(target.rstrip(os.sep) + os.sep)


def _is_text(name: str) -> bool:
    """Whether a name can be shown, stored and written: on Linux it may be any bytes."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def shown(name: str) -> str:
    """A name as it can be printed, whatever bytes it is made of."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def walk(root: Path, *, recursive: bool = True) -> Iterator[Listing | Skipped]:
    """A folder and, where wanted, what lies below it, in natural order; a subfolder that cannot be read as `Skipped`.

    Every folder is listed once: a link into the tree that is walked anyway is passed by. Raises `DatasetError` where
    `root` itself cannot be read.
    """
    top = list_folder(root)
    real = os.path.realpath(root)
    yield from _walk(top, real, {real}, recursive)


def _walk(listing: Listing, top: str, seen: set[str], recursive: bool) -> Iterator[Listing | Skipped]:
    yield listing
    for name in listing.folders if recursive else ():
        path = listing.folder / name
        real = os.path.realpath(path)
        if real in seen or (path.is_symlink() and _is_visible_below(real, top)):
            continue
        seen.add(real)
        try:
            inner = list_folder(path)
        except DatasetError as error:
            cause = error.__cause__
            yield Skipped(path, Sentence("system.says", reason=cause or error))
            continue
        yield from _walk(inner, top, seen, recursive)


def _is_visible_below(path: str, top: str) -> bool:
    below = os.path.relpath(path, top) if path.startswith(top.rstrip(os.sep) + os.sep) else "."
    return not any(part.startswith(".") for part in below.split(os.sep))


def trained_pictures(root: Path) -> list[Path]:
    """The pictures of a folder and of its subfolders called `N_concept`, N above 0. Raises `DatasetError`."""
    top = list_folder(root)
    inner = [list_folder(root / name) for name in top.folders if (concept_of(name) or (0, ""))[0]]
    return [listing.folder / name for listing in (top, *inner) for name in listing.pictures]


def checked_folder(folder: Path | str) -> Path:
    """The absolute path of a folder of pictures as somebody has written it. Raises `DatasetError`.

    Quotes around it, which Windows puts there when a path is copied, and white space do not count.
    """
    text = str(folder).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and not os.path.exists(text):
        text = text[1:-1].strip()
    if text in ("", "."):  # what an empty field becomes
        raise DatasetError("folder.none")
    if "\0" in text:
        raise DatasetError("folder.no_path", text=text)
    try:
        root = Path(os.path.abspath(Path(text).expanduser()))
        exists, is_folder = os.path.lexists(root), root.is_dir()
    except (OSError, RuntimeError):  # a name that the system cannot take, `~` of a user who does not exist
        raise DatasetError("folder.no_path", text=text) from None
    if not exists:
        raise DatasetError("folder.missing", folder=root)
    if not is_folder:
        raise DatasetError("folder.a_file", folder=root)
    return root


@dataclass
class PassedBy:
    """What lies in a set and is not read, collected folder by folder. `root`: what paths are told from."""

    root: Path
    unread: list[str] = field(default_factory=list)
    misnamed: list[Misnamed] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    lone_masks: list[str] = field(default_factory=list)

    def add(self, listing: Listing) -> None:
        """Take up a folder; paths are relative to `root`, with `/`."""
        below = os.path.relpath(listing.folder, self.root).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        self.unread += [prefix + name for name in listing.unread]
        self.unnamed += [prefix + name for name in listing.unnamed]
        self.lone_masks += [prefix + name for name in listing.lone_masks()]
        self.misnamed += [
            Misnamed(prefix + one.name, prefix + one.picture, one.wanted and prefix + one.wanted)
            for one in listing.misnamed()
        ]

    def notes(self, own: Iterable[str] = ()) -> list[Sentence]:
        """A sentence for each sort. `own`: names that are captions here all the same, by a template of the user's."""
        said = []
        if self.unread:
            one, formats = len(self.unread) == 1, counted_endings(self.unread)
            said.append(
                Sentence("passed_by.picture" if one else "passed_by.pictures", count=len(self.unread), formats=formats)
            )
        meant = set(own)
        mended = [one.name for one in self.misnamed if one.wanted and one.name not in meant]
        if mended:
            one = len(mended) == 1
            said.append(
                Sentence("passed_by.caption" if one else "passed_by.captions", count=len(mended), names=named(mended))
            )
        besides = [one.name for one in self.misnamed if not one.wanted and one.name not in meant]
        if besides:
            one = len(besides) == 1
            said.append(
                Sentence("passed_by.second" if one else "passed_by.seconds", count=len(besides), names=named(besides))
            )
        if self.lone_masks:
            count, names = len(self.lone_masks), named(self.lone_masks)
            said.append(Sentence("passed_by.mask" if count == 1 else "passed_by.masks", count=count, names=names))
        if self.unnamed:
            one, names = len(self.unnamed) == 1, named(self.unnamed)
            said.append(
                Sentence("passed_by.no_text" if one else "passed_by.no_texts", count=len(self.unnamed), names=names)
            )
        return said


def counted_endings(names: Iterable[str]) -> str:
    """'2 .heic, 1 .jxl'."""
    counts: dict[str, int] = {}
    for name in names:
        ending = os.path.splitext(name)[1].lower()
        counts[ending] = counts.get(ending, 0) + 1
    return ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def named(names: Sequence[str]) -> Any:
    """The first few names and how many more there are, for a sentence."""
    return few(names, NAMED)
