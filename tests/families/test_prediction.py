"""What a model predicts: each source by itself, which of two outranks the other, and what hosts are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_trainer.config import from_values
from lib_trainer.families.prediction import Clues, Predicts, predicts, said_in
from lib_trainer.families.sd1 import SD1
from lib_trainer.families.sd2 import SD2
from lib_trainer.families.sdxl import SDXL
from lib_trainer.networks.formats.description import beside, description, read_description, write_description
from lib_trainer.refusals import ConfigError, Sentence
from lib_trainer.training.prediction import can_describe, check_prediction, describe_checkpoint, drawn_wrongly

LDM_V: dict[str, Any] = {"model": {"params": {"parameterization": "v"}}}
LDM_EPS: dict[str, Any] = {"model": {"params": {"parameterization": "eps"}}}
SILENT: dict[str, Any] = {"model": {"params": {"timesteps": 1000}}}
NOISE = Predicts("epsilon", False, Sentence("prediction.by_family", family="SD 1.x"))


def sgm(scaling: str) -> dict[str, Any]:
    target = f"sgm.modules.diffusionmodules.denoiser_scaling.{scaling}"
    return {"model": {"params": {"denoiser_config": {"params": {"scaling_config": {"target": target}}}}}}


CASES: dict[str, tuple[Any, Clues, str, bool, str]] = {
    "nothing, SD 1": (SD1, Clues(), "epsilon", False, "by_family"),
    "nothing, SDXL": (SDXL, Clues(), "epsilon", False, "by_family"),
    "tensor": (SDXL, Clues({"v_pred"}), "v", False, "by_tensor"),
    "both tensors": (SDXL, Clues({"v_pred", "ztsnr", "x"}), "v", True, "by_tensor"),
    "tensor and a silent yaml": (SD1, Clues({"v_pred"}, described=SILENT), "v", False, "by_tensor"),
    "tensor against yaml": (SD1, Clues({"v_pred"}, described=LDM_EPS), "v", False, "by_tensor"),
    "yaml": (SD1, Clues(described=LDM_V), "v", False, "by_yaml"),
    "sgm's yaml": (SDXL, Clues(described=sgm("VScaling")), "v", False, "by_yaml"),
    "yaml against metadata": (
        SD1, Clues(metadata={"modelspec.prediction_type": "v"}, described=LDM_EPS), "epsilon", False, "by_yaml",
    ),
    "metadata": (SD1, Clues(metadata={"modelspec.prediction_type": "v"}), "v", False, "by_metadata"),
    "metadata of both": (
        SD1, Clues(metadata={"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}), "v", True,
        "by_metadata",
    ),
    "metadata against a try": (
        SD2, Clues(metadata={"modelspec.prediction_type": "epsilon"}, tried="v"), "epsilon", False, "by_metadata",
    ),
    "a word nobody knows": (SD1, Clues(metadata={"modelspec.prediction_type": "sample"}), "epsilon", False,
        "by_family"),
    "tried": (SD2, Clues(tried="v", deviation=0.01), "v", False, "by_trying"),
    "SD 2, v by its bias": (SD2, Clues(deviation=0.1), "v", False, "by_bias"),
    "SD 2, epsilon by its bias": (SD2, Clues(deviation=0.08), "epsilon", False, "by_bias"),
    "SD 1 has that bias too": (SD1, Clues(deviation=0.3), "epsilon", False, "by_family"),
    "a folder's scheduler": (
        SD1, Clues(described={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}), "v", True, "by_yaml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_model_predicts_and_why(name: str) -> None:
    family, clues, prediction, zero_terminal, why = CASES[name]
    found = predicts(family, clues)
    assert (found.prediction, found.zero_terminal) == (prediction, zero_terminal)
    assert found.why.code == f"prediction.{why}"
    assert (found.why_zero is not None) is zero_terminal
    assert str(found.line).startswith("predicts v" if prediction == "v" else "predicts the noise")
    assert ("zero terminal SNR" in str(found.line)) is zero_terminal


@pytest.mark.parametrize(
    ("prediction", "zero", "refused"),
    [("auto", "auto", False), ("auto", "on", True), ("epsilon", "on", True), ("v", "on", False), ("v", "off", False)],
)
def test_noise_is_no_target_where_there_is_nothing_else(prediction: str, zero: str, refused: bool) -> None:
    job = from_values({"model.prediction": prediction, "model.zero_terminal_snr": zero})
    if not refused:
        return check_prediction(job, NOISE)
    with pytest.raises(ConfigError, match=r"model\.zero_terminal_snr is on and the model predicts the noise"):
        check_prediction(job, NOISE)
    return None


def test_a_file_that_says_so_is_refused_too_until_it_is_overruled() -> None:
    found = predicts(SDXL, Clues({"ztsnr"}))
    with pytest.raises(ConfigError, match=r"to off, or model\.prediction to v"):
        check_prediction(from_values({}), found)
    check_prediction(from_values({"model.zero_terminal_snr": "off"}), found)
    check_prediction(from_values({"model.prediction": "v"}), found)


def test_a_host_that_draws_wrongly_is_told_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "noob.safetensors"
    found = replace(predicts(SD1, Clues({"v_pred"})), file=file, drawn_as="epsilon")
    told = drawn_wrongly(found)
    assert told is not None and told.code == "prediction.no_yaml" and "noob.yaml" in str(told)
    assert can_describe(found)
    assert describe_checkpoint(found, SD1) == beside(file)
    assert said_in(read_description(file)) == "v"
    assert not can_describe(found)
    again = drawn_wrongly(found)
    assert again is not None and again.code == "prediction.load_again"
    with pytest.raises(ConfigError, match="exists already"):
        describe_checkpoint(found, SD1)
    beside(file).write_text("model: {params: {parameterization: eps}}")
    wrong = drawn_wrongly(found)
    assert wrong is not None and "parameterization: v" in str(wrong)
    assert not can_describe(found)


def test_a_host_that_draws_rightly_is_told_nothing(tmp_path: Path) -> None:
    found = replace(NOISE, file=tmp_path / "a.safetensors", drawn_as="epsilon")
    assert drawn_wrongly(found) is None and not can_describe(found)
    overruled = drawn_wrongly(found, from_values({"model.prediction": "v"}))
    assert overruled is not None, "a job may know better"
    assert drawn_wrongly(NOISE) is None, "nobody has said how it is drawn"


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("family", [SD1, SD2, SDXL], ids=lambda family: family.word)
def test_a_description_says_what_it_was_written_for(tmp_path: Path, family: Any, prediction: Any) -> None:
    content = description(family, prediction)
    if family.config is None:
        assert content is None
        with pytest.raises(ConfigError, match="not known well enough"):
            write_description(tmp_path / "model.safetensors", family, prediction)
        return
    path = write_description(tmp_path / "model.safetensors", family, prediction)
    assert read_description(tmp_path / "model.safetensors") == content
    assert path == tmp_path / "model.yaml" and said_in(read_description(path)) == prediction
    assert "parameterization" not in str(family.config), "the family's own description is left as it is"


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_description_has_the_fields_that_hosts_read(prediction: Any) -> None:
    old, new = description(SD2, prediction), description(SDXL, prediction)
    assert old is not None and new is not None
    assert old["model"]["params"]["parameterization"] == {"epsilon": "eps", "v": "v"}[prediction]
    assert new["model"]["params"].keys() == {
        "scale_factor", "disable_first_stage_autocast", "denoiser_config", "network_config", "conditioner_config",
        "first_stage_config",
    }  # fmt: skip
    denoiser = new["model"]["params"]["denoiser_config"]["params"]
    name = {"epsilon": "Eps", "v": "V"}[prediction]
    assert denoiser["scaling_config"]["target"].endswith(f".{name}Scaling")
    assert denoiser["weighting_config"]["target"].endswith(f".{name}Weighting")
