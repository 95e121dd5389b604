"""Where the WebUI keeps taggers, its queue for a tagger that runs on the graphics card, and its Extras' captions."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modules import call_queue, devices, paths, shared

from lib_trainer.refusals import TrainerError
from lib_trainer.tagging.captions.saved import SavedCaptions
from lib_trainer.tagging.views import Places

_log = logging.getLogger(__name__)


def tagger_places() -> Places:
    """`models/` of the WebUI and of --data-dir or --models-dir; downloads go to `models/wd-tagger`."""
    return Places(_roots, lambda: Path(paths.models_path) / "wd-tagger", _turn)


def _roots() -> list[Path]:
    places = [Path(paths.models_path), Path(paths.data_path) / "models", Path(paths.script_path) / "models"]
    return list({place.resolve(): place for place in places}.values())


@contextlib.contextmanager
def _turn(title: str) -> Iterator[None]:
    """Wait in the WebUI's queue like a generation, and leave the card as it was found."""
    with call_queue.queue_lock:
        try:
            yield
        finally:
            devices.torch_gc()


class ExtrasCaptions:
    """Captions of the Extras tab as entries of the history, so that Undo on the Dataset tab takes them back.

    The WebUI writes them itself, into files that it names when it saves the pictures (modules/postprocessing.py). Its
    callback for saved pictures comes in between: there the caption is written, joined as the WebUI would, and taken
    from the picture. Where that fails it is left to the WebUI.
    """

    def __init__(self) -> None:
        self._writer = SavedCaptions("Captions by the Extras tab")
        self._expected: list[weakref.ref[Any]] = []

    def expect(self, processed: Any) -> None:
        """A picture (`PostprocessedImage`) has got a caption and may be saved."""
        self._expected = [ref for ref in self._expected if ref() is not None]
        self._expected.append(weakref.ref(processed))

    def saved(self, parameters: Any) -> None:
        """The WebUI's callback."""
        processed = next((one for ref in self._expected if (one := ref()) and one.image is parameters.image), None)
        if processed is None or not processed.caption:
            return
        action = str(shared.opts.data.get("postprocessing_existing_caption_action", ""))
        try:
            self._writer.write(Path(parameters.filename).absolute(), processed.caption, action)
        except (TrainerError, OSError) as error:
            _log.warning("The caption of %s is in no history: %s", parameters.filename, error)
        else:
            processed.caption = None
