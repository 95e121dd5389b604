"""What is trained. A recipe sets up parameters and a saver; the loop is the same for all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import nn


class Recipe(Protocol):
    """One kind of training."""

    trains_text_encoder: bool

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, each with `params`, `lr` and `name` (the part)."""

    def modules(self) -> dict[str, int]:
        """How many modules of each part are trained."""

    def applied(self) -> AbstractContextManager[None]:
        """The model with what has been learned so far; used in training and for previews alike."""

    def save(self, path: Path, facts: dict[str, str], *, overwrite: bool) -> None:
        """Write what has been learned so far. `facts` is metadata of the run."""


def parameters(recipe: Recipe) -> list[nn.Parameter]:
    return [parameter for group in recipe.groups() for parameter in group["params"]]
