"""What is checked before any model is touched, beyond the bounds of the single fields."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from lib_trainer.captions.document import KEEP
from lib_trainer.config import CaptionsConfig, JobConfig, field_specs, to_values
from lib_trainer.config.fields import option_of
from lib_trainer.dataset.caption_files import caption_files, checked_ending
from lib_trainer.families.family import Family
from lib_trainer.files import plain
from lib_trainer.kinds.base import Kind
from lib_trainer.ports import Host
from lib_trainer.refusals import ConfigError, Field, Problems, Sentence, few
from lib_trainer.training.names import check_name
from lib_trainer.training.optimizers import called, check_optimizer, known
from lib_trainer.training.precision import resolve_precision
from lib_trainer.training.preservation import check_preservation
from lib_trainer.training.preview_prompts import PROMPT, SIDES, check_previews, wrong_side
from lib_trainer.training.prior import check_prior
from lib_trainer.training.sizes import check_sizes
from lib_trainer.training.validation import check_validation

FILES = "dataset.caption_files"
NAMES = ("output.name", "embedding.names")
"""Options that name what a run writes."""
SECOND_RATES = ("optimizer.text_encoder_2_lr", "finetune.text_encoder_2_lr")
"""Of a family with two text encoders; below 0 the first one's."""
A_FACTOR = 0.5
"""A rate from which on it is none, but a factor on one that is found."""
LEAST_FACTOR = 0.01
"""On a rate that an optimizer finds itself: whoever sets less has set a rate."""


def check_job(job: JobConfig, kind: Kind, host: Host) -> None:
    """Raise `ConfigError` for fields that contradict each other, the host or its device: all of them at once."""
    problems, family = Problems(), host.family()
    with problems.at():
        check_names(job, kind)
    with problems.at():
        check_sizes(job, family)
    with problems.at():
        check_captions(job, kind)
    for field, text in _trained_texts(job, kind):
        if KEEP in text:
            problems.add(ConfigError("captions.separator", field=field, separator=KEEP))
    with problems.at():
        check_caption_files(job, family)
    with problems.at():
        check_prior(job, kind)
    with problems.at():
        resolve_precision(job.training.precision, host.device())
    with problems.at():
        check_weights(job, kind)
    with problems.at():
        check_noise(job)
    with problems.at():
        check_preservation(job, kind)
    with problems.at():
        check_optimizer(job.optimizer, host.device())
    with problems.at():
        check_rates(job, kind, family)
    with problems.at():
        check_shares(job, kind)
    with problems.at():
        check_validation(job)
    check_drawing(job, host, problems)
    problems.raise_if_any()


def check_drawing(job: JobConfig, host: Host, problems: Problems, prompts: str = PROMPT) -> None:
    """Add what keeps the host from drawing a job's previews. `prompts` is the field where their lines were written."""
    family = host.family()
    for field in SIDES:
        with problems.at():
            _check_preview_size(job, field, family)
    with problems.at():
        _check_sampler(job, host)
    for wrong in check_previews(job, family, host.samplers(), prompts):
        problems.add(wrong, prompts)


def _check_preview_size(job: JobConfig, field: str, family: Family) -> None:
    size = getattr(job.preview, field)
    nearest = wrong_side(size, family)
    if nearest is not None:
        raise ConfigError(
            "size.no_preview",
            field=f"preview.{field}",
            size=size,
            cell=family.cell,
            least=family.stride,
            nearest=nearest,
        )


def _check_sampler(job: JobConfig, host: Host) -> None:
    if job.preview.sampler and job.preview.sampler not in host.samplers():
        raise ConfigError(
            "preview.sampler", field="preview.sampler", sampler=job.preview.sampler, samplers=host.samplers()
        )


def check_noise(job: JobConfig) -> None:
    """Raise `ConfigError` for a range that leaves no timestep."""
    noise = job.noise
    if noise.min_timestep >= noise.max_timestep:
        raise ConfigError(
            "noise.range",
            field="noise.min_timestep",
            first=noise.min_timestep,
            end=Field("noise.max_timestep"),
            last=noise.max_timestep,
        )


