"""What the training page must know of the place it is shown in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PageOptions:
    """`insert_js` is a JavaScript function of one text that puts it into the host's prompt. `job_folder` keeps the last
    started job, with which the form is filled when the page is opened again. `task_id` names the host's own task while
    a run holds its queue, for the host's own progress bar.
    """

    job_folder: Path
    insert_js: str
    samplers: Sequence[str] = ()
    prefix: str = "trainer"
    use_label: str = "Use in txt2img"
    task_id: Callable[[], str | None] = lambda: None
