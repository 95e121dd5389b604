"""A LoRA file under other names: its tensors stay what they are, and there and back is exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from lib_trainer.networks.formats.lora_facts import BUNDLED
from lib_trainer.refusals import ModelError
from lib_trainer.toolbox.layers import Scheme
from lib_trainer.toolbox.opened import OpenLora
from lib_trainer.toolbox.spelling import Noted, from_peft, notes_in, tensor_name, to_peft

Named = tuple[str, str, torch.Tensor]
"""A tensor's name, its name in sd-scripts' scheme, and itself."""


def renamed(lora: OpenLora, scheme: Scheme, noted: dict[str, Noted]) -> Iterator[Named]:
    """Every tensor of a file; what peft has no place for is put into `noted`. Raises `ModelError` for what it lacks."""
    known = notes_in(lora.metadata)
    for layer in lora.modules:
        name = layer.name("peft")
        own: Mapping[str, torch.Tensor] = lora.own(layer)
        if lora.scheme == "peft" and scheme != "peft":
            own = from_peft(own, known.get(name))
        elif scheme == "peft" and lora.scheme != "peft":
            try:
                own, told = to_peft(own)
            except ValueError as error:
                raise ModelError("adapter_file.not_peft", path=lora.path, name=name, reason=error) from error
            if told is not None:
                noted[name] = told
        elif scheme == "peft" and name in known:
            noted[name] = known[name]
        for suffix, tensor in own.items():
            yield tensor_name(layer, suffix, scheme), tensor_name(layer, suffix, "kohya"), tensor
    yield from others(lora)


def others(lora: OpenLora) -> Iterator[Named]:
    """What is no module: embeddings that are brought along, and what is not known."""
    for name in lora.source.tensors:
        if name.startswith(BUNDLED) or name in lora.strange:
            yield name, name, lora.source.raw(name)
