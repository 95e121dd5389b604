"""One training step of ours against the floor and against diffusers + peft.

    python -m bench.train_step --size full --precision fp32 --rounds 10
    python -m bench.train_step --size full --memory

All contenders train the same 192 UNet and 72 text-encoder layers (18 in the miniature) at the same rank, batch 1.
  floor   forward and backward through frozen modules with plain adapters; no noise, optimizer, clipping or events
  ours    `lib_trainer.training.loop.train`: everything a run does in a step
  peft    diffusers' own recipe: UNet and text encoder with peft's adapters, DDPMScheduler, clipping, AdamW
Time: the contenders alternate inside each round, and the ratio is taken round by round, so that a machine that slows
down slows all of them. Memory: each contender in a process of its own, peak resident size after five steps.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
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
from lib_trainer.networks.lora import LoraNetwork, replaced_forward
from lib_trainer.ports import NoiseSchedule, PictureSize, TrainingState
from lib_trainer.training.captions import LiveCaptions
from lib_trainer.training.loop import Batch, LoopOptions, StepBatches, train
from lib_trainer.training.optimizers import LearningRates, adamw
from lib_trainer.training.precision import DTYPES, autocast

CAPTION = "a red circle, white background"
SIZES = {"mini": 64, "full": 256}
RANK = 32
Step = Callable[[], None]


def build_model(size: str) -> DiffusersModel:
    """SD 1.5's architecture, or the miniature's, with random weights, fp32, on the CPU."""
    torch.manual_seed(0)
    channels, context, heads = ((320, 640, 1280, 1280), 768, 8) if size == "full" else ((32, 32, 64, 64), 32, 4)
    unet = UNet2DConditionModel(block_out_channels=channels, cross_attention_dim=context, attention_head_dim=heads)
    text = CLIPTextConfig(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
    if size == "full":
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule = NoiseSchedule(torch.cumprod(1 - betas, 0), "epsilon")
    parts = Components(unet.eval(), AutoencoderKL().eval(), CLIPTextModel(text).eval(), load_tokenizer(), schedule)
    return DiffusersModel(parts, torch.device("cpu"))


def floor_step(model: DiffusersModel, dtype: torch.dtype, side: int, stack: Any) -> Step:
    """The least that any trainer of these adapters must do. Adapters are written out here, not taken from ours."""
    _hold(model, dtype, stack)
    trained = []
    for target in model.adaptable_modules():
        if target.group == "transformer":
            down, up, forward = _plain_adapter(target.module)
            trained += [down, up]
            stack.enter_context(replaced_forward(target.module, forward))
    latents, target_noise = torch.randn(1, 4, side // 8, side // 8), torch.randn(1, 4, side // 8, side // 8)
    timestep = torch.tensor([500])

    def step() -> None:
        for parameter in trained:
            parameter.grad = None
        with autocast(model.device, dtype):
            told = model.encode_text([CAPTION], 1, 1)
            prediction = model.predict(latents, timestep, told)
        F.mse_loss(prediction.float(), target_noise).backward()

    return step


def _plain_adapter(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter, Callable[..., torch.Tensor]]:
    base = layer.forward
    if isinstance(layer, nn.Conv2d):
        down = nn.Parameter(torch.randn(RANK, layer.in_channels, 1, 1) * 0.01)
        up = nn.Parameter(torch.zeros(layer.out_channels, RANK, 1, 1))
        return down, up, lambda x: base(x) + F.conv2d(F.conv2d(x, down), up)
    assert isinstance(layer, nn.Linear)
    down = nn.Parameter(torch.randn(RANK, layer.in_features) * 0.01)
    up = nn.Parameter(torch.zeros(layer.out_features, RANK))
    return down, up, lambda x: base(x) + F.linear(F.linear(x, down), up)


def our_step(model: DiffusersModel, dtype: torch.dtype, side: int, stack: Any) -> Step:
    """A whole step of a run, previews and saving aside."""
    targets = [target for target in model.adaptable_modules() if target.group == "transformer"]
    network = LoraNetwork.create(targets, RANK, RANK, torch.Generator().manual_seed(0))
    stack.enter_context(model.training(TrainingState(dtype, checkpointing=False, text_encoder=True)))
    stack.enter_context(network.applied())
    config = OptimizerConfig()
    groups = [{"params": network.parameters_of(part), "lr": 1e-4, "name": part} for part in network.parts()]
    optimizer = adamw(groups, config)
    rates, options = LearningRates(optimizer, config, 1000), LoopOptions(1, dtype, 1.0, 1)
    captions = LiveCaptions(model, 1, 75)
    size = PictureSize((side, side), (0, 0), (side, side))
    batch = Batch(torch.randn(1, 4, side // 8, side // 8), [CAPTION], [size])
    steps = itertools.repeat(StepBatches(1, [batch]))
    return lambda: train(model, captions, steps, optimizer, rates, options, lambda done: None, lambda: False)


def peft_step(model: DiffusersModel, dtype: torch.dtype, side: int, stack: Any) -> Step:
    """diffusers' text-to-image LoRA recipe, with the same layers as ours."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig, inject_adapter_in_model

    unet, text = model.unet, model.text.transformer
    for part in (unet, text):
        part.requires_grad_(False)
        part.to(dtype)
    names = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=names))
    words = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=words), text)
    if dtype is not torch.float32:
        cast_training_params([unet, text], dtype=torch.float32)
    trained = [p for part in (unet, text) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents = torch.randn(1, 4, side // 8, side // 8)
    tokens = model.text.tokenizer(CAPTION, padding="max_length", max_length=77, return_tensors="pt").input_ids

    def step() -> None:
        noise, timestep = torch.randn_like(latents), torch.randint(0, 1000, (1,))
        noisy = scheduler.add_noise(latents, noise, timestep)
        with autocast(model.device, dtype):
            told = text(tokens)[0]
            prediction = unet(noisy, timestep, told, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), noise.float())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


CONTENDERS = {"floor": floor_step, "ours": our_step, "peft": peft_step}


def _hold(model: DiffusersModel, dtype: torch.dtype, stack: Any) -> None:
    stack.enter_context(frozen(model.unet, model.text.transformer))
    stack.enter_context(held_in(dtype, model.unet, model.text.transformer))


def measure_time(size: str, precision: str, rounds: int) -> None:
    """Alternate the contenders; each holds a model of its own, so that none sees another's changes."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with contextlib.ExitStack() as stack:
        steps = {n: make(build_model(size), DTYPES[precision], SIZES[size], stack) for n, make in CONTENDERS.items()}
        for round_number in range(-2, rounds):  # two rounds of warm-up
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                if round_number >= 0:
                    seconds[name].append(time.perf_counter() - started)
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"\n{size} {SIZES[size]}², {precision}, {rounds} rounds, {where}")
    print("| contender | s/step (median) | ratio to floor (median of rounds) | min | max |\n|---|---|---|---|---|")
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds["floor"], strict=True)]
        row = f"{statistics.median(own):.3f} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
        print(f"| {name} | {row} |", flush=True)


def measure_memory(size: str, precision: str) -> None:
    print(f"\n{size} {SIZES[size]}², {precision}: peak resident memory of a process\n| contender | MiB |\n|---|---|")
    for name in CONTENDERS:
        command = [sys.executable, "-m", "bench.train_step", "--size", size, "--precision", precision, "--alone", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"| {name} | {json.loads(done.stdout.splitlines()[-1])['peak_mib']:.0f} |", flush=True)


def run_alone(name: str, size: str, precision: str) -> None:
    with contextlib.ExitStack() as stack:
        step = CONTENDERS[name](build_model(size), DTYPES[precision], SIZES[size], stack)
        for _ in range(5):
            step()
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--alone", choices=CONTENDERS)
    options = parser.parse_args()
    if options.alone:
        run_alone(options.alone, options.size, options.precision)
    elif options.memory:
        measure_memory(options.size, options.precision)
    else:
        measure_time(options.size, options.precision, options.rounds)


if __name__ == "__main__":
    main()
