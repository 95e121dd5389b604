"""The other families' miniatures: layout, size and skill of the committed SDXL, and the layouts of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from miniature import demo, export
from miniature.build_family import assemble, weights_of
from miniature.evaluate import asks, generate, judge
from miniature.export import CHECKPOINT, checkpoint_of, config_of, export_diffusers, export_webui, pipeline_of
from miniature.recipes import RECIPES, SD2_V, SDXL, SDXL_V, Recipe
from miniature.train_family import Models, TextStack, View, make_models, schedule, take_unet

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from miniature.judge import Judge

BUDGET = 15_000_000
JOBS = asks(24, seed=5)
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def sdxl() -> StableDiffusionXLPipeline:
    return pipeline_of("sdxl")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(checkpoint_of("sdxl"))


@pytest.fixture(scope="module", params=[SDXL_V, SD2_V], ids=lambda recipe: recipe.name)
def untrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Models, Path]:
    """The single file of a family as training would begin; `assemble` holds it against diffusers' converters."""
    recipe: Recipe = request.param
    models, _ = make_models(recipe)
    path = tmp_path_factory.mktemp("built") / f"mini-{recipe.name}.safetensors"
    return recipe, models, assemble(recipe, models.state(), path)


def test_the_committed_file_is_small_and_looks_like_sdxl(tensors: dict[str, torch.Tensor]) -> None:
    assert checkpoint_of("sdxl").stat().st_size <= BUDGET
    width, vector, context = SDXL.encoders[1].config["hidden_size"], 24 + 6 * 256, 32 + 24
    shapes = {
        "model.diffusion_model.label_emb.0.0.weight": (128, vector),
        "model.diffusion_model.input_blocks.4.1.proj_in.weight": (32, 32),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.1.attn2.to_k.weight": (64, context),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (32, 32, 3, 3),
        "model.diffusion_model.output_blocks.8.0.skip_connection.weight": (32, 64, 1, 1),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.3.mlp.fc1.weight": (128, 32),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight": (3 * width, width),
        "conditioner.embedders.1.model.token_embedding.weight": (49408, width),
        "conditioner.embedders.1.model.positional_embedding": (77, width),
        "conditioner.embedders.1.model.text_projection": (width, 24),
        "conditioner.embedders.1.model.logit_scale": (),
        "first_stage_model.decoder.mid.attn_1.q.weight": (64, 64, 1, 1),
    }
    assert {name: tuple(tensors[name].shape) for name in shapes} == shapes
    blocks = {name.removeprefix(UNET).rsplit("_blocks.")[0] for name in tensors if "_blocks." in name}
    assert blocks >= {"input", "output"}
    assert not [name for name in tensors if name.startswith((f"{UNET}input_blocks.9", f"{UNET}output_blocks.9"))]
    finest = (f"{UNET}input_blocks.1.1", f"{UNET}output_blocks.6.1", f"{UNET}output_blocks.8.1")
    assert not [name for name in tensors if name.startswith(finest)], "attention at the finest level"
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert {value.dtype for value in tensors.values()} == {torch.float16, torch.int64}


def test_prompts_draw_what_they_say(sdxl: StableDiffusionXLPipeline, tagger: Judge) -> None:
    """A short form of `python -m miniature.evaluate --family sdxl`; the same verdicts do not fit other prompts."""
    verdicts = judge(generate(sdxl, JOBS), tagger)
    wrong = [(job.prompt, verdict) for job, verdict in zip(JOBS, verdicts) if not verdict.answers(job)]
    assert len(wrong) <= 4, wrong
    assert sum(verdict.answers(job) for job, verdict in zip(JOBS[7:] + JOBS[:7], verdicts)) <= 5


def test_one_that_is_built_by_command_draws_what_it_is_told(tagger: Judge) -> None:
    """SD 2.x's, which predicts v and reads open_clip: where `python -m miniature.build_family sd2-v` has left it."""
    try:
        pipeline = pipeline_of("sd2-v")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    verdicts = judge(generate(pipeline, JOBS), tagger)
    assert sum(verdict.answers(job) for job, verdict in zip(JOBS, verdicts)) >= 15
    assert sum(verdict.answers(job) for job, verdict in zip(JOBS[7:] + JOBS[:7], verdicts)) <= 5


def test_the_demo_says_how_a_checkpoint_that_is_not_there_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "BUILT", tmp_path / "none")
    monkeypatch.setattr("sys.argv", ["demo", "--family", "sd2-v", "--dir", str(tmp_path / "demo")])
    assert demo.main() == 2
    assert "python -m miniature.build_family sd2-v" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@torch.no_grad()
