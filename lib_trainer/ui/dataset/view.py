"""What one browser tab looks at: the open set, the filter, the selection, and what is being previewed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib_trainer.captions.document import Caption
from lib_trainer.captions.filters import Filter, Record, keyed, parse_filter
from lib_trainer.captions.findings import all_findings, pictures_of
from lib_trainer.captions.knowledge import Knowledge, TagScores, read_knowledge
from lib_trainer.captions.plans import Implied, Trait
from lib_trainer.captions.tokens import LIMITS, TokenCounter
from lib_trainer.dataset.editor import Editor
from lib_trainer.dataset.facts import FactsCache
from lib_trainer.dataset.file_moves import Conflict
from lib_trainer.dataset.previews import Preview
from lib_trainer.dataset.report import Report

PAGE = 60
"""Pictures on one page of the gallery."""
OF_PICTURES = {
    "corrupt", "small", "aspect", "duplicate", "near-duplicate", "rotated", "alpha", "unreadable", "untrained",
    "shared",
}  # fmt: skip
"""Kinds of findings that no edit of captions changes."""


@dataclass(frozen=True)
class CheckSize:
    """What a set is checked against: pixels, and whether training mirrors pictures."""

    width: int
    height: int
    mirrored: bool


@dataclass
class OpenSet:
    """A set that is open in this process: one editor for all tabs that look at it."""

    editor: Editor
    facts: FactsCache
    count_tokens: TokenCounter
    knowledge: Knowledge
    report: Report | None = None
    report_version: int = -1
    checked: CheckSize | None = None
    job: CheckJob | None = None
    _troubles: tuple[int, dict[str, set[str]]] | None = None
    _ahead: threading.Thread | None = None

    def look_ahead(self, keys: Sequence[str]) -> None:
        """Decode the pictures that will probably be looked at next, one page at a time."""
        if keys and (self._ahead is None or not self._ahead.is_alive()):
            self._ahead = threading.Thread(target=self.facts.get, args=(keys,), daemon=True, name="dataset-ahead")
            self._ahead.start()

    @property
    def outdated(self) -> bool:
        """Whether there is a report, and the set has changed since."""
        return self.report is not None and self.report_version != self.version

    @property
    def version(self) -> int:
        """Changes with every change of the captions that this process knows of."""
        return self.editor.version

    def troubles(self) -> dict[str, set[str]]:
        """{picture: kinds of findings}: those of the tags as they are now, those of the pictures as last checked."""
        if self._troubles is None or self._troubles[0] != self.version:
            captions = self.editor.captions()
            concepts = {key: item.concept or item.folder for key, item in self.editor.items.items()}
            found = pictures_of(all_findings(captions, concepts, self.knowledge, mirrored=False))
            for key, caption in captions.items():
                kinds = found.setdefault(key, set())
                if not caption.tags:
                    kinds.add("empty" if self.editor.has_file(key) else "no-caption")
                over = [limit for limit in LIMITS if self.count_tokens(caption) > limit]
                if over:
                    kinds.add(f"long{over[-1]}")
            self._troubles = self.version, found
        result = {key: set(kinds) for key, kinds in self._troubles[1].items()}
        for key, kinds in (self.report.troubles() if self.report else {}).items():
            result.setdefault(key, set()).update(kinds & OF_PICTURES)
        return result


@dataclass
class CheckJob:
    """A check of all pictures that runs in a thread of its own."""

    total: int
    done: int = 0
    started: float = 0.0
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)


class SetPool:
    """The open sets of this process by folder. `scores_of` gives what the tagger knows of a set's pictures."""

    def __init__(self, count: Callable[[str], int], scores_of: Callable[[Path], TagScores | None]) -> None:
        self._count = TokenCounter(count)
        self._scores_of = scores_of
        self._sets: dict[Path, OpenSet] = {}
        self._lock = threading.Lock()

    def open(self, folder: str) -> OpenSet:
        """The set, read again if it is open already. Raises `DatasetError`."""
        with self._lock:
            root = Path(folder.strip().strip('"')).expanduser().absolute()
            known = self._sets.get(root)
            if known is not None:
                known.editor.reload()
                known.knowledge = read_knowledge([known.editor.root / ".trainer"])
                return known
            editor = Editor(folder, self._scores_of(root))
            knowledge = read_knowledge([editor.root / ".trainer"])
            self._sets[root] = OpenSet(editor, FactsCache(editor.root), self._count, knowledge)
            return self._sets[root]


