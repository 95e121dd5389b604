"""A report on a set: what it holds, in numbers to draw charts from, and what is wrong, with the way to mend it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lib_trainer.captions.document import Caption
from lib_trainer.captions.findings import TagFinding, all_findings
from lib_trainer.captions.foreign import has_foreign_commas, has_settings
from lib_trainer.captions.knowledge import Knowledge
from lib_trainer.captions.tokens import LIMITS, TokenCounter
from lib_trainer.dataset.buckets import Buckets, Size, kept_share
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.facts import PictureFacts, duplicates, near_duplicates
from lib_trainer.dataset.folder import as_number, counted_endings
from lib_trainer.dataset.library import Library
from lib_trainer.refusals import Field, Sentence, few

BUCKET_STEP, BUCKET_LOW, BUCKET_HIGH = 64, 256, 2048
"""A job's own defaults, in pixels."""
OUTLIER = 2.0
"""A side this many times the other is cropped hard by any training size near a square."""
BALANCE = 3.0
"""One concept's pictures times repeats over another's, from which on it is said."""


@dataclass(frozen=True)
class Finding:
    """`kind`: the word of the filter `trouble:`; `pictures`: keys; `paths`: caption files without a picture.

    `remedy`: what the page offers: 'trash', 'keep-one', 'convert', 'caption', 'trash-orphans', 'rename', 'edit',
    'implied', the name of an edit that needs nothing else ('prompt-only', 'plain-commas'), or ''.
    """

    kind: str
    level: str
    title: Sentence
    text: Sentence
    pictures: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    remedy: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Concept:
    """A folder's weight in an epoch: it holds `pictures`, and they are `shown` so often altogether."""

    folder: str
    pictures: int
    shown: float


@dataclass(frozen=True)
class Bucket:
    """How many pictures there are in an aspect bucket, and which share of their pixels is cropped away in the mean."""

    pictures: int
    cropped: float


@dataclass(frozen=True)
class Report:
    """`checked` of `total` pictures were decoded. `sizes`: {(width, height): pictures}. `buckets`: what
    each bucket (width, height) would hold."""

    total: int
    checked: int
    findings: tuple[Finding, ...]
    sizes: Mapping[tuple[int, int], int]
    buckets: Mapping[Size, Bucket]
    tokens: tuple[int, ...]
    tags: tuple[int, ...]
    concepts: tuple[Concept, ...]

    def troubles(self) -> dict[str, set[str]]:
        """{picture: kinds}."""
        result: dict[str, set[str]] = {}
        for finding in self.findings:
            for key in finding.pictures:
                result.setdefault(key, set()).add(finding.kind)
        return result


def _buckets(sizes: Iterable[Size], width: int, height: int) -> dict[Size, Bucket]:
    """Where pictures of these sizes are trained with aspect buckets, as far as the check knows their settings."""
    made = Buckets(((width, height),), BUCKET_STEP, min(BUCKET_LOW, width, height), max(BUCKET_HIGH, width, height))
    cropped: dict[Size, list[float]] = {}
    for size in sizes:
        (bucket,) = made.sizes_for(size)
        cropped.setdefault(bucket, []).append(1.0 - kept_share(size, bucket))
    return {size: Bucket(len(shares), statistics.fmean(shares)) for size, shares in cropped.items()}


def make_report(
    editor: Editor,
    facts: Mapping[str, PictureFacts],
    count_tokens: TokenCounter,
    knowledge: Knowledge,
    *,
    width: int = 512,
    height: int = 512,
    mirrored: bool = False,
) -> Report:
    """Put together what is known. `width`, `height`: training size in pixels; `mirrored`: training flips pictures."""
    captions = editor.captions()
    tokens = {key: count_tokens(caption) for key, caption in captions.items()}
    sizes = {key: one.size for key, one in facts.items() if one.size}
    concepts = {key: item.concept or item.folder for key, item in editor.items.items()}
    findings = _of_pictures(facts, width, height)
    findings += _of_files(editor, captions) + _of_names(editor.library) + _of_texts(captions)
    findings += _of_lengths(tokens)
    findings += _of_balance(_concepts(editor))
    findings += [_of_tags(one) for one in all_findings(captions, concepts, knowledge, mirrored=mirrored)]
    return Report(
        total=len(captions),
        checked=len(facts),
        findings=tuple(finding for finding in findings if finding is not None),
        sizes=Counter(sizes.values()),
        buckets=_buckets(sizes.values(), width, height),
        tokens=tuple(tokens.values()),
        tags=tuple(len(caption.tags) for caption in captions.values()),
        concepts=tuple(_concepts(editor)),
    )


