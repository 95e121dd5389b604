"""SDXL and SD 2.x on the standalone host and on ldm's and sgm's modules: files, predictions, captions, gradients."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lib_trainer.families.known import FAMILIES
from lib_trainer.families.open_clip import InFile, joined
from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.standalone.checkpoint import load_checkpoint
from lib_trainer.host.standalone.host import StandaloneHost
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.text.texts import Texts
from lib_trainer.host.vector import sines_of, vector_of
from lib_trainer.networks.formats.checkpoint_file import count_parameters, read_shapes
from lib_trainer.ports import Conditioning, PictureSize, PreviewRequest
from lib_trainer.refusals import ConfigError, ModelError
from tests import smaller, tiny_families
from tests.support import relative, scaled_linear, tiny_schedule
from tests.tiny_families import POOLED, TE1, TE2, TinyXl, build_sd2, build_sdxl, sgm_unet

shallow_models = smaller.shallow_models
SDXL = next(family for family in FAMILIES if family.sizes)
SD2 = next(family for family in FAMILIES if family.v2)
CPU = torch.device("cpu")
SIZES = [PictureSize((768, 1024), (0, 64), (512, 704)), PictureSize((512, 512), (3, 0), (640, 448))]


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> TinyXl:
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    return build_sdxl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> TinyXl:
    pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    return build_sd2(tmp_path_factory.mktemp("v2"), parameterization="v")


def told(family: Any, batch: int = 2) -> Conditioning:
    generator = torch.Generator().manual_seed(5)
    width = TE1 + TE2 if family.sizes else TE2
    context = torch.randn(batch, 77, width, generator=generator)
    if not family.sizes:
        return Conditioning(context)
    return Conditioning(context, torch.randn(batch, POOLED, generator=generator)).sized(SIZES[:batch])


def by_class(tiny: TinyXl, family: Any) -> LdmModel:
    """The same weights in ldm's layout, with transformers' text encoders."""
    texts = Texts(list(tiny.texts), load_tokenizer(), family)
    return LdmModel(tiny.unet, tiny.vae, texts, tiny_schedule(), family.latent_scale, "tiny", tiny.path, family=family)


def predicted(model: Any, family: Any) -> torch.Tensor:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        return model.predict(latents, torch.tensor([10, 900]), told(family))


@pytest.mark.parametrize("name", ["xl", "v2"])
def test_a_file_is_read_whole(name: str, request: pytest.FixtureRequest) -> None:
    tiny: TinyXl = request.getfixturevalue(name)
    parts, held = load_checkpoint(tiny.path), load_file(tiny.path)
    modules = {"unet": parts.unet} | dict(zip([one.part for one in parts.family.encoders], parts.encoders, strict=True))
    used = {name for name in held if name.startswith("first_stage_model.")}
    for part, module in modules.items():
        for own, tensor in module.state_dict().items():
            if not own.endswith("position_ids"):
                place = parts.file_names[part][own]
                assert torch.equal(place.read(held[place.name]), tensor), own
                used.add(place.name)
    left = {name.rsplit(".", 1)[-1] for name in held.keys() - used}
    assert left <= {"logit_scale", "text_projection", "position_ids"}
    for mine, other in zip(parts.encoders, tiny.texts, strict=True):
        assert type(mine) is type(other)
        wanted = other.state_dict()
        assert all(torch.equal(tensor, wanted[own]) for own, tensor in mine.state_dict().items())
        assert mine.config.num_attention_heads == other.config.num_attention_heads
        assert mine.config.hidden_act == other.config.hidden_act
    assert parts.family is (SDXL if name == "xl" else SD2)
    assert parts.vae.config.scaling_factor == parts.family.latent_scale
    torch.testing.assert_close(parts.schedule.alphas_cumprod, scaled_linear())


def test_what_the_file_predicts_is_in_the_yaml(xl: TinyXl, v2: TinyXl, tmp_path: Path) -> None:
    assert load_checkpoint(xl.path).schedule.prediction == "epsilon"
    assert load_checkpoint(v2.path).schedule.prediction == "v"
    path = _copied(xl, tmp_path, tiny_families.sdxl_config("VScaling"))
    assert load_checkpoint(path).schedule.prediction == "v"


def _copied(tiny: TinyXl, folder: Path, config: dict[str, Any], **changed: torch.Tensor) -> Path:
    path = folder / "copy.safetensors"
    save_file(load_file(tiny.path) | changed, str(path))
    path.with_suffix(".yaml").write_text(json.dumps(config))
    for name in ("clip", "tiny-clip.json"):
        (folder / name).symlink_to(tiny.path.parent / name)
    return path


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_is_told_before_it_is_loaded(xl: TinyXl, tmp_path: Path, archive: bool) -> None:
    """By its names alone: of the older layout, whose numbers come last, these are not read."""
    path = tmp_path / "xl.ckpt"
    torch.save({"state_dict": load_file(xl.path)}, path, _use_new_zipfile_serialization=archive)
    host = StandaloneHost(path, tmp_path, CPU)
    assert host.family() is SDXL and "· SDXL ·" in host.describe()
    assert host.parts().keys() == {"unet", "te1", "te2"}
    if not archive:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
        assert read_shapes(path) == read_shapes(xl.path)
        with pytest.raises(ModelError, match=r"xl\.ckpt"):
            load_checkpoint(path)


def test_a_hypernetwork_in_a_prompt_for_sdxl_is_refused(xl: TinyXl, tmp_path: Path) -> None:
    host = StandaloneHost(xl.path, tmp_path, CPU)
    host.hypernetwork_folder().mkdir()
    (host.hypernetwork_folder() / "net.pt").touch()
    assert host.calls() == []
    with pytest.raises(ConfigError, match="<hypernet:net:…>: a hypernetwork cannot be used with SDXL"):
        host.preview(PreviewRequest("a disc <hypernet:net:1>", width=64, height=64, steps=1))


def test_without_a_description_heads_have_64_channels(xl: TinyXl, tmp_path: Path) -> None:
    config = tiny_families.sdxl_config()
    for section in config["model"]["params"]["conditioner_config"]["params"]["emb_models"][:2]:
        section["params"] = {}
    parts = load_checkpoint(_copied(xl, tmp_path, config))
    assert [one.config.num_attention_heads for one in parts.encoders] == [1, 1]
    assert [one.config.hidden_act for one in parts.encoders] == ["quick_gelu", "gelu"]


def test_a_description_that_is_none_is_refused(xl: TinyXl, tmp_path: Path) -> None:
    path = _copied(xl, tmp_path, tiny_families.sdxl_config())
    (tmp_path / "tiny-clip.json").unlink()
    (tmp_path / "tiny-clip.json").write_text("{}")
    with pytest.raises(ModelError, match=r"copy.safetensors does not fit .*tiny-clip.json"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["xl", "v2"])
def test_both_layouts_predict_alike(name: str, request: pytest.FixtureRequest) -> None:
    tiny: TinyXl = request.getfixturevalue(name)
    family = SDXL if name == "xl" else SD2
    one, other = by_class(tiny, family), DiffusersModel.load(tiny.path, CPU)
    assert relative(predicted(one, family), predicted(other, family)) < 1e-5
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert relative(one.encode_images(pixels), other.encode_images(pixels)) < 1e-5


@pytest.mark.filterwarnings("ignore:.*sdp_kernel:FutureWarning")  # sgm's, in its attention
def test_sgms_own_classes_predict_alike(tmp_path: Path) -> None:
    unet_class = sgm_unet()
    if unet_class is None:
        pytest.skip("sgm's sources are in requirements/test-no-deps.txt; or set SGM_DIR or WEBUI_DIR")
    tiny = build_sdxl(tmp_path, unet_class)
    one, other = by_class(tiny, SDXL), DiffusersModel.load(tiny.path, CPU)
    assert relative(predicted(one, SDXL), predicted(other, SDXL)) < 1e-5
    assert one.adaptable_modules() and [target.key for target in one.adaptable_modules()] == [
        target.key for target in other.adaptable_modules()
    ]


def test_every_size_matters(xl: TinyXl) -> None:
    model, base = DiffusersModel.load(xl.path, CPU), told(SDXL, 1)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        first = model.predict(latents, torch.tensor([500]), base)
        for place in range(6):
            sizes = base.sizes.clone()  # type: ignore[union-attr]
            sizes[0, place] += 200
            other = model.predict(latents, torch.tensor([500]), Conditioning(base.context, base.pooled, sizes))
            assert relative(other, first) > 1e-4, place


def test_sines_are_diffusers(xl: TinyXl) -> None:
    from diffusers.models.embeddings import Timesteps

    numbers = torch.tensor([[1024.0, 768.0, 0.0, 3.0, 1536.0, 512.0]])
    wanted = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(numbers.flatten()).reshape(1, -1)
    torch.testing.assert_close(sines_of(numbers), wanted)
    vector = vector_of(told(SDXL))
    assert vector is not None and vector.shape == (2, POOLED + 1536)
    assert vector_of(told(SD2)) is None


@pytest.mark.parametrize("name", ["xl", "v2"])
def test_both_layouts_have_the_same_parameters(name: str, request: pytest.FixtureRequest) -> None:
    """With transformers' encoders in both; of open_clip's layout the file's names tell."""
    tiny: TinyXl = request.getfixturevalue(name)
    model, held = DiffusersModel.load(tiny.path, CPU), load_file(tiny.path)
    owned = model.own_parameters()
    assert len({own.key for own in owned}) == len(owned)
    whole = joined({own.place: own.owner._parameters[own.name].detach() for own in owned})  # type: ignore[misc,union-attr]
    assert all(torch.equal(tensor, held[key]) for key, tensor in whole.items())
    assert whole.keys() | model.checkpoint_tensors(sorted(whole)).keys() == {
        key for key in held if not key.endswith("position_ids")
    }
    parts = {own.part for own in owned}
    assert parts == set(model.family.parts) and set(count_parameters(tiny.path)) == parts


