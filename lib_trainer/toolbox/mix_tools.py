"""The tools that make one LoRA file of one or several: combine, resize, repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lib_trainer.networks.formats.lora_facts import BUNDLED
from lib_trainer.refusals import ConfigError, Field, ModelError, Sentence, few
from lib_trainer.toolbox import inject
from lib_trainer.toolbox.adapters import Kind, kind_of
from lib_trainer.toolbox.decompose import Wanted
from lib_trainer.toolbox.desk import Done, Prepared
from lib_trainer.toolbox.layers import Layer, Scheme
from lib_trainer.toolbox.lora_options import CombineSettings, RepairSettings, ResizeSettings
from lib_trainer.toolbox.lora_tools import (
    asked_path,
    asked_report,
    bytes_of_all,
    clamped,
    described,
    percent,
    wanted_of,
    write_report,
)
from lib_trainer.toolbox.mix import Figures, Mixer, Term
from lib_trainer.toolbox.opened import OpenLora, open_lora
from lib_trainer.toolbox.output import PRECISIONS, Target, settle, written_as
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.results import LAYERS, one_files, recipe, shared, spooled, write_result
from lib_trainer.toolbox.source import Source, open_source
from lib_trainer.toolbox.spelling import tensor_name, to_peft
from lib_trainer.toolbox.streaming import Tally
from lib_trainer.toolbox.strengths import Meant, Strength, parse_meant


def prepare_combine(settings: CombineSettings) -> Prepared:
    """Raises `TrainerError` for what cannot be done."""
    if len(settings.loras) < 2:
        raise ConfigError("adapter_file.two", field="loras")
    meant = [parse_meant(one, "loras") for one in settings.loras]
    opened = _open([one.path for one in meant], settings.base)
    strengths = [one.strength(lora.family, "loras") for lora, one in zip(opened, meant, strict=True)]
    terms = _terms(list(zip(opened, strengths, strict=True)))
    wanted = wanted_of(settings.rank, settings.keep) if settings.rank or settings.keep else None
    return _mixing("combine", settings, opened, terms, wanted, [described(*pair) for pair in zip(opened, meant)])


def prepare_resize(settings: ResizeSettings) -> Prepared:
    """Raises `TrainerError` for what cannot be done."""
    lora = _open([asked_path(settings.lora, "lora")], settings.base)[0]
    if not settings.rank and not settings.keep:
        raise ConfigError("adapter_file.no_rank", field="rank")
    terms = _terms([(lora, Strength())])
    wanted = wanted_of(settings.rank, settings.keep)
    return _mixing("resize", settings, [lora], terms, wanted, [described(lora, Meant(lora.path))], settings.report)


def prepare_repair(settings: RepairSettings) -> Prepared:
    """Raises `TrainerError` for what cannot be done."""
    if not settings.lora.strip():
        raise ConfigError("adapter_file.no_file", field="lora")
    meant = [parse_meant(settings.lora, "lora"), *(parse_meant(one, "others") for one in settings.others)]
    if settings.blocks.strip():
        meant[0] = replace(meant[0], blocks=settings.blocks)
    opened = _open([one.path for one in meant], settings.base)
    fields = ["blocks" if settings.blocks.strip() else "lora", *["others"] * len(settings.others)]
    pairs = [(lora, one.strength(lora.family, field)) for lora, one, field in zip(opened, meant, fields, strict=True)]
    told = [described(*pair) for pair in zip(opened, meant)]
    terms = _terms(pairs)
    if settings.text == "drop" or settings.text_from.strip():
        rest = _terms(pairs[1:])
        terms = {layer: own for layer, own in terms.items() if layer.part == "unet"}
        terms |= {layer: own for layer, own in rest.items() if layer.part != "unet"}
        told[0]["text"] = 0
    if settings.text_from.strip():
        source = parse_meant(settings.text_from, "text_from")
        other = _alike([opened[0], open_lora(source.path, opened[0].family)])[1]
        for layer, own in _terms([(other, source.strength(other.family, "text_from"))]).items():
            if layer.part != "unet":
                terms[layer] = [*own, *terms.get(layer, ())]
        opened, told = [*opened, other], [*told, {**described(other, source), "unet": 0}]
    wanted = wanted_of(settings.rank, settings.keep) if settings.rank or settings.keep else None
    return _mixing("repair", settings, opened, terms, wanted, told)


def _open(paths: Sequence[Path], base: str) -> list[OpenLora]:
    """Files of one family: that of the checkpoint, where one is given and they fit several."""
    asked = inject.checkpoint_family(open_source(asked_path(base, "base"))) if base.strip() else None
    first = open_lora(paths[0], asked)
    return _alike([first, *(open_lora(path, first.family) for path in paths[1:])])


def _alike(opened: list[OpenLora]) -> list[OpenLora]:
    first = opened[0]
    for other in opened[1:]:
        if other.family is not first.family:
            raise ModelError("adapter_file.families", base=first.path, one=first.family.word, tuned=other.path,
                             other=other.family.word)  # fmt: skip
    return opened


def _terms(pairs: Sequence[tuple[OpenLora, Strength]]) -> dict[Layer, list[Term]]:
    """What is taken for each layer; a strength of 0 leaves it out."""
    found: dict[Layer, list[Term]] = {}
    for lora, strength in pairs:
        for layer in lora.modules:
            if strength.of(layer):
                found.setdefault(layer, []).append(Term(lora, strength.of(layer)))
    return found


def _mixing(
    tool: str,
    settings: CombineSettings | ResizeSettings | RepairSettings,
    opened: Sequence[OpenLora],
    terms: Mapping[Layer, Sequence[Term]],
    wanted: Wanted | None,
    told: Sequence[Mapping[str, object]],
    report: str = "",
) -> Prepared:
    first = opened[0]
    base = open_source(asked_path(settings.base, "base")) if settings.base.strip() else None
    inputs = [*(one.path for one in opened), *([base.path] if base is not None else [])]
    target = settle(settings.output, settings.existing, inputs)
    if not terms:
        raise ConfigError("adapter_file.nothing_left", field="lora")
    if base is not None:
        inject.check_family(first, base, inject.checkpoint_family(base))
    _check_base(terms, wanted, base)
    scheme: Scheme = first.scheme if settings.names == "keep" else settings.names
    dtype = PRECISIONS[settings.precision] or written_as({lora.dtype for lora in opened})
    place = asked_report(report, settings.existing, inputs)
    lines = [Sentence("adapter_file.mixes", files=tuple(one.path.name for one in opened), count=len(terms),
                      path=target.path), *target.notes, *(place.notes if place else ())]  # fmt: skip
    lines += [Sentence("adapter_file.strange", path=lora.path, count=len(lora.strange), names=few(lora.strange))
              for lora in opened if lora.strange]  # fmt: skip
    mixer = Mixer(terms, wanted, dtype, base, Figures())
    facts = {"files": list(told), "rank": wanted.rank if wanted else 0, "keep": wanted.keep if wanted else 1.0}
    work = _Mixing(tool, mixer, opened, scheme, target, facts, place)
    return Prepared(tuple(lines), work.run)


def _check_base(terms: Mapping[Layer, Sequence[Term]], wanted: Wanted | None, base: Source | None) -> None:
    """Raise `ModelError` where something depends on a model and none is given. Alone and at full strength it stays."""
    if base is not None:
        return
    for layer, own in terms.items():
        for term in own:
            if layer not in term.lora.needing_base:
                continue
            dora = "dora_scale" in term.lora.modules[layer].tensors
            if len(own) > 1 or term.strength != 1 or (wanted is not None and not dora):
                raise ModelError("adapter_file.needs_base", path=term.lora.path, name=term.lora.modules[layer].name,
                                 base=Field("base", "--base"))  # fmt: skip


@dataclass(frozen=True)
class _Mixing:
    """The work itself. `files`: what the recipe tells of them."""

    tool: str
    mixer: Mixer
    opened: Sequence[OpenLora]
    scheme: Scheme
    target: Target
    facts: Mapping[str, object]
    report: Target | None

    def run(self, progress: Progress) -> Done:
        progress.begin(Sentence("phase.difference"), len(self.mixer.terms), "layers")
        figures, tally = self.mixer.figures, Tally()
        named: dict[str, str] = {}
        plain = True
        with spooled(self.target.path) as spool:
            for layer in self.mixer.terms:
                own = self.mixer.made(layer)
                plain = plain and kind_of(own) is Kind.LORA and not {"lora_mid.weight", "dora_scale"} & own.keys()
                for suffix, tensor in self._spelled(layer, own).items():
                    name = tensor_name(layer, suffix, self.scheme)
                    named[name] = tensor_name(layer, suffix, "kohya")
                    spool.add(name, tensor)
                progress.advance(1)
            for name, tensor in self._embeddings().items():
                spool.add(name, tensor)
            tensors = spool.tensors()
            progress.begin(Sentence("phase.writing"), bytes_of_all(tensors), "bytes")
            path = write_result(self.target, tensors, self._metadata(plain=plain), progress, named, tally)
        write_report(self.report, figures.table(), progress)
        told = Sentence("adapter_file.mixed", path=path, count=len(self.mixer.terms))
        return Done(told, path, (*self._notes(), *clamped(tally)))

    def _spelled(self, layer: Layer, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A module as the result's scheme has it. Raises `ModelError` for what that cannot hold."""
        if self.scheme != "peft":
            return own
        try:
            return to_peft(own)[0]
        except ValueError as error:
            name, path = layer.name("peft"), self.opened[0].path
            raise ModelError("adapter_file.not_peft", path=path, name=name, reason=error) from error

    def _notes(self) -> list[Sentence]:
        figures, notes = self.mixer.figures, []
        if figures.layers:
            ranks = sorted(one.rank for one in figures.layers.values())
            notes.append(Sentence("adapter_file.lost_mixed", share=percent(figures.share), least=ranks[0],
                                  most=ranks[-1], advised=figures.advised))  # fmt: skip
        if figures.biases:
            notes.append(Sentence("adapter_file.biases", count=figures.biases))
        return notes

    def _metadata(self, *, plain: bool) -> dict[str, str]:
        """What holds of the files, and the recipe. `plain`: there is nothing but LoRA in it."""
        same = self.mixer.wanted is None and not self.mixer.figures.layers and len(self.opened) == 1
        if len(self.opened) == 1:
            metadata = one_files(self.opened[0].metadata, same_kind=same)
        else:
            metadata = shared([one.metadata for one in self.opened])
        family = self.opened[0].family
        metadata.setdefault("ss_base_model_version", family.versions(metadata.get("modelspec.prediction_type", ""))[0])
        metadata.setdefault("ss_v2", str(family.v2))
        if not same or "ss_network_module" not in metadata:
            metadata["ss_network_module"] = "networks.lora" if plain else "lycoris.kohya"
        metadata["ss_output_name"] = self.target.path.stem
        figures = self.mixer.figures
        if figures.layers:
            metadata[LAYERS] = figures.metadata()
        return metadata | recipe(self.tool, **self.facts, lost=round(figures.share, 6))

    def _embeddings(self) -> dict[str, torch.Tensor]:
        """What the files bring along. Raises `ModelError` for two of one name that are not the same."""
        found: dict[str, tuple[torch.Tensor, OpenLora]] = {}
        for lora in self.opened:
            for name in lora.source.tensors:
                if not name.startswith(BUNDLED):
                    continue
                tensor = lora.source.raw(name)
                if name in found and not torch.equal(found[name][0], tensor):
                    raise ModelError("adapter_file.embedding_twice", path=found[name][1].path, other=lora.path,
                                     name=name.removeprefix(BUNDLED).partition(".")[0])  # fmt: skip
                found.setdefault(name, (tensor, lora))
        return {name: tensor for name, (tensor, _) in found.items()}
