"""Training UNets that inpaint: what they are shown and asked for is diffusers' computation, on both layouts, and every
kind of training works on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from lib_trainer.config import from_values
from lib_trainer.families.detect import inpaints
from lib_trainer.families.known import FAMILIES
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.networks.formats.checkpoint_file import read_shapes
from lib_trainer.ports import PreviewRequest
from lib_trainer.refusals import TrainerError
from lib_trainer.training import pictures as picture_source
from lib_trainer.training import preparation
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.work import events as ev
from tests import support, tiny_families
from tests.support import ModelHost, differences, draw_pictures, job_values, snapshot
from tests.training.test_masks import KINDS
from tests.training.watched import Watched

CPU = torch.device("cpu")
NINE = {"in_channels": 9}
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module", params=["SD 1.x", "SD 2.x", "SDXL"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One set of weights in both layouts; SD 2.x predicts v."""
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is in requirements/test-no-deps.txt")
    family = next(one for one in FAMILIES if one.word == request.param)
    folder = tmp_path_factory.mktemp("inpainting")
    with support.shallow(), pytest.MonkeyPatch.context() as patch:
        for owner, name in ((support, "UNET"), (tiny_families, "XL_UNET"), (tiny_families, "V2_UNET")):
            patch.setattr(owner, name, getattr(owner, name) | NINE)
        if family.sizes or family.v2:
            tiny = (
                tiny_families.build_sdxl(folder)
                if family.sizes
                else tiny_families.build_sd2(folder, parameterization="v")
            )
            ldm = tiny_families.in_ldm(tiny, family, "v" if family.v2 else "epsilon")
        else:
            tiny = support.build_tiny(folder)  # type: ignore[assignment]
            ldm = tiny.in_ldm()  # type: ignore[attr-defined]
    return {"ldm": ldm, "diffusers": DiffusersModel.load(tiny.path, CPU), "path": tiny.path}


@pytest.fixture
def untouched(pair: dict[str, Any]) -> Iterator[None]:
    roots = [root for name in ("ldm", "diffusers") for root in pair[name].roots().values()]
    before = snapshot(*roots)
    yield
    assert differences(before, snapshot(*roots)) == []


