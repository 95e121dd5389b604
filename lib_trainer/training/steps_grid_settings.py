"""What a grid of saved steps and weights is told. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from lib_trainer.options.declare import Section, option


class StepsGridSettings(Section, frozen=True):
    """Saved steps × weights"""

    weights: Annotated[
        str,
        option(
            "Weights",
            "One column each, as in <lora:name:0.8>; 0 is the model alone. Embeddings have none: they are drawn as "
            "they are.",
            width="wide",
        ),
    ] = "0, 0.5, 0.75, 1"
    prompt: Annotated[
        str,
        option(
            "Prompts",
            "One a line, with settings behind them as for previews. Empty: the run's preview prompts.",
            width="tall",
        ),
    ] = ""
    most: Annotated[
        int,
        option(
            "Saved files",
            "One row each; of more files as many are taken, evenly from the first to the last, and the best one.",
            low=1,
            high=100,
            step=1,
            unit="files",
        ),
    ] = 8
