"""LoRA files: whole, identical when read back, and readable by the WebUI's rules and by diffusers' own loader."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from lib_trainer.host.ldm.model import LdmModel
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.networks.formats.lora_file import read_lora, write_lora
from lib_trainer.networks.lora import LoraNetwork, module_keys, unmatched_keys
from lib_trainer.ports import Conditioning, PictureSize
from lib_trainer.refusals import ModelError, SaveError
from tests.support import CONTEXT, relative
from tests.tiny_families import POOLED, TE1, TE2, build_sdxl


def learned(model: Any, rank: int = 4, alpha: float = 3.0, groups: tuple[str, ...] = ("transformer",)) -> LoraNetwork:
    """A network on a model's attention layers with weights as if it had learned something."""
    targets = [target for target in model.adaptable_modules() if target.group in groups]
    generator = torch.Generator().manual_seed(1)
    network = LoraNetwork.create(targets, rank, alpha, generator)
    with torch.no_grad():
        for adapter in network:
            adapter.up.normal_(0, 0.05, generator=generator)
    return network


@torch.no_grad()
def prediction(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    latents, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, CONTEXT, generator=generator)
    out: torch.Tensor = model.predict(latents, torch.tensor([3, 700]), Conditioning(context))
    return out


@torch.no_grad()
def words(model: Any) -> torch.Tensor:
    out: torch.Tensor = model.encode_text(["a disc, colour 1", ""], 1, 3).context
    return out


@pytest.fixture(params=["ldm", "diffusers"])
def model(request: pytest.FixtureRequest) -> LdmModel | DiffusersModel:
    found: LdmModel | DiffusersModel = request.getfixturevalue(f"{request.param}_model")
    return found


def test_saved_and_loaded_predictions_agree(model: LdmModel | DiffusersModel, tmp_path: Path) -> None:
    network, plain = learned(model), prediction(model)
    with network.applied():
        wanted, wanted_words = prediction(model), words(model)
    assert relative(wanted, plain) > 0.01
    write_lora(tmp_path / "a.safetensors", network.tensors(torch.float32), {}, overwrite=False)
    loaded = LoraNetwork.from_tensors(model.adaptable_modules(), read_lora(tmp_path / "a.safetensors").tensors)
    assert len(loaded) == len(network)
    with loaded.applied():
        assert float((prediction(model) - wanted).abs().max()) < 1e-5
        assert float((words(model) - wanted_words).abs().max()) < 1e-5
    assert torch.equal(prediction(model), plain)


def test_a_file_of_one_host_is_read_by_the_other(
    ldm_model: LdmModel, diffusers_model: DiffusersModel, tmp_path: Path
) -> None:
    network = learned(ldm_model)
    write_lora(tmp_path / "a.safetensors", network.tensors(torch.float32), {}, overwrite=False)
    tensors = read_lora(tmp_path / "a.safetensors").tensors
    other = LoraNetwork.from_tensors(diffusers_model.adaptable_modules(), tensors)
    assert unmatched_keys(diffusers_model.adaptable_modules(), tensors) == []
    with network.applied(), other.applied():
        assert relative(prediction(diffusers_model), prediction(ldm_model)) < 1e-4
        assert relative(words(diffusers_model), words(ldm_model)) < 1e-5


def test_half_precision_files(diffusers_model: DiffusersModel, tmp_path: Path) -> None:
    network = learned(diffusers_model)
    for dtype in (torch.float16, torch.bfloat16):
        path = tmp_path / f"{dtype}.safetensors"
        write_lora(path, network.tensors(dtype), {}, overwrite=False)
        tensors = read_lora(path).tensors
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}
        loaded = LoraNetwork.from_tensors(diffusers_model.adaptable_modules(), tensors)
        assert all(parameter.dtype is torch.float32 for parameter in loaded.parameters())
        assert {adapter.scale for adapter in loaded} == {0.75}


