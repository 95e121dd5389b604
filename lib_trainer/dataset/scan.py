"""What a folder of pictures holds: pictures, captions, repeats, and what is wrong with them. Nothing is decoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lib_trainer.captions.document import KEEP, Caption, read_document
from lib_trainer.captions.foreign import foreign_notes
from lib_trainer.captions.tags import either_spelling
from lib_trainer.dataset.caption_files import CaptionRules, Chances, unless_alike
from lib_trainer.dataset.folder import (
    EXTENSIONS,
    Listing,
    PassedBy,
    Skipped,
    as_number,
    checked_folder,
    concept_of,
    counted_endings,
    list_folder,
    named,
)
from lib_trainer.dataset.masks import Mask, MaskFinder, Masks, told_of_masks
from lib_trainer.dataset.pictures import PictureError, read_header
from lib_trainer.dataset.weights import WEIGHTS, Weights, read_weights
from lib_trainer.refusals import DatasetError, Joined, Sentence, few

NAME = "[name]"
NO_MASKS = Masks()
MANY_REPEATS = 1000  # the most that the form allows; more in a folder's name is rather a year


@dataclass(frozen=True)
class Sample:
    """A picture with its caption as it is trained, shown `repeats` times an epoch: 0.5 is every second one.

    `concept`: the rest of an `N_concept` subfolder's name, empty for pictures outside of one. `size`: (width, height)
    in pixels after EXIF orientation. `role`: what is to be learned, a class picture that is to stay as it is, or the
    picture before a difference. `others`: captions of which any may stand in the place of `caption`, drawn anew at
    each step, with `chances` in the order of `captions`; all alike where it is empty. `written`: the captions as they
    are in the file, without a trigger word that was put in front. `mask`: which part of it is to be learned, if not all
    of it. `weight`: the factor on its loss. `seconds`: what the second text encoder is told instead, drawn likewise.
    """

    path: Path
    caption: str
    repeats: float
    concept: str
    size: tuple[int, int]
    role: Literal["learn", "class", "before"] = "learn"
    others: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    mask: Mask | None = None
    weight: float = 1.0
    chances: tuple[float, ...] = ()
    seconds: tuple[str, ...] = ()
    second_chances: tuple[float, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """Every caption that the picture may be shown with."""
        return (self.caption, *self.others)


@dataclass(frozen=True)
class Scan:
    """What is trained (in a fixed, natural order), what is left out, and `notes`: sentences for the user.

    `lone_masks`: masks that are of no picture, relative to the set where they lie in it.
    """

    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[Sentence, ...] = ()
    lone_masks: tuple[str, ...] = ()

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """{folder's name: {tag: count}} as sd-scripts writes `ss_tag_frequency`.

        Captions are split at commas, tags are lower-cased, and every picture counts once: repeats do not multiply.
        A trigger word counts where somebody has written it.
        """
        result: dict[str, dict[str, int]] = {}
        for sample in self.samples:
            counts = result.setdefault(sample.path.parent.name, {})
            tags = [part.strip() for caption in sample.written for part in caption.lower().split(",")]
            for tag in dict.fromkeys(tags) if sample.others else tags:
                if tag:
                    counts[tag] = counts.get(tag, 0) + 1
        return result

    def dataset_dirs(self) -> dict[str, dict[str, float]]:
        """{folder's name: {'n_repeats': …, 'img_count': …}} as sd-scripts writes `ss_dataset_dirs`.

        Where pictures of a folder are repeated differently, the first one's number is told.
        """
        result: dict[str, dict[str, float]] = {}
        for sample in self.samples:
            first = {"n_repeats": as_number(sample.repeats), "img_count": 0}  # readers want a whole number as one
            entry = result.setdefault(sample.path.parent.name, first)
            entry["img_count"] += 1
        return result


def scan_folder(
    folder: Path,
    *,
    trigger_word: str,
    repeats: float,
    captions: CaptionRules = CaptionRules(),  # noqa: B008 - frozen
    masks: Masks = NO_MASKS,
) -> Scan:
    """Read a folder's pictures (headers only) and captions.

    Pictures lie in the folder itself (`repeats` each) or in subfolders called `N_concept` (N each); no deeper. A file
    `weights.csv` among them says otherwise of single ones (`read_weights`). Captions are files of the same name, in
    UTF-8; `captions` says which, and what is made of them. `trigger_word` goes in front of every caption that lacks it
    and is the caption where there is none; without it, pictures of an `N_concept` folder fall back on the concept.

    `masks` says where the pictures' masks are.

    Raises `DatasetError` for a folder that is missing, unreadable or without a usable picture, for a caption or weights
    that cannot be read, for a mask that cannot be one of its picture, and where neither a caption nor a trigger word
    nor a concept says what to learn.
    """
    root = checked_folder(folder)
    reader = _Reader(" ".join(trigger_word.split()), captions, PassedBy(root), MaskFinder(masks))
    top = list_folder(root)
    reader.add(top, repeats, "")
    for name in top.folders:
        listing = list_folder(root / name)
        repeated, concept = concept_of(name) or (0, "")
        if repeated:
            if repeated > MANY_REPEATS:
                reader.notes.append(Sentence("scan.many_repeats", folder=root / name, repeats=repeated))
            reader.add(listing, repeated, concept)
            reader.mention_unread(list_folder(listing.folder / inner) for inner in listing.folders)
        else:
            reader.mention_unread([listing])
    if (concept_of(root.name) or (0, ""))[0] and top.pictures:
        reader.notes.append(Sentence("scan.number_at_the_top", name=root.name))
    return reader.finish(root)


def listed(skipped: Sequence[Skipped]) -> Any:
    """The first few for a sentence: 'a.png (the file is empty), b.png (…) and 4 more'."""
    return few([Sentence("pictures.with_reason", name=one.path.name, reason=one.reason) for one in skipped])


def with_trigger(caption: str, trigger_word: str) -> str:
    """`caption` with the trigger word in front, unless it has it as a whole tag or word in any case of letters, with or
    without backslashes before its brackets.

    `[name]` stands for it, as in the WebUI's templates, and is filled in when a step is made (`CaptionMaker`).
    """
    if not trigger_word or NAME in caption or is_told(trigger_word, caption):
        return caption
    return f"{trigger_word}, {caption}" if caption else trigger_word


def is_told(word: str, caption: str) -> bool:
    """Whether a caption has a word or several as a whole tag or word, in any case of letters, with or without
    backslashes before its brackets."""
    return re.search(rf"(?<![\w-]){either_spelling(word)}(?![\w-])", caption, re.IGNORECASE) is not None


@dataclass
class _Reader:
    trigger_word: str
    captions: CaptionRules
    passed_by: PassedBy
    masks: MaskFinder
    samples: list[Sample] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[Sentence] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    animated: list[str] = field(default_factory=list)

    def add(self, listing: Listing, repeats: float, concept: str) -> None:
        self.passed_by.add(listing)
        weights = self._weights(listing)
        for name in listing.pictures:
            path = listing.folder / name
            try:
                header = read_header(path)
            except PictureError as error:
                self.skipped.append(Skipped(path, error.reason))
                continue
            shown, weight = weights.repeats(name, repeats), weights.weight(name)
            mask = self.masks.find(listing, name, header.size, header.transparent)
            sample = Sample(path, "", shown, concept, header.size, mask=mask, weight=weight)
            self.samples.append(self._captioned(sample, *self.captions.of(listing, name, self._reader(listing))))
            if header.animated:
                self.animated.append(path.relative_to(self.passed_by.root).as_posix())

    def _weights(self, listing: Listing) -> Weights:
        name = listing.files.like(WEIGHTS)
        path = listing.folder / (name or WEIGHTS)
        if not listing.pictures or name is None:
            return Weights(path)
        weights = read_weights(path)
        if idle := weights.idle(listing.pictures):
            self.notes.append(Sentence("picture_weights.idle", path=path, names=named(idle)))
        return weights

    def _captioned(self, sample: Sample, texts: Chances, seconds: Chances) -> Sample:
        concept, stand_in = sample.concept, "" if self.trigger_word else sample.concept
        captions, others = (
            tuple(with_trigger(text, self.trigger_word) or concept for text, _ in own) for own in (texts, seconds)
        )
        plain = (text.replace(KEEP, ",") for text, _ in texts)
        return replace(
            sample,
            caption=captions[0],
            others=captions[1:],
            written=tuple(text.replace(NAME, self.trigger_word or NAME) or stand_in for text in plain),
            chances=unless_alike([chance for _, chance in texts]),
            seconds=others,
            second_chances=unless_alike([chance for _, chance in seconds]),
        )

    def _reader(self, listing: Listing) -> Callable[[str], Caption]:
        def read(name: str) -> Caption:
            caption = read_document(listing.folder / name)
            place = (listing.folder / name).relative_to(self.passed_by.root).as_posix()
            self.texts[place] = caption.text
            return caption

        return read

    def mention_unread(self, listings: Iterable[Listing]) -> None:
        for listing in listings:
            if listing.pictures:
                self.unread.append(listing.folder)
                self.notes.append(Sentence("scan.not_read", folder=listing.folder))

    def finish(self, root: Path) -> Scan:
        if not self.samples:
            raise self._nothing(root)
        empty = sum(not sample.caption for sample in self.samples)
        if empty == len(self.samples):
            notes = self.passed_by.notes(self.texts)
            if notes:
                raise DatasetError("folder.no_captions_but", count=empty, folder=root, notes=Joined(notes))
            raise DatasetError("folder.no_captions", count=empty, folder=root)
        if empty:
            self.notes.append(Sentence("scan.without_caption", count=empty, all=len(self.samples)))
        notes = [*self.passed_by.notes(self.texts), *self.notes, *foreign_notes(self.texts)]
        if self.animated:
            count = len(self.animated)
            notes.append(Sentence("scan.animations", count=count, names=named(self.animated)))
        lone = [self._shown(path) for path in self.masks.lone()]
        without = [self._shown(one.path) for one in self.samples if one.mask is None]
        notes += told_of_masks(self.masks.masks, len(self.samples), without, lone)
        return Scan(tuple(self.samples), tuple(self.skipped), tuple(notes), (*self.passed_by.lone_masks, *lone))

    def _shown(self, path: Path) -> str:
        root = self.passed_by.root
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def _nothing(self, root: Path) -> DatasetError:
        if self.skipped:
            pictures = listed(self.skipped)
            return DatasetError("folder.none_readable", count=len(self.skipped), folder=root, pictures=pictures)
        if self.unread:
            return DatasetError("folder.pictures_below", folder=root, name=self.unread[0].name)
        if self.passed_by.unread:
            return DatasetError("folder.formats", folder=root, formats=counted_endings(self.passed_by.unread))
        return DatasetError("folder.no_pictures", folder=root, endings=EXTENSIONS)
