"""The loop: forward, loss, backward, step, tell. It knows no model family, no host and no kind of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lib_trainer.errors import NumericalError
from lib_trainer.events import StepDone
from lib_trainer.memory import peak_bytes
from lib_trainer.ports import LoadedModel, PictureSize
from lib_trainer.training.captions import CaptionSource
from lib_trainer.training.objective import draw_noised, loss_of
from lib_trainer.training.optimizers import LearningRates
from lib_trainer.training.precision import autocast, loss_scaler


@dataclass(frozen=True)
class Batch:
    """`latents` (B, C, H, W) fp32 on the CPU, scaled; `captions` and `sizes` of length B.

    `weights` (B,) are factors on each picture's loss; None where all of them are 1.
    """

    latents: torch.Tensor
    captions: list[str]
    sizes: list[PictureSize]
    weights: torch.Tensor | None = None


@dataclass(frozen=True)
class StepBatches:
    """The batches of one optimizer step."""

    epoch: int
    batches: list[Batch]


@dataclass(frozen=True)
class LoopOptions:
    total_steps: int
    dtype: torch.dtype
    max_gradient_norm: float
    seed: int
    rate_fields: str = "optimizer.unet_lr, optimizer.text_encoder_lr"
    """The options that a sentence names where a rate is too high."""


def train(
    model: LoadedModel,
    captions: CaptionSource,
    steps: Iterator[StepBatches],
    optimizer: Optimizer,
    rates: LearningRates,
    options: LoopOptions,
    after_step: Callable[[StepDone], None],
    stopping: Callable[[], bool],
) -> None:
    """Run until `total_steps` are done or `stopping()`; `after_step` is told of each one.

    Raises `NumericalError` before the optimizer has seen a loss or a gradient that is not finite.
    """
    device = model.device
    noise = torch.Generator().manual_seed(options.seed)
    scaler = loss_scaler(device, options.dtype)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(1, options.total_steps + 1):
        if stopping():
            return
        started = time.perf_counter()
        current = rates.set(step - 1)
        drawn = next(steps)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch in drawn.batches:
            noised = draw_noised(batch.latents, model.schedule, noise)
            with autocast(device, options.dtype):
                told = captions(batch.captions, batch.sizes).to(device)
                prediction = model.predict(noised.latents.to(device), noised.timesteps.to(device), told)
            loss = loss_of(prediction, noised.target.to(device), batch.weights)
            scaler.scale(loss / len(drawn.batches)).backward()
            losses.append(loss.detach())
        scaler.unscale_(optimizer)
        norm = _clip(trained, options.max_gradient_norm)
        mean_loss = torch.stack(losses).mean().item()
        _check_finite(step, mean_loss, norm.item(), options.rate_fields, scaled=scaler.is_enabled())
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        after_step(
            StepDone(
                step=step,
                total_steps=options.total_steps,
                epoch=drawn.epoch,
                loss=mean_loss,
                learning_rates=current,
                gradient_norm=norm.item(),
                seconds=time.perf_counter() - started,
                memory_bytes=peak_bytes(device),
                applied=scaler.get_scale() >= scale,  # the scaler halves it where gradients overflowed, and only then
            )
        )


def _clip(trained: list[nn.Parameter], largest: float) -> torch.Tensor:
    """The gradients' norm; they are scaled down to `largest` (0: left alone). Pascanu et al. 2013, arXiv:1211.5063."""
    return nn.utils.clip_grad_norm_(trained, largest if largest > 0 else float("inf"))


def _check_finite(step: int, loss: float, norm: float, rate_fields: str, *, scaled: bool) -> None:
    """Loss scaling skips a step whose gradients overflow and tries a smaller scale, so only its loss is judged."""
    if not _finite(loss):
        what = f"The loss is {loss}"
    elif not scaled and not _finite(norm):
        what = "The gradients are not finite"
    else:
        return
    raise NumericalError(
        f"{what} at step {step}, so the run was ended with the weights of step {step - 1}: lower the learning rate "
        f"({rate_fields}) or take training.precision = 'fp32'."
    )


def _finite(value: float) -> bool:
    return value - value == 0
