"""The loop: forward, loss, backward, step, tell. It knows no model family, no host and no kind of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lib_trainer.memory import peak_bytes, release
from lib_trainer.ports import Conditioning, LoadedModel, PictureSize, Wording
from lib_trainer.refusals import Field, NumericalError, Sentence
from lib_trainer.training.captions import CaptionSource
from lib_trainer.training.graphs import Graphs
from lib_trainer.training.objective import Noised
from lib_trainer.training.optimizers import step_unless
from lib_trainer.training.precision import autocast
from lib_trainer.training.preservation import Keeper, telling
from lib_trainer.training.scaling import HOPELESS, LossScaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.state import TrainState
from lib_trainer.transfer import arriving
from lib_trainer.work.events import StepDone


@dataclass(frozen=True)
class Batch:
    """`latents` (B, C, H, W) fp32 on the CPU, scaled; `captions` and `sizes` of length B.

    `weights` (B,) are factors on each picture's loss; None where all of them are 1. `masks` (B, 1, H, W) say from 0 to
    1 what of each picture is to be learned; None where that is all of them. `plain` are captions that do not name the
    concept, where a run preserves what is said under them. `beside` (B, 5, H, W) is what a model that inpaints reads
    behind its latents: the hole, and the latents of the rest of the picture.
    """

    latents: torch.Tensor
    captions: list[Wording]
    sizes: list[PictureSize]
    weights: torch.Tensor | None = None
    masks: torch.Tensor | None = None
    plain: Sequence[Wording] = ()
    beside: torch.Tensor | None = None


@dataclass(frozen=True)
class StepBatches:
    """The batches of one optimizer step; `base`: its pictures are those before a difference.

    `epoch_ends`: it is the last one of its epoch.
    """

    epoch: int
    batches: list[Batch]
    base: bool = False
    epoch_ends: bool = False


@dataclass(frozen=True)
class LoopOptions:
    total_steps: int
    dtype: torch.dtype
    max_gradient_norm: float
    rate_fields: Sequence[str] = ("optimizer.unet_lr", "optimizer.text_encoder_lr")
    """The options that a sentence names where a rate is too high."""

    keeper: Keeper | None = None
    """What is preserved beside what is learned."""

    graphs: Graphs | None = None
    """By which passes are recorded and repeated; only where nothing but their inputs tells two of them apart."""

    late: bool = False
    """Tell of a step when the next one's gradients are under way, as on a GPU, also where nothing is waited for."""


def train(
    model: LoadedModel,
    captions: CaptionSource,
    steps: Iterator[StepBatches],
    state: TrainState,
    rates: LearningRates,
    options: LoopOptions,
    after_step: Callable[[StepDone], None],
    stopping: Callable[[], bool],
) -> None:
    """Run from the step after `state.step` until `total_steps` are done or `stopping()`; `after_step` is told of each
    one, and `state` is as that one left it. `steps` begin with the one after `state.step`.

    NVIDIA's and AMD's cards are never waited for inside a step, unless by an optimizer (`step_unless`): `after_step` is
    told of a step when the next one's gradients are under way and the parameters are still those of the step it is told
    of. Raises `NumericalError` for a loss or gradients that are not finite, with loss scaling only where that left out
    `HOPELESS` steps in a row; the parameters are then those of the step before. However it ends, gradients are let go.
    """
    optimizer, scaler = state.optimizer, state.scaler
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    results = _Results(options, state, after_step)
    for step in range(state.step + 1, options.total_steps + 1):
        if stopping():
            break
        try:
            optimizer.zero_grad(set_to_none=True)
            current = rates.set(step - 1)
            drawn = next(steps)
            state.recipe.before_step(step, base=drawn.base)
            _retire(optimizer, rates.done(step - 1))
            loss = _gradients(model, captions, drawn, state, options, step)
            results.tell()
            if stopping():
                break
            numbers, learned = _step(optimizer, trained, loss, scaler, options.max_gradient_norm)
            results.put(step, drawn, current, numbers, model.device, learned=learned)
            state.recipe.bound()
            if not (model.device.type == "cuda" or options.late):
                results.tell()
        except BaseException as error:
            # a graph that is still held, by frames that are held by their error, is most of a card's memory
            optimizer.zero_grad(set_to_none=True)
            release(error, model.device)
            state.failing = True
            results.tell()
            raise
    optimizer.zero_grad(set_to_none=True)  # nobody steps by them any more, and what comes next needs the room
    results.tell()


