"""What a page has been shown of a run and of what is beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """What a watcher has been shown. It is kept by the watcher's page, not here."""

    token: str
    header: str
    caution: str
    usual: str
    task: str
    run: str
    revision: int
    curves: str
    previews: int
    active: bool
    search: str
    searched: int
    searching: bool
    grid: str
    gridded: int
    drawing: bool

    def text(self) -> str:
        return json.dumps([getattr(self, name) for name in Seen.__dataclass_fields__])

    @classmethod
    def parse(cls, text: str) -> Seen | None:
        try:
            return cls(*json.loads(text))
        except (TypeError, ValueError):
            return None
