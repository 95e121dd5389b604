"""What is offered where a run's name is taken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Offer:
    """A name that is taken: by which file, the next free name, and whether the file can be replaced."""

    taken: Path | None = None
    free: str = ""
    replaceable: bool = False

    @property
    def ways(self) -> list[str]:
        """Which of "free", "replace", "continue" and "discard" there are."""
        known = dict.fromkeys(("free", "continue"), bool(self.free)) | dict.fromkeys(
            ("replace", "discard"), self.replaceable
        )
        return [way for way, there in known.items() if there and self.taken is not None]

    def text(self) -> str:
        return json.dumps([str(self.taken or ""), self.free, self.replaceable])

    @classmethod
    def parse(cls, text: str) -> Offer:
        taken, free, replaceable = json.loads(text or '["", "", false]')
        return cls(Path(taken) if taken else None, str(free), bool(replaceable))
