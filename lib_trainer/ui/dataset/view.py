"""What one browser tab looks at: the open set, the filter, the selection, and what is being previewed."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lib_trainer.captions.document import Caption
from lib_trainer.captions.filters import Filter, Record, keyed, parse_filter
from lib_trainer.captions.plans import Implied, Trait
from lib_trainer.dataset.desk import OpenSet
from lib_trainer.dataset.file_moves import Conflict
from lib_trainer.dataset.latent_cache import Contents
from lib_trainer.dataset.previews import Preview

PAGE = 60
"""Pictures on one page of the gallery."""


@dataclass
class View:
    """One tab's state. `only` (with `only_title`): pictures of a finding that is being looked at. `size`: the training
    size that the check is offered, as text: the training form's, until another one is typed here (`typed_size`).
    `sizes`: {option: value} that the preview of buckets is for, likewise (`typed_sizes`), of which `bucket` is open;
    `cached`: what is kept encoded, as last counted, for `cache_days`."""

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
    sizes: dict[str, Any] = field(default_factory=dict)
    typed_sizes: bool = False
    bucket: tuple[int, int] | None = None
    cached: Contents | None = None
    cache_days: float = 30.0
    proposal: Sequence[Trait] = ()
    implied: Sequence[Implied] = ()
    conflicts: Sequence[Conflict] = ()
    mine: tuple[str, Caption] | None = None
    undoing: bool = False
    large: tuple[str, str] = ("", "")
    shown: dict[str, str] = field(default_factory=dict)
    answer: str = ""
    """Number of the last answer, to which `shown` belongs."""
    _found: tuple[object, list[str]] | None = None
    _counted: tuple[object, Counter[str]] | None = None

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

    def begin(self, opened: OpenSet) -> None:
        """Look at another set, as a new tab would; what was typed for training stays."""
        kept = ("trigger", "size", "typed_size", "sizes", "typed_sizes", "shown", "answer")
        fresh = View(open=opened, **{name: getattr(self, name) for name in kept})
        for one in fields(self):
            setattr(self, one.name, getattr(fresh, one.name))


SESSIONS = 32
"""Tabs of browsers whose state is kept; of more, those that have been silent longest begin anew."""


class Sessions:
    """What each tab of a browser looks at, by the name that its script has made up. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: OrderedDict[str, View] = OrderedDict()

    def view(self, name: str, heard: str = "") -> View:
        """The tab's state. `heard`: number of the last answer that has come to it; where that is not the last one that
        was sent, all panels are sent again."""
        with self._lock:
            view = self._views.setdefault(name, View())
            self._views.move_to_end(name)
            while len(self._views) > SESSIONS:
                self._views.popitem(last=False)
        if heard != view.answer:
            view.shown.clear()
        return view

    def sent(self, view: View, number: str) -> None:
        view.answer = number
