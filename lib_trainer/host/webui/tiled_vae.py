"""Tiled VAE in the WebUI: ldm's and sgm's Encoder and Decoder run over row bands while a generation has asked for it.

Their classes' `forward` is replaced once, so that a checkpoint loaded in the middle of a job is covered and the
posterior's random numbers stay the same; what it does is decided at each call by the settings of the generation that
is running. Approximate decoders (TAESD and the like) are other classes and are passed by.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from modules import shared

from lib_trainer.refusals import Sentence
from lib_trainer.tiling.adapters import describe
from lib_trainer.tiling.attach import coarse, decide_and_run
from lib_trainer.tiling.engine import Options
from lib_trainer.tiling.plan import Plan

HOMES = ("ldm.modules.diffusionmodules.model", "sgm.modules.diffusionmodules.model")
CLASSES = ("Encoder", "Decoder")
ORIGINAL = "_trainer_tiled_vae_original"
LEFT_OUT = "left out"
TEXT_SECONDS = 0.2
"""Between two updates of the progress text."""
WINDOW_ROWS = 128
"""Latent rows that windowed attention sees on each side: 1024 pixels of the picture."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """`always` also where the untiled VAE would fit; `budget` bytes of the device, None = what is free."""

    always: bool = False
    budget: int | None = None
    windowed: bool = False

    @classmethod
    def asked(cls, *, always: bool, budget_gib: float, windowed: bool) -> Settings:
        """As the page says it; a budget of 0 GiB is all that is free."""
        return cls(always, int(budget_gib * 2**30) or None, windowed)


@dataclass
class Job:
    """The settings of one generation; None: it has not asked for bands. `state.begin` of anything else ends it."""

    settings: Settings | None
    started: Any
    thread: int
    processing: Callable[[], Any]
    key: str = ""
    """Under which the picture's parameters name the mode."""
    plans: list[str] = field(default_factory=list)
    """What was run in bands, for the tests and the log."""

    def is_current(self) -> bool:
        """A job that failed never says so: the WebUI's own start time tells that another one has begun."""
        return bool(self.started == getattr(shared.state, "time_start", None))

    def comment(self, told: Sentence, note: str) -> None:
        """Tell the user, and leave `note` in the picture's parameters in place of the mode."""
        processing = self.processing()
        say(processing, told)
        if self.key and processing is not None:
            processing.extra_generation_params[self.key] = note


class Switch:
    """What is to be done now. One per process.

    A script may have one generation run within another. What holds is what the innermost has asked for, and when that
    is over, what the one around it has.
    """

    def __init__(self) -> None:
        self._running: list[Job] = []  # replaced and never changed: a live preview reads it from another thread

    @property
    def job(self) -> Job | None:
        """Of the innermost generation."""
        return next(reversed(self._running), None)

    def begin(self, processing: Any, settings: Settings | None, key: str = "") -> None:
        """A generation begins; None: its pictures are decoded as the host does it."""
        around = [job for job in self._running if job.is_current()]
        started = getattr(shared.state, "time_start", None)
        self._running = [*around, Job(settings, started, threading.get_ident(), weakref.ref(processing), key)]

    def back_to(self, processing: Any) -> None:
        """A generation goes on: what it has run within itself is over, also where that failed and did not say so."""
        self._running = self._running[: self._place(processing) + 1] or self._running  # unknown: all stay

    def end(self, processing: Any = None) -> None:
        """A generation is over; without one, all are."""
        if processing is None:
            self._running = []
        elif (place := self._place(processing)) >= 0:
            self._running = self._running[:place]

    def _place(self, processing: Any) -> int:
        """Of the innermost job of a generation; -1 where it has none."""
        places = [place for place, job in enumerate(self._running) if job.processing() is processing]
        return places[-1] if places else -1

    def current(self) -> Job | None:
        job = self.job
        return job if job is not None and job.is_current() and job.settings is not None else None


switch = Switch()


def say(processing: Any, told: Sentence) -> None:
    """In the console and under the picture."""
    log.warning(str(told))
    if processing is not None and hasattr(processing, "comment"):
        processing.comment(str(told))


def refuse(processing: Any, told: Sentence) -> None:
    """A generation whose settings are wrong has none, and its user is told."""
    switch.begin(processing, None)
    say(processing, told)


class Interrupted(Exception):
    """Interrupt was pressed while the VAE was at work."""


def install() -> list[str]:
    """Replace `forward` of the classes that are there; which of them. Does nothing where it was done before."""
    done = []
    for kind in _classes():
        if not hasattr(kind.forward, ORIGINAL):
            kind.forward = _replacement(kind.forward)
            done.append(f"{kind.__module__}.{kind.__name__}")
    return done


def uninstall() -> None:
    """Put `forward` back, unless somebody has replaced it after us; then ours passes everything on."""
    switch.end()
    for kind in _classes():
        original = getattr(kind.forward, ORIGINAL, None)
        if original is not None:
            kind.forward = original


def _classes() -> Iterator[Any]:
    for home in HOMES:
        try:
            module = importlib.import_module(home)
        except ImportError:
            continue
        yield from (getattr(module, name) for name in CLASSES if hasattr(module, name))


def _replacement(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        job = switch.current()
        plain = (
            args or kwargs or not isinstance(given, torch.Tensor) or (torch.is_grad_enabled() and given.requires_grad)
        )
        if job is None or plain:
            return original(self, given, *args, **kwargs)
        return banded(job, self, original, given)

    setattr(forward, ORIGINAL, original)
    return forward


def banded(job: Job, module: Any, original: Callable[..., Any], given: torch.Tensor) -> Any:
    """The module's output, over bands if the job's settings say so; whatever cannot be banded goes the host's way."""
    chosen = job.settings or Settings()

    def plain(x: torch.Tensor) -> Any:
        return original(module, x)

    try:
        with _shown(job, "decoding" if hasattr(module, "up") else "encoding") as progress:
            options = _options(job, chosen, progress)
            told = functools.partial(job.comment, note=LEFT_OUT)
            return decide_and_run(module, given, plain, options, always=chosen.always, say=told)
    except Interrupted:
        job.comment(Sentence("vae.interrupted"), "interrupted")
        return coarse(plain, describe(module), given)


def _options(job: Job, settings: Settings, progress: Callable[[float], None]) -> Options:
    def chosen(plan: Plan) -> None:
        job.plans.append(plan.describe())
        log.info("Tiled VAE: %s", plan.describe())

    return Options(
        budget=settings.budget,
        window=WINDOW_ROWS if settings.windowed else None,
        upcast_attention=bool(getattr(shared.opts, "upcast_attn", False)),
        progress=progress,
        chosen=chosen,
    )


@contextlib.contextmanager
def _shown(job: Job, verb: str) -> Iterator[Callable[[float], None]]:
    """A callback that writes the progress bar's text and looks for an Interrupt pressed since now.

    A live preview decodes in another thread: it neither writes nor stops.
    """
    state = shared.state
    if threading.get_ident() != job.thread:
        yield lambda fraction: None
        return
    before, text, last = bool(state.interrupted), state.textinfo, 0.0

    def progress(fraction: float) -> None:
        nonlocal last
        if state.interrupted and not before:
            raise Interrupted
        if (now := time.monotonic()) - last >= TEXT_SECONDS:
            state.textinfo, last = f"VAE {verb}: {fraction:.0%}", now

    try:
        yield progress
    finally:
        state.textinfo = text
