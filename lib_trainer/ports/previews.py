"""Pictures that a host draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class PreviewRequest:
    """A picture to draw. `sampler` is the host's own name for one; an empty name is the host's default.

    `prediction` and `zero_terminal_snr` overrule what the model is taken for, as in a job.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.0
    sampler: str = ""
    seed: int = 1
    clip_skip: int = 1
    prediction: str = "auto"
    zero_terminal_snr: str = "auto"


class Previews(Protocol):
    """The host's own sampling."""

    def preview(self, request: PreviewRequest) -> Image.Image:
        """Draw with the host's own sampler and the model as it stands; it is not held for training then."""

    def samplers(self) -> Sequence[str]:
        """Names that `PreviewRequest.sampler` understands."""
