"""What a folder of pictures holds: pictures, captions, repeats, and what is wrong with them. Nothing is decoded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lib_trainer.dataset.pictures import PictureError, read_size
from lib_trainer.errors import DatasetError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""What counts as a picture, in lower case. The file's content decides how it is read."""

NAME = "[name]"
MANY_REPEATS = 1000  # the most that the form allows; more in a folder's name is rather a year


@dataclass(frozen=True)
class Sample:
    """A picture with its caption as it is trained, shown `repeats` times an epoch.

    `concept`: the rest of an `N_concept` subfolder's name, empty for pictures outside of one. `size`: (width, height)
    in pixels after EXIF orientation. `role`: what is to be learned, a class picture that is to stay as it is, or the
    picture before a difference.
    """

    path: Path
    caption: str
    repeats: int
    concept: str
    size: tuple[int, int]
    role: Literal["learn", "class", "before"] = "learn"


@dataclass(frozen=True)
class Skipped:
    """A picture that is left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Scan:
    """What is trained (in a fixed, natural order), what is left out, and `notes`: sentences for the user."""

    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """{folder's name: {tag: count}} as sd-scripts writes `ss_tag_frequency`.

        Captions are split at commas, tags are lower-cased, and every picture counts once: repeats do not multiply.
        """
        result: dict[str, dict[str, int]] = {}
        for sample in self.samples:
            counts = result.setdefault(sample.path.parent.name, {})
            for tag in (part.strip().lower() for part in sample.caption.split(",")):
                if tag:
                    counts[tag] = counts.get(tag, 0) + 1
        return result

    def dataset_dirs(self) -> dict[str, dict[str, int]]:
        """{folder's name: {'n_repeats': …, 'img_count': …}} as sd-scripts writes `ss_dataset_dirs`."""
        result: dict[str, dict[str, int]] = {}
        for sample in self.samples:
            entry = result.setdefault(sample.path.parent.name, {"n_repeats": sample.repeats, "img_count": 0})
            entry["img_count"] += 1
        return result


def scan_folder(folder: Path, *, trigger_word: str, repeats: int) -> Scan:
    """Read a folder's pictures (headers only) and captions.

    Pictures lie in the folder itself (`repeats` each) or in subfolders called `N_concept` (N each); no deeper. Captions
    are .txt files of the same name, in UTF-8. `trigger_word` goes in front of every caption that lacks it and is the
    caption where there is none; without it, pictures of an `N_concept` folder fall back on the concept.

    Raises `DatasetError` for a folder that is missing, unreadable or without a usable picture, for a caption that
    cannot be read, and where neither a caption nor a trigger word nor a concept says what to learn.
    """
    root = _checked_folder(folder)
    reader = _Reader(" ".join(trigger_word.split()))
    top = _Listing.of(root)
    reader.add(top, repeats, "")
    for name in top.folders:
        listing = _Listing.of(root / name)
        match = re.fullmatch(r"(\d+)_(.*)", name)
        if match and int(match[1]) > 0:
            if int(match[1]) > MANY_REPEATS:
                reader.notes.append(f"The name of '{root / name}' asks for {match[1]} repeats of each picture.")
            reader.add(listing, int(match[1]), match[2].strip())
            reader.mention_unread(_Listing.of(listing.folder / inner) for inner in listing.folders)
        else:
            reader.mention_unread([listing])
    if re.fullmatch(r"[1-9]\d*_.*", root.name) and top.pictures:
        reader.notes.append(
            f"The number in '{root.name}' is not read as repeats: that holds for subfolders of the folder you name."
        )
    return reader.finish(root)


def listed(skipped: Sequence[Skipped], most: int = 3) -> str:
    """The first few for a message: 'a.png (the file is empty), b.png (…) and 4 more'."""
    text = ", ".join(f"{item.path.name} ({item.reason})" for item in skipped[:most])
    return text + (f" and {len(skipped) - most} more" if len(skipped) > most else "")


def with_trigger(caption: str, trigger_word: str) -> str:
    """`caption` with the trigger word in front, unless it has it as a whole tag or word in any case of letters.

    `[name]` stands for it, as in the WebUI's templates, and is filled in when a step is made (`CaptionMaker`).
    """
    if (
        not trigger_word
        or NAME in caption
        or re.search(rf"(?<![\w-]){re.escape(trigger_word)}(?![\w-])", caption, re.IGNORECASE)
    ):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def read_caption(path: Path) -> str:
    """A caption on one line. Raises `DatasetError` where the file cannot be read or is not UTF-8.

    A line break becomes a comma, or a space after punctuation: in caption files, a line of its own is a tag of its own.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"The caption '{path}' is not UTF-8 text: save it again with that encoding.") from None
    except OSError as error:
        raise DatasetError(
            f"The caption '{path}' cannot be read ({error.strerror or error}): check its permissions or remove it."
        ) from error
    result = ""
    for line in (" ".join(line.split()) for line in text.splitlines()):
        if line and result:
            result += " " if result[-1] in ",.;:!?" else ", "
        result += line
    return result


def without_keep_mark(caption: str) -> str:
    """sd-scripts' keep-token separator `|||` as a comma: tags are not shuffled here, and it is not trained as text."""
    if "|||" not in caption:
        return caption
    return re.sub(r"\s*,?\s*\|\|\|\s*,?\s*", ", ", caption).strip(", ")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts 'b2' before 'B10'; the name itself settles ties."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


@dataclass(frozen=True)
class _Listing:
    """A folder's visible entries in natural order. `captions`: {picture's name without extension: caption's name}."""

    folder: Path
    pictures: tuple[str, ...]
    captions: dict[str, str]
    folders: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> _Listing:
        try:
            with os.scandir(folder) as entries:
                visible = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
        except OSError as error:
            raise DatasetError(
                f"The folder '{folder}' cannot be read ({error.strerror or error}): check its permissions."
            ) from error
        names = sorted(visible, key=natural_key)
        files = [(name, *os.path.splitext(name)) for name in names if not visible[name]]
        return cls(
            folder,
            tuple(name for name, _, extension in files if extension.lower() in EXTENSIONS),
            {stem: name for name, stem, extension in files if extension.lower() == ".txt"},
            tuple(name for name in names if visible[name]),
        )


@dataclass
class _Reader:
    trigger_word: str
    samples: list[Sample] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)

    def add(self, listing: _Listing, repeats: int, concept: str) -> None:
        for name in listing.pictures:
            path = listing.folder / name
            try:
                size = read_size(path)
            except PictureError as error:
                self.skipped.append(Skipped(path, error.reason))
                continue
            caption_name = listing.captions.get(os.path.splitext(name)[0])
            caption = without_keep_mark(read_caption(listing.folder / caption_name)) if caption_name else ""
            caption = with_trigger(caption, self.trigger_word) or concept
            self.samples.append(Sample(path, caption, repeats, concept, size))

    def mention_unread(self, listings: Iterable[_Listing]) -> None:
        for listing in listings:
            if listing.pictures:
                self.unread.append(listing.folder)
                self.notes.append(
                    f"The pictures in '{listing.folder}' are not read: only the folder you name and its subfolders "
                    "called N_concept are, with N of at least 1."
                )

    def finish(self, root: Path) -> Scan:
        if not self.samples:
            raise DatasetError(self._why_nothing(root))
        empty = sum(not sample.caption for sample in self.samples)
        if empty == len(self.samples):
            raise DatasetError(
                f"None of the {empty} pictures in '{root}' has a caption: give a trigger word, or put a .txt file of "
                "the same name beside each picture."
            )
        if empty:
            self.notes.append(
                f"{empty} of {len(self.samples)} pictures have no caption and are trained with an empty one; a trigger "
                "word would be put there."
            )
        return Scan(tuple(self.samples), tuple(self.skipped), tuple(self.notes))

    def _why_nothing(self, root: Path) -> str:
        if self.skipped:
            which = listed(self.skipped)
            return f"None of the {len(self.skipped)} pictures in '{root}' can be read: {which}; replace them."
        if self.unread:
            name = self.unread[0].name
            return (
                f"'{root}' holds no pictures itself, and its subfolder '{name}' is not called N_concept: give the path "
                f"of '{name}' instead, or rename it '10_{name}' for 10 repeats."
            )
        return f"'{root}' holds no pictures: put {', '.join(EXTENSIONS)} files there or in subfolders called N_concept."


def _checked_folder(folder: Path) -> Path:
    if folder == Path():  # what an empty field becomes
        raise DatasetError("No folder of pictures is given: write its full path.")
    root = Path(os.path.abspath(folder.expanduser()))
    if not root.exists():
        raise DatasetError(f"The folder of pictures '{root}' does not exist: check its path.")
    if not root.is_dir():
        raise DatasetError(f"'{root}' is not a folder: give the folder that holds the pictures.")
    return root