def _retire(optimizer: Optimizer, done: float) -> None:
    """A group of parameters whose share of the run (`until`), or of its part of it, is over gets no gradients."""
    for group in optimizer.param_groups:
        if done >= group.get("until", 1.0):
            for parameter in group["params"]:
                parameter.requires_grad_(False)


def _gradients(
    model: LoadedModel,
    captions: CaptionSource,
    drawn: StepBatches,
    state: TrainState,
    options: LoopOptions,
    step: int,
) -> torch.Tensor:
    """Gradients of a step's batches, scaled; returns the mean loss, on the device. All that is sent there goes first.

    Dropouts may leave nothing that learns in a batch. Where what was recorded left no memory, it goes and the step is
    done again.
    """
    graphs, noise = options.graphs, state.noise.get_state()
    left = (options.total_steps - step) * len(drawn.batches)
    try:
        return _added_up(model, captions, drawn, state, options, left)
    except Exception as error:
        if graphs is None or not graphs.gives_way(error, model.device):
            raise
    state.optimizer.zero_grad(set_to_none=True)
    state.noise.set_state(noise)
    return _added_up(model, captions, drawn, state, options, left)


def _added_up(
    model: LoadedModel, captions: CaptionSource, drawn: StepBatches, state: TrainState, options: LoopOptions, left: int
) -> torch.Tensor:
    device, dtype, keeper = model.device, options.dtype, options.keeper
    count, losses = len(drawn.batches), []
    for batch in drawn.batches:
        own = batch.weights, batch.masks, batch.beside
        noised = state.objective.noised(batch.latents, state.noise, *own).sent(device, dtype)
        tell = telling(captions, batch.sizes, device)
        if keeper is None:
            with autocast(device, dtype):
                told = tell(batch.captions)
            losses.append(_learned(model, noised, told, state, options, count, left))
            continue
        with autocast(device, dtype):
            bare = keeper.before(model, noised, tell, batch.captions, batch.plain)
            prediction = model.predict(noised.latents, noised.timesteps, tell(batch.captions))
        loss = state.objective.loss(prediction, noised)
        if bare is not None:
            loss = loss + keeper.beyond(prediction, bare, noised)
        del prediction
        losses.append(_backward(loss, count, state))
        if keeper.weight:
            with autocast(device, dtype):
                kept = keeper.elsewhere(model, noised, tell, batch.plain)
            losses[-1] = losses[-1] + _backward(kept, count, state)
    return torch.stack(losses).mean()


def _learned(
    model: LoadedModel,
    noised: Noised,
    told: Conditioning,
    state: TrainState,
    options: LoopOptions,
    batches: int,
    left: int,
) -> torch.Tensor:
    """One pass there and back, as it is or as it was recorded; `left` are to come."""

    def work(noised: Noised, told: Conditioning) -> torch.Tensor:
        with autocast(model.device, options.dtype):
            prediction = model.predict(noised.latents, noised.timesteps, told)
        return _backward(state.objective.loss(prediction, noised), batches, state)

    if options.graphs is None:
        return work(noised, told)
    leaves = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    return options.graphs.passed(work, noised, told, leaves, left, (batches, id(state)))


def _backward(loss: torch.Tensor, batches: int, state: TrainState) -> torch.Tensor:
    """Add up a term's share of the gradients, and let its graph go."""
    if loss.requires_grad:
        state.scaler.scale(loss / batches).backward()
    return loss.detach()


def said(model: LoadedModel, captions: CaptionSource, batch: Batch, noised: Noised, dtype: torch.dtype) -> torch.Tensor:
    """What the UNet says of a batch that is noised and on its device."""
    tell = telling(captions, batch.sizes, model.device)
    with autocast(model.device, dtype):
        return model.predict(noised.latents, noised.timesteps, tell(batch.captions))


