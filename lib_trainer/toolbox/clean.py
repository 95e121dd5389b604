"""One file made tidy: what is known as junk left out, positions right, today's names, another precision, another VAE.

Cleaning twice changes nothing. What is not known is kept.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lib_trainer.families.family import VAE_PREFIX
from lib_trainer.networks.formats.mapped import Stored
from lib_trainer.refusals import ConfigError, Count, ModelError, Sentence, few
from lib_trainer.toolbox.clean_names import EMA, POSITIONS, average_of, is_junk, is_known
from lib_trainer.toolbox.clean_settings import CleanSettings, vae_precision
from lib_trainer.toolbox.desk import Done, Prepared
from lib_trainer.toolbox.facts import UNET, facts_of
from lib_trainer.toolbox.merge import OWN_HASHES, counted, rounded
from lib_trainer.toolbox.output import describe_result, settle, stored_as
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.source import Source, need_tensors, open_source
from lib_trainer.toolbox.streaming import Layout, Tally, blaming, bytes_needed, check_space, write_stream
from lib_trainer.toolbox.vae import check_same_build, vae_file, vae_of

KEEP, DROP = "keep", "drop"


def prepare(settings: CleanSettings) -> Prepared:
    """Raises `TrainerError` for what cannot be done; nothing but the header is read."""
    source = open_source(Path(settings.file.strip().strip('"')))
    need_tensors(source)
    vae = [] if settings.vae.strip().lower() in (KEEP, DROP) else vae_file(settings.vae)
    target = settle(settings.output, settings.existing, [source.path, *vae], base=source.path)
    others = [open_source(path) for path in vae]
    tensors, notes = _chosen(source, settings) if facts_of(source).is_model else (dict(source.tensors), [])
    layout: Layout = {
        name: (
            one.shape,
            stored_as(one.dtype, vae_precision(settings) if name.startswith(VAE_PREFIX) else settings.precision),
        )
        for name, one in tensors.items()
    }
    check_space(target, layout)
    if source.renamed:
        notes.append(Sentence("clean.renamed", count=Count(len(source.renamed))))
    if source.outside:
        notes.append(Sentence("clean.outside", names=few(source.outside, 6)))
    before, after = sum(one.nbytes for one in source.tensors.values()), bytes_needed(layout)
    told = Sentence("clean.result", path=target.path, tensors=Count(len(layout)), before=Count(before >> 20),
                    after=Count(after >> 20))  # fmt: skip

    metadata = {name: value for name, value in source.metadata.items() if name not in OWN_HASHES}

    def work(progress: Progress) -> Done:
        tally = Tally()
        progress.begin(Sentence("phase.writing_model"), after, "bytes")
        with blaming([source, *others]):
            path = write_stream(target, layout, lambda name: tensors[name].load(), metadata, progress, tally=tally)
        describe_result(progress, source.path, path)
        return Done(Sentence("clean.done", path=path), path, (*target.notes, *notes, *rounded(tally)))

    return Prepared((told, *target.notes, *notes), work)


def _chosen(source: Source, settings: CleanSettings) -> tuple[dict[str, Stored], list[Sentence]]:
    """The tensors of the result, and what is said of those that are not as before."""
    found: dict[str, Stored] = {}
    junk, unknown, positions, averages = [], [], [], 0
    for name, one in source.tensors.items():
        if name.startswith(EMA):
            averages += 1
            if settings.average == KEEP:
                found[name] = one
        elif name.endswith(POSITIONS):
            found[name] = counted(one)
            if one.dtype is not torch.int64 or not torch.equal(one.load(), found[name].load()):
                positions.append(name)
        elif settings.junk and is_junk(name):
            junk.append(name)
        else:
            found[name] = one
            if not is_known(name):
                unknown.append(name)
    notes = []
    if averages or settings.average == "take":
        notes.append(_average(source, settings, found, averages))
    notes += _vae(source, settings, found)
    for code, names in (("junk", junk), ("unknown", unknown), ("positions", positions)):
        if names:
            notes.append(_listed(code, names))
    return found, notes


def _listed(code: str, names: list[str]) -> Sentence:
    told = few(names, 12)
    if code == "junk":
        return Sentence("clean.junk", count=Count(len(names)), names=told)
    if code == "unknown":
        return Sentence("clean.unknown", count=Count(len(names)), names=told)
    return Sentence("clean.positions", names=told)


def _average(source: Source, settings: CleanSettings, found: dict[str, Stored], averages: int) -> Sentence:
    """What becomes of the running average; the UNet's tensors in `found` are replaced where it is taken."""
    if settings.average == DROP:
        return Sentence("clean.average_left_out", count=Count(averages))
    if settings.average == KEEP:
        return Sentence("clean.average_kept", count=Count(averages))
    own = [name for name in found if name.startswith(UNET)]
    taken = [name for name in own if average_of(name) in source.tensors]
    if not taken:
        raise ConfigError("clean.no_average", field="average", path=source.path)
    for name in taken:
        one = source.tensors[average_of(name)]
        if one.shape != found[name].shape:
            raise ModelError("clean.average_shape", path=source.path, name=name)
        found[name] = one
    return Sentence("clean.average_taken", count=Count(len(taken)), rest=Count(len(own) - len(taken)))


def _vae(source: Source, settings: CleanSettings, found: dict[str, Stored]) -> list[Sentence]:
    """Drop or exchange the VAE in `found`."""
    wanted = settings.vae.strip().strip('"')
    if wanted.lower() == KEEP or not wanted:
        return []
    other = None if wanted.lower() == DROP else open_source(Path(wanted))
    vae = {} if other is None else vae_of(other)
    if other is not None:
        if not vae:
            raise ModelError("toolbox.no_vae", path=other.path)
        check_same_build(vae, other, source)
    for name in [name for name in found if name.startswith(VAE_PREFIX)]:
        del found[name]
    found |= vae
    return [Sentence("clean.vae_dropped") if other is None else Sentence("clean.vae_taken", path=other.path)]
