"""The line on memory beside Start: what the job in the form is foreseen to need, and what to change if it is much."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from html import escape
from typing import Any

from lib_trainer.config import from_values
from lib_trainer.ports import HeldPart
from lib_trainer.refusals import TrainerError
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.memory_need import outlook, unknown
from lib_trainer.ui.kit.notices import told

_log = logging.getLogger(__name__)


class MemoryLine:
    """Asked at every change of the form: reads no file, takes no lock, and says nothing while a run is under way."""

    def __init__(self, desk: TrainingDesk) -> None:
        self._desk = desk
        self._known: tuple[str, Mapping[str, HeldPart]] | None = None

    def html(self, values: Mapping[str, Any]) -> str:
        """Empty where nothing can be said: no model, one that no table is about, or a value that is refused."""
        if self._desk.running:
            return ""
        try:
            job = from_values(values)
            found = outlook(job, self._desk.host, self._parts())
        except TrainerError:
            return ""
        except Exception:  # the line is a convenience, and what was typed is worth more
            _log.exception("The forecast of memory met an unexpected error")
            return ""
        if found is None:
            said = unknown(job, self._desk.host, self._parts())
            return f'<div class="trainer-memory" role="status">{escape(told(said))}</div>' if said else ""
        warning = found.warning()
        kind = "short" if warning else "fits"
        more = f'<div class="trainer-memory-told">{escape(told(warning))}</div>' if warning else ""
        return (
            f'<div class="trainer-memory trainer-memory-{kind}" role="status">{escape(told(found.line()))}{more}</div>'
        )

    def _parts(self) -> Mapping[str, HeldPart]:
        """Asked of the host once for each model that it has loaded: another one has another description."""
        model = self._desk.host.describe()
        if self._known is None or self._known[0] != model:
            self._known = model, self._desk.host.parts()
        return self._known[1]
