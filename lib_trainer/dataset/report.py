"""A report on a set: what it holds, in numbers to draw charts from, and what is wrong, with the way to mend it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lib_trainer.captions.document import Caption
from lib_trainer.captions.findings import TagFinding, all_findings
from lib_trainer.captions.foreign import has_foreign_commas, has_settings
from lib_trainer.captions.knowledge import Knowledge
from lib_trainer.captions.tokens import LIMITS, TokenCounter
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.facts import PictureFacts, duplicates, near_duplicates
from lib_trainer.dataset.folder import counted_endings
from lib_trainer.dataset.library import Library

BUCKET_STEP, BUCKET_LOW, BUCKET_HIGH = 64, 256, 1024
"""sd-scripts' default buckets, in pixels."""
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
    title: str
    text: str
    pictures: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    remedy: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Concept:
    """A folder's weight in an epoch: `pictures` × `repeats`."""

    folder: str
    pictures: int
    repeats: int


@dataclass(frozen=True)
class Report:
    """`checked` of `total` pictures were decoded. `sizes` and `buckets`: {(width, height): pictures}."""

    total: int
    checked: int
    findings: tuple[Finding, ...]
    sizes: Mapping[tuple[int, int], int]
    buckets: Mapping[tuple[int, int], int]
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


def bucket_of(size: tuple[int, int], area: int) -> tuple[int, int]:
    """The bucket (width, height) that a picture is trained in: sides in steps of 64, at most `area` pixels, the aspect
    nearest to the picture's (sd-scripts' make_bucket_resolutions and its choice by aspect)."""
    best = (BUCKET_LOW, BUCKET_LOW)
    wanted = size[0] / size[1]
    for width in range(BUCKET_LOW, BUCKET_HIGH + 1, BUCKET_STEP):
        height = min(BUCKET_HIGH, area // width // BUCKET_STEP * BUCKET_STEP)
        if height < BUCKET_LOW:
            continue
        for bucket in ((width, height), (height, width)):
            if abs(bucket[0] / bucket[1] - wanted) < abs(best[0] / best[1] - wanted):
                best = bucket
    square = int(area**0.5) // BUCKET_STEP * BUCKET_STEP
    if abs(1 - wanted) < abs(best[0] / best[1] - wanted):
        best = (square, square)
    return (square, square) if best[0] == best[1] else best


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
        buckets=Counter(bucket_of(size, width * height) for size in sizes.values()),
        tokens=tuple(tokens.values()),
        tags=tuple(len(caption.tags) for caption in captions.values()),
        concepts=tuple(_concepts(editor)),
    )


def _of_pictures(facts: Mapping[str, PictureFacts], width: int, height: int) -> list[Finding | None]:
    sized = {key: one.size for key, one in facts.items() if one.size}
    corrupt = [key for key, one in facts.items() if one.reason]
    reasons = ", ".join(dict.fromkeys(facts[key].reason for key in corrupt[:20]))
    same = duplicates(dict(facts))
    alike = near_duplicates(dict(facts))
    return [
        _found("corrupt", "error", "Cannot be read", f"They are left out of training: {reasons}.", corrupt, "trash"),
        _found(
            "small", "warning", "Smaller than the training size",
            f"They are enlarged to {width} × {height} pixels, and what is trained is a blur.",
            [key for key, size in sized.items() if size[0] < width or size[1] < height], "trash",
        ),
        _found(
            "aspect", "warning", "Very long or very wide",
            "One side is more than twice the other: much is cropped away. Crop them by hand, or leave them out.",
            [key for key, size in sized.items() if max(size) > OUTLIER * min(size)], "trash",
        ),
        _found(
            "duplicate", "warning", "The same file twice", "Each copy makes its picture count more.",
            [key for group in same for key in group], "keep-one",
        ),
        _found(
            "near-duplicate", "warning", "Look the same",
            "Nearly the same picture more than once: it will be learned by heart.",
            [key for group in alike for key in group], "keep-one",
        ),
        _found(
            "rotated", "info", "Turned by EXIF", "Other programs may show them on their side; training turns them.",
            [key for key, one in facts.items() if one.turned],
        ),
        _found(
            "alpha", "info", "With transparency", "What is transparent is trained as white.",
            [key for key, one in facts.items() if one.transparent],
        ),
        _found(
            "animated", "info", "Animated", "Of an animation the first frame is trained.",
            [key for key, one in facts.items() if one.animated],
        ),
    ]  # fmt: skip


