"""The kinds of training in one visible registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lib_trainer.config import JobConfig
from lib_trainer.kinds.adapter_memory import Costs
from lib_trainer.kinds.adapters import AdapterKind
from lib_trainer.kinds.base import Kind
from lib_trainer.kinds.checkpoint import CheckpointKind
from lib_trainer.kinds.difference import DifferenceKind
from lib_trainer.kinds.embedding import EmbeddingKind
from lib_trainer.kinds.hypernetwork import HypernetworkKind
from lib_trainer.kinds.pivotal import PivotalKind
from lib_trainer.ports import Host

LORA = ("lora", "locon")

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        AdapterKind("lora", module="networks.lora"),
        AdapterKind("locon", called="locon"),
        AdapterKind("loha", "loha", called="loha", costs=Costs("loha", rank_keeps=False)),
        AdapterKind("lokr", "lokr", called="lokr", costs=Costs("lokr", rank_keeps=False, rank_costs=False)),
        PivotalKind("pivotal", goes_on=LORA, module="networks.lora", costs=Costs("lora")),
        DifferenceKind("difference", goes_on=LORA, module="networks.lora", costs=Costs("lora", networks=2)),
        EmbeddingKind(),
        HypernetworkKind(),
        CheckpointKind(),
    )
}


def kind_of(job: JobConfig) -> Kind:
    """The kind of training that a job asks for."""
    return KINDS[job.network.kind]


def prompt_for(host: Host, path: Path) -> str:
    """What calls a file in a prompt of this host; empty where it would not be found."""
    for kind in KINDS.values():
        if kind.folder(host).resolve() in path.resolve().parents:
            return kind.call.format(path.stem, 1)
    return ""
