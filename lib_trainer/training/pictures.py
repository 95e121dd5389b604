"""What each step sees: pictures to learn, class pictures beside them, and those before a difference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lib_trainer.captions.variation import Moment
from lib_trainer.dataset.encoded import Encoded, sample_latents
from lib_trainer.dataset.scan import Sample
from lib_trainer.kinds.captions import CaptionMaker
from lib_trainer.ports import Wording
from lib_trainer.ports.text import each_text
from lib_trainer.training.loop import Batch, StepBatches
from lib_trainer.training.order import Order, Place


@dataclass(frozen=True)
class PictureSource:
    """Batches in an order. What a step holds hangs on the seed and the step's number alone, so that a source may be
    asked for any step, and ahead of the training."""

    order: Order
    encoded: Encoded
    captions: CaptionMaker
    latent_scale: float
    plain: Callable[[str], str] | None = None
    """What a caption is where it does not name the concept; None where nobody asks."""

    def steps(self, first: int = 1) -> Iterator[StepBatches]:
        """From the step `first` on, without end."""
        passed: list[Place] = []
        for place, generator in self.order.places():
            if place.epoch_begins:
                passed.clear()
            if place.step < first:
                passed.append(place)
                continue
            for earlier in passed:  # of its epoch: they draw from the same generator
                self._drawn(earlier, generator)
            passed.clear()
            yield StepBatches(place.epoch, self._drawn(place, generator), place.base, place.epoch_ends)

    def _drawn(self, place: Place, generator: torch.Generator) -> list[Batch]:
        seed, numbers = self.order.job.training.seed, itertools.count()
        moments = (Moment(seed, place.step, place.epoch, number) for number in numbers)
        found = []
        for number, indices in enumerate(place.batches):
            own = list(itertools.islice(moments, len(indices)))
            found.append(self.batch(indices, own, self.order.share(place.batches, number), generator))
        return found

    def batch(self, indices: list[int], told: list[Moment], share: float, generator: torch.Generator) -> Batch:
        """Pictures of one size, as they are at the moments that are `told`; `share` is a factor on their loss."""
        chosen = [self._variation(index, generator) for index in indices]
        moments = torch.stack([self.encoded.moments(index, one) for index, one in zip(indices, chosen, strict=True)])
        samples = [self.encoded.samples[index] for index in indices]
        latents = sample_latents(moments, self.latent_scale, generator)
        prior = self.order.job.prior.weight
        factors = [share * sample.weight * (prior if sample.role == "class" else 1.0) for sample in samples]
        weighed = share != 1 or any(one.role == "class" or one.weight != 1 for one in samples)
        weights = torch.tensor(factors) if weighed else None
        captions = [self.caption_of(index, generator, one) for index, one in zip(indices, told, strict=True)]
        sizes = [self.encoded.sizes[index][one] for index, one in zip(indices, chosen, strict=True)]
        plain = () if self.plain is None else tuple(each_text(caption, self.plain) for caption in captions)
        beside = self._beside(indices, chosen, generator)
        return Batch(latents, captions, sizes, weights, self._masks(indices, chosen), plain, beside)

    def _beside(self, indices: list[int], chosen: list[int], generator: torch.Generator) -> torch.Tensor | None:
        """(B, 5, H, W): holes, and latents of what they leave; None where the model does not inpaint."""
        found = [self.encoded.hole(index, one) for index, one in zip(indices, chosen, strict=True)]
        there = [one for one in found if one is not None]
        if not there:
            return None
        holes, rest = (torch.stack(own) for own in zip(*there, strict=True))
        return torch.cat([holes, sample_latents(rest, self.latent_scale, generator)], dim=1)

    def _masks(self, indices: list[int], chosen: list[int]) -> torch.Tensor | None:
        """(B, 1, H, W); a picture without a mask is learned whole."""
        found = [self.encoded.mask(index, one) for index, one in zip(indices, chosen, strict=True)]
        some = next((one for one in found if one is not None), None)
        return None if some is None else torch.stack([torch.ones_like(some) if one is None else one for one in found])

    def _variation(self, index: int, generator: torch.Generator) -> int:
        count = len(self.encoded.sizes[index])
        return int(torch.randint(count, (1,), generator=generator)) if count > 1 else 0

    def caption_of(self, index: int, generator: torch.Generator, moment: Moment) -> Wording:
        """Class pictures keep their caption: they must not learn the new word. Of several captions one is drawn.

        What happens to captions at a moment happens to both texts of two encoders.
        """
        sample = self.encoded.samples[index]
        first = self._told(sample, drawn(sample.captions, sample.chances, generator), generator, moment)
        if not sample.seconds:
            return first
        return first, self._told(sample, drawn(sample.seconds, sample.second_chances, generator), generator, moment)

    def _told(self, sample: Sample, text: str, generator: torch.Generator, moment: Moment) -> str:
        return text if sample.role == "class" else self.captions.told(text, generator, moment)

    @property
    def varies(self) -> bool:
        """Whether captions have too many forms to encode all of them beforehand."""
        return self.captions.varies or (
            self.captions.variation.warmup > 0 and any(sample.seconds for sample in self.encoded.samples)
        )

    def captions_of(self, index: int) -> list[Wording]:
        """Every caption that a picture may be shown with, where they do not vary."""
        found = self._captions_of(self.encoded.samples[index])
        return found if self.plain is None else [*found, *(each_text(caption, self.plain) for caption in found)]

    def _captions_of(self, sample: Sample) -> list[Wording]:
        first = [self._forms(sample, text) for text in sample.captions]
        if not sample.seconds:
            return [form for own in first for form in own]
        second = [self._forms(sample, text) for text in sample.seconds]
        return [pair for one, other in itertools.product(first, second) for pair in _together(one, other)]

    def _forms(self, sample: Sample, text: str) -> list[str]:
        return [text] if sample.role == "class" else self.captions.forms(text)


def _together(one: list[str], other: list[str]) -> list[Wording]:
    """The forms of two texts of which one moment chooses: as they are, and left out where that may be."""
    found: list[Wording] = [(one[0], other[0])]
    return [*found, ("", "")] if "" in one[1:] or "" in other[1:] else found


def drawn(texts: Sequence[str], chances: Sequence[float], generator: torch.Generator) -> str:
    """One of several texts; all alike where no chances are given. Of a single one nothing is drawn."""
    if len(texts) == 1:
        return texts[0]
    if not chances:
        return texts[int(torch.randint(len(texts), (1,), generator=generator))]
    return texts[int(torch.multinomial(torch.tensor(chances), 1, generator=generator))]