def test_the_identity_is_the_hash_of_what_follows_the_header(tmp_path: Path) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {"x.lora_down.weight": torch.arange(7.0), "x.alpha": torch.tensor(1.0)}
    write_lora(path, tensors, {"ss_output_name": "a", "note": "ä" * 500}, overwrite=False)
    write_lora(other, tensors, {}, overwrite=False)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    hashed = hashlib.sha256(raw[8 + length :]).hexdigest()
    metadata = read_lora(path).metadata
    assert metadata["sshs_model_hash"] == hashed
    assert metadata["note"] == "ä" * 500
    assert read_lora(other).metadata["sshs_model_hash"] == hashed
    assert struct.unpack("<Q", raw[:8])[0] == length


def test_a_file_is_as_public_as_any_other(tmp_path: Path) -> None:
    write_lora(tmp_path / "a.safetensors", {"x.lora_down.weight": torch.zeros(2)}, {}, overwrite=False)
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(SaveError, match=r"a\.safetensors exists already: choose"):
        write_lora(path, {"x.lora_down.weight": torch.zeros(2)}, {}, overwrite=False)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]
    write_lora(path, {"x.lora_down.weight": torch.zeros(2)}, {}, overwrite=True)
    assert read_lora(path).tensors.keys() == {"x.lora_down.weight"}


@pytest.mark.parametrize("what", ["fsync", "link"])
def test_a_full_disk_keeps_the_earlier_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    earlier = tmp_path / "earlier.safetensors"
    write_lora(earlier, {"x.lora_down.weight": torch.zeros(2)}, {}, overwrite=False)
    kept = earlier.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, what, full)
    if what == "link":  # then the rename is tried
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SaveError, match=r"No space left on device.*free some space"):
        write_lora(tmp_path / "new.safetensors", {"x.lora_down.weight": torch.ones(2)}, {}, overwrite=False)
    assert list(tmp_path.iterdir()) == [earlier]
    assert earlier.read_bytes() == kept


def test_without_hard_links_the_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    path = tmp_path / "a.safetensors"
    write_lora(path, {"x.lora_down.weight": torch.zeros(2)}, {}, overwrite=False)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(SaveError, match="exists already"):
        write_lora(path, {"x.lora_down.weight": torch.zeros(2)}, {}, overwrite=False)
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_lora(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no file .*gone"):
        read_lora(tmp_path / "gone.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"broken\.safetensors is not a readable"):
        read_lora(broken)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"emb_params": torch.zeros(2, 4)}, str(other))
    with pytest.raises(ModelError, match=r"other\.safetensors holds no LoRA"):
        read_lora(other)
    with pytest.raises(ModelError):
        read_lora(tmp_path)


def test_a_file_that_does_not_fit_is_refused_by_name(diffusers_model: DiffusersModel) -> None:
    targets = diffusers_model.adaptable_modules()
    key = next(target.key for target in targets if isinstance(target.module, nn.Linear))
    wrong = {f"{key}.lora_down.weight": torch.zeros(4, 5), f"{key}.lora_up.weight": torch.zeros(7, 4)}
    with pytest.raises(ValueError, match=key):
        LoraNetwork.from_tensors(targets, wrong)
    half = {f"{key}.lora_down.weight": torch.zeros(4, 5)}
    with pytest.raises(ValueError, match=f"{key}.*lora_up"):
        LoraNetwork.from_tensors(targets, half)


def test_a_linear_file_fits_a_1x1_convolution_and_alpha_may_be_absent(diffusers_model: DiffusersModel) -> None:
    """SD 2 and SDXL files hold `proj_in` as linear; some tools leave alpha out, which means scale 1."""
    targets = diffusers_model.adaptable_modules()
    convolution = next(t for t in targets if t.key.endswith("proj_in") and isinstance(t.module, nn.Conv2d))
    module = convolution.module
    assert isinstance(module, nn.Conv2d)
    tensors = {
        f"{convolution.key}.lora_down.weight": torch.ones(4, module.in_channels),
        f"{convolution.key}.lora_up.weight": torch.ones(module.out_channels, 4),
        "lora_unet_unknown.lora_down.weight": torch.ones(1, 1),
    }
    (adapter,) = LoraNetwork.from_tensors(targets, tensors)
    assert adapter.scale == 1 and adapter.down.shape == (4, module.in_channels, 1, 1)
    assert module_keys(tensors) == {convolution.key, "lora_unet_unknown"}
    assert unmatched_keys(targets, tensors) == ["lora_unet_unknown"]


