"""Training SDXL and SD 2.x: both layouts learn alike, as diffusers computes it, and every kind gives the host back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from lib_trainer.config import LossConfig, from_values
from lib_trainer.families.family import Family
from lib_trainer.families.known import FAMILIES
from lib_trainer.families.prediction import Prediction
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.ports import HeldPart, PictureSize, TrainingState
from lib_trainer.training import precision
from lib_trainer.training.captions import LiveCaptions
from lib_trainer.training.desk import TrainingDesk
from lib_trainer.training.objective import Objective
from lib_trainer.training.precision import autocast
from lib_trainer.work.monitor import RunView
from tests.card import CPU, ON_A_CARD, settled
from tests.support import ModelHost, differences, draw_pictures, job_values, relative, shallow, snapshot
from tests.tiny_families import TinyXl, build_sd2, build_sdxl, in_ldm, sgm_unet

SIZES = [PictureSize((768, 1024), (0, 64), (512, 704)), PictureSize((512, 512), (3, 0), (640, 448))]
Gradients = dict[str, torch.Tensor]
CAPTIONS = ["a disc", "a longer caption of a disc"]


@dataclass
class Pair:
    """One set of weights on both hosts."""

    tiny: TinyXl
    ldm: LdmModel
    diffusers: DiffusersModel

    def of(self, layout: str) -> Any:
        return getattr(self, layout)


@pytest.fixture(scope="module", params=["SDXL", "SD 2.x"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel", reason="ldm is in requirements/test-no-deps.txt")
    family = next(one for one in FAMILIES if one.word == request.param)
    folder = tmp_path_factory.mktemp("pair")
    with shallow():
        tiny = build_sdxl(folder) if family.sizes else build_sd2(folder, parameterization="v")
    return Pair(tiny, in_ldm(tiny, family, "v" if family.v2 else "epsilon"), DiffusersModel.load(tiny.path, CPU))


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_each_encoder_reads_its_own_text(pair: Pair, layout: str) -> None:
    """Side by side as if each had been told alone; the shorter one is padded to the longer one's chunks."""
    model, long = pair.of(layout), "a disc, " * 30
    with torch.no_grad():
        told, short, longer = (model.encode_text([text], 1, 3) for text in (("a red disc", long), "a red disc", long))
    encoders, width = len(model.family.encoders), next(iter(model.text.widths.values()))
    if encoders == 1:
        torch.testing.assert_close(told.context, short.context)
        return
    assert told.context.shape == longer.context.shape and longer.context.shape[1] == 2 * 77
    torch.testing.assert_close(told.context[:, :77, :width], short.context[:, :, :width])
    torch.testing.assert_close(told.context[:, :, width:], longer.context[:, :, width:])
    torch.testing.assert_close(told.pooled, longer.pooled)


@pytest.fixture
def untouched(pair: Pair) -> Iterator[None]:
    """Both models are what they were, bit for bit."""
    roots = [root for model in (pair.ldm, pair.diffusers) for root in model.roots().values()]
    before = snapshot(*roots)
    yield
    assert differences(before, snapshot(*roots)) == []


