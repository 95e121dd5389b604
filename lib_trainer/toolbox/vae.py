"""A VAE on its own, or in a checkpoint, by the names of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lib_trainer.families.family import VAE_PREFIX
from lib_trainer.networks.formats.mapped import Stored
from lib_trainer.refusals import ConfigError, ModelError
from lib_trainer.toolbox.layouts import ldm_vae
from lib_trainer.toolbox.source import Source, open_source

BLEND = "blend"
LETTERS = "abc"
LOSS = f"{VAE_PREFIX}loss."
"""What is left of a VAE's training in some files."""


def vae_of(source: Source) -> dict[str, Stored]:
    """The VAE's tensors of a checkpoint, a VAE's file or a diffusers VAE; empty where there is none."""
    inside = {name: one for name, one in source.tensors.items() if name.startswith(VAE_PREFIX)}
    if inside:
        return {name: one for name, one in inside.items() if not name.startswith(LOSS)}
    if not any(name.startswith(("encoder.", "decoder.")) for name in source.tensors):
        return {}
    own = {f"{VAE_PREFIX}{name}": one for name, one in ldm_vae(source.tensors).items()}
    known = (f"{VAE_PREFIX}{part}" for part in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    begins = tuple(known)
    return {name: one for name, one in own.items() if name.startswith(begins)}


def vae_file(told: str) -> list[Path]:
    """The file that is named, if one is."""
    name = told.strip().strip('"')
    return [] if not name or name.lower() in (BLEND, *LETTERS) else [Path(name).expanduser()]


def vae_tensors(told: str, sources: Sequence[Source]) -> dict[str, Stored] | None:
    """The VAE that is to be taken: `a` (also where nothing is said), `b`, `c`, or a file's; None where it is to be
    blended.

    Raises `ConfigError` for a letter without a model, `ModelError` for a file without a VAE or with one of another
    build.
    """
    name = told.strip().strip('"') or LETTERS[0]
    if name.lower() == BLEND:
        return None
    if name.lower() in tuple(LETTERS):
        place = LETTERS.index(name.lower())
        if place >= len(sources):
            raise ConfigError("merge.vae_of_nobody", field="vae", vae=name)
        return vae_of(sources[place])
    source = open_source(Path(name))
    found = vae_of(source)
    if not found:
        raise ModelError("toolbox.no_vae", path=source.path)
    check_same_build(found, source, sources[0])
    return found


def check_same_build(vae: dict[str, Stored], source: Source, model: Source) -> None:
    """Raise `ModelError` where a VAE does not fit into the place of a model's own."""
    own = vae_of(model)
    for name in own:
        if name not in vae or vae[name].shape != own[name].shape:
            raise ModelError("toolbox.other_vae", path=source.path, model=model.path, name=name)