def _of_pictures(facts: Mapping[str, PictureFacts], width: int, height: int) -> list[Finding | None]:
    sized = {key: one.size for key, one in facts.items() if one.size}
    corrupt = [key for key, one in facts.items() if one.reason]
    reasons = dict.fromkeys(facts[key].reason for key in corrupt[:20])
    same = duplicates(dict(facts))
    alike = near_duplicates(dict(facts))
    return [
        _found(
            "corrupt", "error", Sentence("finding.corrupt"), Sentence("finding.corrupt_text", reasons=reasons), corrupt,
            "trash",
        ),
        _found(
            "small", "warning", Sentence("finding.small"),
            Sentence("finding.small_text", width=width, height=height),
            [key for key, size in sized.items() if size[0] < width or size[1] < height], "trash",
        ),
        _found(
            "aspect", "warning", Sentence("finding.aspect"),
            Sentence("finding.aspect_text"),
            [key for key, size in sized.items() if max(size) > OUTLIER * min(size)], "trash",
        ),
        _found(
            "duplicate", "warning", Sentence("finding.duplicate"), Sentence("finding.duplicate_text"),
            [key for group in same for key in group], "keep-one",
        ),
        _found(
            "near-duplicate", "warning", Sentence("finding.near_duplicate"),
            Sentence("finding.near_duplicate_text"),
            [key for group in alike for key in group], "keep-one",
        ),
        _found(
            "rotated", "info", Sentence("finding.rotated"), Sentence("finding.rotated_text"),
            [key for key, one in facts.items() if one.turned],
        ),
        _found(
            "alpha", "info", Sentence("finding.alpha"), Sentence("finding.alpha_text"),
            [key for key, one in facts.items() if one.transparent],
        ),
        _found(
            "animated", "info", Sentence("finding.animated"), Sentence("finding.animated_text"),
            [key for key, one in facts.items() if one.animated],
        ),
    ]  # fmt: skip


def _of_files(editor: Editor, captions: Mapping[str, Caption]) -> list[Finding | None]:
    unreadable = editor.unreadable.keys()
    bad = dict.fromkeys(key for key, item in editor.items.items() if item.caption in unreadable)
    missing = dict.fromkeys(key for key in captions if not editor.has_file(key) and key not in bad)
    untrained = [key for key, item in editor.items.items() if not item.repeats]
    shared = [key for key, item in editor.items.items() if len(editor.owners(item.caption)) > 1]
    orphans = editor.library.orphans
    return [
        _found(
            "unreadable", "error", Sentence("finding.unreadable"),
            Sentence("finding.unreadable_text"), [*bad], "convert",
        ),
        _found(
            "no-caption", "warning", Sentence("finding.no_caption"),
            Sentence("finding.no_caption_text"), [*missing], "caption",
        ),
        _found(
            "empty", "warning", Sentence("finding.empty"), Sentence("finding.empty_text"),
            [key for key, one in captions.items() if not one.tags and key not in missing and key not in bad], "caption",
        ),
        _found(
            "untrained", "warning", Sentence("finding.untrained"),
            Sentence("finding.untrained_text"), untrained,
        ),
        _found(
            "shared", "info", Sentence("finding.shared"), Sentence("finding.shared_text"),
            shared,
        ),
        Finding(
            "orphan", "warning", Sentence("finding.orphan"),
            Sentence("finding.orphan_text", count=len(orphans), names=orphans[:5]), (), orphans, "trash-orphans",
        ) if orphans else None,
    ]  # fmt: skip


def _of_names(library: Library) -> list[Finding | None]:
    """Files that lie in the set and are not read."""
    renamed = [one for one in library.misnamed if one.wanted]
    besides = [one for one in library.misnamed if not one.wanted]
    return [
        _of_paths(
            "misnamed", Sentence("finding.misnamed"),
            Sentence("finding.misnamed_text", names=few([one.name for one in renamed], 5)),
            [one.name for one in renamed], [one.picture for one in renamed], "rename",
        ),
        _of_paths(
            "second-caption", Sentence("finding.second_caption"),
            Sentence("finding.second_caption_text", names=few([one.name for one in besides], 5)),
            [one.name for one in besides], [one.picture for one in besides],
        ),
        _of_paths(
            "format", Sentence("finding.format"),
            Sentence("finding.format_text", formats=counted_endings(library.unread), names=few(library.unread, 5)),
            library.unread,
        ),
        _of_paths(
            "lone-mask", Sentence("finding.lone_mask"),
            Sentence("finding.lone_mask_text", names=few(library.lone_masks, 5)), library.lone_masks, (),
            "trash-orphans",
        ),
        *_of_masks(library),
    ]  # fmt: skip


