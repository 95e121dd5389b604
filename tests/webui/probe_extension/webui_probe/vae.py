"""What the tests of Tiled VAE ask and set."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable
from typing import Any

import gradio as gr
import torch
from modules import devices, processing, scripts, shared

CHECKS = (
    "vae_trace", "vae_last", "vae_break", "vae_mend", "vae_slow", "vae_state_now", "vae_api", "vae_unload",
    "vae_default", "vae_sgm",
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
    ours = importlib.import_module("lib_trainer.tiling.attach")
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
    """nan: the decoder's last layer gives NaN; nan at first: what goes into it is NaN in the precision that the VAE has
    now; fp32: it is held in fp32, as with `--no-half-vae`; error: decoding raises."""
    vae = shared.sd_model.first_stage_model
    if kind in ("nan", "nan at first"):
        _broken.callback(_as_it_is(vae))
        weight, dtype = vae.decoder.conv_out.weight, devices.dtype_vae
        if kind == "nan":
            weight.data = torch.full_like(weight.data, float("nan"))
            return
        hook = vae.post_quant_conv.register_forward_hook(
            lambda module, given, out: out * float("nan") if out.dtype is dtype else out
        )
        _broken.callback(hook.remove)
        return
    if kind == "fp32":
        _broken.callback(_as_it_is(vae))
        devices.dtype_vae = torch.float32
        vae.to(torch.float32)
        return
    own = processing.decode_latent_batch

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a test broke this job")

    processing.decode_latent_batch = fail
    _broken.callback(lambda: setattr(processing, "decode_latent_batch", own))


def _as_it_is(vae: torch.nn.Module) -> Callable[[], None]:
    """What puts the VAE back: the WebUI converts it for good when it tries again in another precision."""
    dtype, kept = devices.dtype_vae, [(parameter, parameter.data) for parameter in vae.parameters()]

    def put_back() -> None:
        devices.dtype_vae = dtype
        vae.to(dtype)  # it says of itself what it was converted to last
        for parameter, data in kept:
            parameter.data = data

    return put_back


def vae_mend() -> str:
    before = str(devices.dtype_vae)
    _broken.close()
    return before


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


def vae_unload() -> list[list[bool]]:
    """Which classes are replaced after the extension was unloaded, and after it was loaded again."""
    ours, found = _ours(), []
    for change in (ours.uninstall, ours.install, ours.install):
        change()
        found.append([hasattr(kind.forward, ours.ORIGINAL) for kind in ours._classes()])
    return found


def vae_sgm(circular: bool) -> dict[str, float]:
    """SDXL's classes on their own: the largest difference between bands and untiled, in standard deviations."""
    from sgm.modules.diffusionmodules.model import Decoder, Encoder

    ours, found = _ours(), {}
    settings = {
        "ch": 32, "out_ch": 3, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attn_resolutions": [], "in_channels": 3,
        "resolution": 64, "z_channels": 4, "attn_type": "vanilla",
    }  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for kind, shape in ((Encoder, (1, 3, 104, 72)), (Decoder, (1, 4, 13, 9))):
            module = kind(**settings).eval()
            for one in module.modules():
                if isinstance(one, torch.nn.Conv2d):
                    one.padding_mode = "circular" if circular else "zeros"
            given = torch.randn(shape)
            expected = module(given)
            ours.switch.begin(processing.StableDiffusionProcessingTxt2Img(), ours.Settings(always=True))
            try:
                banded = module(given)
                plans = list(ours.switch.job.plans)
            finally:
                ours.switch.end()
            assert plans, "it did not run in bands"
            found[kind.__name__] = float((banded - expected).abs().max() / expected.std())
    return found


def vae_default(setting: str) -> list[Any]:
    """What the accordion's components hold when a page is built under that setting."""
    script = next(one for one in scripts.scripts_txt2img.alwayson_scripts if one.title() == "Tiled VAE (row bands)")
    before = shared.opts.data["trainer_tiled_vae_default"]
    shared.opts.data["trainer_tiled_vae_default"] = setting
    kept = script.infotext_fields
    try:
        with gr.Blocks():
            return [component.value for component in script.ui(False)]
    finally:
        shared.opts.data["trainer_tiled_vae_default"] = before
        script.infotext_fields = kept
