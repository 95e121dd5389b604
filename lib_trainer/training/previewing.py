"""What a run draws on its way. Whatever goes wrong with it is a warning: hours of training are worth more than a
picture."""

from __future__ import annotations

import logging

from PIL import Image

from lib_trainer.memory import forget_peak, release
from lib_trainer.ports import PreviewRequest
from lib_trainer.refusals import Sentence
from lib_trainer.training import failures
from lib_trainer.training.place import Place, Progress
from lib_trainer.training.plan import Plan
from lib_trainer.training.preview_prompts import labels, preview_requests
from lib_trainer.training.preview_sheet import PreviewSheet, sheet_folder
from lib_trainer.training.session import Session
from lib_trainer.work import events as ev

logger = logging.getLogger(__name__)


class Previewing:
    """Draws every prompt of a job with the model as it stands, each time with the same seeds."""

    def __init__(self, plan: Plan, place: Place, progress: Progress) -> None:
        self._plan, self._place, self._progress = plan, place, progress
        self._sheet: PreviewSheet | None = None
        self._unwritten = False

    def draw(self, session: Session, step: int) -> None:
        """Pictures of a step, and the grid that they are a row of. A Stop leaves out those that are not begun."""
        requests = preview_requests(self._plan.job, self._plan.kind)
        pictures: list[Image.Image | None] = []
        failed: list[Sentence] = []
        self._progress.point = "preview"
        try:
            with session.generating():
                self._draw_all(requests, step, pictures, failed)
        except Exception as error:  # no room to hold the model as its host draws with it, or on the way back
            if not failures.short_of_memory(error):
                raise
            failed.append(self._failed(error, step))
            session.resume()
        forget_peak(self._place.model.device)  # what a run is said to need is what its steps need
        for told in {str(one): one for one in failed}.values():
            self._place.warn(told)
        drawn = [(number, one) for number, one in enumerate(pictures, 1) if one is not None]
        if drawn and step:  # before the first step it shows nothing of what is saved
            self._progress.cover = drawn[0][1]
        for number, picture in drawn:
            request = requests[number - 1]
            self._place.emit(ev.PreviewMade(step, picture, request.prompt, number, len(requests)))
        if drawn:
            self._keep(step, [*pictures, *[None] * (len(requests) - len(pictures))])
        self._progress.point = "step"

    def _draw_all(
        self,
        requests: tuple[PreviewRequest, ...],
        step: int,
        pictures: list[Image.Image | None],
        failed: list[Sentence],
    ) -> None:
        for request in requests:
            if pictures and self._place.stopping():
                return
            try:
                pictures.append(self._place.host.preview(request))
            except Exception as error:
                pictures.append(None)
                failed.append(self._failed(error, step))
                if failures.short_of_memory(error):
                    return

    def _failed(self, error: Exception, step: int) -> Sentence:
        told: Sentence | Exception = error
        if failures.short_of_memory(error):
            device = self._place.model.device
            told = failures.out_of_memory(error, self._plan.job, self._plan.kind, device, "preview", step)
        logger.warning("The preview failed\n%s", release(error, self._place.model.device))
        return Sentence("run.preview_failed", step=step, reason=told)

    def _keep(self, step: int, pictures: list[Image.Image | None]) -> None:
        """Into files. What cannot be written is told once."""
        try:
            if self._sheet is None:
                folder = sheet_folder(self._place.host, self._plan.job.output.name)
                self._sheet = PreviewSheet(folder, labels(self._plan.job, self._plan.kind))
            grid = self._sheet.put(step, pictures)
        except (OSError, MemoryError) as error:
            logger.warning(
                "The previews of step %d were not written\n%s", step, release(error, self._place.model.device)
            )
            if not self._unwritten:
                self._place.warn(Sentence("run.previews_unwritten", step=step, reason=error))
            self._unwritten = True
            return
        if grid is not None:
            self._place.emit(ev.PreviewGrid(step, grid))
