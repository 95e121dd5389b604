"""What a model predicts, for a job: what is refused, what is said where the host draws it wrongly, and the remedy."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_trainer.config import JobConfig
from lib_trainer.families.family import Family
from lib_trainer.families.prediction import V_KEY, ZERO_KEY, Predicts, said_in
from lib_trainer.networks.formats.description import beside, read_description, write_description
from lib_trainer.ports import NoiseSchedule
from lib_trainer.refusals import ConfigError, Field, Sentence

WORDS = {"epsilon": Sentence("prediction.epsilon"), "v": Sentence("prediction.v")}


def schedule_of(schedule: NoiseSchedule, job: JobConfig) -> NoiseSchedule:
    """A model's schedule with what a job overrules. Raises `ConfigError` as `check_prediction` does."""
    found = schedule.overruled(job.model.prediction, job.model.zero_terminal_snr)
    _check(found.prediction, found.zero_terminal)
    return found


def check_prediction(job: JobConfig, found: Predicts) -> None:
    """Raise `ConfigError` for the noise as target where a step's picture is nothing but noise: a UNet that hands on
    what it is given is right there, whatever it has learned (Lin et al. 2023, arXiv:2305.08891, section 3.2)."""
    model, zero = job.model, ends_as_noise(job, found)
    prediction = found.prediction if model.prediction == "auto" else model.prediction
    _check(prediction, zero)
    if job.loss.weighting == "like_noise" and prediction != "v":
        raise ConfigError("loss.v_only", field="loss.weighting", prediction=Field("model.prediction"))


def ends_as_noise(job: JobConfig, found: Predicts) -> bool:
    """Whether a model has zero terminal SNR for a job."""
    said = job.model.zero_terminal_snr
    return found.zero_terminal if said == "auto" else said == "on"


def _check(prediction: str, zero_terminal: bool) -> None:
    if prediction == "epsilon" and zero_terminal:
        raise ConfigError("prediction.no_signal", field="model.zero_terminal_snr", prediction=Field("model.prediction"))


def drawn_wrongly(found: Predicts, job: JobConfig | None = None) -> Sentence | None:
    """What to do where the host takes the model for another than it is, or than a job says; None where it does not.

    A run's own previews are drawn right.
    """
    prediction = found.prediction if job is None or job.model.prediction == "auto" else job.model.prediction
    if found.drawn_as is None or found.file is None or prediction == found.drawn_as:
        return None
    path, is_, drawn = beside(found.file), WORDS[prediction], WORDS[found.drawn_as]
    if not path.is_file():
        return Sentence("prediction.no_yaml", path=path.name, prediction=is_, drawn=drawn)
    if said_in(read_description(found.file)) == prediction:
        return Sentence("prediction.load_again", path=path.name, prediction=is_, drawn=drawn)
    word = "v" if prediction == "v" else "eps"
    return Sentence("prediction.wrong_yaml", path=path.name, word=word, prediction=is_, drawn=drawn)


def can_describe(found: Predicts) -> bool:
    """Whether a .yaml would mend what `drawn_wrongly` says, and none is there."""
    wrong = found.drawn_as is not None and found.prediction != found.drawn_as
    return wrong and found.file is not None and not beside(found.file).exists()


def describe_checkpoint(found: Predicts, family: Family) -> Path:
    """Write the .yaml that a host builds the model from, never over one. Raises a `TrainerError`."""
    if found.file is None:
        raise ConfigError("description.no_file")
    return write_description(found.file, family, found.prediction)


def marks(schedule: NoiseSchedule) -> dict[str, torch.Tensor]:
    """The empty tensors by which a checkpoint says what it predicts and how it is noised."""
    told = {V_KEY: schedule.prediction == "v", ZERO_KEY: schedule.zero_terminal}
    return {name: torch.zeros(0) for name, holds in told.items() if holds}
