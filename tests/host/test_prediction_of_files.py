"""What a checkpoint's file says that it predicts is found, drawn, trained, and written into what comes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_trainer.cli import main as cli
from lib_trainer.config import from_values
from lib_trainer.families.prediction import SD2_BIAS, said_in
from lib_trainer.families.sd2 import SD2
from lib_trainer.host.standalone.checkpoint import load_checkpoint
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.host.standalone.sampling import LEAST_ALPHA, SAMPLERS, draw
from lib_trainer.networks.formats.description import carry_description, predicted_by, read_description
from lib_trainer.ports import Conditioning, NoiseSchedule, PreviewRequest
from lib_trainer.refusals import ModelError
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work import events as ev
from tests import smaller
from tests.support import draw_pictures, ldm_config, make_job, scaled_linear
from tests.tiny_families import sdxl_config

shallow_models, tiny, diffusers_model = smaller.shallow_models, smaller.tiny, smaller.diffusers_model
CPU = torch.device("cpu")
MARKS = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}


def written(folder: Path, tiny: Any, marks: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "model.safetensors"
    save_file(load_file(tiny.path) | marks, str(path), metadata)
    path.with_suffix(".yaml").write_text(json.dumps(ldm_config()))
    shutil.copytree(tiny.path.parent / "clip", folder / "clip")
    return path


@pytest.fixture(scope="module")
def marked(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v model with zero terminal SNR, whose yaml says nothing of it."""
    return written(tmp_path_factory.mktemp("marked"), tiny, MARKS)


def test_marked_tensors_are_found_before_and_after_loading(marked: Path, tmp_path: Path) -> None:
    host = StandaloneHost(marked, tmp_path, CPU)
    before = host.predicts()
    assert (before.prediction, before.zero_terminal, before.file) == ("v", True, marked)
    assert "predicts v (its file has the tensor v_pred), with zero terminal SNR (its file has the tensor ztsnr)" in (
        host.describe()
    )
    schedule = host.model().schedule
    assert (schedule.prediction, schedule.zero_terminal) == ("v", True)
    assert float(schedule.used[-1]) == 0 and float(schedule.alphas_cumprod[-1]) > 0
    assert host.predicts() == before


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_tells_before_and_after_loading(tiny: Any, tmp_path: Path, archive: bool) -> None:
    """Both layouts of `torch.save`."""
    path = tmp_path / "model.ckpt"
    held = {"state_dict": load_file(tiny.path) | MARKS}
    torch.save(held, path, _use_new_zipfile_serialization=archive)
    path.with_suffix(".yaml").write_text(json.dumps(ldm_config()))
    shutil.copytree(tiny.path.parent / "clip", tmp_path / "clip")
    host = StandaloneHost(path, tmp_path, CPU)
    assert host.predicts().prediction == "v" and host.predicts().zero_terminal
    assert host.model().schedule.prediction == host.predicts().prediction == "v"


def test_metadata_are_found_and_a_changed_file_is_read_anew(tiny: Any, tmp_path: Path) -> None:
    said = {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}
    path = written(tmp_path, tiny, {}, said)
    found = predicted_by(path, load_checkpoint(path).family)
    assert (found.prediction, found.zero_terminal) == ("v", True)
    config = ldm_config()
    config["model"]["params"]["parameterization"] = "eps"
    path.with_suffix(".yaml").write_text(json.dumps(config))
    assert predicted_by(path, load_checkpoint(path).family).why.code == "prediction.by_yaml"


@pytest.mark.parametrize("spread", [0.2, 0.02])
def test_sd2_is_told_by_a_bias(tmp_path: Path, spread: float) -> None:
    path = tmp_path / "sd2.safetensors"
    save_file({SD2_BIAS: torch.tensor([spread, -spread]).half()}, str(path))
    torch.save({"state_dict": load_file(path)}, tmp_path / "sd2.ckpt")
    for one in (path, tmp_path / "sd2.ckpt"):
        assert predicted_by(one, SD2).prediction == ("v" if spread > 0.09 else "epsilon")


def test_edm_models_are_refused(tiny: Any, tmp_path: Path) -> None:
    path = written(tmp_path, tiny, {"edm_mean": torch.zeros(4)})
    with pytest.raises(ModelError, match="is made for EDM's noise"):
        load_checkpoint(path)
    with pytest.raises(ModelError, match="is made for EDM's noise"):
        StandaloneHost(path, tmp_path, CPU).predicts()


