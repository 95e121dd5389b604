"""Which pictures each step sees: those to learn, class pictures beside them, and those before a difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lib_trainer.config import JobConfig
from lib_trainer.dataset.batches import batches_per_epoch, epoch_batches
from lib_trainer.dataset.latents import Encoded, sample_latents
from lib_trainer.training.loop import Batch, StepBatches
from lib_trainer.training.recipes import Recipe
from lib_trainer.training.words import CaptionMaker


@dataclass(frozen=True)
class PictureSource:
    """Batches without end, epoch after epoch; a step never reaches across the end of an epoch."""

    job: JobConfig
    encoded: Encoded
    captions: CaptionMaker
    latent_scale: float

    def batches_per_epoch(self) -> int:
        repeats = self._repeats(torch.Generator().manual_seed(0), before=False)
        return batches_per_epoch(self.encoded.targets, repeats, self.job.training.batch_size)

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        training = self.job.training
        return training.max_steps or training.epochs * -(-self.batches_per_epoch() // training.gradient_accumulation)

    def base_steps(self) -> int:
        """Steps that belong to the picture before a difference; there is always one left for the other."""
        if self.job.network.kind != "difference":
            return 0
        total = self.total_steps()
        return min(self.job.difference.base_steps or total // 2, total - 1)

    def steps(self, recipe: Recipe) -> Iterator[StepBatches]:
        """The recipe is told the number of each step, from 1 on, before it is drawn."""
        training = self.job.training
        order = torch.Generator().manual_seed(training.seed + 2)
        base_steps = self.base_steps()
        epoch = step = 0
        while True:
            epoch += 1
            repeats = self._repeats(order, before=step < base_steps)
            drawn = epoch_batches(self.encoded.targets, repeats, training.batch_size, order)
            for start in range(0, len(drawn), training.gradient_accumulation):
                group = drawn[start : start + training.gradient_accumulation]
                step += 1
                recipe.before_step(step, base=step <= base_steps)
                yield StepBatches(epoch, [self._batch(indices, order) for indices in group])
                if step == base_steps:
                    break

    def _repeats(self, generator: torch.Generator, *, before: bool) -> list[int]:
        """How often this epoch shows each picture. There are as many class pictures as others, chosen anew each."""
        wanted = "before" if before else "learn"
        repeats = [sample.repeats if sample.role == wanted else 0 for sample in self.encoded.samples]
        others = [index for index, sample in enumerate(self.encoded.samples) if sample.role == "class"]
        if others and not before:
            whole, rest = divmod(sum(repeats), len(others))
            chosen = set(torch.randperm(len(others), generator=generator)[:rest].tolist())
            for place, index in enumerate(others):
                repeats[index] = whole + (place in chosen)
        return repeats

    def _batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        moments = torch.stack([self.encoded.moments(index) for index in indices])
        samples = [self.encoded.samples[index] for index in indices]
        latents = sample_latents(moments, self.latent_scale, generator)
        weights = None
        if any(sample.role == "class" for sample in samples):
            prior = self.job.prior.weight
            weights = torch.tensor([prior if sample.role == "class" else 1.0 for sample in samples])
        captions = [self.caption_of(index, generator) for index in indices]
        return Batch(latents, captions, [self.encoded.sizes[index] for index in indices], weights)

    def caption_of(self, index: int, generator: torch.Generator) -> str:
        """Class pictures keep their caption: they must not learn the new word. Of several captions one is drawn."""
        sample = self.encoded.samples[index]
        texts = sample.captions
        text = texts[int(torch.randint(len(texts), (1,), generator=generator))] if len(texts) > 1 else texts[0]
        return text if sample.role == "class" else self.captions(text, generator)

    def captions_of(self, index: int) -> list[str]:
        """Every caption that a picture may be shown with, where the maker of captions does not vary."""
        sample, unused = self.encoded.samples[index], torch.Generator()
        return [text if sample.role == "class" else self.captions(text, unused) for text in sample.captions]
