"""Preservation without class pictures: what the model said before training is kept as a second term of the loss.

Outside of masks the prediction of the same pass is held to that of the bare model; under a caption without the trigger
word another pass is. The bare model is the one that is trained, with what learns switched off: there is no second copy.
The idea is that of prior preservation (Ruiz et al. 2023, arXiv:2208.12242, eq. 2) with the model's own predictions in
the place of class pictures. The passes follow each other, so a step holds the activations of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from lib_trainer.captions.tags import either_spelling
from lib_trainer.config import JobConfig
from lib_trainer.dataset.scan import NAME
from lib_trainer.kinds.base import Kind
from lib_trainer.kinds.captions import FILEWORDS, CaptionMaker, unmarked
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.ports import Conditioning, LoadedModel, Wording
from lib_trainer.refusals import ConfigError, Field
from lib_trainer.training.objective import Noised, Objective
from lib_trainer.transfer import sent

Told = Callable[[Sequence[Wording]], Conditioning]
"""Conditioning of captions for the pictures of a batch."""


def keeps_outside(job: JobConfig) -> bool:
    return job.masks.source != "none" and job.masks.prior > 0


def check_preservation(job: JobConfig, kind: Kind) -> None:
    """Raise `ConfigError` where there is no bare model to be had, or nothing tells the two captions apart."""
    if keeps_outside(job) and (reason := kind.why_no_bare_model()):
        raise ConfigError("preserve.not_here", field="masks.prior", reason=reason)
    if not job.preserve.weight:
        return
    if reason := kind.why_no_bare_model() or kind.why_nothing_to_preserve():
        raise ConfigError("preserve.not_here", field="preserve.weight", reason=reason)
    caption = job.preserve.caption.replace(FILEWORDS, "").strip(" ,")
    if not (caption or job.dataset.trigger_word.strip() or kind.words(job)):
        trigger, caption_field = Field("dataset.trigger_word"), Field("preserve.caption")
        raise ConfigError("preserve.no_trigger", field="preserve.weight", trigger=trigger, caption=caption_field)


@dataclass(frozen=True)
class PlainCaptions:
    """What a picture is said to show where the concept is not named: its caption without `words`, in `around`."""

    words: tuple[str, ...]
    around: str = ""

    @classmethod
    def of(cls, job: JobConfig, kind: Kind, maker: CaptionMaker, captions: Iterable[str] = ()) -> PlainCaptions:
        """Without a trigger word the concept is called as its file is only where one of `captions`, as they are in the
        set, or what stands around them says `[name]`."""
        trigger = job.dataset.trigger_word
        told = any(NAME in text for text in (job.captions.prefix, job.captions.suffix, *captions))
        given = [*kind.words(job), trigger, *trigger.split(","), *maker.names, *([maker.called] if told else [])]
        words = dict.fromkeys(word.strip() for word in given if word.strip())
        around = unmarked(job.preserve.caption) if job.preserve.weight else ""
        return cls(tuple(sorted(words, key=len, reverse=True)), around)

    def __call__(self, caption: str) -> str:
        own = self.without(caption)
        return tidied(self.around.replace(FILEWORDS, own)) if self.around else own

    def without(self, caption: str) -> str:
        """A caption without the words, which count in any case of letters and with or without backslashes."""
        for word in self.words:
            caption = re.sub(rf"(?<![\w-]){either_spelling(word)}(?![\w-])", "", caption, flags=re.IGNORECASE)
        return tidied(caption)


def tidied(caption: str) -> str:
    """Without empty tags and double spaces."""
    return ", ".join(filter(None, (" ".join(tag.split()) for tag in caption.split(","))))


@dataclass(frozen=True)
class Keeper:
    """The second term of a run's loss.

    weight   of what is said under captions without the trigger word
    outside  of what is said outside of masks
    words    whether what learns is called by words that the bare model does not know
    """

    recipe: Recipe
    objective: Objective
    weight: float
    outside: float
    words: bool

    @classmethod
    def of(cls, job: JobConfig, kind: Kind, recipe: Recipe, objective: Objective) -> Keeper | None:
        outside = job.masks.prior if keeps_outside(job) else 0.0
        if not job.preserve.weight and not outside:
            return None
        return cls(recipe, objective, job.preserve.weight, outside, kind.has_words)

    def before(
        self, model: LoadedModel, noised: Noised, told: Told, captions: Sequence[Wording], plain: Sequence[Wording]
    ) -> torch.Tensor | None:
        """What the bare model says of a batch, where something of it lies outside of masks."""
        if not self.outside or noised.masks is None:
            return None
        return self._bare(model, noised, told, plain if self.words else captions)

    def beyond(self, prediction: torch.Tensor, bare: torch.Tensor, noised: Noised) -> torch.Tensor:
        """The term of what lies outside of masks."""
        assert noised.masks is not None
        return self.outside * self.objective.distance(prediction, bare, noised, 1 - noised.masks)

    def elsewhere(self, model: LoadedModel, noised: Noised, told: Told, plain: Sequence[Wording]) -> torch.Tensor:
        """The term of what is said under other captions."""
        bare = self._bare(model, noised, told, plain)
        said = model.predict(noised.latents, noised.timesteps, told(plain))
        return self.weight * self.objective.distance(said, bare, noised)

    def _bare(self, model: LoadedModel, noised: Noised, told: Told, captions: Sequence[Wording]) -> torch.Tensor:
        with torch.no_grad(), self.recipe.bare():
            return model.predict(noised.latents, noised.timesteps, told(captions))


def telling(captions: Callable[..., Conditioning], sizes: Sequence[object], device: torch.device) -> Told:
    """Conditioning of a batch's pictures, on their way to the device."""
    return lambda texts: captions(list(texts), sizes).each(lambda tensor: sent(tensor, device))