def check_captions(job: JobConfig, kind: Kind) -> None:
    """Raise `ConfigError` where a template leaves no caption to vary, or a run would have none."""
    changed = [
        f"captions.{name}"
        for name in CaptionsConfig.__struct_fields__
        if getattr(job.captions, name) != getattr(CaptionsConfig(), name) and f"captions.{name}" in kind.options
    ]
    if changed and kind.has_templates and job.dataset.template:
        raise ConfigError("captions.with_template", field=changed[0], template=Field("dataset.template"))
    for path, all_of_it in (
        ("captions.dropout", job.captions.dropout >= 1),
        ("captions.dropout_epochs", job.captions.dropout_epochs == 1),
    ):
        if path in changed and all_of_it:
            raise ConfigError("captions.nothing_left", field=path)


def _trained_texts(job: JobConfig, kind: Kind) -> Iterator[tuple[str, str]]:
    """What else than captions is told and called as it stands, by its field."""
    yield "dataset.trigger_word", job.dataset.trigger_word
    if kind.has_class_pictures:
        yield "prior.class_prompt", job.prior.class_prompt


def check_caption_files(job: JobConfig, family: Family) -> None:
    """Raise `ConfigError` for what names no files, and for captions of an encoder that the model does not have."""
    caption_files(job.dataset.caption_files, FILES)
    second, field = job.dataset.second_captions, "dataset.second_captions"
    if not second:
        return
    checked_ending(second, field)
    if len(family.encoders) < 2:
        raise ConfigError("caption_files.one_encoder", field=field, family=family.word)


def check_tag_warmup(job: JobConfig, steps: int) -> None:
    """Raise `ConfigError` where no step of a run tells all tags."""
    if job.captions.warmup >= steps:
        raise ConfigError("captions.warmup", field="captions.warmup", warmup=job.captions.warmup, steps=steps)


def check_names(job: JobConfig, kind: Kind) -> None:
    """Raise `ConfigError` for a result whose name is no file name on every system, or for two that are one."""
    check_name("output.name", job.output.name)
    seen: dict[str, str] = {}
    for name in kind.words(job):
        check_name(kind.names_field(job), name)
        other = seen.setdefault(plain(name), name)
        if other is not name:
            if other == name:
                raise ConfigError("name.twice", field="embedding.names")
            raise ConfigError("name.alike", field="embedding.names", other=other, name=name)


def check_weights(job: JobConfig, kind: Kind) -> None:
    """Raise `ConfigError` where the frozen weights cannot be held as the job says."""
    if job.training.weights != "fp8":
        return
    reason = kind.why_no_fp8(job) if hasattr(torch, "float8_e4m3fn") else Sentence("weights.old_torch")
    if reason:
        raise ConfigError("weights.no_fp8", field="training.weights", reason=reason)


def check_rates(job: JobConfig, kind: Kind, family: Family) -> None:
    """Raise `ConfigError` where an optimizer that finds the rate itself is given rates that are no factors on it."""
    entry, name = known(job.optimizer), called(job.optimizer)
    second = [path for path in SECOND_RATES if path in kind.options and len(family.encoders) > 1]
    given = {path: float(option_of(job, path)) for path in (*kind.all_rates, *second) if option_of(job, path) > 0}
    if not entry.finds_rate or not given:
        return
    first = next(iter(given))
    if max(given.values()) < LEAST_FACTOR:
        raise ConfigError("rates.found_by_itself", field=first, value=given[first], optimizer=name)
    if not entry.one_rate:
        return
    other = next((path for path, rate in given.items() if rate != given[first]), None)
    if other is not None:
        raise ConfigError("rates.not_one", field=other, other=Field(first), optimizer=name)
    if "optimizer.lora_plus" in kind.options and job.optimizer.lora_plus != 1:
        raise ConfigError("rates.not_by_factor", field="optimizer.lora_plus", optimizer=name)
    if "blocks.rates" in kind.options and job.blocks.rates.strip():
        raise ConfigError("rates.not_by_block", field="blocks.rates", optimizer=name)


