"""The diffusion objective: what noise is added, what the UNet is asked to predict, and how far off it is.

Ho et al. 2020 (arXiv:2006.11239, eq. 4 and 14): x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε, loss ‖target − prediction‖².
Salimans & Ho 2022 (arXiv:2202.00512, appendix D): v = √ᾱ_t·ε − √(1−ᾱ_t)·x₀.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn import functional as F

from lib_trainer.config import LossConfig, MasksConfig, NoiseConfig
from lib_trainer.ports import NoiseSchedule
from lib_trainer.training.loss_weights import LearnedWeights, huber_thresholds, level_weights
from lib_trainer.training.masks import loss_weights
from lib_trainer.training.noise import coloured, draw_timesteps, perturbed
from lib_trainer.transfer import sent


@dataclass(frozen=True)
class Noised:
    """A batch as the UNet is shown it: `latents` (B, C, H, W), with what is put behind them, at `timesteps` (B,) int64.

    `target` (B, C, H, W) is what it is to say; `weights` (B,) are factors on each picture's loss, None where all of
    them are 1; `thresholds` (B,) are those of a Huber loss; `places` (B, 1, H, W) are factors on each place's error,
    None where all of them are 1, and `masks` (B, 1, H, W) are what they come from. Numbers are fp32.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor | None = None
    thresholds: torch.Tensor | None = None
    places: torch.Tensor | None = None
    masks: torch.Tensor | None = None

    def sent(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Noised:
        """The same on a device, which is not waited for; `latents` as the UNet reads them."""
        others = {name: getattr(self, name) for name in ("weights", "thresholds", "places", "masks")}
        return replace(
            self,
            latents=sent(self.latents.to(dtype), device),
            timesteps=sent(self.timesteps, device),
            target=sent(self.target, device),
            **{name: None if one is None else sent(one, device) for name, one in others.items()},
        )

    def each(self, changed: Callable[[torch.Tensor], torch.Tensor]) -> Noised:
        """The same with every tensor changed."""
        there = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: changed(tensor) for name, tensor in there.items() if tensor is not None})


class Objective:
    """What a run asks of the UNet. All randomness comes from a CPU generator, so that every device and host sees the
    same numbers."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        noise: NoiseConfig = NoiseConfig(),  # noqa: B008 - frozen
        loss: LossConfig = LossConfig(),  # noqa: B008 - frozen
        masks: MasksConfig = MasksConfig(),  # noqa: B008 - frozen
    ) -> None:
        self.schedule, self._noise, self._loss, self._masks = schedule, noise, loss, masks
        self._level_weights = level_weights(loss, schedule)
        self._thresholds = huber_thresholds(loss, schedule)
        self._learned = LearnedWeights(len(schedule.used)) if loss.learned_weights else None

    def noised(
        self,
        latents: torch.Tensor,
        generator: torch.Generator,
        weights: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        beside: torch.Tensor | None = None,
    ) -> Noised:
        """Noise clean latents (B, C, H, W), fp32, on the CPU, at timesteps that are drawn.

        `weights` (B,) are factors on the pictures' losses beside those of the objective; `masks` (B, 1, H, W) say
        from 0 to 1 what of them is to be learned; `beside` (B, N, H, W) is put behind the noised latents, as models
        read it that inpaint.
        """
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = draw_timesteps(self._noise, len(self.schedule.used), latents.shape[0], generator)
        noise = coloured(noise, latents, self._noise, generator)
        covering = perturbed(noise, self._noise, generator)
        return self.weighed(self.covered(latents, noise, timesteps, covering, beside), weights, masks)

    def weighed(self, noised: Noised, weights: torch.Tensor | None = None, masks: torch.Tensor | None = None) -> Noised:
        """The same with the objective's weights, and what else `noised()` takes."""
        if self._level_weights is not None:
            own = self._level_weights[noised.timesteps]
            weights = own if weights is None else weights * own
        thresholds = None if self._thresholds is None else self._thresholds[noised.timesteps]
        places = None if masks is None else loss_weights(masks, self._masks)
        return replace(noised, weights=weights, thresholds=thresholds, places=places, masks=masks)

    def covered(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        covering: torch.Tensor | None = None,
        beside: torch.Tensor | None = None,
    ) -> Noised:
        """Latents at given timesteps (B,) with given noise, without weights; `covering` where they are covered with
        more than what is asked for, `beside` behind them."""
        alpha_bar = self.schedule.used[timesteps].view(-1, 1, 1, 1)
        signal, sigma = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
        target = noise if self.schedule.prediction == "epsilon" else signal * noise - sigma * latents
        shown = signal * latents + sigma * (noise if covering is None else covering)
        return Noised(shown if beside is None else torch.cat([shown, beside], dim=1), timesteps, target)

    def measured(self, prediction: torch.Tensor, noised: Noised) -> torch.Tensor:
        """(B,) fp32: what `loss` means over, but for weights that are learned, and nothing is learned of it."""
        losses = self._losses(prediction.float(), noised)
        return losses if noised.weights is None else losses * noised.weights

    def loss(self, prediction: torch.Tensor, noised: Noised) -> torch.Tensor:
        """The mean over everything in fp32, a scalar, of what the UNet has said of `noised`, on its device."""
        prediction = prediction.float()
        plain = noised.weights is None and noised.places is None
        if plain and self._learned is None and self._loss.type == "l2":
            return F.mse_loss(prediction, noised.target)
        losses = self._losses(prediction, noised)
        if self._learned is not None:
            factors = self._learned.factors(noised.timesteps)
            self._learned.see(noised.timesteps, losses)
            losses = losses * factors
        return (losses if noised.weights is None else losses * noised.weights).mean()

    def distance(
        self, prediction: torch.Tensor, other: torch.Tensor, noised: Noised, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How far a prediction (B, C, H, W) of `noised` is from another one, a scalar: by the loss's own measure and
        weights, with `places` (B, 1, H, W) as factors in the place of those of the masks. Nothing is learned of it."""
        losses = self._losses(prediction.float(), replace(noised, target=other.float(), places=places))
        if self._learned is not None:
            losses = losses * self._learned.factors(noised.timesteps)
        return (losses if noised.weights is None else losses * noised.weights).mean()

    def _losses(self, prediction: torch.Tensor, noised: Noised) -> torch.Tensor:
        """(B,), of each picture."""
        errors = self._errors(prediction, noised)
        return (errors if noised.places is None else errors * noised.places).flatten(1).mean(1)

    def _errors(self, prediction: torch.Tensor, noised: Noised) -> torch.Tensor:
        """(B, C, H, W). Huber and smooth L1 in their smooth forms, 2c(√(d²+c²) − c) and 2(√(d²+c²) − c)."""
        if self._loss.type == "l1":
            return F.l1_loss(prediction, noised.target, reduction="none")
        squares = F.mse_loss(prediction, noised.target, reduction="none")
        if noised.thresholds is None:
            return squares
        c = noised.thresholds.view(-1, 1, 1, 1)
        straight = 2 * ((squares + c * c).sqrt() - c)
        return straight * c if self._loss.type == "huber" else straight

    def state_dict(self) -> dict[str, Any]:
        """What it has learned of the losses so far; empty where it learns nothing."""
        return {} if self._learned is None else {"learned": self._learned.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._learned is not None and "learned" in state:
            self._learned.load_state_dict(state["learned"])
