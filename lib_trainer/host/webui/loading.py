"""Being told before the WebUI loads another checkpoint, in the thread that does it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from modules import devices, sd_models

LOADERS = ("reload_model_weights", "load_model")
"""Functions through which everything loads: the menu, a refiner, an override of a request."""


@contextlib.contextmanager
def before_loading(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` before other weights are loaded into the model, or another model takes its place.

    "Unload SD checkpoint to RAM" loads nothing: the same parameters come back from there.
    """
    own = {name: _wrapped(name, getattr(sd_models, name), act) for name in LOADERS}
    before = {name: getattr(sd_models, name) for name in LOADERS}
    for name, function in own.items():
        setattr(sd_models, name, function)
    try:
        yield
    finally:
        for name, function in own.items():
            if getattr(sd_models, name) is function:  # another extension has put its own around it: it stays
                setattr(sd_models, name, before[name])


def _wrapped(name: str, original: Callable[..., Any], act: Callable[[], object]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        if name != "reload_model_weights" or not _is_loaded(*args, **kwargs):
            act()
        return original(*args, **kwargs)

    return load


def _is_loaded(sd_model: Any = None, info: Any = None, forced_reload: bool = False) -> bool:
    """Whether `reload_model_weights` would find that there is nothing to do, which it is called for at each picture."""
    model = sd_model or sd_models.model_data.sd_model
    eight_bits = getattr(sd_models, "check_fp8", None)
    if model is None or forced_reload or (eight_bits is not None and eight_bits(model) != devices.fp8):
        return False
    try:
        wanted = info or sd_models.select_checkpoint()
    except FileNotFoundError:
        return False
    return bool(model.sd_model_checkpoint == wanted.filename)
