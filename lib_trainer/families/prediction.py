"""What a model predicts, and whether it was trained with zero terminal SNR: told by looking at its file.

Sources, the surest first: empty tensors `v_pred` and `ztsnr` (NoobAI XL and others); the .yaml beside the file
(`parameterization`, or sgm's `VScaling`); `modelspec.prediction_type` and sd-scripts' `ss_zero_terminal_snr`; what a
host has found by trying the model (the WebUI does so with SD 2.x); for SD 2.x the spread of one bias, which tells the
published v models from the others (ComfyUI's rule); and what is usual for the family.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lib_trainer.families.family import Family
from lib_trainer.refusals import Sentence

Prediction = Literal["epsilon", "v"]
V_KEY, ZERO_KEY = "v_pred", "ztsnr"
"""Names of the empty tensors that mark a checkpoint."""

EDM_KEYS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Of models that are noised in another way altogether (Karras et al. 2022, arXiv:2206.00364)."""

SD2_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD2_DEVIATION = 0.09
"""Standard deviation of that bias above which an SD 2.x model predicts v."""

SAID = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v", "v-prediction": "v", "vpred": "v"}
"""Words of yaml files, metadata and diffusers' schedulers."""


@dataclass(frozen=True)
class Clues:
    """What can be known of a model without running it.

    names      of its file's tensors
    metadata   of its file
    described  the content of the .yaml beside it, or of a diffusers folder's scheduler_config.json
    tried      what a host has found by trying the model, or has been told of it
    deviation  the standard deviation of `SD2_BIAS`
    """

    names: Collection[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)
    tried: Prediction | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class Predicts:
    """What a model predicts and how it is noised, each with the reason.

    `drawn_as` is what its host takes it for when it draws. `file` is its checkpoint, where there is one.
    """

    prediction: Prediction
    zero_terminal: bool
    why: Sentence
    why_zero: Sentence | None = None
    drawn_as: Prediction | None = None
    file: Path | None = None

    @property
    def line(self) -> Sentence:
        """For a page: what was found, and why."""
        v = self.prediction == "v"
        told = Sentence("prediction.line_v" if v else "prediction.line_epsilon", why=self.why)
        return told if self.why_zero is None else Sentence("prediction.line_zero", told=told, why=self.why_zero)


def predicts(family: Family, clues: Clues) -> Predicts:
    """What a model of a family predicts, by the surest source that says something."""
    prediction, why = _prediction(family, clues)
    zero = _zero_terminal(clues)
    return Predicts(prediction, zero is not None, why, zero)


def said_in(described: Mapping[str, Any]) -> Prediction | None:
    """What a .yaml of ldm's or sgm's, or a scheduler_config.json, says that the model predicts; None for nothing."""
    said = described.get("prediction_type")
    params = _inside(described, "model", "params")
    if said is None:
        said = params.get("parameterization")
    if said is None:
        scaling = str(_inside(params, "denoiser_config", "params", "scaling_config").get("target", ""))
        said = {"VScaling": "v", "EpsScaling": "epsilon"}.get(scaling.rpartition(".")[2])
    return _known(said)


def is_edm(names: Collection[str]) -> bool:
    return any(key in names for key in EDM_KEYS)


def _prediction(family: Family, clues: Clues) -> tuple[Prediction, Sentence]:
    if V_KEY in clues.names:
        return "v", Sentence("prediction.by_tensor", name=V_KEY)
    if (said := said_in(clues.described)) is not None:
        return said, Sentence("prediction.by_yaml")
    if (said := _known(clues.metadata.get("modelspec.prediction_type"))) is not None:
        return said, Sentence("prediction.by_metadata", name="modelspec.prediction_type")
    if clues.tried is not None:
        return clues.tried, Sentence("prediction.by_trying")
    if family.v2 and clues.deviation is not None:
        said = "v" if clues.deviation > SD2_DEVIATION else "epsilon"
        return said, Sentence("prediction.by_bias")
    return family.prediction, Sentence("prediction.by_family", family=family.word)


def _zero_terminal(clues: Clues) -> Sentence | None:
    """Why a model is taken to have zero terminal SNR; None where it is not."""
    if ZERO_KEY in clues.names:
        return Sentence("prediction.by_tensor", name=ZERO_KEY)
    if clues.described.get("rescale_betas_zero_snr") is True:
        return Sentence("prediction.by_scheduler")
    if clues.metadata.get("ss_zero_terminal_snr", "").lower() == "true":
        return Sentence("prediction.by_metadata", name="ss_zero_terminal_snr")
    return None


def _known(said: object) -> Prediction | None:
    known = SAID.get(str(said).strip().lower()) if said is not None else None
    return None if known is None else "v" if known == "v" else "epsilon"


def _inside(tree: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A table in tables; an empty one where it is not there."""
    for key in keys:
        inner = tree.get(key)
        tree = inner if isinstance(inner, Mapping) else {}
    return tree
