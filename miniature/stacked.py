"""Several LoRAs of one shape trained at once: their batches stand behind each other in one, each seen by its own LoRA.

The miniature is so small that a step is mostly the handling of small tensors, which is the same for one batch of eight
as for nine. All else is the trainer's own: the pictures in their order, captions, noise, loss, optimizer, schedule,
average and file are those of the job, drawn from its seed, so that a run gives the LoRA that it would give alone, up to
the rounding of sums (`tests/miniature/test_stacked.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from lib_trainer.config import JobConfig
from lib_trainer.host.standalone.host import StandaloneHost, StandaloneLease
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.standalone.sampling import SAMPLERS
from lib_trainer.kinds.adapters import AdapterRecipe
from lib_trainer.kinds.recipe import parameters
from lib_trainer.networks.adapters import LoraAdapter
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.patching import replaced_forward
from lib_trainer.ports import Conditioning, TrainingState
from lib_trainer.training.loop import Batch
from lib_trainer.training.objective import Noised
from lib_trainer.training.place import Place, Progress
from lib_trainer.training.plan import prepare
from lib_trainer.training.preparation import Preparation, Prepared
from lib_trainer.training.preservation import telling
from lib_trainer.training.session import Session
from lib_trainer.transfer import sent
from lib_trainer.work.control import Control

from .common import save

KEPT_AFTER = 60.0
"""Seconds after which a stack is written down, so that it may be ended and go on."""
TOLD_EVERY = 25
AT_ONCE = {"cpu": 288, "cuda": 4608}
"""Pictures that the UNet is shown together when it draws, by the sort of device."""


class _Held:
    """Stands for a session: the model is held ready for steps by `training` already."""

    def train(self, *, text_encoder: bool) -> None:
        if not text_encoder:
            raise ValueError("a stack trains the text encoders")


@dataclass(frozen=True)
class Stack:
    """Runs that are at the same step, and the model that they share."""

    model: DiffusersModel
    runs: Sequence[Prepared]
    factors: _Factors

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """While this holds, the model is shown as many parts of a batch as there are runs, in their order."""
        with contextlib.ExitStack() as stack:
            for number, adapter in enumerate(self.factors.adapters):
                layer = adapter.layer
                stack.enter_context(replaced_forward(layer, _stacked(layer, self.factors, number, adapter.scale)))
            yield

    def train(self, kept: Path, say: Callable[[str], None]) -> None:
        """All steps that are left; what `kept` holds of a stack that was ended is gone on from."""
        if kept.is_file():
            for run, state in zip(self.runs, torch.load(kept, weights_only=False), strict=True):
                run.state.load_state_dict(state)
        sources = [run.source.steps(run.state.step + 1) for run in self.runs]
        total, written = self.runs[0].options.total_steps, time.monotonic()
        for step in range(self.runs[0].state.step + 1, total + 1):
            loss = self._step(step, [next(source).batches for source in sources])
            if time.monotonic() - written >= KEPT_AFTER or step == total:
                save(kept, [run.state.state_dict() for run in self.runs])
                written = time.monotonic()
            if step % TOLD_EVERY == 0 or step == total:
                say(f"step {step} of {total}, loss {float(loss):.4f}")
        for run in self.runs:
            run.state.settle()

    def _step(self, step: int, drawn: Sequence[list[Batch]]) -> torch.Tensor:
        """The mean of the runs' losses, on the device, which is not waited for."""
        batches, device = [batch for (batch,) in drawn], self.model.device
        self.factors.gather()
        noised: list[Noised] = []
        for run, batch in zip(self.runs, batches, strict=True):
            run.state.optimizer.zero_grad(set_to_none=True)
            run.rates.set(step - 1)
            own = run.state.objective.noised(batch.latents, run.state.noise, batch.weights, batch.masks)
            noised.append(own.sent(device))
        sizes = [size for batch in batches for size in batch.sizes]
        tell = telling(self.runs[0].captions, sizes, device)
        told = tell([caption for batch in batches for caption in batch.captions])
        shown, when = torch.cat([one.latents for one in noised]), torch.cat([one.timesteps for one in noised])
        said = self.model.predict(shown, when, told).chunk(len(self.runs))
        losses = [run.state.objective.loss(*pair) for run, *pair in zip(self.runs, said, noised, strict=True)]
        cast(Any, torch.stack(losses).sum()).backward()
        self.factors.forget()
        for run in self.runs:
            norm = run.options.max_gradient_norm
            nn.utils.clip_grad_norm_(parameters(run.recipe), norm if norm > 0 else float("inf"))
            state = run.state
            state.optimizer.step()
            state.step, state.noise_after = step, state.noise.get_state()
            state.objective_after = state.objective.state_dict()
            if state.average is not None:
                state.average.after_step(step)
        return torch.stack(losses).detach().mean()

    @torch.no_grad()
    def pictures(
        self, asked: Sequence[Sequence[tuple[str, int]]], side: int, cfg_scale: float, sampler: str, steps: int = 20
    ) -> list[list[Image.Image]]:
        """Of each run one for each of its prompts and seeds, as many of all of them, as the host draws them."""
        self.factors.gather()
        each = max(1, AT_ONCE[self.model.device.type] // (2 * len(self.runs)))
        drawn: list[list[Image.Image]] = [[] for _ in self.runs]
        for start in range(0, len(asked[0]), each):
            part = [own[start : start + each] for own in asked]
            with _at_hand(self.model.vae, self.model.device):
                found = self._drawn(part, side, cfg_scale, sampler, steps)
            for number, own in enumerate(drawn):
                own += found[number * len(part[0]) : (number + 1) * len(part[0])]
        return drawn

    def _drawn(
        self, asked: Sequence[Sequence[tuple[str, int]]], side: int, cfg_scale: float, sampler: str, steps: int
    ) -> list[Image.Image]:
        make, options = SAMPLERS[sampler]
        alphas = self.model.schedule.used
        betas = 1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])
        schedule = make(trained_betas=betas.float().numpy(), prediction_type="epsilon", **options)
        schedule.set_timesteps(steps)
        generators = [torch.Generator().manual_seed(seed) for own in asked for _, seed in own]
        told, count, device = self._told(asked), len(asked[0]), self.model.device
        shape = (1, self.model.family.latent_channels, side // 8, side // 8)
        noise = torch.cat([torch.randn(shape, generator=one) for one in generators])
        latents = sent(noise, device) * schedule.init_noise_sigma
        for timestep in schedule.timesteps:
            scaled = schedule.scale_model_input(latents, timestep).view(len(asked), 1, count, *shape[1:])
            shown = scaled.expand(-1, 2, -1, -1, -1, -1).reshape(-1, *shape[1:])
            said = self.model.predict(shown, sent(timestep, device).expand(len(shown)), told)
            without, with_prompt = said.view(len(asked), 2, count, *shape[1:]).unbind(1)
            guided = (without + cfg_scale * (with_prompt - without)).reshape(-1, *shape[1:])
            latents = schedule.step(guided, timestep, latents, generator=generators, return_dict=False)[0]
        parts = [self.model.decode_latents(part).permute(0, 2, 3, 1).cpu().numpy() for part in latents.split(32)]
        return [Image.fromarray(one) for part in parts for one in ((part + 1) * 127.5).round().astype(np.uint8)]

    def _told(self, asked: Sequence[Sequence[tuple[str, int]]]) -> Conditioning:
        """Of each run first nothing and then the prompt, for each picture."""
        texts = [["", *dict.fromkeys(prompt for prompt, _ in own)] for own in asked]
        most = max(map(len, texts))
        padded = [text for own in texts for text in own + [""] * (most - len(own))]
        context = self.model.encode_text(padded, 1, 1).context
        context = context.view(len(asked), most, *context.shape[1:])
        places = [[0] * len(own) + [texts[run].index(one) for one, _ in own] for run, own in enumerate(asked)]
        return Conditioning(torch.cat([context[run][own] for run, own in enumerate(places)]), None)


class _Factors:
    """The factors of all runs' LoRAs, each layer's behind each other.

    Layer by layer they would be hundreds of small tensors for each run, whose handling costs more than the arithmetic.
    """

    def __init__(self, networks: Sequence[LoraNetwork]) -> None:
        self.adapters = [cast(LoraAdapter, adapter) for adapter in networks[0]]
        self._leaves = [network.flat_leaves for network in networks]
        self._found: list[tuple[torch.Tensor, torch.Tensor]] = []
        # the buffers lie in the order of the rates' groups, the UNet's first
        order = sorted(range(len(self.adapters)), key=lambda number: self.adapters[number].part != "unet")
        self._places = {number: place for place, number in enumerate(order)}
        self._shapes = [pair for number in order for pair in _shapes(self.adapters[number])]
        if sum(map(len, self._leaves[0])) != sum(rows * columns for rows, columns in self._shapes):
            raise ValueError("a stack trains LoRAs whose parameters lie in one buffer for each part")

    def gather(self) -> None:
        """Of the runs as they stand; gradients go back to them once."""
        parts: list[torch.Tensor] = []
        sizes = [rows * columns for rows, columns in self._shapes]
        for own in zip(*self._leaves, strict=True):
            count = len(parts)
            end = next(n for n in range(count, len(sizes) + 1) if sum(sizes[count:n]) == len(own[0]))
            parts += torch.stack(own).split(sizes[count:end], dim=1)
        shaped = [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        self._found = list(zip(shaped[::2], shaped[1::2], strict=True))

    def forget(self) -> None:
        self._found = []

    def of(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`down` (runs, r, in) and `up` (runs, out, r) of a layer."""
        return self._found[self._places[number]]


@contextlib.contextmanager
def _at_hand(module: nn.Module, device: torch.device) -> Iterator[None]:
    """On the device while this holds: a run sends the VAE away from a card."""
    away = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
    try:
        for tensor, data in away:
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in away:
            tensor.data = data


def _shapes(adapter: LoraAdapter) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) of its factors."""
    down, up = adapter.down.flatten(1), adapter.up.flatten(1)
    return (down.shape[0], down.shape[1]), (up.shape[0], up.shape[1])


def _stacked(layer: Any, factors: _Factors, number: int, scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A forward of `layer` that adds to each part of a batch what the adapter of its place says of it."""
    base = layer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        down, up = factors.of(number)
        count = len(down)
        delta = up @ down * scale  # (runs, out, in): on layers this narrow cheaper than two products with the input
        out: torch.Tensor = base(x)
        if isinstance(layer, nn.Conv2d):
            return out + (delta.unsqueeze(1) @ x.reshape(count, -1, x.shape[1], x[0, 0].numel())).reshape(out.shape)
        return out + torch.bmm(x.reshape(count, -1, x.shape[-1]), delta.transpose(1, 2)).reshape(out.shape)

    return forward


@contextlib.contextmanager
def stacked(host: StandaloneHost, jobs: Sequence[JobConfig]) -> Iterator[Stack]:
    """A stack of jobs before its first step, with pictures encoded; while it holds the model is not its host's.

    They must be plain LoRAs of the same ranks with as many steps and one batch of one size in each, train both UNet and
    text encoder, preserve nothing and drop nothing inside of the network. The model predicts noise.
    """
    model = host.model()
    plans = [prepare(job, host) for job in jobs]
    recipes = [plan.kind.recipe(plan.job, model, plan.outputs) for plan in plans]
    place = Place(host, model, StandaloneLease(), Control(), lambda event: None)
    with model.training(TrainingState(torch.float32, False, True, frozenset())), contextlib.ExitStack() as stack:
        runs = []
        for plan, recipe in zip(plans, recipes, strict=True):
            progress = Progress([])
            stack.enter_context(progress.leaving)
            session = cast(Session, _Held())
            run = Preparation(plan, place, progress).prepared(plan.scan.samples, recipe, session, torch.float32)
            assert run is not None
            runs.append(run)
        found = Stack(model, runs, _Factors([cast(AdapterRecipe, run.recipe).network for run in runs]))
        stack.enter_context(found.applied())
        yield found


def save_file(run: Prepared, path: Path) -> None:
    """The LoRA as a file."""
    run.recipe.save([path], {}, overwrite=True)
