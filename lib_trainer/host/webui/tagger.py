"""Where the WebUI keeps taggers, and its queue for a tagger that runs on the graphics card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from modules import call_queue, devices, paths

from lib_trainer.tagging.views import Places


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
