"""Where a run takes place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from lib_trainer.families.family import Family
from lib_trainer.families.prediction import Predicts
from lib_trainer.ports.folders import Folders
from lib_trainer.ports.model import Exchange, HeldPart, LoadedModel
from lib_trainer.ports.previews import Previews
from lib_trainer.ports.process import Process
from lib_trainer.refusals import Sentence


class Models(Protocol):
    """The model that is or would be trained."""

    def check(self) -> None:
        """Raise `ModelError` if no model is loaded, it cannot be trained, or the host's settings forbid training.

        Touches nothing, loads nothing, and is called before the data set is read.
        """

    def device(self) -> torch.device:
        """Where the model is or will be trained."""

    def family(self) -> Family:
        """Of the model that would be trained. Where there is none, or it cannot be trained, the usual one."""

    def inpaints(self) -> bool:
        """Whether the model that would be trained inpaints, as far as is known before it is loaded."""

    def predicts(self) -> Predicts:
        """What the model that would be trained predicts, as far as is known before it is loaded, and why.

        Raises `ModelError` where there is none.
        """

    def model(self) -> LoadedModel:
        """The model to train. Called once, inside the lease."""

    def exchange(self, told: Sentence) -> Exchange:
        """Let the loaded model hold other weights, also for pictures drawn after the lease. `told`: what they are.

        Called inside the lease, after `model`. They are put back by the next lease, and before the host loads another
        checkpoint.
        """

    @property
    def exchanged(self) -> Sentence | None:
        """What the loaded model holds in place of its own weights; None where these are in it."""

    def describe(self) -> str:
        """One line for the page on what would be trained, its family, and what it predicts and why; or why not."""

    def token_count(self, text: str) -> int:
        """How many tokens a text has. A name that has one is a word of the vocabulary."""

    def parts(self) -> Mapping[str, HeldPart]:
        """The parts of the model that would be trained: "unet", "te1" and so on, "vae". Nothing is loaded for it.

        Empty where the host cannot tell, as of a folder.
        """


class Host(Models, Process, Previews, Folders, Protocol):
    """All of it."""