@pytest.fixture
def own_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' own LoRA loader is switched on, which wants a newer transformers than the WebUI's pin (4.30)."""
    pytest.importorskip("peft")
    from diffusers.loaders import lora_base, lora_pipeline, peft, unet

    for module in (lora_base, lora_pipeline, peft, unet):
        monkeypatch.setattr(module, "USE_PEFT_BACKEND", True)


def adaptable(text: Any) -> Any:
    """A text encoder with `load_adapter` as later versions of transformers define it, over peft."""
    if not hasattr(text, "load_adapter"):
        text.load_adapter = lambda **kw: _load_adapter(text, **kw)
    return text


@pytest.fixture
def pipeline(tiny: Any, own_loader: None) -> Iterator[Any]:
    """diffusers' own pipeline over a copy of the tiny weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts = DiffusersModel.load(tiny.path, torch.device("cpu"))
    text = adaptable(parts.text.encoders[0].module)
    yield StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=text,
        tokenizer=parts.text.chunks.tokenizer,
        unet=parts.unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _load_adapter(model: nn.Module, adapter_name: str, adapter_state_dict: dict[str, Any], peft_config: Any) -> None:
    """transformers.integrations.PeftAdapterMixin.load_adapter, as far as diffusers uses it."""
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    inject_adapter_in_model(peft_config, model, adapter_name)
    problems = set_peft_model_state_dict(model, adapter_state_dict, adapter_name)
    assert not problems.unexpected_keys


def test_diffusers_own_loader_takes_the_file(diffusers_model: DiffusersModel, pipeline: Any, tmp_path: Path) -> None:
    network = learned(diffusers_model)
    path = tmp_path / "learned.safetensors"
    write_lora(path, network.tensors(torch.float32), {"ss_output_name": "learned"}, overwrite=False)
    plain = prediction(diffusers_model)
    with network.applied():
        wanted, wanted_words = prediction(diffusers_model), words(diffusers_model)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)  # offline, it wants the name said
    generator = torch.Generator().manual_seed(2)
    latents, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, CONTEXT, generator=generator)
    with torch.no_grad():
        out = pipeline.unet(latents, torch.tensor([3, 700]), context).sample
        ids = pipeline.tokenizer(
            ["a disc, colour 1", ""], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        told = pipeline.text_encoder(ids)[0]
    assert relative(wanted, plain) > 0.01
    assert relative(out, wanted) < 1e-4
    assert relative(told, wanted_words) < 1e-4


@pytest.mark.parametrize("kind", ["lora", "locon"])
def test_diffusers_own_loader_takes_a_file_of_sdxl(own_loader: None, tmp_path: Path, kind: str) -> None:
    """Layers of UNet and both encoders under sgm's names; those of convolutions, too."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    path = build_sdxl(tmp_path).path
    model, other = (DiffusersModel.load(path, torch.device("cpu")) for _ in range(2))
    network = learned(model, groups=("transformer",) if kind == "lora" else ("transformer", "convolution"))
    file = tmp_path / "learned.safetensors"
    write_lora(file, network.tensors(torch.float32), {"ss_output_name": "learned"}, overwrite=False)
    first, second = (adaptable(one.module) for one in other.text.encoders)
    pipeline = StableDiffusionXLPipeline(
        vae=other.vae, text_encoder=first, text_encoder_2=second, tokenizer=other.text.chunks.tokenizer,
        tokenizer_2=other.text.chunks.tokenizer, unet=other.unet, scheduler=DDIMScheduler(), add_watermarker=False,
    )  # fmt: skip
    plain, said = predicted_xl(model), words(model)
    with network.applied():
        wanted, told = predicted_xl(model), words(model)
    assert relative(wanted, plain) > 0.01 and relative(told, said) > 0.01
    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    assert relative(predicted_xl(other), wanted) < 1e-4
    assert relative(words(other), told) < 1e-4


@torch.no_grad()
def predicted_xl(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    latents, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, TE1 + TE2, generator=generator)
    size = PictureSize((64, 64), (0, 0), (64, 64))
    told = Conditioning(context, torch.randn(2, POOLED, generator=generator)).sized([size, size])
    out: torch.Tensor = model.predict(latents, torch.tensor([3, 700]), told)
    return out
