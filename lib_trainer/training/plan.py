"""A job, resolved once: everything that follows from it without a model. Who asks about a run asks its plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_trainer.config import JobConfig
from lib_trainer.dataset.batches import Sizer
from lib_trainer.dataset.caption_files import CaptionRules, caption_files
from lib_trainer.dataset.scan import Sample, Scan, scan_folder
from lib_trainer.families.family import Family
from lib_trainer.families.prediction import Predicts
from lib_trainer.kinds.base import Kind
from lib_trainer.kinds.captions import CaptionMaker, captions_of
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.registry import kind_of
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, Field, Problems, Sentence
from lib_trainer.training.checks import (
    FILES,
    NAMES,
    check_job,
    check_tag_warmup,
    high_rate,
    offset_at_the_end,
    unread,
    unread_by_model,
    with_a_name,
)
from lib_trainer.training.forecast import Fullest
from lib_trainer.training.masks import check_masks, masks_of
from lib_trainer.training.memory_need import Looked, outlook
from lib_trainer.training.mirrored import mirror_warning
from lib_trainer.training.order import Order, Shown
from lib_trainer.training.prediction import check_prediction, drawn_wrongly, ends_as_noise
from lib_trainer.training.preservation import PlainCaptions, keeps_outside
from lib_trainer.training.prior import wants_class_pictures
from lib_trainer.training.results import Settled, check_neighbours, outputs_of, settle
from lib_trainer.training.schedules import check_schedule
from lib_trainer.training.sizes import sizer_of, small_warning
from lib_trainer.training.validation import NOTHING_HELD_OUT, HeldOut, check_patience, hold_out, reader


@dataclass(frozen=True)
class Plan:
    """A job that has passed every check that needs no model.

    `scan` holds the pictures to learn, `before` those that are learned before them, `held` those that are measured.
    `steps` are foreseen: a picture that cannot be decoded has none. `warnings` are sentences on what may go wrong, told
    when the run starts: a reckoning is no refusal. `cautions` are others, on what is wrong outside of the run.
    `replaced` files go to the trash when their successors are written. `unet_waits`: the device is foreseen to be short
    while pictures are encoded, so the UNet leaves it meanwhile.
    """

    job: JobConfig
    kind: Kind
    scan: Scan
    captions: CaptionMaker
    outputs: Outputs
    sizes: Sizer
    steps: int
    before: tuple[Sample, ...] = ()
    warnings: tuple[Sentence, ...] = ()
    replaced: tuple[Path, ...] = ()
    notes: tuple[Sentence, ...] = ()
    cautions: tuple[Sentence, ...] = ()
    held: HeldOut = NOTHING_HELD_OUT
    unet_waits: bool = False

    @property
    def reads(self) -> tuple[Path, ...]:
        """Files of the user's that the run opens: pictures, and what it goes on from."""
        start = self.job.network.continue_from
        pictures = [sample.path for sample in (*self.scan.samples, *self.before, *self.held.pictures)]
        return (*pictures, *([Path(start).expanduser()] if start else []))

    @property
    def plain(self) -> PlainCaptions | None:
        """What captions are where they do not name the concept, if a run preserves what is said under them."""
        if not (self.job.preserve.weight or keeps_outside(self.job)):
            return None
        samples = (*self.scan.samples, *self.before)
        told = (text for sample in samples for text in (*sample.captions, *sample.seconds))
        return PlainCaptions.of(self.job, self.kind, self.captions, told)

    @property
    def class_pictures(self) -> int:
        """How many pictures of the class are shown beside those to learn."""
        return self.job.prior.class_pictures if wants_class_pictures(self.job, self.kind) else 0


