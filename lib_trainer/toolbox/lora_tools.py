"""The tools extract, inject and convert: what each checks before anything is read, says, and does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lib_trainer.families.family import Part
from lib_trainer.families.prediction import predicts
from lib_trainer.networks.formats.description import clues_of
from lib_trainer.refusals import ConfigError, Count, Decimals, ModelError, Sentence, few
from lib_trainer.toolbox import convert, extract, inject
from lib_trainer.toolbox.adapters import EXACT, Kind, kind_of
from lib_trainer.toolbox.decompose import Wanted
from lib_trainer.toolbox.desk import Done, Prepared
from lib_trainer.toolbox.lora_options import ConvertSettings, ExtractSettings, InjectSettings
from lib_trainer.toolbox.opened import OpenLora, open_lora
from lib_trainer.toolbox.output import (
    PRECISIONS,
    Target,
    describe_result,
    make_way,
    settle,
    stored_as,
    written,
    written_as,
)
from lib_trainer.toolbox.progress import Progress
from lib_trainer.toolbox.results import LAYERS, one_files, recipe, spooled, write_result
from lib_trainer.toolbox.source import open_source
from lib_trainer.toolbox.spelling import Noted, tensor_name, with_notes
from lib_trainer.toolbox.streaming import Layout, Tally, blaming, check_space, write_stream
from lib_trainer.toolbox.strengths import Meant, parse_meant

PEFT_READS = (Kind.LORA, Kind.NORM, Kind.DIFF)
PARTS: dict[str, tuple[Part, ...]] = {"all": ("unet", "te1", "te2"), "unet": ("unet",), "text": ("te1", "te2")}


def asked_path(text: str, field: str) -> Path:
    if not text.strip():
        raise ConfigError("adapter_file.no_file", field=field)
    return Path(text.strip().strip('"')).expanduser()


def asked_report(report: str, existing: str, inputs: Sequence[Path]) -> Target | None:
    """Where a table of the layers is written, if it is asked for: never over a file, as the result."""
    return settle(report, existing, inputs, ".csv", "report") if report.strip() else None


def write_report(target: Target | None, table: str, progress: Progress) -> None:
    """Raises `SaveError`; what is there stays."""
    if target is None:
        return
    make_way(target)
    with written(target, progress) as result:
        result.file.write(table.encode())


def percent(number: float) -> Decimals:
    """In percent."""
    return Decimals(100 * number, 2)


def prepare_extract(settings: ExtractSettings) -> Prepared:
    """Raises `TrainerError` for what cannot be done."""
    base, tuned = asked_path(settings.base, "base"), asked_path(settings.tuned, "tuned")
    target = settle(settings.output, settings.existing, (base, tuned))
    if not settings.rank and not settings.keep:
        raise ConfigError("adapter_file.no_rank", field="rank")
    sources = open_source(base), open_source(tuned)
    first = next((one for one in sources[1].tensors.values() if one.dtype.is_floating_point), None)
    how = extract.How(
        flat=wanted_of(settings.rank, settings.keep),
        spatial=None if settings.conv_rank < 0 else wanted_of(settings.conv_rank or settings.rank, settings.keep),
        parts=PARTS[settings.parts],
        norms=settings.norms,
        dtype=PRECISIONS[settings.precision] or written_as({first.dtype} if first else ()),
        scheme=settings.names,
        device=_device(settings.device),
    )
    planned = extract.plan(*sources, how)
    lines = [
        Sentence("adapter_file.extracts", tuned=tuned, base=base, count=len(planned.layers), path=target.path),
        *target.notes,
    ]
    if planned.missing:
        lines.append(Sentence("adapter_file.missing", count=len(planned.missing), names=few(planned.missing)))
    report = asked_report(settings.report, settings.existing, (base, tuned))
    if report is not None:
        lines += report.notes
    return Prepared(tuple(lines), lambda progress: _extract(planned, how, target, report, progress))


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text.strip() or "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("adapter_file.device", field="device", given=text) from error
    return device


def wanted_of(rank: int, keep: float) -> Wanted:
    return Wanted(rank, keep or 1.0)


def _extract(
    planned: extract.Plan, how: extract.How, target: Target, report: Target | None, progress: Progress
) -> Done:
    progress.begin(Sentence("phase.difference"), extract.numbers(planned), "numbers")
    with spooled(target.path) as spool:
        found = extract.extract(planned, how, spool, progress)
        if not found.layers:
            raise ModelError("adapter_file.same", base=planned.base.path, tuned=planned.tuned.path)
        tensors = spool.tensors()
        family = planned.family
        prediction = predicts(family, clues_of(planned.tuned.path)).prediction
        said = planned.tuned.metadata.get("modelspec.prediction_type", prediction if prediction == "v" else "")
        metadata = {
            "ss_base_model_version": family.versions(prediction)[0],
            "ss_v2": str(family.v2),
            "ss_network_module": "networks.lora",
            "ss_output_name": target.path.stem,
            "ss_sd_model_name": planned.base.path.name,
            **({"modelspec.prediction_type": said} if said else {}),
            **recipe(
                "extract",
                base=planned.base.path.name,
                tuned=planned.tuned.path.name,
                rank=how.flat.rank,
                conv_rank=how.spatial.rank if how.spatial else 0,
                keep=how.flat.keep,
                lost=round(found.share, 6),
                lost_with_what_is_left_out=round(found.of_all, 6),
            ),
            LAYERS: found.metadata(),
        }
        tally = Tally()
        progress.begin(Sentence("phase.writing"), bytes_of_all(tensors), "bytes")
        named = {tensor_name(layer, suffix, how.scheme): tensor_name(layer, suffix, "kohya")
                 for layer in (*planned.layers, *planned.norms) for suffix in SUFFIXES_MADE}  # fmt: skip
        path = write_result(target, tensors, metadata, progress, named, tally)
    write_report(report, found.table(), progress)
    notes = [
        Sentence("adapter_file.lost", share=percent(found.share), all=percent(found.of_all), advised=found.advised),
        Sentence(
            "adapter_file.worst",
            layers=[
                Sentence("adapter_file.layer", name=name, share=percent(one.share)) for name, one in found.worst[:3]
            ],
        ),
    ]
    told = Sentence("adapter_file.extracted", path=path, count=len(found.layers), same=found.same)
    return Done(told, path, (*notes, *clamped(tally)))


SUFFIXES_MADE = ("lora_up.weight", "lora_down.weight", "alpha", "w_norm", "b_norm")


def bytes_of_all(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(one.numel() * one.itemsize for one in tensors.values())


def clamped(tally: Tally) -> list[Sentence]:
    if not tally.clamped:
        return []
    return [Sentence("adapter_file.clamped", count=Count(tally.clamped), names=few(tally.names))]


def prepare_inject(settings: InjectSettings) -> Prepared:
    """Raises `TrainerError` for what cannot be done."""
    path = asked_path(settings.model, "model")
    if not settings.loras:
        raise ConfigError("adapter_file.no_file", field="loras")
    meant = [parse_meant(one, "loras") for one in settings.loras]
    target = settle(settings.output, settings.existing, (path, *(one.path for one in meant)), base=path)
    model = open_source(path)
    family = inject.checkpoint_family(model)
    opened = [open_lora(one.path, family) for one in meant]
    taken = [inject.Taken(lora, one.strength(lora.family, "loras")) for lora, one in zip(opened, meant, strict=True)]
    planned = inject.plan(model, taken)
    layout = {name: (one.shape, stored_as(one.dtype, settings.precision)) for name, one in model.tensors.items()}
    check_space(target, layout)
    lines = [
        Sentence("adapter_file.injects", loras=tuple(one.path.name for one in meant), path=path,
                 count=len(planned.changes), target=target.path),
        *target.notes,
    ]  # fmt: skip
    for name, modules in planned.absent.items():
        lines.append(Sentence("adapter_file.absent", path=name, count=len(modules), names=few(modules)))
    lines += [note for lora in opened for note in brought(lora)]
    told = [described(lora, one) for lora, one in zip(opened, meant, strict=True)]
    return Prepared(tuple(lines), lambda progress: _inject(planned, layout, told, target, progress))


def brought(lora: OpenLora) -> list[Sentence]:
    """What of a file goes into no checkpoint."""
    notes = []
    if lora.embeddings:
        notes.append(Sentence("adapter_file.embeddings", path=lora.path, names=lora.embeddings))
    if lora.strange:
        notes.append(Sentence("adapter_file.strange", path=lora.path, count=len(lora.strange), names=few(lora.strange)))
    return notes


def described(lora: OpenLora, meant: Meant) -> dict[str, object]:
    """For a recipe."""
    told: dict[str, object] = {"file": lora.path.name, "text": meant.text, "unet": meant.unet}
    if meant.blocks:
        told["blocks"] = meant.blocks
    if "sshs_model_hash" in lora.metadata:
        told["sshs_model_hash"] = lora.metadata["sshs_model_hash"]
    return told


def _inject(
    planned: inject.Injection, layout: Layout, told: Sequence[dict[str, object]], target: Target, progress: Progress
) -> Done:
    model = planned.model
    progress.begin(Sentence("phase.writing"), sum(one.nbytes for one in model.tensors.values()), "bytes")
    metadata = {**model.metadata, **recipe("inject", model=model.path.name, loras=list(told))}
    for stale in ("modelspec.hash_sha256", "sd_merge_recipe", "sd_merge_models"):
        metadata.pop(stale, None)
    tally = Tally()
    with blaming([model]):
        path = write_stream(target, layout, lambda name: inject.made(planned, name), metadata, progress, tally=tally)
    describe_result(progress, model.path, path)
    told_of_it = Sentence("adapter_file.injected", path=path, count=len(planned.changes))
    return Done(told_of_it, path, (*target.notes, *clamped(tally)))


def prepare_convert(settings: ConvertSettings) -> Prepared:
    """Raises `TrainerError` for what cannot be done."""
    path = asked_path(settings.lora, "lora")
    target = settle(settings.output, settings.existing, (path,))
    lora = open_lora(path)
    lines = [
        Sentence("adapter_file.converts", path=path, count=len(lora.modules), one=lora.scheme, other=settings.names,
                 target=target.path),
        *target.notes,
    ]  # fmt: skip
    others = sum(kind_of(module.tensors) not in PEFT_READS for module in lora.modules.values())
    if settings.names == "peft" and others:
        lines.append(Sentence("adapter_file.peft_reads", count=others))
    return Prepared(tuple(lines), lambda progress: _convert(lora, settings, target, progress))


def _convert(lora: OpenLora, settings: ConvertSettings, target: Target, progress: Progress) -> Done:
    wanted = PRECISIONS[settings.precision]
    progress.begin(Sentence("phase.reading"), len(lora.source.tensors), "tensors")
    noted: dict[str, Noted] = {}
    named: dict[str, str] = {}
    with spooled(target.path) as spool:
        for name, kohya, tensor in convert.renamed(lora, settings.names, noted):
            plain = wanted is None or not tensor.is_floating_point() or kohya.rpartition(".")[2] in EXACT
            spool.add(name, tensor if plain else tensor.to(wanted))
            named[name] = kohya
            progress.advance(1)
        tensors = spool.tensors()
        metadata = one_files(lora.metadata, same_kind=True) | with_notes(noted if settings.names == "peft" else {})
        metadata |= recipe("convert", file=lora.path.name, names=settings.names)
        tally = Tally()
        progress.begin(Sentence("phase.writing"), bytes_of_all(tensors), "bytes")
        path = write_result(target, tensors, metadata, progress, named, tally)
    told = Sentence("adapter_file.converted", path=path, count=len(lora.modules))
    return Done(told, path, tuple(clamped(tally)))