def test_joined_tensors_want_all_thirds() -> None:
    thirds = {InFile("w", third): torch.full((2, 3), float(third)) for third in range(3)}
    assert joined(thirds)["w"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2 + [[2.0] * 3] * 2
    assert joined({InFile("p", turned=True): torch.zeros(2, 3)})["p"].shape == (3, 2)
    with pytest.raises(ValueError, match="w is in 3 parts"):
        joined({InFile("w", 1): torch.zeros(2, 3)})


def test_sd_turbo_is_read_under_the_usual_names(v2: TinyXl, tmp_path: Path) -> None:
    """Its encoder is as wide as the published one, by which the WebUI tells it from the refiner."""
    held = load_file(v2.path)
    renamed = {name.replace("cond_stage_model.", "conditioner.embedders.0."): one for name, one in held.items()}
    renamed["conditioner.embedders.0.model.ln_final.weight"] = torch.ones(1024)
    path = tmp_path / "turbo.safetensors"
    save_file(renamed, str(path))
    assert read_shapes(path).keys() == held.keys()
    renamed["conditioner.embedders.0.model.ln_final.weight"] = torch.ones(1280)
    save_file(renamed, str(path))
    assert read_shapes(path).keys() == renamed.keys()


def test_a_diffusers_folder_of_sdxl(xl: TinyXl, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    parts = load_checkpoint(xl.path)
    parts.unet.save_pretrained(tmp_path / "unet")
    parts.vae.save_pretrained(tmp_path / "vae")
    for place, encoder in zip(("text_encoder", "text_encoder_2"), parts.encoders, strict=True):
        encoder.save_pretrained(tmp_path / place)  # type: ignore[operator]
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        tmp_path / "scheduler"
    )
    (tmp_path / "model_index.json").write_text("{}")
    host = StandaloneHost(tmp_path, tmp_path / "results", CPU)
    assert host.family() is SDXL, "a job is checked before the folder is loaded"
    model = DiffusersModel.load(tmp_path, CPU)
    assert model.family is SDXL and model.latent_scale == SDXL.latent_scale
    other = DiffusersModel.load(xl.path, CPU)
    assert relative(predicted(model, SDXL), predicted(other, SDXL)) == 0
    mine, theirs = (one.encode_text(["a red hat"], 1, 1) for one in (model, other))
    assert torch.equal(mine.context, theirs.context) and torch.equal(mine.pooled, theirs.pooled)  # type: ignore[arg-type]


def test_attention_in_fp16_does_not_overflow() -> None:
    """SD 2.1's products of queries and keys are beyond fp16's largest number, 65504."""
    from lib_trainer.host.ldm.attention import attend

    torch.manual_seed(0)
    module = torch.nn.Module()
    for name in ("to_q", "to_k", "to_v", "to_out"):
        module.add_module(name, torch.nn.Linear(64, 64, bias=False))
    module.heads = 1  # type: ignore[assignment]
    with torch.no_grad():
        for name in ("to_q", "to_k"):
            getattr(module, name).weight.copy_(torch.eye(64) * 50)
    x = torch.randn(1, 16, 64)
    scores = (50 * x) @ (50 * x).transpose(1, 2)
    assert float(scores.abs().max()) > 65504
    with torch.no_grad():
        wanted, half = attend(module, x), attend(copy.deepcopy(module).half(), x.half())
    assert bool(half.isfinite().all())
    assert relative(half.float(), wanted) < 0.01
    assert F.mse_loss(half.float(), wanted) < 1e-3