@dataclass
class View:
    """One tab's state. `only` (with `only_title`): pictures of a finding that is being looked at. `size`: the training
    size that the check is offered, as text: the training form's, until another one is typed here (`typed_size`)."""

    open: OpenSet | None = None
    text: str = ""
    filter: Filter = field(default_factory=lambda: parse_filter(""))
    only: frozenset[str] | None = None
    only_title: str = ""
    page: int = 0
    selected: set[str] = field(default_factory=set)
    anchor: str = ""
    current: str = ""
    tab: str = "edit"
    tag_search: str = ""
    preview: Preview | None = None
    plan: str = ""
    trigger: str = ""
    share: str = "50"
    protected: str = ""
    size: tuple[str, str] = ("512", "512")
    typed_size: bool = False
    proposal: Sequence[Trait] = ()
    implied: Sequence[Implied] = ()
    conflicts: Sequence[Conflict] = ()
    mine: tuple[str, Caption] | None = None
    undoing: bool = False
    large: tuple[str, str] = ("", "")
    shown: dict[str, str] = field(default_factory=dict)
    _found: tuple[object, list[str]] | None = None
    _counted: tuple[object, Counter[str]] | None = None

    def __deepcopy__(self, memory: object) -> View:
        """gradio copies a state's first value for every visitor: each begins with nothing open."""
        return View()

    def keys(self) -> list[str]:
        """The pictures that the filter lets through, in order."""
        if self.open is None:
            return []
        mark = (self.open.version, self.text, self.only, id(self.open.report))
        if self._found is None or self._found[0] != mark:
            self._found = mark, self._filtered(self.open)
        return self._found[1]

    def _filtered(self, opened: OpenSet) -> list[str]:
        editor, needs = opened.editor, self.filter.needs
        keys = [key for key in editor.keys if self.only is None or key in self.only]
        if not self.text.strip():
            return keys
        troubles = opened.troubles() if "troubles" in needs else {}
        found = []
        for key in keys:
            caption = editor.caption(key)
            record = Record(
                key=key,
                folder=editor.items[key].folder,
                caption=caption,
                tokens=opened.count_tokens(caption) if "tokens" in needs else None,
                size=opened.facts.size(key) if "size" in needs else None,
                scores=keyed(editor.scores.scores(editor.root / key)) if "scores" in needs else {},
                origins=keyed(editor.scores.origins(editor.root / key)) if "scores" in needs else {},
                troubles=troubles.get(key, ()),
            )
            if self.filter.matches(record):
                found.append(key)
        return found

    def counts(self) -> Counter[str]:
        """{tag_key: pictures} over what the filter lets through."""
        keys = self.keys()
        mark = self._found[0] if self._found else None
        if self._counted is None or self._counted[0] != mark:
            self._counted = mark, self.open.editor.counts(keys) if self.open else Counter()
        return self._counted[1]

    def scope(self, name: str) -> list[str]:
        """The pictures of 'selection', 'filter' or 'everything'."""
        if self.open is None:
            return []
        if name == "selection":
            return [key for key in self.open.editor.keys if key in self.selected]
        return self.keys() if name == "filter" else self.open.editor.keys

    def set_filter(self, text: str) -> None:
        """Raises `ConfigError` and changes nothing where the text is no filter."""
        group = self.open.knowledge.group if self.open else (lambda key: "other")
        self.filter = parse_filter(text, group)
        self.text, self.page, self.only = text.strip(), 0, None

    def settle(self) -> None:
        """Let go of what is no longer there, and stay on a page that exists."""
        keys = self.keys()
        self.page = min(max(self.page, 0), max((len(keys) - 1) // PAGE, 0))
        if self.open is not None:
            self.selected &= self.open.editor.items.keys()
            if self.current not in self.open.editor.items:
                self.current = keys[0] if keys else ""

    def caption(self) -> Caption:
        """The current picture's caption."""
        if self.open is None or not self.current:
            return Caption()
        return self.open.editor.caption(self.current)
