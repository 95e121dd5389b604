"""Whole checkpoints: one file in CompVis' layout, as the WebUI loads it, and what it takes for one.

Read is what the WebUI's modules/sd_models.py reads, and a little more: .safetensors and pickles (see `plain_pickle`);
the model itself or inside `state_dict`, `model` or `module`; a prefix `module.` before all names; the text encoder's
older names; any precision. Written is .safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lib_trainer.families.detect import Shapes, model_of, usual_root
from lib_trainer.families.family import VAE_PREFIX, Family, Part
from lib_trainer.families.known import DEFAULT, FAMILIES, PREFIXES, checked
from lib_trainer.files import found
from lib_trainer.networks.formats import reading
from lib_trainer.networks.formats.tensor_file import write_tensors
from lib_trainer.refusals import ModelError, Sentence

NESTED = ("state_dict", "model", "module", "model_state_dict")
"""Under which trainers keep the model beside its optimizer."""

OLD_TEXT = {
    f"{encoder.prefix}{part}.": encoder.prefix
    for family in FAMILIES
    for encoder in family.encoders
    if encoder.layout == "transformers"
    for part in ("embeddings", "encoder", "final_layer_norm")
}
"""Names of before transformers 4.3, which lack `text_model.` (NovelAI's first files and what was made of them)."""


def is_weight(name: str) -> bool:
    """Whether a tensor belongs into a checkpoint. `position_ids` are 0, 1, 2 … and break where a merge halved them."""
    return name.startswith(PREFIXES) and not name.endswith("position_ids") and ".loss." not in name


def names_without(names: Iterable[str], without: Collection[str]) -> list[str]:
    """The names of a checkpoint's weights but for some. Raises `ModelError` if one of those is not among them."""
    weights = [name for name in names if is_weight(name)]
    missing = sorted(set(without) - set(weights))
    if missing:
        raise ModelError("checkpoint.tensor_missing", name=missing[0])
    left_out = set(without)
    return [name for name in weights if name not in left_out]


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    *,
    overwrite: bool,
) -> None:
    """Write all tensors in `dtype`.

    They may be on any device: they are fetched and cast one after another. Raises `SaveError` naming the file and the
    remedy.
    """
    write_tensors(path, tensors, metadata, overwrite=overwrite, dtype=dtype)


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint file, by today's names. Raises `ModelError` naming the file."""
    return {name: tensor for name, tensor in read_state_dict(path).items() if is_weight(name)}


def read_state_dict(path: Path, *, contents: bool = True) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint file, out of what it is nested in and by today's names.

    Raises `ModelError` naming the file; no code that is in it is run. Without `contents` nobody will look at the
    numbers, which may be left unread.
    """
    held = unnested(reading.read_file(path, contents=contents))
    tensors = {name: one for name, one in held.items() if isinstance(name, str) and isinstance(one, torch.Tensor)}
    names = canonical_names({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return {names[name]: tensor for name, tensor in tensors.items()}


def canonical_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """{a file's name for a tensor: today's name}, by the names and shapes of all."""
    wrapped = bool(shapes) and all(name.startswith("module.") for name in shapes)
    plain = {name: name.removeprefix("module.") if wrapped else name for name in shapes}
    root = usual_root({plain[name]: shape for name, shape in shapes.items()})
    return {name: _renamed(own, root) for name, own in plain.items()}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{today's name: shape} of every tensor of a checkpoint file; its numbers are left unread where that can be.

    Raises `ModelError` naming the file.
    """
    if reading.is_pickle(path):
        return {name: tuple(tensor.shape) for name, tensor in read_state_dict(path, contents=False).items()}
    shapes = reading.read_names(path)
    names = canonical_names(shapes)
    return {names[name]: shape for name, shape in shapes.items()}


def family_of(path: Path, shapes: Shapes) -> Family:
    """What a single file with such tensors is of. Raises `ModelError` where nothing tells, or it cannot be trained."""
    model = model_of(shapes)
    if model is None:
        if any(name.startswith("model_ema.") for name in shapes):
            raise ModelError("checkpoint.average_only", path=path)
        if any(name.startswith(("down_blocks.", "unet.down_blocks.")) for name in shapes):
            raise ModelError("checkpoint.diffusers_unet", path=path)
        raise ModelError("checkpoint.without_unet", path=path, prefix=DEFAULT.unet.prefix[:-1])
    return checked(model, path)


def whole_family_of(path: Path, shapes: Shapes) -> Family:
    """The same of a file that must hold all that is trained and drawn with."""
    family = family_of(path, shapes)
    if len(shapes.get(f"{family.unet.prefix}input_blocks.0.0.weight", ())) != 4:
        raise ModelError("checkpoint.other_layout", path=path)
    wanted = [(VAE_PREFIX, "VAE"), *((one.prefix, Sentence("part.text_encoder")) for one in family.encoders)]
    for prefix, what in wanted:
        if not any(name.startswith(prefix) for name in shapes):
            raise ModelError("checkpoint.without_part", path=path, part=what, prefix=prefix[:-1])
    return family


def count_parameters(path: Path) -> dict[Part, int]:
    """Parameters of the UNet and the text encoders; nothing for a file that is no checkpoint."""
    try:
        shapes = read_shapes(found(path))
    except ModelError:
        return {}
    model = model_of(shapes)
    family = model if isinstance(model, Family) else DEFAULT
    counts: dict[Part, int] = dict.fromkeys(family.parts, 0)
    for name, shape in shapes.items():
        part = family.part_of(name)
        if part is not None and is_weight(name):
            counts[part] += math.prod(shape)
    return counts


def unnested(data: Any) -> dict[Any, Any]:
    """Trainers write the model beside its optimizer, sometimes twice over. The first that holds tensors is taken."""
    for _ in NESTED:
        inner = next((data[key] for key in NESTED if isinstance(data, dict) and isinstance(data.get(key), dict)), None)
        if inner is None:
            break
        data = inner
    return data if isinstance(data, dict) else {}


def _renamed(name: str, root: tuple[str, str] | None) -> str:
    if root is not None and name.startswith(root[0]):
        return root[1] + name.removeprefix(root[0])
    prefix = next((own for old, own in OLD_TEXT.items() if name.startswith(old)), "")
    return f"{prefix}text_model.{name[len(prefix) :]}" if prefix else name
