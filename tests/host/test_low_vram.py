"""--lowvram and --medvram: what the WebUI puts on a model is set aside for a run, and in its place for a preview.

`modules/lowvram.py` is written down here as far as it changes a model of SD 1.x; tests/webui has the WebUI's own.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from lib_trainer.config import from_values
from lib_trainer.families.sd1 import SD1
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.text.texts import Texts
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.recipe import parameters
from lib_trainer.kinds.registry import kind_of
from lib_trainer.memory import indexed
from lib_trainer.ports import HeldPart, PreviewRequest
from lib_trainer.refusals import ModelError
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work import events as ev
from tests.card import CPU, DEVICES, settled
from tests.support import SCALE, ModelHost, Tiny, draw_pictures, job_values, tiny_schedule

UNET_PARTS = ("input_blocks", "middle_block", "output_blocks", "time_embed")


class SdModel(nn.Module):
    """As much of the WebUI's `sd_model` as is looked at."""

    lowvram = True

    def __init__(self, tiny: Tiny) -> None:
        super().__init__()
        self.model, self.first_stage_model, self.cond_stage_model = nn.Module(), tiny.vae, nn.Module()
        self.model.diffusion_model, self.cond_stage_model.transformer = tiny.unet, tiny.text
        self.first_stage_model.decode = lambda z: tiny.vae.decoder(tiny.vae.post_quant_conv(z))


