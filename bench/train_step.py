"""One training step of ours against the floor, diffusers + peft, and sd-scripts.

    python -m bench.train_step --size full --precision fp32 --rounds 20
    python -m bench.train_step --size full --memory
    python -m bench.train_step --size full --device cuda --precision bf16 --side 512 --batch 4 --scripts FOLDER

All contenders train the same 192 UNet and 72 text-encoder layers (18 in the miniature) at one rank and alpha.
  floor       forward and backward through frozen modules with plain adapters; no noise, optimizer, clipping or events
  ours        `lib_trainer.training.loop.train`: everything a run does in a step
  peft        diffusers' own recipe: UNet and text encoder with peft's adapters, DDPMScheduler, clipping, AdamW
  sd-scripts  its own networks/lora.py on the same modules, and the step of its train_network.py: noise, loss, clipping,
              AdamW, the loss read at once. Only where its checkout is named (--scripts)
Time: the contenders alternate inside each round, and the ratio is taken round by round, so that a machine that slows
down slows all of them; a device is waited for before and after each step. Memory: each contender in a process of its
own, after five steps: peak resident size on the CPU, torch's peak on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from lib_trainer.config import OptimizerConfig
from lib_trainer.host.holding import frozen
from lib_trainer.host.standalone.checkpoint import Components
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.weights import held_in
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.patching import replaced_forward
from lib_trainer.ports import Conditioning, NoiseSchedule, PictureSize, TrainingState
from lib_trainer.training.captions import CachedCaptions, CaptionSource, LiveCaptions
from lib_trainer.training.loop import Batch, LoopOptions, StepBatches, train
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import make_optimizer
from lib_trainer.training.precision import DTYPES, autocast, loss_scaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.state import TrainState

CAPTION = "a red circle, white background"
SIZES = {"mini": 64, "full": 256}
"""Pixels of a side on the CPU, where nothing else is asked for."""

RANK, ALPHA = 32, 16
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Step = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """What all contenders do. `side` in pixels."""

    size: str = "mini"
    dtype: torch.dtype = torch.float32
    side: int = 64
    batch: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    text_encoder: bool = True
    scripts: Path | None = None

    def latents(self) -> torch.Tensor:
        return torch.randn(self.batch, 4, self.side // 8, self.side // 8)

    def targets(self, model: DiffusersModel) -> list[Any]:
        found = [target for target in model.adaptable_modules() if target.group == "transformer"]
        return [target for target in found if self.text_encoder or target.part == "unet"]


def build_model(size: str, device: torch.device = torch.device("cpu")) -> DiffusersModel:  # noqa: B008
    """SD 1.5's architecture, or the miniature's, with random weights, fp32."""
    torch.manual_seed(0)
    channels, context, heads = ((320, 640, 1280, 1280), 768, 8) if size == "full" else ((32, 32, 64, 64), 32, 4)
    unet = UNet2DConditionModel(block_out_channels=channels, cross_attention_dim=context, attention_head_dim=heads)
    text = CLIPTextConfig(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
    if size == "full":
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule = NoiseSchedule(torch.cumprod(1 - betas, 0), "epsilon")
    parts = Components(unet.eval(), AutoencoderKL().eval(), (CLIPTextModel(text).eval(),), load_tokenizer(), schedule)
    return DiffusersModel(parts, device)


def floor_step(model: DiffusersModel, own: Setting, stack: Any) -> Step:
    """The least that any trainer of these adapters must do. Adapters are written out here, not taken from ours."""
    stack.enter_context(frozen(model.unet, *model.text.parts().values()))
    stack.enter_context(held_in(own.dtype, model.unet, *model.text.parts().values()))
    trained = []
    for target in own.targets(model):
        down, up, forward = _plain_adapter(target.module)
        trained += [down, up]
        stack.enter_context(replaced_forward(target.module, forward))
    latents, target_noise = (own.latents().to(own.device) for _ in range(2))
    timesteps = torch.full((own.batch,), 500, device=own.device)
    encode = _encoder(own, lambda: model.encode_text([CAPTION] * own.batch, 1, 1).context)

    def step() -> None:
        for parameter in trained:
            parameter.grad = None
        with autocast(model.device, own.dtype):
            prediction = model.predict(latents, timesteps, Conditioning(encode()))
        F.mse_loss(prediction.float(), target_noise).backward()

    return step


def _encoder(own: Setting, encode: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Encodes at each call while the text encoder learns, once otherwise."""
    if own.text_encoder:
        return encode
    with torch.no_grad(), autocast(own.device, own.dtype):
        told = encode()
    return lambda: told


