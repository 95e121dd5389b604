"""What is in a file: its kind, family, parts with their hashes, ranks, origin, and what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from lib_trainer.networks.formats.lora_facts import RANKED
from lib_trainer.networks.formats.mapped import Stored
from lib_trainer.networks.formats.tensor_file import type_name
from lib_trainer.refusals import ConfigError, Count, ModelError, Sentence, few
from lib_trainer.toolbox.carried import carried_in
from lib_trainer.toolbox.clean_names import EMA, POSITIONS, is_junk, is_known
from lib_trainer.toolbox.desk import Done, Prepared
from lib_trainer.toolbox.duplicates import distinct, models_in
from lib_trainer.toolbox.facts import Facts, facts_of
from lib_trainer.toolbox.identity import SHOWN, components, glance, identity
from lib_trainer.toolbox.inspect_settings import InspectSettings
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.published import published
from lib_trainer.toolbox.source import Source, need_tensors, open_source
from lib_trainer.toolbox.streaming import is_sound

SETTINGS = (
    "ss_sd_model_name", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
    "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_optimizer", "ss_lr_scheduler", "ss_steps",
    "ss_num_epochs", "ss_num_train_images", "ss_resolution", "ss_clip_skip", "ss_seed", "modelspec.title",
    "modelspec.author", "modelspec.trigger_phrase", "modelspec.merged_from",
)  # fmt: skip
"""Of a file's metadata, what is shown."""
TAGS = 20


def prepare(settings: InspectSettings) -> Prepared:
    """Raises `ModelError` for a file that cannot be read, `ConfigError` for VAEs to compare with that are not there."""
    source = open_source(Path(settings.file.strip().strip('"')))
    need_tensors(source)
    facts = facts_of(source)
    lines = tuple(header(source, facts))
    vaes = [Path(place.strip().strip('"')).expanduser().absolute() for place in settings.vaes]
    compared = settings.whole and bool(components(source, facts).get("vae"))
    for place in vaes if compared else ():
        if not place.exists():
            raise ConfigError("look.no_vaes", field="vaes", path=place)

    def work(progress: Progress) -> Done:
        found = list(contents(source, facts, progress, vaes)) if settings.whole else []
        return Done(lines[0], None, (*lines[1:], *found))

    return Prepared(lines, work, quiet=True)


def header(source: Source, facts: Facts) -> Iterator[Sentence]:
    """What names, shapes and metadata tell."""
    if not facts.kind:
        yield Sentence("look.unknown", path=source.path, names=few(sorted(source.tensors), 5))
    elif facts.word:
        yield Sentence("look.kind", path=source.path, kind=facts.kind, family=facts.word)
    else:
        yield Sentence("look.kind_alone", path=source.path, kind=facts.kind)
    types = Counter(type_name(one.dtype) for one in source.tensors.values())
    numbers = sum(one.count for one in source.tensors.values())
    told = [Sentence("look.of_type", count=Count(count), type=name) for name, count in types.most_common()]
    yield Sentence("look.size", tensors=Count(len(source.tensors)), numbers=Count(numbers), types=told)
    if facts.prediction:
        yield Sentence("look.predicts_zero" if facts.zero_terminal else "look.predicts", prediction=facts.prediction)
    if facts.channels:
        yield Sentence("look.channels", count=facts.channels)
    yield from _ranks(source, facts)
    yield from _metadata(source)
    yield from _oddities(source, facts)


def _ranks(source: Source, facts: Facts) -> Iterator[Sentence]:
    layers: dict[int, list[str]] = {}
    for name, one in source.tensors.items():
        ending = next((f".{one}" for one in (*RANKED, "lora_A.weight") if name.endswith(f".{one}")), None)
        if ending and one.shape:
            layers.setdefault(one.shape[0], []).append(name.removesuffix(ending))
    if layers:
        told = [Sentence("look.of_rank", rank=rank, count=len(names)) for rank, names in sorted(layers.items())]
        yield Sentence("look.ranks", ranks=few(told, 12))
    if len(layers) > 1:
        for rank, names in sorted(layers.items()):
            yield Sentence("look.layers_of_rank", rank=rank, layers=few(names, 12))
    if facts.dora:
        yield Sentence("look.dora")


