"""What is wrong with the tags of a set: contradictions, entangled and rare tags, leaks, misspellings, one-sided traits.

Every function takes {picture: caption} and answers with findings that name the tags and lead to the pictures. All of
them are linear in the number of tags written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lib_trainer.captions.document import Caption, cached_key
from lib_trainer.captions.edit_base import count_tags
from lib_trainer.captions.knowledge import Knowledge
from lib_trainer.refusals import Sentence, both

Captions = Mapping[str, Caption]


@dataclass(frozen=True)
class TagFinding:
    """`kind`: a word for filters; `tags`: keys; `text`: one sentence; `pictures`: where it shows."""

    kind: str
    tags: tuple[str, ...]
    text: Sentence
    pictures: tuple[str, ...]


def contradictions(captions: Captions, knowledge: Knowledge) -> list[TagFinding]:
    """Tags of which a picture can have only one: long and short hair, two eye colours with solo, 1girl and 2girls."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for picture, caption in captions.items():
        keys = list(dict.fromkeys(caption.keys))
        for rule in knowledge.exclusive:
            clash = [key for key in keys if key in rule.tags.keys]
            if len(clash) < 2 or any(rule.unless.matches(key) for key in keys):
                continue
            if rule.needs and not any(rule.needs.matches(key) for key in keys):
                continue
            found[rule.name, tuple(sorted(clash))].append(picture)
    return [
        TagFinding("contradiction", tags, Sentence("finding.exclude", tags=both(tags), name=name), tuple(pictures))
        for (name, tags), pictures in found.items()
    ]


def entangled(captions: Captions, least: int = 3) -> list[TagFinding]:
    """Groups of tags that stand on exactly the same pictures, at least `least` but not all of them."""
    places: dict[str, list[str]] = defaultdict(list)
    for picture, caption in captions.items():
        for key in set(caption.keys):
            places[key].append(picture)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, pictures in places.items():
        if least <= len(pictures) < len(captions):
            groups[tuple(pictures)].append(key)
    return [
        TagFinding(
            "entangled",
            tuple(sorted(keys)),
            Sentence("finding.together", tags=sorted(keys), count=len(pictures)),
            pictures,
        )
        for pictures, keys in groups.items()
        if len(keys) > 1
    ]


def singletons(captions: Captions) -> list[TagFinding]:
    """Tags that stand on one picture only."""
    where: dict[str, str] = {}
    for picture, caption in captions.items():
        where.update(dict.fromkeys(caption.keys, picture))
    counts = count_tags(captions.values())
    return [
        TagFinding("singleton", (key,), Sentence("finding.alone", tag=key), (where[key],))
        for key, count in sorted(counts.items())
        if count == 1
    ]


def leaks(captions: Captions, concepts: Mapping[str, str], knowledge: Knowledge) -> list[TagFinding]:
    """Names of one concept on pictures of another.

    `concepts`: {picture: concept}, empty for none. A concept's names are what its folder is called and those tags on at
    least 80% of its pictures that are not of a known kind (a trigger word, not 'smile'). They leak where they stand on
    less than half of another concept's pictures: where they stand on most, they are meant.
    """
    of: dict[str, list[str]] = defaultdict(list)
    for picture in captions:
        if concepts.get(picture):
            of[concepts[picture]].append(picture)
    counts = {concept: count_tags(captions[one] for one in pictures) for concept, pictures in of.items()}
    names: dict[str, str] = {}
    for concept, pictures in of.items():
        own = {cached_key(concept)}
        own |= {key for key, n in counts[concept].items() if n >= 0.8 * len(pictures) and not knowledge.knows(key)}
        for key in own:
            names.setdefault(key, concept)
    found = []
    for concept, pictures in of.items():
        told = {
            key: count for key, count in counts[concept].items()
            if names.get(key, concept) != concept and count < 0.5 * len(pictures)
        }  # fmt: skip
        where = _places({one: captions[one] for one in pictures}, told.keys()) if told else {}
        for key, count in told.items():
            text = Sentence("finding.leaks", tag=key, home=names[key], count=count, all=len(pictures), concept=concept)
            found.append(TagFinding("leak", (key,), text, tuple(where[key])))
    return sorted(found, key=lambda one: one.tags)