def _plain_adapter(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter, Callable[..., torch.Tensor]]:
    base = layer.forward
    if isinstance(layer, nn.Conv2d):
        down = nn.Parameter(torch.randn(RANK, layer.in_channels, 1, 1, device=layer.weight.device) * 0.01)
        up = nn.Parameter(torch.zeros(layer.out_channels, RANK, 1, 1, device=layer.weight.device))
        return down, up, lambda x: base(x) + F.conv2d(F.conv2d(x, down), up)
    assert isinstance(layer, nn.Linear)
    down = nn.Parameter(torch.randn(RANK, layer.in_features, device=layer.weight.device) * 0.01)
    up = nn.Parameter(torch.zeros(layer.out_features, RANK, device=layer.weight.device))
    return down, up, lambda x: base(x) + F.linear(F.linear(x, down), up)


class _Learned(Recipe):
    """The parameters that learn are set up beside it."""


def our_step(model: DiffusersModel, own: Setting, stack: Any) -> Step:
    """A whole step of a run, previews and saving aside."""
    network = LoraNetwork.create(own.targets(model), RANK, ALPHA, torch.Generator().manual_seed(0))
    config = OptimizerConfig()
    groups: list[dict[str, Any]] = [
        {
            "params": network.flatten([adapter for adapter in network if adapter.part == part], whole=True),
            "lr": 1e-4,
            "name": part,
        }
        for part in network.parts()
    ]
    optimizer = make_optimizer(groups, config)
    live, size = LiveCaptions(model, 1, 75), PictureSize((own.side, own.side), (0, 0), (own.side, own.side))
    captions: CaptionSource = live
    state = TrainingState(own.dtype, checkpointing=False, text_encoder=own.text_encoder)
    held = stack.enter_context(model.holding(state))
    if not own.text_encoder:
        captions = cached = CachedCaptions(live)
        with autocast(own.device, own.dtype):
            cached.fill([CAPTION], lambda done, total: None, lambda: False)
    held.train(text_encoder=own.text_encoder)
    stack.enter_context(network.applied())
    rates, options = LearningRates(optimizer, config, 1000), LoopOptions(1, own.dtype, 1.0)
    scaler, noise = loss_scaler(own.device, own.dtype), torch.Generator().manual_seed(2)
    learning = TrainState(_Learned(), optimizer, scaler, noise, Objective(model.schedule))
    steps = itertools.repeat(StepBatches(1, [Batch(own.latents(), [CAPTION] * own.batch, [size] * own.batch)]))

    def step() -> None:
        learning.step = 0
        train(model, captions, steps, learning, rates, options, lambda done: None, lambda: False)

    return step


def peft_step(model: DiffusersModel, own: Setting, stack: Any) -> Step:
    """diffusers' text-to-image LoRA recipe, with the same layers as ours."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig, inject_adapter_in_model

    unet, text = model.unet, model.text.encoders[0].module
    for part in (unet, text):
        part.requires_grad_(False)
        part.to(own.dtype)
    names = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=names))
    if own.text_encoder:
        words = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=words), text)
    if own.dtype is not torch.float32:
        cast_training_params([unet, text], dtype=torch.float32)
    trained = [p for part in (unet, text) for p in part.parameters() if p.requires_grad]
    return _usual_step(model, own, trained)


def scripts_step(model: DiffusersModel, own: Setting, stack: Any) -> Step:
    """sd-scripts' own adapters, from its checkout, in the step of its train_network.py."""
    assert own.scripts is not None
    network_module = _scripts_module(own.scripts)
    unet, text = model.unet, model.text.encoders[0].module
    for part in (unet, text):
        part.requires_grad_(False)
        part.to(own.dtype)
    network = network_module.LoRANetwork([text], unet, multiplier=1.0, lora_dim=RANK, alpha=ALPHA)
    network.apply_to([text], unet, own.text_encoder, True)
    network.to(own.device).requires_grad_(True)
    return _usual_step(model, own, list(network.parameters()))


