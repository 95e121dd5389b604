"""What the tests of Tiled VAE ask and set."""

from __future__ import annotations

import contextlib
import importlib
import time
from typing import Any

import torch
from modules import devices, processing, scripts, shared

CHECKS = (
    "vae_trace", "vae_last", "vae_break", "vae_mend", "vae_slow", "vae_state_now", "vae_api", "vae_refined",
)  # fmt: skip
_broken = contextlib.ExitStack()


def _ours() -> Any:
    return importlib.import_module("lib_trainer.host.webui.tiled_vae")


def vae_trace() -> dict[str, Any]:
    """What Tiled VAE has in the host just now."""
    ours = _ours()
    classes = list(ours._classes())
    decoder = shared.sd_model.first_stage_model.decoder
    return {
        "job": ours.switch.job is not None,
        "current": ours.switch.current() is not None,
        "replaced": [hasattr(kind.forward, ours.ORIGINAL) for kind in classes],
        "nested": [hasattr(getattr(kind.forward, ours.ORIGINAL), ours.ORIGINAL) for kind in classes],
        "instance": "forward" in vars(decoder),
        "textinfo": shared.state.textinfo,
    }


def vae_last() -> list[str]:
    """The plans that ran since the last call."""
    found, SEEN[:] = list(SEEN), []
    return found


SEEN: list[str] = []


def _watch() -> None:
    ours = _ours()
    if getattr(ours.run, "watched", False):
        return
    own = ours.run

    def run(network: Any, given: Any, options: Any) -> Any:
        out = own(network, given, options)
        SEEN.append(network.kind)
        return out

    run.watched = True  # type: ignore[attr-defined]
    ours.run = run


def vae_api() -> list[str]:
    """Titles of the always-on scripts; watches the runs from now on."""
    _watch()
    return [script.title() for script in scripts.scripts_txt2img.alwayson_scripts]


def vae_break(kind: str) -> None:
    """nan: the decoder's last layer gives NaN until it is in fp32; error: decoding raises."""
    decoder = shared.sd_model.first_stage_model.decoder
    if kind == "nan":
        weight = decoder.conv_out.weight
        kept = weight.data
        weight.data = torch.full_like(kept, float("nan"))
        _broken.callback(lambda: setattr(weight, "data", kept))
        return
    own = processing.decode_latent_batch

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a test broke this job")

    processing.decode_latent_batch = fail
    _broken.callback(lambda: setattr(processing, "decode_latent_batch", own))


def vae_mend() -> str:
    _broken.close()
    return str(devices.dtype_vae)


def vae_slow(interrupt: bool) -> None:
    """While the VAE decodes in bands, press Interrupt, and keep what the progress bar says."""
    ours = _ours()
    own = ours._options
    TEXTS.clear()

    def options(job: Any, settings: Any, progress: Any) -> Any:
        def watched(fraction: float) -> None:
            progress(fraction)
            TEXTS.append(shared.state.textinfo)
            if interrupt:
                shared.state.interrupt()
                time.sleep(0.01)

        return own(job, settings, watched)

    ours._options = options
    _broken.callback(lambda: setattr(ours, "_options", own))


TEXTS: list[str | None] = []


def vae_state_now() -> list[str | None]:
    return TEXTS


def vae_refined() -> str:
    return str(shared.sd_model.sd_checkpoint_info.name_for_extra)
