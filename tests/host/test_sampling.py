"""Standalone sampling: prompts, seeds, LoRAs, and DDIM against the paper's equation in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.host.standalone.sampling import SAMPLERS, PromptNetwork, draw, split_prompt
from lib_trainer.networks.formats.lora_file import write_lora
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import Conditioning, PreviewRequest
from lib_trainer.refusals import ConfigError, ModelError
from tests import smaller
from tests.support import scaled_linear

shallow_models, tiny, diffusers_model = smaller.shallow_models, smaller.tiny, smaller.diffusers_model
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 3}


@pytest.mark.parametrize(
    ("prompt", "text", "networks"),
    [
        ("a disc", "a disc", []),
        ("a <lora:x:1> disc", "a  disc", [("x", 1.0)]),
        ("<lora:a b-c_1:0.5><lora:y>", "", [("a b-c_1", 0.5), ("y", 1.0)]),
        ("<lora:x:-1>, z", ", z", [("x", -1.0)]),
        ("a < b > c", "a < b > c", []),
    ],
)
def test_split_prompt(prompt: str, text: str, networks: list[tuple[str, float]]) -> None:
    assert split_prompt(prompt) == (text, [PromptNetwork(*one) for one in networks])


@pytest.mark.parametrize("weight", ["high", "1:2", "nan", "inf"])
def test_a_weight_that_is_no_number(weight: str) -> None:
    with pytest.raises(ConfigError, match=f"<lora:x:{weight}> in the prompt"):
        split_prompt(f"a <lora:x:{weight}>")


@torch.no_grad()
def _ddim(model: Any, request: PreviewRequest) -> np.ndarray[Any, Any]:
    """Song et al. 2021 (arXiv:2010.02502), eq. 12 with σ = 0, at the WebUI's timesteps 1, 1 + T/S …, in float64.

    x_{t'} = √ᾱ_{t'} · (x_t − √(1−ᾱ_t)·ε)/√ᾱ_t + √(1−ᾱ_{t'})·ε; after the last one ᾱ is that of step 0.
    """
    alphas = scaled_linear()
    steps = list(range(1, 1000, 1000 // request.steps))
    x = torch.randn(
        (1, 4, request.height // 8, request.width // 8), generator=torch.Generator().manual_seed(request.seed)
    ).double()
    told, untold = (model.encode_text([text], 1, 8).context for text in (request.prompt, request.negative_prompt))
    for index in reversed(range(len(steps))):
        t = torch.tensor([steps[index]])
        with_, without = (model.predict(x.float(), t, Conditioning(c)).double() for c in (told, untold))
        noise = without + request.cfg_scale * (with_ - without)
        now, then = alphas[steps[index]], alphas[steps[index - 1]] if index else alphas[0]
        clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
        x = then.sqrt() * clean + (1 - then).sqrt() * noise
    pixels = model.vae.decode((x / 0.18215).float(), return_dict=False)[0][0].clamp(-1, 1)
    array: np.ndarray[Any, Any] = ((pixels.permute(1, 2, 0).double().numpy() + 1) / 2 * 255).round()
    return array


def test_ddim_is_the_papers(diffusers_model: Any) -> None:
    request = PreviewRequest("a disc", "ugly", 128, 192, steps=5, cfg_scale=3.0, sampler="DDIM", seed=11)
    with torch.no_grad():
        drawn = draw(diffusers_model, request)
    assert drawn.size == (128, 192)
    difference = np.abs(np.asarray(drawn).astype(float) - _ddim(diffusers_model, request))
    assert difference.max() <= 1 and np.asarray(drawn).std() > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_decides_the_picture(diffusers_model: Any, sampler: str) -> None:
    pictures = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(pictures))
        pictures.append(draw(diffusers_model, PreviewRequest("a", **SMALL | {"seed": seed}, sampler=sampler)).tobytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_drawing_asks_for_no_gradients(diffusers_model: Any) -> None:
    """Also outside `no_grad`, with a model whose parameters want gradients, nothing is kept for a backward pass."""
    seen: list[bool] = []
    handle = diffusers_model.unet.register_forward_hook(lambda module, args, out: seen.append(out[0].requires_grad))
    try:
        draw(diffusers_model, PreviewRequest("a", **SMALL))
    finally:
        handle.remove()
    assert seen == [False, False]


def test_an_unknown_sampler(diffusers_model: Any) -> None:
    with pytest.raises(ConfigError, match="'Nope' is not available here: choose one of DDIM, Euler"):
        draw(diffusers_model, PreviewRequest("a", sampler="Nope"))


@pytest.fixture
def host(tiny: Any, diffusers_model: Any, tmp_path: Path) -> StandaloneHost:
    """With a strong LoRA called x."""
    host = StandaloneHost(tiny.path, tmp_path, torch.device("cpu"))
    host._model = diffusers_model
    network = _network(diffusers_model, 0.2)
    write_lora(host.lora_folder() / "x.safetensors", network.tensors(torch.float32), {}, overwrite=False)
    return host


def _network(model: Any, strength: float) -> LoraNetwork:
    generator = torch.Generator().manual_seed(1)
    targets = [target for target in model.adaptable_modules() if target.group == "transformer"]
    network = LoraNetwork.create(targets, 4, 4, generator)
    with torch.no_grad():
        for adapter in network:
            adapter.up.normal_(0, strength, generator=generator)
    return network


def test_a_lora_in_the_prompt_is_applied_by_its_weight(host: StandaloneHost, diffusers_model: Any) -> None:
    plain, zero, half, whole = (
        host.preview(PreviewRequest(f"a disc{mark}", **SMALL)).tobytes()
        for mark in ("", " <lora:x:0>", " <lora:x:0.5>", "<lora:x:1>")
    )
    assert plain == zero
    assert len({plain, half, whole}) == 3
    halved = _network(diffusers_model, 0.2)
    with torch.no_grad():
        for adapter in halved:
            adapter.up *= 0.5
        with halved.applied():
            expected = draw(diffusers_model, PreviewRequest("a disc", **SMALL))
    difference = np.abs(np.frombuffer(half, np.uint8).astype(int) - np.asarray(expected).reshape(-1).astype(int))
    assert difference.max() <= 1
    assert host.generate(PreviewRequest("a disc", **SMALL)).tobytes() == plain
    assert host.loras() == ["x"]
    for folder, name in ((host.hypernetwork_folder(), "net.pt"), (host.embedding_folder(), "word.safetensors")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    try:
        assert host.calls() == ["<lora:x:1>", "<hypernet:net:1>", "word"]
    finally:
        (host.hypernetwork_folder() / "net.pt").unlink()
        (host.embedding_folder() / "word.safetensors").unlink()


def test_loras_that_cannot_be_applied(host: StandaloneHost) -> None:
    with pytest.raises(ConfigError, match="<lora:nope:…> names no file"):
        host.preview(PreviewRequest("<lora:nope:1>", **SMALL))
    with pytest.raises(ConfigError, match="names no file"):
        host.preview(PreviewRequest("<lora:../lora/x:1>", **SMALL))
    key = next(t.key for t in host.model().adaptable_modules())
    files = {
        "odd": {f"{key}.lora_down.weight": torch.zeros(2, 7), f"{key}.lora_up.weight": torch.zeros(5, 2)},
        "half": {f"{key}.lora_down.weight": torch.zeros(2, 7)},
        "other": {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.zeros(2, 7)},
    }
    for name, tensors in files.items():
        write_lora(host.lora_folder() / f"{name}.safetensors", tensors, {}, overwrite=False)
        with pytest.raises(ModelError, match=f"{name}.safetensors"):
            host.preview(PreviewRequest(f"<lora:{name}:1>", **SMALL))


@pytest.mark.parametrize("size", [(60, 64), (64, 4104), (0, 64)])
def test_sizes_that_cannot_be_drawn(host: StandaloneHost, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="must be a multiple of 8"):
        host.preview(PreviewRequest("a", width=size[0], height=size[1]))