def gradients(
    model: Any, *, checkpointing: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """By part, of one step with adapters on every layer that have learned something already."""
    generator = torch.Generator().manual_seed(1)
    network = LoraNetwork.create(model.adaptable_modules(), 4, 4, generator)
    with torch.no_grad():
        for adapter in network:
            adapter.up.copy_(torch.randn(adapter.up.shape, generator=generator) * 0.02)
    objective = Objective(model.schedule)
    noised = objective.noised(torch.randn(2, 4, 16, 16, generator=generator), generator)
    captions = LiveCaptions(model, 1, 75)
    with model.training(TrainingState(dtype, checkpointing, True)), network.applied():
        noised = noised.sent(model.device)
        with autocast(model.device, dtype):
            out = model.predict(noised.latents, noised.timesteps, captions(CAPTIONS, SIZES))
        objective.loss(out, noised).backward()
    found: dict[str, list[torch.Tensor]] = {}
    last = {one.described.part: f"layer_{len(one.blocks()) - 1}" for one in model.text.encoders}
    for adapter in network:
        for parameter in adapter.parameters():
            if parameter.grad is None:  # the UNet reads the layer before, and of some nobody the last one
                assert adapter.part != "unet" and adapter.block == last[adapter.part]
            else:
                found.setdefault(adapter.part, []).append(parameter.grad.flatten().cpu())
    assert found.keys() == set(model.family.parts)
    joined = {part: torch.cat(own) for part, own in found.items()}
    assert all(bool(own.any()) for own in joined.values())
    return joined


def apart(one: Gradients, other: Gradients) -> float:
    return max(relative(one[part], other[part]) for part in other)


def test_both_layouts_have_the_same_gradients(pair: Pair, untouched: None) -> None:
    mine, theirs = gradients(pair.ldm), gradients(pair.diffusers)
    assert apart(mine, theirs) < 1e-4
    assert [one.key for one in pair.ldm.adaptable_modules()] == [one.key for one in pair.diffusers.adaptable_modules()]


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_what_must_not_change_the_gradients(pair: Pair, untouched: None, layout: str) -> None:
    model = pair.of(layout)
    plain = gradients(model)
    assert apart(gradients(model, checkpointing=True), plain) < 1e-5
    half = gradients(model, dtype=torch.bfloat16)
    assert apart(half, plain) < 0.15
    assert apart(gradients(model, dtype=torch.bfloat16, checkpointing=True), half) < 1e-5


def test_layers_of_deep_transformers_are_recomputed_one_by_one(pair: Pair) -> None:
    from lib_trainer.host.holding import recomputed_blocks

    depth = 2 if pair.ldm.family.sizes else 1
    for model, resnet in ((pair.ldm, "ResBlock"), (pair.diffusers, "ResnetBlock2D")):
        names = {type(block).__name__ for block in recomputed_blocks(model.unet, resnet)}
        deep = {"SpatialTransformer", "Transformer2DModel"} if depth == 1 else {"BasicTransformerBlock"}
        assert resnet in names and len(names) == 2 and names & deep


@torch.no_grad()
def test_contexts_are_the_same(pair: Pair) -> None:
    for clip_skip in (1, 2):
        mine, theirs = (model.encode_text([*CAPTIONS, ""], clip_skip, 3) for model in (pair.ldm, pair.diffusers))
        assert relative(mine.context, theirs.context) < 1e-5
        assert (mine.pooled is None) == (theirs.pooled is None) == (not pair.ldm.family.sizes)
        if mine.pooled is not None and theirs.pooled is not None:
            assert relative(mine.pooled, theirs.pooled) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("prediction", "zero"), [("epsilon", "off"), ("v", "off"), ("v", "on")])
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_the_loss_is_diffusers(pair: Pair, layout: str, prediction: str, zero: str) -> None:
    """train_text_to_image_sdxl.py's computation, and for v that of train_text_to_image.py, on fixed noise and steps,
    with its weights by min-SNR; with zero terminal SNR on the schedule that diffusers rescales.

    diffusers' own scheduler noises and makes v; the encoders are called as its pipelines call them.
    """
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    model = pair.of(layout)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    schedule = model.schedule.overruled(prediction, zero)
    objective = Objective(schedule)
    noised = objective.noised(latents, torch.Generator().manual_seed(4))
    mine = model.predict(noised.latents, noised.timesteps, LiveCaptions(model, 1, 75)(CAPTIONS, SIZES))

    again = torch.Generator().manual_seed(4)
    noise = torch.randn(latents.shape, generator=again)
    timesteps = torch.randint(1000, (2,), generator=again)
    v = prediction == "v"
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction" if v else "epsilon", rescale_betas_zero_snr=zero == "on",
    )  # fmt: skip
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps) if v else noise
    theirs = _predicted_by_diffusers(pair, noisy, timesteps)
    assert relative(noised.latents, noisy) < 1e-5 and relative(noised.target, target) < 1e-5
    assert relative(mine, theirs) < 1e-4
    loss, wanted = objective.loss(mine, noised), F.mse_loss(theirs, target)
    assert float((loss - wanted).abs() / wanted) < 1e-4
    weighted = Objective(schedule, loss=LossConfig(weighting="min_snr", min_snr_gamma=5.0))
    snr = compute_snr(scheduler, timesteps)
    weights = snr.clamp(max=5.0) / (snr + 1 if v else snr)
    each = F.mse_loss(theirs, target, reduction="none").mean((1, 2, 3))
    loss, wanted = (
        weighted.loss(mine, weighted.noised(latents, torch.Generator().manual_seed(4))),
        (weights * each).mean(),
    )
    assert float((loss - wanted).abs() / wanted) < 1e-4