def check_shares(job: JobConfig, kind: Kind) -> None:
    """Raise `ConfigError` where the text encoder alone learns, and not to the end."""
    unet, text, share = (
        ("finetune.unet_lr", "finetune.text_encoder_lr", "finetune.text_encoder_share")
        if kind.writes_model
        else ("optimizer.unet_lr", "optimizer.text_encoder_lr", "optimizer.text_encoder_share")
    )
    alone = share in kind.options and not option_of(job, unet) and option_of(job, text) and not kind.has_words
    if alone and option_of(job, share) < 1:
        raise ConfigError("rates.nothing_left", field=share, unet=Field(unet))


def idle_options(family: Family, *, inpaints: bool = False) -> list[str]:
    """Options that no job on a model of the family reads, one that inpaints or not."""
    return [
        path
        for path, spec in field_specs().items()
        if (spec.family and not getattr(family, spec.family)) or (spec.inpainting and not inpaints)
    ]


def unread(job: JobConfig, kind: Kind) -> Sentence | None:
    """Of options that a job sets although they do nothing with its others; those of other kinds are no mistake."""
    values, specs = to_values(job), field_specs()
    paths = [path for path in kind.options if values[path] != specs[path].default and not specs[path].shown_in(values)]
    found = [Field(path) for path in sorted(paths)]
    return Sentence("option.unread", options=few(found)) if found else None


def unread_by_model(job: JobConfig, kind: Kind, host: Host) -> Sentence | None:
    """Of options that a job sets although no job on the loaded model reads them; clip skip is warned of."""
    idle, values, specs = idle_options(host.family(), inpaints=host.inpaints()), to_values(job), field_specs()
    found = [path for path in idle if path in kind.options and values[path] != specs[path].default]
    told = [Field(path) for path in found if path != "training.clip_skip" and specs[path].shown_in(values)]
    return Sentence("option.unread_by_model", options=few(told)) if told else None


def high_rate(job: JobConfig, kind: Kind) -> Sentence | None:
    """Of a rate as optimizers want it that find it themselves, and with another one."""
    entry = known(job.optimizer)
    rates = {path: float(option_of(job, path)) for path in kind.all_rates}
    first = next((path for path, rate in rates.items() if rate >= A_FACTOR), None)
    if entry.finds_rate or not entry.adapts or first is None:
        return None
    return Sentence("rates.as_a_factor", option=Field(first), value=rates[first], optimizer=called(job.optimizer))


def offset_at_the_end(job: JobConfig, zero_terminal: bool) -> Sentence | None:
    """Of a noise offset where pictures end as noise alone: the sampler begins with noise that has none."""
    if not zero_terminal or not job.noise.offset:
        return None
    return Sentence("noise.offset_at_the_end", option=Field("noise.offset"))


def with_a_name(job: JobConfig) -> JobConfig:
    """The job with a name that is one, where its own is refused: for the checks of everything else."""
    embedding = msgspec.structs.replace(job.embedding, names="", initial_text="")
    return msgspec.structs.replace(job, output=msgspec.structs.replace(job.output, name="unnamed"), embedding=embedding)


def output_folder(job: JobConfig, kind: Kind, host: Host) -> Path:
    """Where the result goes. Raises `ConfigError` for a folder that cannot be one."""
    folder = Path(job.output.folder).expanduser() if job.output.folder else kind.folder(host)
    shown = str(folder) if len(str(folder)) < 200 else str(folder)[:200] + "…"
    if "\0" in str(folder) or any(len(os.fsencode(part)) > 255 for part in folder.parts):
        raise ConfigError("output.no_path", field="output.folder", folder=shown)
    places = (folder, *folder.absolute().parents)  # the last is not there either on a drive that is away (Windows)
    nearest = next((place for place in places if os.path.lexists(place)), places[-1])
    if os.path.lexists(nearest) and not nearest.is_dir():
        raise ConfigError("output.a_file", field="output.folder", folder=shown)
    if not os.access(nearest, os.W_OK):
        raise ConfigError("output.locked", field="output.folder", folder=shown)
    return folder