@pytest.fixture
def lowvram(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The WebUI's modules `devices` and `lowvram`, of which only the hooks' names and `module_in_gpu` are read."""
    package, devices, lowvram = (types.ModuleType(name) for name in ("modules", "modules.devices", "modules.lowvram"))
    package.devices, package.lowvram = devices, lowvram  # type: ignore[attr-defined]
    code = """
module_in_gpu = None

def send_everything_to_cpu():
    global module_in_gpu
    if module_in_gpu is not None:
        module_in_gpu.to("cpu")
    module_in_gpu = None

def hook(parents, device):
    def send_me_to_gpu(module, _):
        global module_in_gpu
        module = parents.get(module, module)
        if module_in_gpu is not module:
            send_everything_to_cpu()
            module.to(device)
            module_in_gpu = module
    return send_me_to_gpu

def wrapped(send, vae, name):
    first_stage_model_encode = first_stage_model_decode = getattr(vae, name)
    def encode(x):
        send(vae, None)
        return first_stage_model_encode(x)
    def decode(x):
        send(vae, None)
        return first_stage_model_decode(x)
    return encode if name == "encode" else decode
"""
    exec(code, lowvram.__dict__)
    for module in (package, devices, lowvram):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "lib_trainer.host.webui.low_vram", raising=False)
    yield lowvram
    sys.modules.pop("lib_trainer.host.webui.low_vram", None)


def set_up(lowvram: Any, model: SdModel, device: torch.device, flag: str) -> None:
    """As `setup_for_low_vram`: hooks on the parts, each of which waits on the CPU for its turn."""
    sys.modules["modules.devices"].device = device  # type: ignore[attr-defined]
    unet: Any = model.model.diffusion_model
    text: Any = model.cond_stage_model.transformer
    send = lowvram.hook({text: model.cond_stage_model}, device)
    parts = [unet.time_embed, *unet.input_blocks, unet.middle_block, *unet.output_blocks]
    if flag == "lowvram":  # what is none of the four parts stays on the card
        kept = {name: unet._modules.pop(name) for name in UNET_PARTS}
        unet.to(device)
        unet._modules = {**{name: kept[name] for name in UNET_PARTS}, **unet._modules}
    for module in (text, model.first_stage_model, *(parts if flag == "lowvram" else [unet])):
        module.register_forward_pre_hook(send)
    for name in ("encode", "decode"):
        setattr(model.first_stage_model, name, lowvram.wrapped(send, model.first_stage_model, name))


class Host(ModelHost):
    """Its queue sets the hooks aside, and its previews bring them back, as the WebUI's host does it."""

    place: torch.device
    low: Any
    seen: list[tuple[str, int, set[str]]]
    failing = False

    def device(self) -> torch.device:
        return self.place

    def parts(self) -> dict[str, HeldPart]:
        return {"unet": HeldPart.of(self.loaded.unet, self.place)}  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def lease(self, title: str, *, trains: bool = False) -> Iterator[Any]:
        with self.low.set_aside(), super().lease(title, trains=trains) as lease:
            yield lease

    def preview(self, request: PreviewRequest) -> Image.Image:
        with self.low.as_the_host_draws():
            self.look("preview")
            draw(self.loaded, self.low._model, self.place)
            if self.failing:
                self.failing = False
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().preview(request)

    def look(self, when: str) -> None:
        model = self.low._model
        hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
        where = {parameter.device.type for parameter in model.model.parameters()}
        self.seen.append((when, hooks, where))


@torch.no_grad()
def draw(loaded: Any, model: Any, device: torch.device) -> torch.Tensor:
    """One step, by the hooks: text encoder, UNet and VAE come to the device one after another."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).to(device)
    ids = torch.full((1, 77), 49407, device=device)
    context = model.cond_stage_model.transformer(ids).last_hidden_state
    out = model.model.diffusion_model(latents, timesteps=torch.tensor([500], device=device), context=context)
    pixels: torch.Tensor = model.first_stage_model.decode(out)
    return pixels.cpu()


def facts(model: SdModel) -> list[object]:
    found: list[object] = [sorted(vars(model.first_stage_model))]
    for name, module in model.named_modules():
        found.append((name, [id(hook) for hook in module._forward_pre_hooks.values()], "forward" in vars(module)))
    for name, parameter in model.named_parameters():
        found.append((name, parameter.device, parameter.dtype, parameter.detach().cpu().sum().item()))
    found += [(name, id(buffer), buffer.device) for name, buffer in model.named_buffers()]
    return found


@pytest.mark.parametrize("kind", ["privateuseone", "cuda", "cpu"])
def test_a_device_to_which_parameters_cannot_come_is_refused(small: Tiny, lowvram: Any, kind: str) -> None:
    """The WebUI makes new ones on Ascend's NPU and by DirectML, whenever it moves a part."""
    from lib_trainer.host.webui.low_vram import check_comes

    sys.modules["modules.devices"].device = torch.device(kind)  # type: ignore[attr-defined]
    refused = pytest.raises(ModelError, match=f"{kind}.*without that option") if kind == "privateuseone" else None
    with refused or contextlib.nullcontext():
        check_comes(SdModel(small))
    check_comes(nn.Linear(1, 1))  # one that is not kept on the CPU


STAND_INS = ("sd_hijack", "sd_unet", "shared", "textual_inversion", "textual_inversion.textual_inversion")


@pytest.fixture
def asked(lowvram: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`check_model`, by which every door asks about the loaded checkpoint, on empty stand-ins for what it imports."""
    for name in STAND_INS:
        module: Any = types.ModuleType(f"modules.{name}")
        module.Embedding = object
        monkeypatch.setitem(sys.modules, module.__name__, module)
        setattr(sys.modules["modules"], name, module)
    monkeypatch.delitem(sys.modules, "lib_trainer.host.webui.model", raising=False)
    model = importlib.import_module("lib_trainer.host.webui.model")
    monkeypatch.setattr(model, "family_of", lambda sd_model: SD1)
    yield model.check_model
    sys.modules.pop("lib_trainer.host.webui.model", None)


@pytest.mark.parametrize("low", [True, False], ids=["kept on the CPU", "unloaded"])
def test_who_asks_about_the_checkpoint_is_told_that_it_cannot_come(small: Tiny, asked: Any, low: bool) -> None:
    """Before a run, and on the page."""
    sd_model = SdModel(small)
    sd_model.lowvram = low
    vars(sd_model.cond_stage_model)["wrapped"] = sd_model.cond_stage_model  # as the WebUI puts its own around it
    sys.modules["modules.devices"].device = torch.device("privateuseone")  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="start the WebUI without that option" if low else "was unloaded"):
        asked(sd_model)
    sys.modules["modules.devices"].device = torch.device("cpu")  # type: ignore[attr-defined]
    asked(sd_model)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("failing", [False, True], ids=["", "a preview fails"])
@pytest.mark.parametrize("flag", ["medvram", "lowvram"])
@pytest.mark.parametrize("kind", ["lora", "checkpoint"])
def test_a_run_has_the_whole_model_and_the_host_its_parts(
    small: Tiny, tmp_path: Path, lowvram: Any, device: torch.device, flag: str, failing: bool, kind: str
) -> None:
    from lib_trainer.host.webui.low_vram import LowVram

    tiny = copy.deepcopy(small)
    model = SdModel(tiny)
    set_up(lowvram, model, device, flag)
    loaded = LdmModel(tiny.unet, tiny.vae, Texts([tiny.text], load_tokenizer()), tiny_schedule(), SCALE, "tiny")
    loaded.drawn_on = indexed(device)
    picture = draw(loaded, model, device)
    lowvram.send_everything_to_cpu()
    before, bytes_before = facts(model), settled(device)
    host = Host(loaded, tmp_path)
    low = LowVram(model, loaded.roots().values())
    host.place, host.low, host.seen, host.failing = device, low, [], failing
    changes = {"preview__prompt": "x", "preview__every": 1, "network__kind": kind, "training__max_steps": 2}
    desk = TrainingDesk(host)
    job = from_values(job_values(draw_pictures(tmp_path / "set", 1), **changes))
    desk.start(job, lambda event: host.look("step") if isinstance(event, ev.StepDone) else None)
    view = desk.wait(300)
    assert view is not None and (view.state, view.error) == ("finished", "")
    assert len(view.previews) == 2 - failing
    blocks = len(tiny.unet.input_blocks) + len(tiny.unet.output_blocks)  # type: ignore[arg-type]
    hooks = 3 if flag == "medvram" else 4 + blocks
    assert [one for one in host.seen if one[0] == "step"] == [("step", 0, {device.type})] * 2
    assert [one[:2] for one in host.seen if one[0] == "preview"] == [("preview", hooks)] * 2
    if flag == "medvram":
        assert all(where == {CPU.type} for when, _, where in host.seen if when == "preview")
    assert facts(model) == before and lowvram.module_in_gpu is None
    assert settled(device, bytes_before) <= bytes_before
    assert torch.equal(draw(loaded, model, device), picture)


def test_weights_of_the_parts_stay_where_they_rest(lowvram: Any) -> None:
    """They come to the card when a state of the run needs them. torch's meta device stands for it."""
    from lib_trainer.host.webui.low_vram import LowVram

    model: Any = nn.Module()
    model.lowvram, model.first_stage_model, model.unet = True, nn.Linear(2, 2), nn.BatchNorm1d(2)
    sys.modules["modules.devices"].device = torch.device("meta")  # type: ignore[attr-defined]
    before = {name: (id(one), one.data_ptr()) for name, one in model.state_dict(keep_vars=True).items()}
    low = LowVram(model, [model.unet, model.first_stage_model])
    with low.set_aside():
        for _ in range(2):
            where = {name: one.device.type for name, one in model.state_dict().items()}
            own = {f"{part}.{name}" for part in ("unet", "first_stage_model") for name in ("weight", "bias")}
            assert {name for name, place in where.items() if place == "cpu"} == own
            with low.as_the_host_draws():
                assert not model.unet.running_mean.is_meta
    assert {name: (id(one), one.data_ptr()) for name, one in model.state_dict(keep_vars=True).items()} == before


@pytest.mark.parametrize("kind", ["lora", "embedding", "pivotal", "hypernetwork", "checkpoint"])
def test_what_learns_is_where_the_host_draws(small: Tiny, tmp_path: Path, kind: str) -> None:
    """And not where the model rests; a whole one stays there all the same. torch's meta device stands for the card."""
    model = copy.deepcopy(small).in_ldm()
    model.drawn_on = torch.device("meta")
    changes = {"network__kind": kind, "embedding__names": "zork", "optimizer__text_encoder_lr": 1e-4}
    job = from_values(job_values(tmp_path, **changes))
    before = {name: (id(own), own.data_ptr()) for name, own in model.unet.named_parameters()}
    recipe = kind_of(job).recipe(job, model, Outputs((tmp_path / "x.safetensors",)))
    assert all(parameter.is_meta for parameter in parameters(recipe))
    if kind == "checkpoint":
        for contexts in (recipe.applied, recipe.previewed):
            with contexts():
                assert all(own.is_meta for own in model.unet.parameters())
    assert {name: (id(own), own.data_ptr()) for name, own in model.unet.named_parameters()} == before


def test_what_is_no_parameter_comes_back_too(lowvram: Any) -> None:
    """Moving a module makes new tensors of its buffers. torch's meta device stands for the card."""
    from lib_trainer.host.webui.low_vram import LowVram

    model: Any = nn.Module()
    model.lowvram, model.first_stage_model = True, nn.Module()
    model.register_buffer("places", torch.arange(7), persistent=False)
    model.first_stage_model.register_buffer("kept_there", torch.zeros(3, device="meta"))
    own = dict(model.named_buffers())
    sys.modules["modules.devices"].device = torch.device("meta")  # type: ignore[attr-defined]
    low = LowVram(model)
    with low.set_aside():
        assert model.places.is_meta
        with low.as_the_host_draws():
            assert model.places is own["places"]
        assert model.places.is_meta
    assert all(buffer is own[name] for name, buffer in model.named_buffers())
    assert model.places.tolist() == list(range(7))


class Noting(nn.Module):
    """Notes where it was sent, as Lightning's modules do."""

    def __init__(self) -> None:
        super().__init__()
        self._device = torch.device("cpu")
        self.layer = nn.Linear(1, 1)

    def to(self, device: Any) -> Any:
        self._device = torch.device(device)
        return super().to(device)


def test_what_a_module_notes_of_its_place_comes_back_too(lowvram: Any) -> None:
    from lib_trainer.host.webui.low_vram import LowVram

    model: Any = Noting()
    model.lowvram, model.first_stage_model = True, nn.Module()
    sys.modules["modules.devices"].device = "cpu:0"  # type: ignore[attr-defined]
    low = LowVram(model)
    with low.set_aside():
        assert model._device == torch.device("cpu:0")
        with low.as_the_host_draws():
            assert model._device == torch.device("cpu")
        assert model._device == torch.device("cpu:0")
    assert model._device == torch.device("cpu")