def _scripts_module(folder: Path) -> Any:
    """networks/lora.py alone: of its library it uses the logger's set-up, and SDXL's class to tell it apart."""
    for name, content in (
        ("library", {}),
        ("library.utils", {"setup_logging": lambda *args, **kwargs: None}),
        ("library.sdxl_original_unet", {"SdxlUNet2DConditionModel": type("SdxlUNet2DConditionModel", (), {})}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules.setdefault(name, module)
    spec = importlib.util.spec_from_file_location("scripts_lora", folder / "networks" / "lora.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scripts_lora"] = module
    spec.loader.exec_module(module)
    return module


def _usual_step(model: DiffusersModel, own: Setting, trained: list[nn.Parameter]) -> Step:
    """Forward, loss, backward, clipping and AdamW, as diffusers' recipe and sd-scripts write them; the loss is read."""
    unet, text = model.unet, model.text.encoders[0].module
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents = own.latents().to(own.device)
    found = load_tokenizer()(CAPTION, padding="max_length", max_length=77, return_tensors="pt").input_ids
    tokens = found.expand(own.batch, -1).to(own.device)
    encode = _encoder(own, lambda: text(tokens)[0])

    def step() -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (own.batch,), device=own.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with autocast(own.device, own.dtype):
            prediction = unet(noisy, timesteps, encode(), return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), noise.float(), reduction="none").mean([1, 2, 3]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


CONTENDERS: dict[str, Callable[[DiffusersModel, Setting, Any], Step]] = {
    "floor": floor_step,
    "ours": our_step,
    "peft": peft_step,
    "sd-scripts": scripts_step,
}


def contenders(own: Setting, wanted: Sequence[str]) -> list[str]:
    names = [name for name in CONTENDERS if name != "sd-scripts" or own.scripts is not None]
    return [name for name in names if not wanted or name in wanted]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_time(own: Setting, rounds: int, wanted: Sequence[str], clock: Callable[[], float]) -> None:
    """Alternate the contenders; each holds a model of its own, so that none sees another's changes."""
    names = contenders(own, wanted)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        steps = {name: CONTENDERS[name](build_model(own.size, own.device), own, stack) for name in names}
        for round_number in range(-2, rounds):  # two rounds of warm-up
            for name, step in steps.items():
                _wait(own.device)
                started = clock()
                step()
                _wait(own.device)
                if round_number >= 0:
                    seconds[name].append(clock() - started)
    on_card = own.device.type == "cuda"
    where = torch.cuda.get_device_name(own.device) if on_card else f"{torch.get_num_threads()} threads"
    print(f"\n{_title(own)}, {rounds} rounds, {where}, torch {torch.__version__}")
    print(
        f"| contender | s/step (median) | ratio to {names[0]} (median of rounds) | min | max |\n|---|---|---|---|---|"
    )
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[names[0]], strict=True)]
        row = (
            f"{statistics.median(times):.3f} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
        )
        print(f"| {name} | {row} |", flush=True)


def _title(own: Setting) -> str:
    precision = next(name for name, dtype in DTYPES.items() if dtype is own.dtype)
    text = "" if own.text_encoder else ", text encoder not trained"
    return f"{own.size} {own.side}², batch {own.batch}, {precision}{text}"


def measure_memory(own: Setting, wanted: Sequence[str]) -> None:
    print(f"\n{_title(own)}: peak memory\n| contender | MiB |\n|---|---|")
    for name in contenders(own, wanted):
        command = [sys.executable, "-m", "bench.train_step", *sys.argv[1:], "--alone", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {name} | {json.loads(done.stdout.splitlines()[-1])['peak_mib']:.0f} |", flush=True)


def run_alone(name: str, own: Setting) -> None:
    with contextlib.ExitStack() as stack:
        step = CONTENDERS[name](build_model(own.size, own.device), own, stack)
        for _ in range(5):
            step()
    on_card = own.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(own.device) if on_card else 1024 * _resident_kib()
    print(json.dumps({"peak_mib": peak / 2**20}))


def _resident_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--side", type=int, help="pixels; on a GPU 512, 768 or 1024")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--no-text-encoder", dest="text_encoder", action="store_false")
    parser.add_argument("--scripts", type=Path, help="a checkout of kohya's sd-scripts, as a further contender")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, default=[], help="some of them; the first is divided by"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: seconds of all threads, whatever else is running"
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--alone", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    side = options.side or (SIZES[options.size] if options.device.type == "cpu" else 512)
    dtype = DTYPES[options.precision]
    own = Setting(options.size, dtype, side, options.batch, options.device, options.text_encoder, options.scripts)
    if options.alone:
        run_alone(options.alone, own)
    elif options.memory:
        measure_memory(own, options.only)
    else:
        measure_time(own, options.rounds, options.only, CLOCKS[options.clock])


if __name__ == "__main__":
    main()