def test_its_latents_are_sd1s_at_another_scale(sdxl: StableDiffusionXLPipeline) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, other = pipeline_of("sd1").vae.encode(pixels).latent_dist, sdxl.vae.encode(pixels).latent_dist
    torch.testing.assert_close(first.mode() * 0.18215, other.mode() * 0.13025, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(first.std * 0.18215, other.std * 0.13025, rtol=1e-2, atol=1e-5)
    again = sdxl.vae.decode(other.mode()).sample
    torch.testing.assert_close(again, pipeline_of("sd1").vae.decode(first.mode()).sample, rtol=0, atol=2e-2)


def test_the_diffusers_folder_loads(tmp_path: Path, sdxl: StableDiffusionXLPipeline) -> None:
    from diffusers import StableDiffusionXLPipeline as Pipeline

    folder = export_diffusers(tmp_path / "mini", "sdxl")
    loaded = Pipeline.from_pretrained(str(folder), local_files_only=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        one, other = getattr(loaded, name).state_dict(), getattr(sdxl, name).state_dict()
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert loaded.tokenizer_2("a", padding="max_length").input_ids[-1] == 0
    assert loaded.tokenizer("a", padding="max_length").input_ids[-1] == 49407
    assert loaded.config.force_zeros_for_empty_prompt


def test_the_webui_folder_is_complete(tmp_path: Path) -> None:
    import yaml

    written = export_webui(tmp_path / "models", "sdxl")
    assert written.read_bytes() == checkpoint_of("sdxl").read_bytes()
    params = yaml.safe_load(written.with_suffix(".yaml").read_text(encoding="utf-8"))["model"]["params"]
    first, second = (one["params"] for one in params["conditioner_config"]["params"]["emb_models"][:2])
    clip = Path(first["version"])
    assert json.loads((clip / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == first["layer_idx"] + 1
    arch = json.loads((written.parent / f"{second['arch']}.json").read_text(encoding="utf-8"))
    assert arch["text_cfg"] | {"width": 24, "heads": 3, "layers": 4} == arch["text_cfg"]
    assert params["network_config"]["params"]["adm_in_channels"] == SDXL.unet["projection_class_embeddings_input_dim"]


def test_the_v_predicting_one_says_so(untrained: tuple[Recipe, Models, Path]) -> None:
    """In its file, by the marker keys that others look for, and in its .yaml."""
    recipe, _, path = untrained
    markers = {name: len(value) for name, value in load_file(path).items() if name in ("v_pred", "ztsnr")}
    if recipe is SDXL_V:
        assert markers == {"v_pred": 0, "ztsnr": 0} and "VScaling" in config_of(recipe.name)
        assert "EpsScaling" not in config_of(recipe.name)
        assert schedule(recipe)[-1] == 0.0 and abs(float(schedule(recipe)[0]) - 0.99915) < 1e-5
    else:
        assert not markers and 'parameterization: "v"' in config_of(recipe.name)
        assert schedule(recipe)[-1] > 0.004


def test_a_file_gives_back_what_was_trained(untrained: tuple[Recipe, Models, Path]) -> None:
    recipe, models, path = untrained
    if recipe is SD2_V:
        pytest.skip("nothing starts from its file: of its projection nothing is read")
    again = Models(type(models.unet)(**recipe.unet), TextStack(recipe.encoders))
    again.load(weights_of(recipe, path))
    for one, other in zip(again.state().values(), models.state().values()):
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_a_wrong_name_does_not_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`assemble` finds it, since what diffusers reads is then not what was trained."""
    from miniature import family_layout

    models, _ = make_models(SDXL)
    monkeypatch.setitem(family_layout._BLOCK, "layer_norm1", "ln_2")
    monkeypatch.setitem(family_layout._BLOCK, "layer_norm2", "ln_1")
    for layer in models.text.models[1].text_model.encoder.layers:
        torch.nn.init.normal_(layer.layer_norm1.weight)
    with pytest.raises(ValueError, match="text 1 has other values"):
        assemble(SDXL, models.state(), tmp_path / "x.safetensors")


@torch.no_grad()
def test_real_ldm_unet_of_sd2_agrees(tmp_path: Path) -> None:
    """The real classes, built from mini-sd2-v.yaml, take the file's UNet and compute what diffusers' does."""
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    import yaml

    models, _ = make_models(SD2_V)
    tensors = load_file(assemble(SD2_V, models.state(), tmp_path / "sd2.safetensors"))
    params = yaml.safe_load(config_of("sd2-v"))["model"]["params"]["unet_config"]["params"]
    unet = openaimodel.UNetModel(**params).eval()
    own = {name.removeprefix(UNET): value.float() for name, value in tensors.items() if name.startswith(UNET)}
    unet.load_state_dict(own, strict=True)
    models.unet.load_state_dict({name: value.half().float() for name, value in models.unet.state_dict().items()})
    torch.manual_seed(0)
    noisy, times, context = torch.randn(3, 4, 8, 16), torch.tensor([1, 400, 999]), torch.randn(3, 77, 32)
    theirs, ours = unet(noisy, times, context=context), models.unet.eval()(noisy, times, context).sample
    assert float((theirs - ours).abs().max() / ours.abs().max()) < 1e-4


def test_training_begins_where_the_sd1_miniature_stands() -> None:
    """All of SD2's UNet comes from it; of SDXL's, all but what it lacks."""
    from diffusers import UNet2DConditionModel

    old = pipeline_of("sd1", CHECKPOINT).unet.state_dict()
    unet = UNet2DConditionModel(**SD2_V.unet)
    assert take_unet(unet, old, None) == len(unet.state_dict())
    assert all(torch.equal(value.flatten(), old[name].flatten()) for name, value in unet.state_dict().items())
    assert set(RECIPES) == {"sdxl", "sdxl-v", "sd2-v"}


def test_a_view_is_what_its_numbers_say() -> None:
    from miniature.world import Scene, draw

    scene = Scene("circle", "red", "white", "large", "left")
    whole = np.asarray(draw(scene, (80, 64)))
    assert np.array_equal(np.asarray(View(64, 80, 0, 16).draw(scene)), whole[:, 16:])
    assert View(64, 80, 0, 16).sizes == (64, 80, 0, 16, 64, 64)
    assert np.array_equal(np.asarray(View().draw(scene)), np.asarray(draw(scene)))