def misspellings(captions: Captions, knowledge: Knowledge, ratio: int = 5) -> list[TagFinding]:
    """Rare tags one letter away from one that is at least `ratio` times as frequent.

    A letter too much, missing, wrong, or two in the wrong order. Tags that the tables know, and pairs that differ in a
    digit (1girl, 2girls), are not meant.
    """
    counts = count_tags(captions.values())
    index: dict[str, list[str]] = defaultdict(list)
    for key, count in counts.items():
        if count >= ratio and len(key) > 3:
            for cut in _cuts(key):
                index[cut].append(key)
    exact, meant = _exact(knowledge), dict[str, str]()
    for key, count in sorted(counts.items()):
        if len(key) < 4 or (key in exact and knowledge.knows(key)):
            continue
        near = {other for cut in _cuts(key) for other in index.get(cut, ()) if counts[other] >= ratio * count}
        near = {other for other in near if other != key and _one_slip(key, other)}
        if near:
            meant[key] = max(near, key=lambda other: counts[other])
    where = _places(captions, meant.keys())
    return [
        TagFinding(
            "misspelt",
            (key, right),
            Sentence("finding.meant", tag=key, count=counts[key], right=right, often=counts[right]),
            tuple(where[key]),
        )
        for key, right in meant.items()
    ]


def _places(captions: Captions, keys: Collection[str]) -> dict[str, list[str]]:
    """{key: the pictures that it stands on, each once}, of these keys, in one pass over all captions."""
    found: dict[str, list[str]] = defaultdict(list)
    for picture, caption in captions.items() if keys else ():
        for key in dict.fromkeys(caption.keys):
            if key in keys:
                found[key].append(picture)
    return found


def _exact(knowledge: Knowledge) -> frozenset[str]:
    return frozenset().union(*(patterns.keys for _, patterns in knowledge.groups), knowledge.implications)


def _cuts(key: str) -> set[str]:
    """The text itself and the text without each one of its letters: two texts one slip apart have one in common."""
    return {key, *(key[:place] + key[place + 1 :] for place in range(len(key)))}


def _one_slip(one: str, other: str) -> bool:
    """Whether one insertion, deletion, substitution or exchange of neighbours makes the one of the other."""
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    end = 0
    while end < min(len(one), len(other)) - start and one[-1 - end] == other[-1 - end]:
        end += 1
    a, b = one[start : len(one) - end], other[start : len(other) - end]
    if any(letter.isdigit() for letter in a + b):
        return False
    if len(a) == len(b) == 2:
        return a == b[::-1]
    return max(len(a), len(b)) == 1


def one_sided(captions: Captions, knowledge: Knowledge) -> list[TagFinding]:
    """Features that lie on one side, which mirrored pictures would teach on both."""
    where: dict[str, list[str]] = defaultdict(list)
    for picture, caption in captions.items():
        for key in set(caption.keys):
            where[key].append(picture)
    return [
        TagFinding("one-sided", (key,), Sentence("finding.on_one_side", tag=key), tuple(pictures))
        for key, pictures in sorted(where.items())
        if knowledge.asymmetric.matches(key)
    ]


def all_findings(
    captions: Captions, concepts: Mapping[str, str], knowledge: Knowledge, *, mirrored: bool
) -> list[TagFinding]:
    """Everything above; one-sided features only where pictures are mirrored in training."""
    found = contradictions(captions, knowledge) + leaks(captions, concepts, knowledge)
    found += misspellings(captions, knowledge) + entangled(captions) + singletons(captions)
    return found + (one_sided(captions, knowledge) if mirrored else [])


def pictures_of(findings: Sequence[TagFinding]) -> dict[str, set[str]]:
    """{picture: kinds of what was found on it}."""
    result: dict[str, set[str]] = defaultdict(set)
    for finding in findings:
        for picture in finding.pictures:
            result[picture].add(finding.kind)
    return dict(result)