def _of_files(editor: Editor, captions: Mapping[str, Caption]) -> list[Finding | None]:
    unreadable = editor.unreadable.keys()
    bad = [key for key, item in editor.items.items() if item.caption in unreadable]
    missing = [key for key in captions if not editor.has_file(key) and key not in bad]
    untrained = [key for key, item in editor.items.items() if not item.repeats]
    shared = [key for key, item in editor.items.items() if len(editor.owners(item.caption)) > 1]
    orphans = editor.library.orphans
    return [
        _found(
            "unreadable", "error", "Captions that are not UTF-8",
            "They are never rewritten unasked; converting is an edit like others and can be undone.", bad, "convert",
        ),
        _found(
            "no-caption", "warning", "Without a caption file",
            "They are trained with the trigger word or the folder's name alone.", missing, "caption",
        ),
        _found(
            "empty", "warning", "With an empty caption", "They are trained with the trigger word alone.",
            [key for key, one in captions.items() if not one.tags and key not in missing and key not in bad], "caption",
        ),
        _found(
            "untrained", "warning", "In folders that are not trained",
            "Only the folder itself and subfolders called N_concept, with N of at least 1, are read.", untrained,
        ),
        _found(
            "shared", "info", "Share a caption", "Pictures whose names differ in the extension only have one caption.",
            shared,
        ),
        Finding(
            "orphan", "warning", "Captions without a picture", f"{len(orphans)}: {', '.join(orphans[:5])}.",
            (), orphans, "trash-orphans",
        ) if orphans else None,
    ]  # fmt: skip


def _of_names(library: Library) -> list[Finding | None]:
    """Files that lie in the set and are not read."""
    renamed = [one for one in library.misnamed if one.wanted]
    besides = [one for one in library.misnamed if not one.wanted]
    return [
        _of_paths(
            "misnamed", "Captions that are not read",
            "They are meant as captions and are not called as one: a caption has its picture's name and ends in .txt.",
            [one.name for one in renamed], [one.picture for one in renamed], "rename",
        ),
        _of_paths(
            "second-caption", "Beside another caption", "The picture has a caption already, so these are not read.",
            [one.name for one in besides], [one.picture for one in besides],
        ),
        _of_paths(
            "format", "Pictures that are not read",
            f"{counted_endings(library.unread)}: save them as PNG, JPEG or WebP.", library.unread,
        ),
    ]  # fmt: skip


def _of_texts(captions: Mapping[str, Caption]) -> list[Finding | None]:
    """Captions that training would take otherwise than they are meant."""
    return [
        _found(
            "settings", "warning", "With the WebUI's settings",
            "They are text files of the WebUI: negative prompt, settings and calls of networks describe no picture.",
            [key for key, one in captions.items() if has_settings(one.text)], "prompt-only",
        ),
        _found(
            "commas", "warning", "Full-width commas",
            "Signs such as ， and 、 part no tags: all that stands between two plain commas is one tag.",
            [key for key, one in captions.items() if has_foreign_commas(one.text)], "plain-commas",
        ),
        _found(
            "lines", "info", "Captions of several lines",
            "Training joins the lines; it can take the first or one at random instead (dataset.caption_lines).",
            [key for key, one in captions.items() if len(one.trained("random")) > 1],
        ),
    ]  # fmt: skip


def _of_paths(
    kind: str, title: str, text: str, paths: Sequence[str], pictures: Sequence[str] = (), remedy: str = ""
) -> Finding | None:
    if not paths:
        return None
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    text = f"{text} {', '.join(paths[:5])}{more}."
    return Finding(kind, "warning", title, text, tuple(dict.fromkeys(pictures)), tuple(paths), remedy)


def _of_lengths(tokens: Mapping[str, int]) -> list[Finding | None]:
    result = []
    for limit, following in zip(LIMITS, (*LIMITS[1:], 10**9), strict=True):
        keys = [key for key, count in tokens.items() if limit < count <= following]
        what = "is cut off in training" if limit == LIMITS[-1] else f"needs a caption length of {following} tokens"
        level = "warning" if limit == LIMITS[-1] else "info"
        text = f"What lies behind token {limit} {what}."
        result.append(_found(f"long{limit}", level, f"Longer than {limit} tokens", text, keys, "edit"))
    return result


def _concepts(editor: Editor) -> list[Concept]:
    counts = Counter(item.folder for item in editor.items.values())
    repeats = {item.folder: item.repeats for item in editor.items.values()}
    return [Concept(folder, count, repeats[folder]) for folder, count in counts.items()]


def _of_balance(concepts: Sequence[Concept]) -> list[Finding | None]:
    weights = {one.folder or "the folder itself": one.pictures * one.repeats for one in concepts if one.repeats}
    if len(weights) < 2:
        return []
    most, least = max(weights, key=lambda name: weights[name]), min(weights, key=lambda name: weights[name])
    if weights[most] < BALANCE * weights[least]:
        return []
    text = (
        f"An epoch shows {most} {weights[most]} times and {least} {weights[least]} times: change the numbers in front "
        "of the folders' names."
    )
    return [Finding("balance", "warning", "Repeats are out of balance", text)]


TITLES = {
    "contradiction": ("warning", "Contradicting tags"),
    "leak": ("warning", "A tag of another concept"),
    "misspelt": ("warning", "Perhaps misspelt"),
    "entangled": ("info", "Tags that always stand together"),
    "singleton": ("info", "Tags on one picture only"),
    "one-sided": ("warning", "One-sided features, mirrored"),
}


def _of_tags(one: TagFinding) -> Finding:
    level, title = TITLES[one.kind]
    return Finding(one.kind, level, title, one.text, one.pictures, (), "edit", one.tags)


def _found(kind: str, level: str, title: str, text: str, pictures: Sequence[str], remedy: str = "") -> Finding | None:
    return Finding(kind, level, title, text, tuple(pictures), (), remedy) if pictures else None
