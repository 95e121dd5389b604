"""The committed checkpoint: its size, its keys, both layouts agreeing, and that prompts draw what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from miniature.evaluate import Verdict, asks, generate, judge
from miniature.export import CHECKPOINT, DATA, export_diffusers, export_webui

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from miniature.judge import Judge

State = dict[str, torch.Tensor]
BUDGET = 12_000_000
JOBS = asks(24, seed=5)


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def _part(checkpoint: State, prefix: str) -> State:
    return {key[len(prefix) :]: value.float() for key, value in checkpoint.items() if key.startswith(prefix)}


def test_committed_files_stay_small() -> None:
    merges = Path(__file__).parents[2] / "lib_trainer" / "host" / "standalone" / "clip_merges.txt.gz"
    other = ("mini-sdxl.safetensors",)  # has a budget of its own
    files = [path for path in DATA.rglob("*") if path.is_file() and path.name not in other] + [merges]
    assert sum(path.stat().st_size for path in files) <= BUDGET
    assert (DATA / "wd-mini" / "model.onnx").stat().st_size <= 600_000


def test_keys_look_like_sd15(checkpoint: State) -> None:
    for key in (
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "first_stage_model.encoder.down.0.block.0.norm1.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.2.mlp.fc2.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "alphas_cumprod",
    ):
        assert key in checkpoint, key
    assert checkpoint["first_stage_model.decoder.mid.attn_1.q.weight"].ndim == 4
    assert checkpoint["model.diffusion_model.out.2.weight"].dtype == torch.float16
    assert all(bool(value.isfinite().all()) for value in checkpoint.values())


def test_schedule_is_sd1s(checkpoint: State, pipeline: StableDiffusionPipeline) -> None:
    torch.testing.assert_close(checkpoint["alphas_cumprod"], pipeline.scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


def _filled(module: Any, checkpoint: State, prefix: str) -> Any:
    """And the seed is set."""
    module.load_state_dict(_part(checkpoint, prefix), strict=True)
    torch.manual_seed(0)
    return module.eval()


@torch.no_grad()
def test_real_ldm_unet_agrees(checkpoint: State, pipeline: StableDiffusionPipeline) -> None:
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    from miniature.ldm_layout import UNET, ldm_unet

    unet = _filled(ldm_unet(), checkpoint, UNET)
    noisy, times, context = torch.randn(3, 4, 8, 16), torch.tensor([1, 400, 999]), torch.randn(3, 77, 32)
    assert _relative(unet(noisy, times, context=context), pipeline.unet(noisy, times, context).sample) < 1e-4


@torch.no_grad()
def test_real_ldm_vae_agrees(checkpoint: State, pipeline: StableDiffusionPipeline) -> None:
    pytest.importorskip("ldm.modules.diffusionmodules.model")
    from miniature.ldm_layout import VAE, LdmVae

    vae = _filled(LdmVae(), checkpoint, VAE)
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    latents = pipeline.vae.encode(pixels).latent_dist.mode()
    assert _relative(vae.mode(pixels), latents) < 1e-4
    assert _relative(vae.decode(latents), pipeline.vae.decode(latents).sample) < 1e-4


@torch.no_grad()
def test_the_vae_keeps_pictures(pipeline: StableDiffusionPipeline) -> None:
    import numpy as np

    from miniature.train_vae import as_batch, reconstruction_mse
    from miniature.world import ALL_SHAPES, combos, draw, random_scene

    rng = np.random.default_rng(11)
    drawn = [np.asarray(draw(random_scene(rng, combos(ALL_SHAPES)))) for _ in range(16)]
    pool = np.stack(drawn).transpose(0, 3, 1, 2)
    assert reconstruction_mse(pipeline.vae, pool) < 0.01
    latents = pipeline.vae.encode(as_batch(pool, np.arange(16))).latent_dist.mode() * 0.18215
    assert 0.7 < float(latents.std()) < 1.4


def test_diffusers_folder_loads(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    from diffusers import StableDiffusionPipeline as Pipeline

    folder = export_diffusers(tmp_path / "mini")
    loaded = Pipeline.from_pretrained(str(folder), safety_checker=None, local_files_only=True)
    for name in ("unet", "vae", "text_encoder"):
        one, other = getattr(loaded, name).state_dict(), getattr(pipeline, name).state_dict()
        assert all(torch.equal(one[key], other[key]) for key in other)
    with pytest.raises(FileExistsError):
        export_diffusers(folder)


def test_webui_folder_is_complete(tmp_path: Path) -> None:
    import yaml
    from transformers import CLIPTextModel, CLIPTokenizer

    written = export_webui(tmp_path / "models")
    assert written.read_bytes() == CHECKPOINT.read_bytes()
    params = yaml.safe_load(written.with_suffix(".yaml").read_text(encoding="utf-8"))["model"]["params"]
    clip = Path(params["cond_stage_config"]["params"]["version"])
    assert clip.is_absolute() and clip == tmp_path / "models" / "clip"
    assert json.loads((clip / "config.json").read_text(encoding="utf-8"))["hidden_size"] == 32
    assert CLIPTokenizer.from_pretrained(str(clip))("a photo of a cat").input_ids[1:-1] == [320, 1125, 539, 320, 2368]
    text = CLIPTextModel.from_pretrained(str(clip))
    assert text.config.eos_token_id == 49407 and text.config.hidden_act == "quick_gelu"


@pytest.fixture(scope="module")
def verdicts(pipeline: StableDiffusionPipeline, tagger: Judge) -> list[Verdict]:
    """What the tagger sees in the pictures of JOBS."""
    return judge(generate(pipeline, JOBS), tagger)


def test_prompts_draw_what_they_say(verdicts: list[Verdict]) -> None:
    """A short form of `python -m miniature.evaluate`, which asks for 90% of 200."""
    wrong = [(job.prompt, verdict) for job, verdict in zip(JOBS, verdicts) if not verdict.answers(job)]
    assert len(wrong) <= 2, wrong


def test_the_judge_tells_prompts_apart(verdicts: list[Verdict]) -> None:
    """The same pictures held against other prompts: the figure above is not the judge being lenient."""
    assert sum(verdict.answers(job) for job, verdict in zip(JOBS[7:] + JOBS[:7], verdicts)) <= 5
