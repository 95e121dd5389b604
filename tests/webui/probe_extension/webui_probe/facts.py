"""What the host and our host adapter answer when they are asked from inside."""

from __future__ import annotations

import contextlib
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gradio as gr
import torch
from modules import devices, paths, processing, script_callbacks, sd_hijack, sd_models, sd_unet, shared
from torch import nn

from lib_trainer.config import from_values
from lib_trainer.host.webui import host as host_module
from lib_trainer.host.webui.model import WebuiModel
from lib_trainer.refusals import TrainerError
from webui_probe import half, runs

CHECKS = ("facts", "family", "refusal", "encoding", "spied_run", "own_tab", "tabs", "control_read", "own_preview",
          "last_prompt", "routes")  # fmt: skip
APP: list[Any] = []
"""The WebUI's server."""


def routes() -> list[list[str]]:
    """[path, module of what answers] of every route of the WebUI's server."""
    return [[route.path, str(getattr(getattr(route, "endpoint", None), "__module__", ""))] for route in APP[0].routes]


def facts() -> dict[str, Any]:
    """What generation has left on the loaded model."""
    model = sd_models.model_data.sd_model
    if model is None:
        return {"loaded": False}
    return {
        "loaded": True,
        "checkpoint": Path(model.sd_checkpoint_info.filename).name,
        "model": id(model),
        "merged": sum(getattr(module, "network_current_names", ()) != () for module in model.modules()),
        "hypernetworks": [network.name for network in shared.loaded_hypernetworks],
        "circular": sd_hijack.model_hijack.circular_enabled,
        "schedule altered": not torch.equal(model.alphas_cumprod.cpu(), model.alphas_cumprod_original.cpu()),
        "embeddings": sorted(sd_hijack.model_hijack.embedding_db.word_embeddings),
        "clip skip": shared.opts.CLIP_stop_at_last_layers,
        "unet": type(sd_unet.current_unet).__name__,
        "latent": shared.state.current_latent is not None,
        "menu": shared.opts.data.get("sd_model_checkpoint"),
        "fp8 menu": shared.opts.fp8_storage,
    }


def family() -> dict[str, Any]:
    """What the WebUI takes the loaded model for."""
    model = sd_models.model_data.sd_model
    return {
        "kind": model.model_type.name,
        "predicts": model.parameterization,
        "embedders": [type(one).__name__ for one in model.conditioner.embedders],
    }


