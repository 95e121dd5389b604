"""What is trained. A recipe sets up parameters and a saver; the loop is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lib_trainer.families.family import Part
from lib_trainer.refusals import Sentence

Progress = Callable[[int, int], None]
"""Is told (done, total)."""


class Recipe(Protocol):
    """One run's training of a kind. `network_module` is what a file's metadata calls it, in sd-scripts' names."""

    trains_text_encoder: bool
    replaces: tuple[Part, ...] = ()
    """Parts of the model whose own weights `applied` replaces, so that they need not be held in the run's precision."""
    network_module: str
    draws: bool = False
    """Whether a step draws numbers of its own, as dropouts do."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, each with `params`, `lr` and `name` (the part); with `until`
        those that learn for a share of the run alone."""

    def modules(self) -> dict[str, int]:
        """How many modules of each part are trained."""

    def applied(self) -> AbstractContextManager[None]:
        """The model with what has been learned so far, for training."""

    def previewed(self) -> AbstractContextManager[None]:
        """The same for a preview, on the model as its host draws with it."""
        return self.applied()

    def make_room(self) -> None:
        """Called once `applied` is left, where the device has no room for all of the host's model: what has been
        learned leaves the device, as far as it can."""
        return

    def bare(self) -> AbstractContextManager[None]:
        """While `applied`: the model without what learns in this step. Words that are learned stay known."""
        raise NotImplementedError

    def before_step(self, step: int, *, base: bool) -> None:
        """Called by the loop as a step (from 1 on) begins; `base`: its pictures are those before a difference."""
        return

    def bound(self) -> None:
        """Called right after every step of the optimizer, also after one that has changed nothing."""
        return

    def after_step(self) -> None:
        """Called by the loop after a step of the optimizer; not after one that loss scaling has skipped."""
        return

    def save(self, files: Sequence[Path], facts: dict[str, str], *, overwrite: bool) -> Sentence | None:
        """Write what has been learned so far into `Outputs.results`. `facts` is metadata of the run. Allocates next to
        nothing. What it returns is said: the files are there, and something beside them is not."""

    def finish(
        self, facts: dict[str, str], phase: Callable[[Sentence], Progress], stopping: Callable[[], bool]
    ) -> None:
        """Called once after the final file was written and the model is its host's again: what else a kind leaves."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps hang on, as tensors and plain values; the tensors are the recipe's own."""
        return {"parameters": [parameter.detach() for parameter in parameters(self)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` of a recipe of the same job gave."""
        with torch.no_grad():
            for parameter, value in zip(parameters(self), state["parameters"], strict=True):
                parameter.copy_(value)


def parameters(recipe: Recipe) -> list[nn.Parameter]:
    return [parameter for group in recipe.groups() for parameter in group["params"]]