def test_a_folders_scheduler_is_read(tiny: Any, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    parts = load_checkpoint(tiny.path)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    parts.unet.save_pretrained(tmp_path / "unet")
    parts.vae.save_pretrained(tmp_path / "vae")
    scheduler.save_pretrained(tmp_path / "scheduler")
    StandaloneHost(tmp_path, tmp_path, CPU)
    found = predicted_by(tmp_path, parts.family)
    assert (found.prediction, found.zero_terminal, found.file) == ("v", True, None)


def test_a_run_of_a_marked_model_says_so_in_its_file(marked: Path, tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures", 2)
    seen: list[Any] = []

    def run(name: str, **changes: Any) -> Path:
        host = StandaloneHost(marked, tmp_path, CPU)
        runner = TrainingDesk(host)
        runner.start(make_job(pictures, output__name=name, training__max_steps=1, **changes), seen.append)
        view = runner.wait()
        assert view is not None and view.state == "finished", view
        assert view.output is not None
        return view.output

    with safe_open(run("lora"), "pt") as file:
        said = file.metadata()
    assert said["modelspec.prediction_type"] == "v" and said["ss_zero_terminal_snr"] == "True"
    assert said["ss_base_model_version"] == "sd_v1_v"
    whole = run("whole", network__kind="checkpoint")
    with safe_open(whole, "pt") as file:
        assert set(MARKS) <= set(file.keys())
    shutil.copytree(marked.parent / "clip", whole.parent / "clip")
    again = load_checkpoint(whole).schedule
    assert (again.prediction, again.zero_terminal) == ("v", True)
    with safe_open(run("other", model__zero_terminal_snr="off"), "pt") as file:
        assert "ss_zero_terminal_snr" not in file.metadata()
    assert not [one for one in seen if isinstance(one, ev.Message) and one.level == "warning"], (
        "nobody draws it wrongly"
    )


@pytest.mark.parametrize(("says", "overruled", "result"), [("", "auto", "v"), ("v", "epsilon", "eps")])
def test_the_yaml_of_a_checkpoint_says_what_it_predicts(
    tiny: Any, tmp_path: Path, says: str, overruled: str, result: str
) -> None:
    """And not what that of its base says, where a tensor or the job knows better; all else is as it was."""
    path = written(tmp_path, tiny, {"v_pred": torch.zeros(0)} if not says else {})
    config = ldm_config()
    if says:
        config["model"]["params"]["parameterization"] = says
        path.with_suffix(".yaml").write_text(json.dumps(config))
    changes = {"network__kind": "checkpoint", "model__prediction": overruled, "training__max_steps": 1}
    runner = TrainingDesk(StandaloneHost(path, tmp_path, CPU))
    runner.start(make_job(draw_pictures(tmp_path / "pictures", 2), output__name="whole", **changes))
    view = runner.wait()
    assert view is not None and view.state == "finished" and view.output is not None, view
    config["model"]["params"]["parameterization"] = result
    assert read_description(view.output) == config


def test_a_carried_yaml_of_sgm_says_it_in_two_places(tmp_path: Path) -> None:
    base, result = tmp_path / "base.safetensors", tmp_path / "result.safetensors"
    config = sdxl_config("EpsScaling")
    own = config["model"]["params"]["denoiser_config"]["params"]
    own["weighting_config"] = {"target": "sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting"}
    base.with_suffix(".yaml").write_text(f"# as it was\n{json.dumps(config)}")
    carry_description(base, result, "epsilon")
    assert result.with_suffix(".yaml").read_bytes() == base.with_suffix(".yaml").read_bytes()
    carry_description(base, result, "v")
    assert said_in(read_description(result)) == "epsilon", "one that is there stays"
    result.with_suffix(".yaml").unlink()
    carry_description(base, result, "v")
    for name in ("scaling", "weighting"):
        target = own[f"{name}_config"]["target"]
        own[f"{name}_config"]["target"] = target.replace("Eps", "V")
    assert read_description(result) == config and said_in(config) == "v"


@pytest.mark.parametrize(
    "text", ["model: {target: some.Model}", "model: a text", "model: {params: [1]}", "other: 1"], ids=ascii
)
def test_a_yaml_that_has_no_place_for_it_is_carried_as_it_is(tmp_path: Path, text: str) -> None:
    base, result = tmp_path / "base.safetensors", tmp_path / "result.safetensors"
    base.with_suffix(".yaml").write_text(text)
    carry_description(base, result, "v")
    assert result.with_suffix(".yaml").read_text() == text


def test_the_bases_own_yaml_stays_what_it_is(tmp_path: Path) -> None:
    """A result of the same name beside it, with another ending, shares it."""
    base = tmp_path / "base.ckpt"
    base.with_suffix(".yaml").write_text("model: {params: {parameterization: eps}}")
    carry_description(base, tmp_path / "base.safetensors", "v")
    assert base.with_suffix(".yaml").read_text() == "model: {params: {parameterization: eps}}"


@torch.no_grad()
def _ddim(model: Any, request: PreviewRequest) -> np.ndarray[Any, Any]:
    """Song et al. 2021 (arXiv:2010.02502), eq. 12 with σ = 0, for v, at the timesteps T−1, T−1−T/S …, in float64.

    x₀ = √ᾱ·x − √(1−ᾱ)·v and ε = √ᾱ·v + √(1−ᾱ)·x (arXiv:2202.00512); after the last one ᾱ is that of step 0.
    """
    alphas = NoiseSchedule(scaled_linear(), "v", True).used.clamp(min=LEAST_ALPHA)
    steps = [round(1000 - index * 1000 / request.steps) - 1 for index in range(request.steps)]
    x = torch.randn(
        (1, 4, request.height // 8, request.width // 8), generator=torch.Generator().manual_seed(request.seed)
    ).double()
    told, untold = (model.encode_text([text], 1, 8).context for text in (request.prompt, request.negative_prompt))
    for index, step in enumerate(steps):
        t = torch.tensor([step])
        with_, without = (model.predict(x.float(), t, Conditioning(c)).double() for c in (told, untold))
        v = without + request.cfg_scale * (with_ - without)
        now, then = alphas[step], alphas[steps[index + 1]] if index + 1 < len(steps) else alphas[0]
        clean, noise = now.sqrt() * x - (1 - now).sqrt() * v, now.sqrt() * v + (1 - now).sqrt() * x
        x = then.sqrt() * clean + (1 - then).sqrt() * noise
    pixels = model.vae.decode((x / 0.18215).float(), return_dict=False)[0][0].clamp(-1, 1)
    array: np.ndarray[Any, Any] = ((pixels.permute(1, 2, 0).double().numpy() + 1) / 2 * 255).round()
    return array


def test_zero_terminal_snr_is_drawn_from_the_last_step_on(diffusers_model: Any) -> None:
    """As a job says it; a model that is so is drawn by the same line."""
    asked = PreviewRequest(
        "a disc", "ugly", 64, 128, steps=4, cfg_scale=3.0, sampler="DDIM", seed=11, prediction="v",
        zero_terminal_snr="on",
    )  # fmt: skip
    drawn = np.asarray(draw(diffusers_model, asked)).astype(float)
    with torch.no_grad():
        difference = np.abs(drawn - _ddim(diffusers_model, asked))
    assert difference.max() <= 1 and drawn.std() > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_numbers(diffusers_model: Any, sampler: str) -> None:
    asked = PreviewRequest("a", width=64, height=64, steps=3, sampler=sampler, prediction="v", zero_terminal_snr="on")
    plain = PreviewRequest("a", width=64, height=64, steps=3, sampler=sampler, prediction="v")
    one, other = (np.asarray(draw(diffusers_model, request)).astype(float) for request in (asked, plain))
    assert one.std() > 1 and np.abs(one - other).max() > 1


def test_the_command_says_what_a_file_predicts_and_writes_its_yaml(
    marked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bare.safetensors"
    shutil.copyfile(marked, path)
    assert cli.main(["describe", str(path)]) == cli.DONE
    told = capsys.readouterr().out
    assert "SD 1.x" in told and "predicts v (its file has the tensor v_pred)" in told
    assert not path.with_suffix(".yaml").exists()
    assert cli.main(["describe", str(path), "--prediction", "v"]) == cli.BAD_JOB
    assert "nothing is without --write" in capsys.readouterr().err
    assert cli.main(["describe", str(path), "--write"]) == cli.DONE
    assert "bare.yaml" in capsys.readouterr().out
    assert read_description(path)["model"]["params"]["parameterization"] == "v"
    assert cli.main(["describe", str(path), "--write"]) == cli.BAD_JOB
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["describe", str(tmp_path / "none.safetensors")]) == cli.BAD_JOB


def test_options_are_refused_before_anything_is_loaded(tiny: Any, tmp_path: Path) -> None:
    desk = TrainingDesk(StandaloneHost(tiny.path, tmp_path, CPU))
    job = from_values({"model.zero_terminal_snr": "on", "output.name": "x", "dataset.folder": str(tmp_path)})
    with pytest.raises(Exception, match=r"model\.zero_terminal_snr is on and the model predicts the noise"):
        desk.check(job)