def _step(
    optimizer: Optimizer, trained: list[nn.Parameter], loss: torch.Tensor, scaler: LossScaler, largest: float
) -> tuple[Callable[[], list[float]], bool]:
    """Clip and learn, unless the loss or a gradient is not finite. Returns a promise of the loss and the gradients'
    norm, and if there were any gradients. It is made before the weights change: what is allocated after that and fails
    would leave the weights of a step that nobody was told of.

    Gradients are scaled down to a norm of `largest` (0: left alone). Pascanu et al. 2013, arXiv:1211.5063.
    """
    if all(parameter.grad is None for parameter in trained):
        return arriving(torch.stack([loss.float(), torch.zeros_like(loss).float()])), False
    scaler.unscale_(trained)
    norm = nn.utils.clip_grad_norm_(trained, largest if largest > 0 else float("inf"))
    numbers = arriving(torch.stack([loss.float(), norm.float()]))
    bad = (loss + norm).isfinite().logical_not()
    step_unless(optimizer, bad)
    scaler.update(bad)
    return numbers, True


_Waiting = tuple[Callable[[list[float]], StepDone], Callable[[], list[float]], torch.Tensor, dict[str, Any]]
"""What makes the event, a promise of its numbers, and noise and objective as the step left them."""


class _Results:
    """What a step came to, on its way from the device to the state, the recipe and `after_step`."""

    def __init__(self, options: LoopOptions, state: TrainState, after_step: Callable[[StepDone], None]) -> None:
        self._options, self._state, self._after_step = options, state, after_step
        self._waiting: _Waiting | None = None
        self._since = time.perf_counter()
        self._left_out = 0

    def put(
        self,
        step: int,
        drawn: StepBatches,
        rates: dict[str, float],
        numbers: Callable[[], list[float]],
        device: torch.device,
        *,
        learned: bool,
    ) -> None:
        epoch, epoch_ends = drawn.epoch, drawn.epoch_ends  # and nothing else of it is kept

        def done(numbers: list[float]) -> StepDone:
            return StepDone(
                step=step,
                total_steps=self._options.total_steps,
                epoch=epoch,
                loss=numbers[0],
                learning_rates=rates,
                gradient_norm=numbers[1],
                seconds=time.perf_counter() - self._since,
                memory_bytes=peak_bytes(device),
                applied=learned and _finite(numbers[1]),
                epoch_ends=epoch_ends,
            )

        self._waiting = done, numbers, self._state.noise.get_state(), self._state.objective.state_dict()

    def tell(self) -> None:
        """Tell of the step that waits, if one does."""
        if self._waiting is None:
            return
        (make, numbers, noise, objective), self._waiting = self._waiting, None
        done, state = make(numbers()), self._state
        self._left_out = 0 if _finite(done.gradient_norm) else self._left_out + 1
        scaled = state.scaler.is_enabled() and self._left_out < HOPELESS
        _check_finite(done.step, done.loss, done.gradient_norm, self._options.rate_fields, scaled=scaled)
        state.step, state.epoch, state.noise_after, state.objective_after = done.step, done.epoch, noise, objective
        if done.applied:
            state.recipe.after_step()
            if state.average is not None:
                state.average.after_step(done.step)
        self._after_step(done)
        self._since = time.perf_counter()


def _check_finite(step: int, loss: float, norm: float, rate_fields: Sequence[str], *, scaled: bool) -> None:
    """While loss scaling skips a step whose gradients overflow and tries a smaller scale, only its loss is judged."""
    if not _finite(loss):
        what = Sentence("loss.value", loss=loss)
    elif not scaled and not _finite(norm):
        what = Sentence("loss.gradients")
    else:
        return
    rates = [Field(path) for path in rate_fields]
    precision = Field("training.precision")
    raise NumericalError("loss.not_finite", what=what, step=step, last=step - 1, rates=rates, precision=precision)


def _finite(value: float) -> bool:
    return value - value == 0