def _metadata(source: Source) -> Iterator[Sentence]:
    told = source.metadata
    for name in SETTINGS:
        if told.get(name):
            yield Sentence("look.metadata", name=name, value=told[name][:200])
    tags: Counter[str] = Counter()
    try:
        for folder in json.loads(told.get("ss_tag_frequency") or "{}").values():
            tags.update({str(tag): int(count) for tag, count in folder.items()})
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        tags.clear()
    if tags:
        listed = [Sentence("look.tag", tag=tag, count=count) for tag, count in tags.most_common(TAGS)]
        yield Sentence("look.tags", tags=listed)
    if carried_in(told):
        yield Sentence("look.picture", path=source.path)


def _oddities(source: Source, facts: Facts) -> Iterator[Sentence]:
    """What a cleaning would change."""
    if source.renamed:
        yield Sentence("look.renamed", count=Count(len(source.renamed)))
    if source.outside:
        yield Sentence("look.outside", names=few(source.outside, 6))
    averages = sum(name.startswith(EMA) for name in source.tensors)
    if averages:
        yield Sentence("look.average", count=Count(averages))
    if not facts.is_model:
        return
    junk = [name for name in source.tensors if is_junk(name)]
    if junk:
        yield Sentence("look.junk", count=Count(len(junk)), names=few(junk, 6))
    unknown = [name for name in source.tensors if not is_known(name)]
    if unknown:
        yield Sentence("look.foreign", count=Count(len(unknown)), names=few(unknown, 6))


def contents(source: Source, facts: Facts, progress: Progress, vaes: Iterable[Path] = ()) -> Iterator[Sentence]:
    """What only the numbers tell: hashes of the parts, whose VAE it is, and tensors that are broken. `vaes`: files, or
    folders of them, among which the VAE is looked for."""
    parts = components(source, facts)
    total = sum(one.nbytes for tensors in parts.values() for one in tensors.values())
    progress.begin(Sentence("phase.hashing"), total, "bytes")
    for part, tensors in parts.items():
        numbers = Count(sum(one.count for one in tensors.values()))
        digest = identity(tensors, progress.advance)
        yield Sentence("look.part", part=part, numbers=numbers, hash=digest[:SHOWN])
        if part == "vae":
            yield from _named(source, facts, tensors, digest, vaes)
    progress.begin(Sentence("phase.checking_tensors"), len(source.tensors), "tensors")
    broken, misplaced = [], []
    for name in source.tensors:
        if name.endswith(POSITIONS):
            positions = source.raw(name).reshape(-1)
            if not torch.equal(positions.double(), torch.arange(len(positions)).double()):
                misplaced.append(name)
        elif not is_sound(source.raw(name)):
            broken.append(name)
        progress.advance(1)
    if broken:
        yield Sentence("look.broken", count=Count(len(broken)), names=few(broken, 6))
    if misplaced:
        yield Sentence("look.positions", names=misplaced)
    if not broken and not misplaced:
        yield Sentence("look.sound")


def _named(
    source: Source, facts: Facts, vae: Mapping[str, Stored], digest: str, places: Iterable[Path]
) -> Iterator[Sentence]:
    """What the VAE is called: by its file, where it is one that was published, and by files with the same numbers."""
    own = published(source.path) if facts.kind == "VAE" or source.path.is_dir() else ""
    if own:
        yield Sentence("look.published", name=own)
    for file in same_vaes(source.path, vae, digest, places):
        name = published(file)
        yield Sentence("look.vae_of_published", path=file, name=name) if name else Sentence("look.vae_of", path=file)


def same_vaes(path: Path, vae: Mapping[str, Stored], digest: str, places: Iterable[Path]) -> Iterator[Path]:
    """VAEs on their own, among files and folders of them, that have the same numbers; without `path` itself.

    Only what looks alike at a glance is read as a whole; what cannot be read is passed by. `digest`: of `vae`.
    """
    seen = glance(vae)
    for file in distinct([one for place in places for one in (models_in(place) if place.is_dir() else [place])]):
        try:
            if file.samefile(path):
                continue
            source = open_source(file)
            facts = facts_of(source)
            other = components(source, facts).get("vae", {}) if facts.kind == "VAE" else {}
            if other and glance(other) == seen and identity(other) == digest:
                yield file
        except (ModelError, OSError):
            continue
