"""Which sizes a job's pictures are trained at, and in which variations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lib_trainer.config import JobConfig
from lib_trainer.dataset.batches import FixedSize, Sizer
from lib_trainer.dataset.buckets import Buckets, Size
from lib_trainer.dataset.holes import Holes
from lib_trainer.dataset.variations import Variations
from lib_trainer.families.family import Family
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, Field, ModelError, Problems, Sentence

FURTHER = "buckets.resolutions"
SIDES = frozenset(["dataset.width", "dataset.height"])


def resolutions_of(job: JobConfig) -> tuple[Size, ...]:
    """(width, height) of the training size and, with buckets, of the further resolutions, in order and each once.

    Raises `ConfigError` for a text that says none.
    """
    found = [(job.dataset.width, job.dataset.height)]
    if job.buckets.enabled:
        for part in filter(None, (one.strip() for one in job.buckets.resolutions.split(","))):
            match = re.fullmatch(r"([0-9]{2,5})(?:\s*[x×X]\s*([0-9]{2,5}))?", part)
            if match is None:
                raise ConfigError("buckets.resolution", field=FURTHER, text=part)
            found.append((int(match[1]), int(match[2] or match[1])))
    return tuple(dict.fromkeys(found))


def usual_values(host: Host) -> dict[str, Any]:
    """{path: value} of the options whose default hangs on the model that would be trained: its own size."""
    side = _usual_side(host)
    return {"dataset.width": side, "dataset.height": side}


def with_usual(values: Mapping[str, Any], host: Host) -> dict[str, Any]:
    """{path: value} of a job file, with the model's own size where it says nothing of either side. One side alone is
    beside the other's default, as for every option that is left out."""
    if not SIDES.isdisjoint(values):
        return dict(values)
    return {**usual_values(host), **values}


def usual_note(host: Host) -> Sentence:
    """For beside them."""
    return Sentence("pictures.usual", family=host.family().word, side=_usual_side(host))


def _usual_side(host: Host) -> int:
    family = host.family()
    try:
        return family.side_of(host.predicts().prediction)
    except ModelError:  # no model is loaded yet
        return family.side_of(family.prediction)


def largest_size(job: JobConfig) -> Size:
    """The resolution with the most pixels, which no bucket exceeds. Raises `ConfigError` as `resolutions_of` does."""
    return max(resolutions_of(job), key=lambda size: size[0] * size[1])


def small_warning(job: JobConfig, family: Family) -> Sentence | None:
    """A sentence where pictures are trained at fewer pixels than models of the family draw well."""
    width, height = largest_size(job)
    if width * height >= family.smallest**2:
        return None
    size = (Field("dataset.width"), Field("dataset.height"))
    return Sentence(
        "pictures.small", width=width, height=height, options=size, family=family.word, smallest=family.smallest
    )


def sizer_of(job: JobConfig) -> Sizer:
    """Raises `ConfigError` for sizes that the VAE cannot encode."""
    data, buckets = job.dataset, job.buckets
    fixed = FixedSize(data.width, data.height)
    if not buckets.enabled:
        return fixed
    return Buckets(resolutions_of(job), buckets.step, buckets.low, buckets.high, buckets.enlarge)


def variations_of(job: JobConfig) -> Variations:
    own = job.augment
    return Variations(own.mirror, own.crop, own.colour, own.grey, own.count)


def holes_of(job: JobConfig) -> Holes:
    """Of a model that inpaints."""
    return Holes(job.inpainting.count, masks=job.masks.source != "none" and job.inpainting.holes == "masks")


def check_sizes(job: JobConfig, family: Family) -> None:
    """Raise `ConfigError` for all sizes that the family's models cannot be trained at, or that leave no bucket."""
    problems = Problems()
    for field in ("width", "height"):
        with problems.at():
            _check_stride(f"dataset.{field}", getattr(job.dataset, field), family.stride)
    if job.buckets.enabled:
        with problems.at():
            _check_stride("buckets.step", job.buckets.step, family.stride)
        with problems.at():
            _check_resolutions(job, family)
    problems.raise_if_any()


def _check_stride(field: str, size: int, stride: int) -> None:
    if size % stride:
        nearest = max(stride, round(size / stride) * stride)
        raise ConfigError("size.not_of_stride", field=field, size=size, stride=stride, nearest=nearest)


def _check_resolutions(job: JobConfig, family: Family) -> None:
    low, high = job.buckets.low, job.buckets.high
    for width, height in resolutions_of(job):
        if width % family.stride or height % family.stride:
            raise ConfigError("buckets.not_of_stride", field=FURTHER, width=width, height=height, stride=family.stride)
        if low > min(width, height):
            raise ConfigError("buckets.low", field="buckets.low", low=low, width=width, height=height)
        if high < max(width, height):
            raise ConfigError("buckets.high", field="buckets.high", high=high, width=width, height=height)
