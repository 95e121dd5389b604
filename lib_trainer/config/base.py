"""The kinds of training, by which options are grouped."""

from __future__ import annotations

from typing import Literal, get_args

from lib_trainer.options.declare import Group, one_of

Kind = Literal["lora", "locon", "loha", "lokr", "pivotal", "difference", "embedding", "hypernetwork", "checkpoint"]
"""What can be trained."""

KINDS: tuple[str, ...] = get_args(Kind)
ADAPTERS: tuple[str, ...] = ("lora", "locon", "loha", "lokr", "pivotal", "difference")
"""Kinds that end as a file for `<lora:name:1>`."""

AVERAGING: tuple[str, ...] = ("AdamWScheduleFree", "ProdigyPlusScheduleFree")
"""Optimizers that average what they learn: they need no schedule, and nobody may move what they average."""

KIND = "network.kind"


def kinds(*names: str) -> Group:
    """Options that these kinds of training read, and no other."""
    return Group((one_of(KIND, *names),))
