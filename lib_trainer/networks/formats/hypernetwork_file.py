"""Hypernetwork files in the WebUI's .pt layout: {width: (keys, values)} beside plain facts of the structure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lib_trainer.memory import is_out_of_memory
from lib_trainer.networks.formats.reading import read_file
from lib_trainer.networks.formats.torch_archive import write_archive
from lib_trainer.networks.formats.writing import new_file
from lib_trainer.networks.hypernetwork import ACTIVATIONS, Hypernetwork, Structure
from lib_trainer.refusals import ModelError, Reason

OLD_NAMES = {"linear1.": "linear.0.", "linear2.": "linear.1."}


def write_hypernetwork(path: Path, network: Hypernetwork, facts: Mapping[str, str], *, overwrite: bool) -> None:
    """Write a file that `<hypernet:name:1>` loads. Raises `SaveError` naming it."""
    structure = network.structure
    dropouts = list(structure.dropouts) or [0] * len(structure.layers)
    data: dict[Any, Any] = dict(network.stored())
    data |= {
        "step": int(facts.get("ss_steps", 0)),
        "name": path.stem,
        "layer_structure": [int(one) if float(one).is_integer() else float(one) for one in structure.layers],
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": structure.initialisation,
        "sd_checkpoint": facts.get("ss_new_sd_model_hash", "")[:10] or None,
        "sd_checkpoint_name": Path(facts.get("ss_sd_model_name", "")).stem or None,
        "activate_output": structure.activate_output,
        "use_dropout": any(dropouts),
        "dropout_structure": dropouts,
        "last_layer_dropout": bool(dropouts[-2]),
        "optional_info": None,
    }
    with new_file(path, overwrite=overwrite) as file:
        write_archive(file, data)


def read_hypernetwork(path: Path) -> Hypernetwork:
    """A network from a file. Raises `ModelError` naming the file and what is wrong with it."""
    data = read_file(path)
    pairs = _pairs(data) if isinstance(data, dict) else {}
    if not pairs:
        raise ModelError("hypernetwork.not_one", path=path)
    activation = data.get("activation_func") or "linear"
    if activation not in ACTIVATIONS:
        raise ModelError("hypernetwork.activation", path=path, activation=activation)
    try:
        layers = tuple(float(one) for one in data.get("layer_structure") or (1, 2, 1))
        _check_widths(layers, pairs)
        structure = Structure(
            layers=layers,
            activation=activation,
            initialisation=str(data.get("weight_initialization") or "Normal"),
            layer_norm=bool(data.get("is_layer_norm", False)),
            activate_output=bool(data.get("activate_output", True)),
            dropouts=_dropouts(data, len(layers)),
        )
        network = Hypernetwork(structure, list(pairs))
        network.load({size: (_renamed(keys), _renamed(values)) for size, (keys, values) in pairs.items()})
    except (ValueError, IndexError, AttributeError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError("hypernetwork.broken", path=path, reason=error) from error
    return network


def _pairs(data: Mapping[Any, Any]) -> dict[int, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """{width of the input: (layers of the keys, layers of the values)}."""
    found = {size: pair for size, pair in data.items() if type(size) is int and isinstance(pair, (tuple, list))}
    return {
        size: (dict(pair[0]), dict(pair[1]))
        for size, pair in found.items()
        if len(pair) == 2 and all(isinstance(one, dict) for one in pair)
    }


def _check_widths(layers: tuple[float, ...], pairs: Mapping[int, tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Raise `ValueError` before a structure that the file does not hold fills the memory."""
    for size, pair in pairs.items():
        tensors = [one for state in pair for one in state.values() if isinstance(one, torch.Tensor)]
        largest = max((length for one in tensors for length in one.shape), default=0)
        if not layers or not all(0 < factor * size <= largest for factor in layers):
            raise Reason("hypernetwork.layers", size=size)


def _dropouts(data: Mapping[Any, Any], count: int) -> tuple[float, ...]:
    """Files from before there was a structure say whether there is any: 0.3 in the inner layers."""
    stored = data.get("dropout_structure")
    if stored is not None:
        return tuple(stored) if any(stored) else ()
    if not data.get("use_dropout"):
        return ()
    last = 0.3 if data.get("last_layer_dropout") else 0.0
    return (0.0, *[0.3] * (count - 3), last, 0.0)


def _renamed(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = dict(state)
    for old, new in OLD_NAMES.items():
        renamed = {new + name[len(old) :] if name.startswith(old) else name: one for name, one in renamed.items()}
    return renamed