def refusal(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """What starting a run and the page's header say about a host that cannot train."""
    before = runs.view().get("run")
    with _pretended(kind):
        described = runs.runner().host.describe()
        try:
            runs.runner().start(from_values(values))
        except TrainerError as error:
            said = str(error)
        else:
            runs.runner().stop()
            runs.runner().wait()
            said = ""
    return {"said": said, "described": described, "untouched": runs.view().get("run") == before}


@contextlib.contextmanager
def _pretended(kind: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        put = stack.enter_context
        match kind:
            case "none":
                put(mock.patch.object(sd_models.model_data, "sd_model", None))
            case "sdxl" | "sd2" | "sd3" | "editing":
                put(mock.patch.object(sd_models.model_data, "sd_model", _of_another_family(kind)))
            case "unloaded":
                put(mock.patch.object(devices, "device", torch.device("meta")))
            case "stranger":
                put(mock.patch.object(sd_models.model_data, "sd_model", SimpleNamespace()))
            case _:
                raise ValueError(kind)
        yield


def _of_another_family(kind: str) -> nn.Module:
    """A module with as much of such a model as tells it."""
    channels = 8 if kind == "editing" else 4
    places = {
        "sdxl": ("conditioner.embedders.0.x", "conditioner.embedders.1.x"),
        "sd2": ("cond_stage_model.wrapped.model.x",),
        "sd3": ("model.diffusion_model.joint_blocks.0.x",),
    }
    root = nn.Module()
    _put(root, "model.diffusion_model.input_blocks.0.0", nn.Conv2d(channels, 8, 3))
    for place in places.get(kind, ("cond_stage_model.wrapped.transformer.x",)):
        _put(root, place, nn.Linear(2, 2))
    return root


def _put(root: nn.Module, place: str, module: nn.Module) -> None:
    """Put a module where its name says, with plain modules on the way."""
    *way, last = place.split(".")
    for name in way:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    root.add_module(last, module)


def encoding(caption: str, clip_skip: int) -> dict[str, Any]:
    """Our encoding of a caption, and the WebUI's own of the same text as a prompt at the same clip skip.

    `difference` in the precision that the WebUI holds its text encoder in; `exact` in fp32; `rounding`: how far its own
    two are apart. The same of the pooled vector, where the UNet reads one.
    """
    model = WebuiModel(sd_models.model_data.sd_model)
    seen: list[torch.Tensor] = []

    def both() -> tuple[Told, Told]:
        with mock.patch.dict(shared.opts.data, CLIP_stop_at_last_layers=clip_skip), torch.no_grad():
            own = model.encode_text([caption], clip_skip, 3)
            theirs = model.sd_model.get_learned_conditioning([caption])
        if own.pooled is None:
            return {"": own.context.float()}, {"": theirs.float()}
        # the vector of the text, and then of the sizes
        named = {"": theirs["crossattn"].float(), "pooled ": theirs["vector"][:, : own.pooled.shape[1]].float()}
        return {"": own.context.float(), "pooled ": own.pooled.float()}, named

    hook = model.text.encoders[0].module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    try:
        ours, theirs = both()
    finally:
        hook.remove()
    with half.in_fp32():
        ours_exact, theirs_exact = both()
    marks = {model.text.chunks.tokenizer.bos_token_id, model.text.chunks.tokenizer.eos_token_id}
    found: dict[str, Any] = {
        "ids": [token for token in seen[0].flatten().tolist() if token not in marks],
        "literal": model.text.chunks.tokenizer(caption, add_special_tokens=False)["input_ids"],
    }
    for name in ours:
        same_shape = ours[name].shape == theirs[name].shape
        found |= {
            f"{name}shape": list(ours[name].shape),
            f"{name}difference": _apart(ours[name], theirs[name]) if same_shape else None,
            f"{name}exact": _apart(ours_exact[name], theirs_exact[name]) if same_shape else None,
            f"{name}rounding": _apart(theirs[name], theirs_exact[name]),
        }
    return found


Told = dict[str, torch.Tensor]
"""What the UNet reads of a caption: the tokens' vectors, and "pooled " where the family has it."""


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def spied_run(values: dict[str, Any]) -> dict[str, Any]:
    """A run without previews in which the host's own ways of calling the model are counted."""
    import ldm.modules.attention
    import ldm.modules.diffusionmodules.openaimodel as openaimodel
    import ldm.modules.diffusionmodules.util as util

    model = sd_models.model_data.sd_model
    seen: dict[str, Any] = {"apply_model": 0, "attention": 0, "checkpoint": 0, "timesteps": set(), "products": set()}

    def counted(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return original(*args, **kwargs)

        return call

    def embed(timesteps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen["timesteps"].add(str(timesteps.dtype))
        return embed_timesteps(timesteps, *args, **kwargs)

    embed_timesteps = openaimodel.timestep_embedding
    layer = model.model.diffusion_model.middle_block[1].transformer_blocks[0].ff.net[2]
    hook = layer.register_forward_hook(lambda module, args, out: seen["products"].add(str(out.dtype)))
    places = [
        (type(model), "apply_model", "apply_model"),
        (ldm.modules.attention.CrossAttention, "forward", "attention"),
        (util.CheckpointFunction, "apply", "checkpoint"),
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(hook.remove)
        stack.enter_context(mock.patch.object(openaimodel, "timestep_embedding", embed))
        for owner, attribute, name in places:
            stack.enter_context(mock.patch.object(owner, attribute, counted(name, getattr(owner, attribute))))
        ended = runs.run(values)
    return ended | {name: sorted(value) if isinstance(value, set) else value for name, value in seen.items()}


def own_tab() -> dict[str, Any]:
    """Our script on a host without a Train tab, as Forge is: what it offers as a tab."""
    script = Path(host_module.__file__).parents[3] / "scripts" / "trainer.py"
    offered: list[Any] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(script_callbacks, "on_ui_tabs", offered.append))
        original = script_callbacks.on_ui_train_tabs
        stack.callback(setattr, script_callbacks, "on_ui_train_tabs", original)
        del script_callbacks.on_ui_train_tabs
        runpy.run_path(str(script))
        [(page, label, identity)] = offered[0]()
    ids = {getattr(block, "elem_id", None) for block in page.blocks.values()}
    return {"label": label, "id": identity, "has": sorted(ids & {"trainer_start", "trainer_gallery", "trainer_poll"})}


def tabs() -> list[str]:
    """Labels of all tabs of the page that is served."""
    return sorted(block.label for block in shared.demo.blocks.values() if isinstance(block, gr.Tab))


def control_read() -> list[str]:
    """What the watch for reads says of a real one: it must see it."""
    import safetensors

    path = sd_models.model_data.sd_model.sd_checkpoint_info.filename
    with runs.checkpoint_reads() as reads:
        with safetensors.safe_open(path, framework="pt"):
            pass
        with open(path, "rb"):
            pass
    return reads


def own_preview(choose: bool) -> dict[str, Any]:
    """A preview while the menu names another checkpoint; with `choose` the user turns to a third before it is drawn."""
    from lib_trainer.ports import PreviewRequest

    data, model = shared.opts.data, sd_models.model_data.sd_model
    file = model.sd_checkpoint_info.filename
    other = next(one.title for one in sd_models.checkpoints_list.values() if one.filename != file)
    draw = processing.process_images_inner

    def drawing(parameters: Any) -> Any:
        if choose:
            data["sd_model_checkpoint"] = "a third"
        return draw(parameters)

    with mock.patch.object(processing, "process_images_inner", drawing), mock.patch.dict(data):
        data["sd_model_checkpoint"] = other
        runs.runner().host.preview(PreviewRequest("red circle", width=64, height=64, steps=2))
        after = data["sd_model_checkpoint"]
    now = sd_models.model_data.sd_model
    same = now is model and now.sd_checkpoint_info.filename == file
    return {"same model": same, "other": other, "after": after}


def last_prompt() -> str:
    """What the button "Read generation parameters" would read."""
    return Path(paths.data_path, "params.txt").read_text("utf-8").splitlines()[0]