def _predicted_by_diffusers(pair: Pair, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    own, family = pair.diffusers, pair.diffusers.family
    from lib_trainer.host.standalone.tokenizer import load_tokenizer

    found = load_tokenizer()(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    zeros = torch.where((found == 49407).cumsum(1) > 1, 0, found)  # open_clip pads with 0
    extra = {}
    if family.sizes:
        first, second = (one.module for one in own.text.encoders)
        one = first(found, output_hidden_states=True)
        two = second(zeros, output_hidden_states=True)
        context = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        ids = torch.tensor([[*size.original, *size.crop, *size.target] for size in SIZES])
        extra = {"added_cond_kwargs": {"text_embeds": two.text_embeds, "time_ids": ids}}
    else:
        text: Any = own.text.encoders[0].module
        states = text(zeros, output_hidden_states=True).hidden_states
        context = text.text_model.final_layer_norm(states[-2])
    out: torch.Tensor = own.unet(noisy, timesteps, context, **extra).sample
    return out


JOBS: dict[str, dict[str, Any]] = {
    "lora": {"preview.prompt": "zorb", "preview.every": 1},
    "locon without text encoders": {"network.kind": "locon", "optimizer.text_encoder_lr": 0.0},
    "pivotal": {"network.kind": "pivotal", "embedding.names": "zrk-a"},
    "checkpoint": {"network.kind": "checkpoint", "finetune.text_encoder_lr": 1e-4, "finetune.difference_rank": 2},
}
HALF = pytest.mark.skipif(not precision._cpu_multiplies_fp16(), reason="this torch has no fp16 on the CPU")
CARD_JOBS: dict[str, dict[str, Any]] = {
    "dora": {"network.dora": True},
    "loha, checkpointing": {"network.kind": "loha", "training.gradient_checkpointing": True},
    "lokr": {"network.kind": "lokr"},
    "embedding": {"network.kind": "embedding"},
    "difference": {"network.kind": "difference"},
    "lora on 8-bit weights": {"training.weights": "fp8", "preview.prompt": "zorb", "preview.every": 1},
}
ON_CARDS = [
    *((job, precision) for job in JOBS for precision in ("bf16", "fp16", "fp32")),
    *((job, "auto") for job in CARD_JOBS),
]


class SingleFileHost(ModelHost):
    def device(self) -> torch.device:
        return self.loaded.device

    def parts(self) -> dict[str, HeldPart]:
        roots = self.loaded.roots()  # type: ignore[attr-defined]
        return {part: HeldPart.of(root, self.device()) for part, root in roots.items()}


def run(model: Any, root: Path, pictures: Path, changes: dict[str, Any]) -> RunView:
    runner = TrainingDesk(SingleFileHost(model, root))
    values = job_values(pictures) | {"training.max_steps": 2, "output.name": "zrk"}
    runner.start(from_values(values | changes))
    view = runner.wait(300)
    assert view is not None
    return view


def trained_in_half(
    tiny: TinyXl, family: Family, prediction: Prediction, device: torch.device, root: Path, changes: dict[str, Any]
) -> None:
    """As the WebUI holds it; afterwards every parameter has its bytes, dtype and device, and nothing else has
    changed."""
    model = in_ldm(copy.deepcopy(tiny), family, prediction)
    for part in model.roots().values():
        part.to(device, torch.float16)
    if hasattr(model.unet, "dtype"):
        model.unet.dtype = torch.float16  # type: ignore[assignment]
    before, bytes_before = snapshot(*model.roots().values()), settled(device)
    picture = draw_pictures(root / "set", 1)  # in half precision a VAE is slow
    view = run(model, root, picture, {"difference.before": str(picture)} | changes)
    assert (view.state, view.error, view.step) == ("finished", "", 2)
    assert differences(before, snapshot(*model.roots().values())) == []
    assert settled(device, bytes_before) <= bytes_before


@HALF
@pytest.mark.parametrize("job", JOBS)
def test_on_a_host_in_half_precision(pair: Pair, tmp_path: Path, job: str) -> None:
    changes = JOBS[job] | {"training.precision": "bf16"}
    trained_in_half(pair.tiny, pair.ldm.family, pair.ldm.schedule.prediction, CPU, tmp_path, changes)


@pytest.mark.parametrize("device", [ON_A_CARD])
@pytest.mark.parametrize(("job", "precision"), ON_CARDS, ids=[" ".join(one) for one in ON_CARDS])
def test_on_a_card(pair: Pair, tmp_path: Path, device: torch.device, job: str, precision: str) -> None:
    changes = (JOBS | CARD_JOBS)[job] | {"training.precision": precision}
    trained_in_half(pair.tiny, pair.ldm.family, pair.ldm.schedule.prediction, device, tmp_path, changes)


@pytest.mark.filterwarnings("ignore:.*sdp_kernel:FutureWarning")  # sgm's, in its attention
@pytest.mark.parametrize("device", [ON_A_CARD])
@pytest.mark.parametrize("job", JOBS)
def test_sgms_own_classes_on_a_card(tmp_path: Path, device: torch.device, job: str) -> None:
    unet_class = sgm_unet()
    if unet_class is None:
        pytest.skip("sgm's sources are in requirements/test-no-deps.txt; or set SGM_DIR or WEBUI_DIR")
    with shallow():
        tiny = build_sdxl(tmp_path, unet_class)
    family = next(one for one in FAMILIES if one.sizes)
    trained_in_half(tiny, family, "epsilon", device, tmp_path, JOBS[job] | {"training.precision": "fp16"})


@pytest.mark.parametrize("device", [ON_A_CARD])
def test_a_card_has_the_gradients_of_the_cpu(pair: Pair, device: torch.device) -> None:
    """To what torch lets a card leave out of fp32 in convolutions (TF32 has ten bits behind the point)."""
    model = in_ldm(copy.deepcopy(pair.tiny), pair.ldm.family, pair.ldm.schedule.prediction)
    for part in model.roots().values():
        part.to(device)
    wanted = gradients(pair.ldm)
    assert apart(gradients(model), wanted) < 0.02
    assert apart(gradients(model, checkpointing=True), wanted) < 0.02
    assert apart(gradients(model, dtype=torch.bfloat16), wanted) < 0.15


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_a_whole_checkpoint_is_written_back(
    pair: Pair, untouched: None, pictures: Path, tmp_path: Path, layout: str
) -> None:
    """Every tensor of the file it came from, each of what is trained moved, fused attentions and all."""
    view = run(pair.of(layout), tmp_path, pictures, JOBS["checkpoint"] | {"finetune.unet_lr": 1e-4})
    assert view.state == "finished" and view.output is not None
    saved, held = load_file(view.output), load_file(pair.tiny.path)
    # what the loaded modules do not have is not written: SD 2.x's projection is read by nobody
    assert saved.keys() >= {
        name for name in held if not name.endswith(("position_ids", "logit_scale", "text_projection"))
    }
    assert all(saved[name].shape == tensor.shape for name, tensor in held.items() if name in saved)
    moved = {name for name, tensor in held.items() if name in saved and not torch.equal(saved[name], tensor)}
    roots = ("model.diffusion_model.", *(encoder.root for encoder in pair.ldm.family.encoders))
    assert all(any(name.startswith(root) for name in moved) for root in roots)
    assert any(name.endswith("attn.in_proj_weight") for name in moved)
    assert not any(name.startswith("first_stage_model.") for name in moved)
    again = DiffusersModel.load(Path(view.output), CPU)
    assert again.family is pair.ldm.family
    difference = load_file(tmp_path / "lora" / "zrk.safetensors")
    keys = {name.partition(".")[0] for name in difference}
    assert any(key.startswith(pair.ldm.family.encoders[-1].key) and "q_proj" in key for key in keys)


def test_both_layouts_fine_tune_to_the_same_checkpoint(
    pair: Pair, untouched: None, pictures: Path, tmp_path: Path
) -> None:
    files = []
    for layout in ("ldm", "diffusers"):
        changes = JOBS["checkpoint"] | {"finetune.unet_lr": 1e-4, "finetune.difference_rank": 0}
        files.append(load_file(run(pair.of(layout), tmp_path / layout, pictures, changes).output or ""))
    held = load_file(pair.tiny.path)
    both = files[0].keys() & files[1].keys()
    idle = () if pair.ldm.family.sizes else ("text_projection",)  # SD 2.x reads none: the fixture's modules have others
    names = sorted(name for name in both if files[0][name].ndim > 1 and not name.endswith(idle))
    moves = [torch.cat([(file[name] - held[name]).flatten() for name in names]) for file in files]
    assert relative(moves[0], moves[1]) < 0.05


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_masks_are_of_every_family(
    pair: Pair, untouched: None, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.training.test_masks import by_hand, masked_set, spied

    seen = spied(monkeypatch)
    changes = {"masks.source": "file", "training.batch_size": 2, "training.max_steps": 2}
    view = run(pair.of(layout), tmp_path / "root", masked_set(tmp_path / "set", 2), changes)
    assert (view.state, view.error) == ("finished", "")
    assert len(seen) == 2 and view.loss is not None
    prediction, noised, masks = seen[-1]
    assert masks is not None and sorted(bool(one.all()) for one in masks) == [False, True]
    assert view.loss == pytest.approx(by_hand(prediction, noised.target, masks, 0.0, True), rel=1e-5)


def test_dreambooth_on_sdxl_saves_the_average_of_its_steps(pair: Pair, pictures: Path, tmp_path: Path) -> None:
    """The host draws the class pictures, both sets are learned, and the file holds the average (EMA) of each weight."""
    if not pair.ldm.family.sizes:
        pytest.skip("it is the same code")
    changes = {
        "network.kind": "checkpoint", "finetune.text_encoder_lr": 1e-3, "finetune.unet_lr": 1e-3,
        "prior.class_prompt": "disc", "prior.class_pictures": 3, "prior.class_folder": str(tmp_path / "class"),
        "preview.steps": 1, "training.max_steps": 3, "output.save_every": 1, "optimizer.ema_decay": 0.25,
    }  # fmt: skip
    folders = {averaged: tmp_path / str(averaged) / "checkpoints" for averaged in (False, True)}
    for averaged, folder in folders.items():
        runner = TrainingDesk(StandaloneHost(pair.tiny.path, folder.parent, CPU))
        values = job_values(pictures) | {"output.name": "zrk", "output.precision": "fp32", "optimizer.ema": averaged}
        runner.start(from_values(values | changes))
        view = runner.wait(300)
        assert view is not None and (view.state, view.error) == ("finished", "")
        assert len(list((tmp_path / "class").glob("*.png"))) == 3
    with safe_open(folders[True] / "zrk.safetensors", "pt") as file:
        told = file.metadata()
    assert told["ss_num_reg_images"] == "3" and float(told["ss_prior_loss_weight"]) == 1
    expected = load_file(pair.tiny.path)
    for step, name in enumerate(("zrk-step00000001", "zrk-step00000002", "zrk"), 1):
        decay = min(0.25, (1 + step) / (10 + step))
        plain, averaged = (load_file(folders[one] / f"{name}.safetensors") for one in (False, True))
        moved = 0
        for key, tensor in plain.items():
            if tensor.is_floating_point():
                moved += not torch.equal(tensor, expected[key])
                expected[key] = decay * expected[key] + (1 - decay) * tensor
                torch.testing.assert_close(averaged[key], expected[key], rtol=1e-4, atol=1e-6)
        assert moved > 100