def masked_picture(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A set of one picture with a mask; its pixels (1, 3, 64, 64) in [-1, 1] and its mask (1, 1, 64, 64), 1 inside."""
    draw_pictures(folder, 1)
    image = Image.new("L", (64, 64))
    image.paste(255, (8, 20, 50, 61))
    image.save(folder / "0.mask.png")
    with Image.open(folder / "0.png") as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return pixels, (torch.from_numpy(np.array(image))[None, None] > 127).float()


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_inputs_target_and_loss_are_diffusers(
    layout: str, pair: dict[str, Any], untouched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in diffusers' examples for inpainting: [noisy latents, mask at latent size, latents of the masked picture]."""
    pixels, mask = masked_picture(tmp_path / "set")
    model, other = pair[layout], pair["diffusers"]
    monkeypatch.setattr(picture_source, "sample_latents", lambda moments, scale, generator: moments[:, :4] * scale)
    seen: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
    predict = type(model).predict

    def called(self: Any, latents: torch.Tensor, timesteps: torch.Tensor, told: Any) -> torch.Tensor:
        seen.append((latents.clone(), timesteps.clone(), told))
        return predict(self, latents, timesteps, told)

    monkeypatch.setattr(type(model), "predict", called)
    values = job_values(tmp_path / "set") | {
        "masks.source": "file", "masks.outside": 1.0, "inpainting.holes": "masks",
        "optimizer.unet_lr": 1e-12, "optimizer.text_encoder_lr": 0.0,
    }  # fmt: skip
    desk, events = TrainingDesk(ModelHost(model, tmp_path / "root")), list[ev.Event]()
    desk.start(from_values(values), events.append)
    view = desk.wait(120)
    assert view is not None and (view.state, view.error) == ("finished", "")
    monkeypatch.undo()
    losses = [event.loss for event in events if isinstance(event, ev.StepDone)]
    vae, unet, scale = other.vae, other.unet, other.latent_scale
    assert isinstance(vae, AutoencoderKL) and isinstance(unet, UNet2DConditionModel)
    kind = "v_prediction" if other.schedule.prediction == "v" else "epsilon"
    scheduler = DDPMScheduler(
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind
    )
    generator = torch.Generator().manual_seed(values["training.seed"] + 1)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * scale
        rest = vae.encode(pixels * (mask < 0.5)).latent_dist.mean * scale
        small = F.interpolate(mask, size=latents.shape[-2:])
        for (shown, timesteps, told), loss in zip(seen, losses, strict=True):
            noise = torch.randn(latents.shape, generator=generator)
            steps = torch.randint(0, 1000, (1,), generator=generator)
            assert torch.equal(steps, timesteps)
            noisy = scheduler.add_noise(latents, noise, steps)
            wanted = torch.cat([noisy, small, rest], dim=1)
            assert shown.shape == (1, 9, 8, 8) and torch.allclose(shown, wanted, atol=1e-4)
            more = {"text_embeds": told.pooled, "time_ids": told.sizes} if told.pooled is not None else None
            said = unet(wanted, steps, told.context, added_cond_kwargs=more).sample
            target = scheduler.get_velocity(latents, noise, steps) if kind == "v_prediction" else noise
            assert loss == pytest.approx(float(F.mse_loss(said, target)), rel=1e-4)
    assert len(losses) == 3


@pytest.fixture(scope="module")
def inpainting_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is in requirements/test-no-deps.txt")
    with support.shallow(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "UNET", support.UNET | NINE)
        path = support.build_tiny(tmp_path_factory.mktemp("nine")).path
    return StandaloneHost(path, tmp_path_factory.mktemp("root"), CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_on_it_with_random_holes(kind: str, inpainting_host: StandaloneHost, tmp_path: Path) -> None:
    folder, own = draw_pictures(tmp_path / "set", 2), dict(KINDS[kind])
    if kind == "difference":
        own["difference__before"] = str(folder / "1.png")
    name = own.pop("output__name", f"of-{kind}")
    watched = Watched(inpainting_host)
    view = watched.run(
        folder, output__name=name, training__batch_size=2, preview__prompt="zork", preview__every=3, **own
    )
    assert (view.state, view.error) == ("finished", "")
    warned = [event for event in watched.of(ev.Message) if event.level == "warning" and "preview" in str(event.text)]
    assert warned == [] and len(watched.of(ev.PreviewMade)) == 1
    if kind == "checkpoint":
        assert view.output is not None
        written, before = load_file(view.output), load_file(str(inpainting_host.checkpoint))
        ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        assert inpaints(read_shapes(view.output)) and written.keys() == before.keys() - {ids}
        assert written[FIRST].shape[1] == 9 and not torch.equal(written[FIRST][:, 4:], before[FIRST][:, 4:])


def test_held_out_pictures_are_measured_with_holes_of_their_own(
    inpainting_host: StandaloneHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, Any]] = []
    make = preparation.make_measuring

    def watch(plan: Any, encoded: Any, *given: Any) -> Any:
        made.append((encoded, make(plan, encoded, *given)))
        return made[-1][1]

    monkeypatch.setattr(preparation, "make_measuring", watch)
    watched = Watched(inpainting_host)
    share = {"validation__pictures": "share", "validation__share": 0.3, "validation__levels": 1}
    view = watched.run(
        draw_pictures(tmp_path / "set", 4), **share, output__name="held-out", training__max_steps=1,
        validation__keep_best=False,
    )  # fmt: skip
    assert (view.state, view.error) == ("finished", "") and len(watched.of(ev.Measured)) == 2
    ((whole, measuring),) = made
    holes = dict(zip((one.path for one in whole.samples), whole.holes, strict=True))
    for probe in (measuring.held, measuring.trained):
        assert probe.encoded.holes == tuple(holes[one.path] for one in probe.encoded.samples) != ()


def test_a_preview_is_drawn_as_the_webuis_txt2img(
    inpainting_host: StandaloneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is hidden, and the latents beside it are those of a middle grey, modules/processing.py of the WebUI."""
    model, seen = inpainting_host.model(), []
    predict = type(model).predict

    def called(self: Any, latents: torch.Tensor, timesteps: torch.Tensor, told: Any) -> torch.Tensor:
        seen.append(latents.clone())
        return predict(self, latents, timesteps, told)

    monkeypatch.setattr(type(model), "predict", called)
    inpainting_host.preview(PreviewRequest("disc", width=64, height=96, steps=2, seed=3))
    with torch.no_grad():
        grey = model.vae.encode(torch.full((1, 3, 96, 64), 0.5) * 2 - 1).latent_dist.mean * model.latent_scale
    assert len(seen) >= 2
    for latents in seen:
        assert latents.shape == (2, 9, 12, 8)
        assert torch.equal(latents[:, 4], torch.ones(2, 12, 8))
        assert torch.allclose(latents[:, 5:], grey.expand(2, -1, -1, -1), atol=1e-5)


def test_it_is_told_before_it_is_loaded_and_goes_on_from_its_like(
    inpainting_host: StandaloneHost, tiny: support.Tiny, tmp_path: Path
) -> None:
    assert inpainting_host.checkpoint is not None
    fresh = StandaloneHost(inpainting_host.checkpoint, tmp_path / "a", CPU)
    assert fresh.inpaints() and "SD 1.x, inpainting" in fresh.describe()
    folder, tuned = draw_pictures(tmp_path / "set", 1), {"network__kind": "checkpoint"}
    with pytest.raises(TrainerError, match="does not inpaint and the loaded checkpoint does"):
        Watched(fresh).run(folder, network__continue_from=str(tiny.path), **tuned)
    usual = StandaloneHost(tiny.path, tmp_path / "b", CPU)
    assert not usual.inpaints() and "inpainting" not in usual.describe()
    with pytest.raises(TrainerError, match="inpaints and the loaded checkpoint does not"):
        Watched(usual).run(folder, network__continue_from=str(inpainting_host.checkpoint), **tuned)


def test_a_file_without_a_yaml_is_built_by_its_tensors() -> None:
    from lib_trainer.families.sd1 import SD1
    from lib_trainer.host.standalone.single_file import described_unet

    assert described_unet(dict(SD1.config or {}), SD1, 9)["in_channels"] == 9
    assert described_unet(dict(SD1.config or {}), SD1)["in_channels"] == 4