def prepare(job: JobConfig, host: Host) -> Plan:
    """Check a job against its host and read its folder of pictures. Raises a `TrainerError`; touches no model.

    What is wrong in several places is told at once, as `JobErrors`.
    """
    problems, data, kind = Problems(), job.dataset, kind_of(job)
    with problems.at():
        check_job(job, kind, host)
    settled, outputs, captions = Settled(job), None, None
    unnamed = [field for field in NAMES if problems.of(field)]
    if not unnamed:
        with problems.at("output.name"):
            settled = settle(job, host)
            outputs = outputs_of(settled.job, host)
    job = settled.job if not unnamed else with_a_name(job)  # for what else is to be said
    with problems.at(but=unnamed and NAMES):
        host.check()
        of_the_kind = Problems()
        kind.check(job, host, of_the_kind)  # may ask the host for tokens and sizes of its model
        of_the_kind.raise_if_any()
    caution: Sentence | None = None
    with problems.at():
        predicted = host.predicts()
        check_prediction(job, predicted)
        if outputs is not None:
            check_neighbours(job, outputs, host, predicted)
        caution = drawn_wrongly(predicted, job)
    with problems.at("dataset.template"):
        captions = captions_of(kind, job, host)
    held = NOTHING_HELD_OUT
    with problems.at("dataset.folder"):
        trigger = data.trigger_word or " ".join(kind.words(job))  # a new word is caption enough where there is none
        folder = Path(data.folder).expanduser()
        marks = captions is not None and captions.variation.reads_tags
        rules = CaptionRules(data.caption_lines, marks, caption_files(data.caption_files, FILES), data.second_captions)
        scan = scan_folder(folder, trigger_word=trigger, repeats=data.repeats, captions=rules, masks=masks_of(job))
        check_masks(job, scan)
        scan, held = hold_out(job, scan, reader(job, trigger, rules))
    before: list[Sample] = []
    with problems.at("difference.before"):
        before = [] if problems.found else kind.before(job, scan)
    problems.raise_if_any()
    assert captions is not None and outputs is not None
    sizes = sizer_of(job)
    memory = outlook(job, host, looked=_looked(job, kind, captions, [*scan.samples, *before], sizes))
    warning, line = (memory.warning(), memory.note()) if memory else (None, None)
    warnings = (*filter(None, [warning]), *_warnings(job, kind, host, scan, predicted))
    notes = tuple(filter(None, [settled.note, line, held.note, unread(job, kind), unread_by_model(job, kind, host)]))
    steps = _checked_steps(job, kind, sizes, [*scan.samples, *before])
    return Plan(
        job, kind, scan, captions, outputs, sizes, steps, tuple(before), warnings, settled.replaced, notes,
        () if caution is None else (caution,), held, memory is not None and memory.unet_waits,
    )  # fmt: skip


LONGEST = 8
"""Captions with most letters, of which one has most tokens."""


def _looked(job: JobConfig, kind: Kind, captions: CaptionMaker, samples: list[Sample], sizes: Sizer) -> Looked:
    """What the forecast of memory hangs on."""
    with_class = wants_class_pictures(job, kind)
    shapes = {sample.size for sample in samples} | ({(job.dataset.width, job.dataset.height)} if with_class else set())
    targets = [target for shape in shapes for target in sizes.sizes_for(shape)]
    texts = {text for sample in samples for text in (*sample.captions, *sample.seconds)}
    frame, generator = captions.variation.prefix + captions.variation.suffix, torch.Generator()
    return Looked(
        len(samples) + (job.prior.class_pictures if with_class else 0),
        max(targets, key=lambda size: size[0] * size[1], default=None),
        [frame + captions(text, generator) for text in sorted(texts, key=len)[-LONGEST:]],
        _fullest(_order(job, kind, sizes, samples)),
    )


LOOKED = 500
"""Steps whose batches are looked at: every picture is shown meanwhile, or there are enough of each size."""


def _fullest(order: Order) -> Fullest | None:
    """Of the first steps, which show what the run will: sizes and numbers hang on the seed alone."""
    found: Fullest | None = None
    for place, _ in itertools.islice(order.places(), min(LOOKED, order.total_steps())):
        for later, part in enumerate(place.batches):
            size = order.pictures[part[0]].target
            own = Fullest(size, len(part), bool(later))
            if found is None or (own.pixels, own.later) > (found.pixels, found.later):
                found = own
    return found


def _warnings(job: JobConfig, kind: Kind, host: Host, scan: Scan, predicted: Predicts) -> Iterator[Sentence]:
    """What may go wrong, beside the memory."""
    yield from filter(
        None,
        (
            small_warning(job, host.family()),
            mirror_warning(job, scan),
            _unheeded_skip(job, host.family()),
            high_rate(job, kind),
            offset_at_the_end(job, ends_as_noise(job, predicted)),
        ),
    )


def _checked_steps(job: JobConfig, kind: Kind, sizes: Sizer, samples: list[Sample]) -> int:
    """How many there will be. Raises all that is wrong with their number."""
    steps, problems = _order(job, kind, sizes, samples).total_steps(), Problems()
    if not steps:
        raise ConfigError("epochs.show_nothing", field="dataset.repeats", epochs=Field("training.epochs"))
    with problems.at():
        check_schedule(job, steps, kind.base_steps(job, steps))
    with problems.at():
        check_tag_warmup(job, steps)
    with problems.at():
        check_patience(job, steps, kind.base_steps(job, steps))
    problems.raise_if_any()
    return steps


def _unheeded_skip(job: JobConfig, family: Family) -> Sentence | None:
    """Of a family whose text is read from one layer whatever clip skip says."""
    if job.training.clip_skip == 1 or family.clip_skip:
        return None
    return Sentence("training.skip_unheeded", option=Field("training.clip_skip"), family=family.word)


def _order(job: JobConfig, kind: Kind, sizes: Sizer, samples: list[Sample]) -> Order:
    """As it will be if every picture can be decoded."""
    shown = [Shown(one.role, one.repeats, target) for one in samples for target in sizes.sizes_for(one.size)]
    if wants_class_pictures(job, kind):
        drawn = sizes.sizes_for((job.dataset.width, job.dataset.height))
        shown += [Shown("class", 1, target) for target in drawn] * job.prior.class_pictures
    return Order(job, kind, tuple(shown))
