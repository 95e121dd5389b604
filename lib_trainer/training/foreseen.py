"""What a run will come to before it begins, told from the names in a folder: pictures and steps. Nothing is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.dataset.folder import as_number, concept_of, list_folder
from lib_trainer.dataset.weights import WEIGHTS, Weights, read_weights
from lib_trainer.kinds.registry import kind_of
from lib_trainer.refusals import Count, Decimals, Sentence
from lib_trainer.training.order import Order, Shown
from lib_trainer.training.prior import wants_class_pictures
from lib_trainer.training.sizes import resolutions_of
from lib_trainer.training.validation import by_share


@dataclass(frozen=True)
class Foreseen:
    """`repeats` of each picture that is trained. `steps` are those of the optimizer, if every picture can be read."""

    job: JobConfig
    repeats: tuple[float, ...]
    sizes: int
    with_class: bool
    steps: int
    batches: int

    @property
    def epochs(self) -> float:
        """How often the set is seen."""
        training = self.job.training
        each = self.steps * training.gradient_accumulation / max(1, self.batches)
        return each if training.max_steps else training.epochs

    def told(self) -> Sentence:
        """'24 pictures × 10 repeats × 10 epochs = 2,400 steps'."""
        shown, steps = self._shown(), Count(self.steps)
        together = self.job.training.batch_size * self.job.training.gradient_accumulation
        if self.job.training.max_steps:
            return Sentence("foreseen.steps", steps=steps, epochs=Decimals(self.epochs, 1), shown=shown)
        epochs = Count(self.job.training.epochs)
        if together == 1:
            return Sentence("foreseen.epochs", shown=shown, epochs=epochs, steps=steps)
        return Sentence("foreseen.epochs_together", shown=shown, epochs=epochs, together=together, steps=steps)

    def _shown(self) -> Sentence:
        pictures = Count(len(self.repeats))
        if len(set(self.repeats)) == 1:
            shown = Sentence("foreseen.even", pictures=pictures, repeats=as_number(self.repeats[0]))
        else:
            shown = Sentence("foreseen.uneven", pictures=pictures, shown=Count(round(sum(self.repeats))))
        if self.sizes > 1:
            shown = Sentence("foreseen.sizes", shown=shown, sizes=self.sizes)
        return Sentence("foreseen.of_class", shown=shown) if self.with_class else shown


@dataclass(frozen=True)
class _Entry:
    """A picture by its name, and how often an epoch shows it."""

    path: Path
    concept: str
    repeats: float


class Foresight:
    """Reads a folder again when it has changed, and not at every key."""

    def __init__(self) -> None:
        self._known: tuple[Path, float, Sequence[tuple[Path, int]], tuple[_Entry, ...]] | None = None

    def of(self, job: JobConfig) -> Foreseen | None:
        """None where no folder with pictures is given. Raises a `TrainerError` for sizes or weights that are none, and
        where all pictures would be held out."""
        folder = Path(job.dataset.folder).expanduser()
        if not job.dataset.folder or not folder.is_dir():
            return None
        entries = self._entries(folder, job.dataset.repeats)
        if not entries:
            return None
        own = job.validation
        held = {one.path for one in by_share(own, entries)[0]} if own.pictures == "share" else frozenset()
        repeats = tuple(one.repeats for one in entries if one.path not in held)
        kind, sizes = kind_of(job), resolutions_of(job)
        shown = [Shown("learn", each, size) for each in repeats for size in sizes]
        with_class = wants_class_pictures(job, kind)
        if with_class:
            shown += [Shown("class", 1, size) for size in sizes] * job.prior.class_pictures
        order = Order(job, kind, tuple(shown))
        return Foreseen(job, repeats, len(sizes), with_class, order.total_steps(), order.batches_per_epoch())

    def _entries(self, folder: Path, usual: float) -> tuple[_Entry, ...]:
        known = self._known
        if known is None or known[:2] != (folder, usual) or any(_changed(place) != then for place, then in known[2]):
            self._known = known = (folder, usual, *_listed(folder, usual))
        return known[3]


def _listed(folder: Path, usual: float) -> tuple[Sequence[tuple[Path, int]], tuple[_Entry, ...]]:
    """What was read, each with when it was changed, and the pictures in it."""
    top = list_folder(folder)
    inner = [(name, *(concept_of(name) or (0, ""))) for name in top.folders]
    listings = [(top, usual, ""), *((list_folder(folder / name), own, concept) for name, own, concept in inner if own)]
    read: list[Path] = []
    entries: list[_Entry] = []
    for listing, own, concept in listings:
        told = listing.files.like(WEIGHTS)
        path = listing.folder / (told or WEIGHTS)
        weights = Weights(path) if told is None else read_weights(path)
        read += [listing.folder, path]
        entries += [_Entry(listing.folder / name, concept, weights.repeats(name, own)) for name in listing.pictures]
    return [(place, _changed(place)) for place in read], tuple(entries)


def _changed(place: Path) -> int:
    """When; 0 for what is not there."""
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return 0