def _of_masks(library: Library) -> list[Finding | None]:
    """Of a set in which pictures have masks: which have one, and which have none."""
    with_mask = [item.key for item in library.items if item.mask]
    without = [item.key for item in library.items if not item.mask] if with_mask else []
    option = Field("masks.source")
    return [
        _found("masked", "info", Sentence("finding.masked"), Sentence("finding.masked_text", option=option), with_mask),
        _found("no-mask", "warning", Sentence("finding.no_mask"), Sentence("finding.no_mask_text"), without),
    ]


def _of_texts(captions: Mapping[str, Caption]) -> list[Finding | None]:
    """Captions that training would take otherwise than they are meant."""
    return [
        _found(
            "settings", "warning", Sentence("finding.settings"),
            Sentence("finding.settings_text"),
            [key for key, one in captions.items() if has_settings(one.text)], "prompt-only",
        ),
        _found(
            "commas", "warning", Sentence("finding.commas"),
            Sentence("finding.commas_text"),
            [key for key, one in captions.items() if has_foreign_commas(one.text)], "plain-commas",
        ),
        _found(
            "lines", "info", Sentence("finding.lines"),
            Sentence("finding.lines_text", option=Field("dataset.caption_lines")),
            [key for key, one in captions.items() if len(one.trained("random")) > 1],
        ),
    ]  # fmt: skip


def _of_paths(
    kind: str, title: Sentence, text: Sentence, paths: Sequence[str], pictures: Sequence[str] = (), remedy: str = ""
) -> Finding | None:
    if not paths:
        return None
    return Finding(kind, "warning", title, text, tuple(dict.fromkeys(pictures)), tuple(paths), remedy)


def _of_lengths(tokens: Mapping[str, int]) -> list[Finding | None]:
    result = []
    for limit, following in zip(LIMITS, (*LIMITS[1:], 10**9), strict=True):
        keys = [key for key, count in tokens.items() if limit < count <= following]
        last, title = limit == LIMITS[-1], Sentence("finding.long", limit=limit)
        longer = Sentence("finding.long_text", limit=limit, following=following)
        text = Sentence("finding.longest_text", limit=limit) if last else longer
        result.append(_found(f"long{limit}", "warning" if last else "info", title, text, keys, "edit"))
    return result


def _concepts(editor: Editor) -> list[Concept]:
    repeats: dict[str, list[float]] = {}
    for item in editor.items.values():
        repeats.setdefault(item.folder, []).append(item.repeats)
    return [Concept(folder, len(own), sum(own)) for folder, own in repeats.items()]


def _of_balance(concepts: Sequence[Concept]) -> list[Finding | None]:
    weights = {one.folder: as_number(one.shown) for one in concepts if one.shown}
    if len(weights) < 2:
        return []
    most, least = max(weights, key=lambda name: weights[name]), min(weights, key=lambda name: weights[name])
    if weights[most] < BALANCE * weights[least]:
        return []
    text = Sentence(
        "finding.balance_text",
        most=most or Sentence("finding.folder_itself"),
        many=weights[most],
        least=least or Sentence("finding.folder_itself"),
        few=weights[least],
    )
    return [Finding("balance", "warning", Sentence("finding.balance"), text)]


TITLES = {
    "contradiction": ("warning", Sentence("finding.contradiction")),
    "leak": ("warning", Sentence("finding.leak")),
    "misspelt": ("warning", Sentence("finding.misspelt")),
    "entangled": ("info", Sentence("finding.entangled")),
    "singleton": ("info", Sentence("finding.singleton")),
    "one-sided": ("warning", Sentence("finding.one_sided")),
}


def _of_tags(one: TagFinding) -> Finding:
    level, title = TITLES[one.kind]
    return Finding(one.kind, level, title, one.text, one.pictures, (), "edit", one.tags)


def _found(
    kind: str, level: str, title: Sentence, text: Sentence, pictures: Sequence[str], remedy: str = ""
) -> Finding | None:
    return Finding(kind, level, title, text, tuple(pictures), (), remedy) if pictures else None
