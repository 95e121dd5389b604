"""Files tell the truth about themselves: what metadata says is in the tensors and in the job that was really run."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from lib_trainer.config import from_values
from lib_trainer.families.sd1 import SD1
from lib_trainer.kinds.registry import kind_of
from lib_trainer.networks.formats.lora_facts import with_ranks
from lib_trainer.networks.formats.lora_file import read_lora, write_lora
from lib_trainer.refusals import ConfigError
from lib_trainer.training.metadata import _model_spec, _objective, _pictures, _sizes_and_variations
from lib_trainer.work import events as ev
from tests.training.test_kinds import ADAPTERS, FAST, drawn
from tests.training.test_refused_jobs import refused
from tests.training.watched import Watched

STILL: dict[str, Any] = {"optimizer__weight_decay": 0, "training__max_steps": 2}


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


def first(watched: Watched, pictures: Path, **changes: Any) -> Path:
    view = watched.run(pictures, **FAST | changes, output__name="first")
    assert view.state == "finished", view.error
    return watched.host.lora_folder() / "first.safetensors"


@pytest.mark.parametrize("name", ["lora", "locon", "loha", "lokr", "dora"])
def test_what_is_not_trained_stays_and_is_applied(watched: Watched, pictures: Path, name: str) -> None:
    """Case 3."""
    kind = ADAPTERS.get(name, {})
    path = first(watched, pictures, **kind)
    before = read_lora(path).tensors
    second = Watched(watched.host)
    view = second.run(
        pictures,
        **kind | STILL,
        network__continue_from=str(path),
        optimizer__unet_lr=0.02,
        optimizer__text_encoder_lr=0,
        output__name="second",
    )
    assert view.state == "finished", view.error
    after = watched.tensors("second.safetensors")
    assert after.keys() == before.keys()
    text = [name for name in before if name.startswith("lora_te_")]
    assert text and all(torch.equal(before[name], after[name]) for name in text)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("lora_unet_"))
    assert second.of(ev.Started)[0].modules == {
        "unet": len({n.partition(".")[0] for n in before if n.startswith("lora_unet_")})
    }
    without = {name: tensor for name, tensor in after.items() if name not in text}
    write_lora(watched.host.lora_folder() / "without.safetensors", without, {}, overwrite=False)
    assert drawn(watched, "zork <lora:second:1>") != drawn(watched, "zork <lora:without:1>")
    assert metadata_of(path.with_name("second.safetensors"))["ss_text_encoder_lr"] == "None"


def test_what_is_held_acts_while_the_rest_learns(watched: Watched, pictures: Path) -> None:
    """The UNet learns another thing with the held text encoder than without it."""
    path = first(watched, pictures)
    cut = {name: tensor for name, tensor in read_lora(path).tensors.items() if not name.startswith("lora_te_")}
    alone = path.with_name("cut.safetensors")
    write_lora(alone, cut, {}, overwrite=False)
    learned = {}
    for name, source in (("with", path), ("without", alone)):
        again = Watched(watched.host)
        again.run(
            pictures, **STILL, network__continue_from=str(source), optimizer__unet_lr=0.02,
            optimizer__text_encoder_lr=0, output__name=name,
        )  # fmt: skip
        learned[name] = watched.tensors(f"{name}.safetensors")
    ups = [name for name in cut if "lora_up" in name]
    assert any(float((learned["with"][name] - learned["without"][name]).abs().max()) > 1e-3 for name in ups)


def test_a_preset_holds_for_a_file_that_is_gone_on_from(watched: Watched, pictures: Path) -> None:
    """Case 4: what is outside the preset stays bit for bit."""
    path = first(watched, pictures, output__precision="bf16")
    before = read_lora(path).tensors
    second = Watched(watched.host)
    view = second.run(
        pictures, **FAST, **STILL, network__continue_from=str(path), blocks__preset="middle",
        blocks__rates="layer_0=0", output__name="second",
    )  # fmt: skip
    assert view.state == "finished", view.error
    after = watched.tensors("second.safetensors")
    assert after.keys() == before.keys()
    for name in before:
        learns = "_mid_block_" in name or ("lora_te_" in name and "_layers_0_" not in name)
        if not learns:
            assert torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype
        elif "lora_up" in name:
            assert not torch.equal(before[name].float(), after[name].float())
    arguments = json.loads(metadata_of(path.with_name("second.safetensors"))["ss_network_args"])
    assert arguments["blocks_preset"] == "middle" and arguments["continued_from"] == "first.safetensors"


def test_what_cannot_hold_is_refused(watched: Watched, pictures: Path) -> None:
    path = first(watched, pictures, training__max_steps=1, blocks__preset="input", optimizer__text_encoder_lr=0)
    said = refused_file(watched, pictures, ConfigError, network__continue_from=str(path), blocks__ranks="middle=2")
    assert "blocks.ranks = 'middle=2' has no meaning beside network.continue_from" in said
    again = Watched(watched.host)
    view = again.run(pictures, network__continue_from=str(path), blocks__preset="middle", output__name="second")
    assert view.state == "failed" and "has no layer that is to learn" in view.error


def refused_file(watched: Watched, pictures: Path, error: type[Exception], **changes: Any) -> str:
    (watched.host.lora_folder() / "first.safetensors").rename(watched.host.lora_folder() / "learned.safetensors")
    changes["network__continue_from"] = str(watched.host.lora_folder() / "learned.safetensors")
    watched.events.clear()
    said = refused(watched, pictures, error, **changes, output__name="second")  # type: ignore[arg-type]
    (watched.host.lora_folder() / "learned.safetensors").rename(watched.host.lora_folder() / "first.safetensors")
    return said


def test_ranks_are_those_of_the_tensors(watched: Watched, pictures: Path) -> None:
    """Case 4: a rank 4 / alpha 2 file gone on from with the form at 32 / 16."""
    path = first(watched, pictures, training__max_steps=1)
    second = Watched(watched.host)
    second.run(
        pictures, network__continue_from=str(path), network__rank=32, network__alpha=16.0, output__name="second",
        training__max_steps=1,
    )  # fmt: skip
    metadata = metadata_of(path.with_name("second.safetensors"))
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")


PERTURBED = {"noise.perturbation": 0.1, "noise.perturbation_random": True}
OFFSET = {"noise.offset": 0.1, "noise.offset_random": True, "noise.offset_adaptive": 0.2}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, {}),
        ({"noise.offset": 0.1}, {"ss_noise_offset": 0.1}),
        (
            OFFSET,
            {"ss_noise_offset": 0.1, "ss_noise_offset_random_strength": True, "ss_adaptive_noise_scale": 0.2},
        ),
        (OFFSET | {"noise.offset": 0}, {}),
        (
            {"noise.pyramid_iterations": 6, "noise.pyramid_discount": 0.4},
            {"ss_multires_noise_iterations": 6, "ss_multires_noise_discount": 0.4},
        ),
        (PERTURBED, {"ss_ip_noise_gamma": 0.1, "ss_ip_noise_gamma_random_strength": True}),
        (PERTURBED | {"noise.perturbation": 0}, {}),
        ({"loss.weighting": "min_snr", "loss.min_snr_gamma": 4}, {"ss_min_snr_gamma": 4}),
        ({"loss.weighting": "debiased"}, {"ss_debiased_estimation": True}),
        (
            {"loss.type": "huber", "loss.huber_schedule": "constant", "loss.huber_c": 0.2, "loss.huber_scale": 0.5},
            {"ss_loss_type": "huber", "ss_huber_schedule": "constant", "ss_huber_c": 0.2, "ss_huber_scale": 0.5},
        ),
        ({"loss.type": "l1"}, {"ss_loss_type": "l1"}),
        ({"noise.min_timestep": 20}, {"modelspec.timestep_range": "20,1000"}),
    ],
)
def test_what_is_unusual_of_noise_and_loss_is_told(values: dict[str, Any], told: dict[str, Any]) -> None:
    plan = SimpleNamespace(job=from_values({"loss.weighting": "none"} | values))
    facts: Any = SimpleNamespace(plan=plan, schedule=SimpleNamespace(zero_terminal=False))
    assert _objective(facts) == told


def test_pictures_are_counted_by_their_part() -> None:
    def counted(**own: Any) -> dict[str, object]:
        roles = [("learn", 2), ("learn", 0.5), ("learn", 0.5), ("class", 1), ("class", 3), ("before", 4)]
        samples = [SimpleNamespace(role=role, repeats=repeats) for role, repeats in roles if role in own["roles"]]
        job = from_values({"prior.weight": 0.5, "validation.pictures": "share"} | own.get("values", {}))
        plan = SimpleNamespace(job=job, held=SimpleNamespace(pictures=own.get("held", ())))
        facts: Any = SimpleNamespace(plan=plan, encoded=SimpleNamespace(samples=samples))
        return _pictures(facts)

    assert counted(roles=["learn"]) == {"ss_num_train_images": 3, "ss_num_reg_images": 0}
    assert counted(roles=["learn", "before", "class"]) == {
        "ss_num_train_images": 7, "ss_num_reg_images": 4, "ss_prior_loss_weight": 0.5,
    }  # fmt: skip
    held = {"validation.seed": 3, "validation.share": 0.2, "validation.every": 0}
    assert counted(roles=["learn"], held=(1, 2), values=held) == {
        "ss_num_train_images": 3, "ss_num_reg_images": 0, "ss_num_validation_images": 2, "ss_validation_seed": 3,
        "ss_validation_split": 0.2, "ss_validate_every_n_epochs": 1,
    }  # fmt: skip


def test_what_is_on_of_sizes_and_variations_is_told() -> None:
    buckets = {"buckets.enabled": True, "buckets.low": 320, "buckets.high": 960, "buckets.enlarge": False}
    for values, told in (
        ({}, {}),
        ({"augment.mirror": True}, {"ss_flip_aug": True}),
        ({"augment.colour": 0.1, "augment.crop": True}, {"ss_color_aug": True, "ss_random_crop": True}),
        (
            buckets,
            {
                "ss_enable_bucket": True, "ss_min_bucket_reso": 320, "ss_max_bucket_reso": 960,
                "ss_bucket_no_upscale": True,
            },
        ),
    ):  # fmt: skip
        assert _sizes_and_variations(from_values(values)) == told


def test_what_the_model_spec_says() -> None:
    job = from_values(
        {"output.name": "x", "dataset.trigger_word": " zrk ", "dataset.width": 512, "dataset.height": 768}
    )
    plan, model = SimpleNamespace(job=job, kind=kind_of(job)), SimpleNamespace(family=SD1)
    facts: Any = SimpleNamespace(plan=plan, model=model, schedule=SimpleNamespace(prediction="v"), started=0)
    told = {name.removeprefix("modelspec."): value for name, value in _model_spec(facts).items()}
    assert told.pop("date").startswith("19") and told.pop("implementation")
    assert told == {
        "sai_model_spec": "1.0.0", "architecture": "stable-diffusion-v1/lora", "title": "x", "resolution": "512x768",
        "prediction_type": "v", "encoder_layer": 1, "trigger_phrase": "zrk",
    }  # fmt: skip


def layer(key: str, rank: int, alpha: float | None) -> dict[str, torch.Tensor]:
    tensors = {f"{key}.lora_down.weight": torch.zeros(rank, 8), f"{key}.lora_up.weight": torch.zeros(8, rank)}
    return tensors | ({} if alpha is None else {f"{key}.alpha": torch.tensor(alpha)})


ATTENTION = "attentions_0_transformer_blocks_0_attn1_to_q"


def test_ranks_that_differ() -> None:
    one = layer(f"lora_unet_down_blocks_0_{ATTENTION}", 4, 2.0)
    two = layer(f"lora_unet_mid_block_{ATTENTION}", 8, 2.0)
    text = layer("lora_te_text_model_encoder_layers_0_mlp_fc1", 4, None)
    assert with_ranks({}, {}) == {}
    same = with_ranks({"ss_network_args": '{"algo": "lora"}'}, one)
    assert (same["ss_network_dim"], same["ss_network_alpha"]) == ("4", "2.0")
    assert same["ss_network_args"] == '{"algo": "lora"}'
    mixed = with_ranks({}, one | two)
    assert (mixed["ss_network_dim"], mixed["ss_network_alpha"]) == ("Dynamic", "2.0")
    listed = json.loads(mixed["ss_network_args"])["block_dims"].split(",")
    assert dict(zip(SD1.unet.blocks, listed, strict=True)) == dict.fromkeys(SD1.unet.blocks, "0") | {
        "input_1": "4",
        "middle": "8",
    }
    assert "block_alphas" not in json.loads(mixed["ss_network_args"])  # they agree
    assert with_ranks({}, one | text)["ss_network_alpha"] == "Dynamic"
    weaker = with_ranks({}, one | layer(f"lora_unet_mid_block_{ATTENTION}", 4, 1.0))
    assert list(json.loads(weaker["ss_network_args"])) == ["block_alphas"]
    alphas = dict(zip(SD1.unet.blocks, json.loads(weaker["ss_network_args"])["block_alphas"].split(","), strict=True))
    assert (alphas["input_1"], alphas["middle"], alphas["output_3"]) == ("2.0", "1.0", "0")
    apart = with_ranks({}, one | layer(f"lora_unet_down_blocks_0_{ATTENTION[:-1]}k", 16, 2.0))
    assert apart["ss_network_dim"] == "Dynamic" and "ss_network_args" not in apart


def test_ranks_of_convolutions_and_of_the_relatives(watched: Watched, pictures: Path) -> None:
    for name, dim in (("locon", "4"), ("loha", "4"), ("lokr", "Dynamic")):
        run = Watched(watched.host)
        run.run(
            pictures,
            **{**ADAPTERS[name], "network__conv_rank": 2, "network__conv_alpha": 1.0},
            output__name=name,
            training__max_steps=1,
        )
        metadata = metadata_of(watched.host.lora_folder() / f"{name}.safetensors")
        arguments = json.loads(metadata["ss_network_args"])
        if name != "lokr":  # a layer that is small enough is stored whole there
            assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (dim, "2.0")
            assert (arguments["conv_dim"], arguments["conv_alpha"]) == ("2", "1.0")
        assert arguments["algo"] == name and metadata["ss_network_module"] == "lycoris.kohya"


def test_alpha_of_a_rank_stabilised_lora_is_the_one_in_the_file(watched: Watched, pictures: Path) -> None:
    path = first(watched, pictures, network__rank_stabilised=True, training__max_steps=1)
    metadata = metadata_of(path)
    assert float(metadata["ss_network_alpha"]) / float(metadata["ss_network_dim"]) == 2.0 / 4**0.5
    assert "rs_lora" not in metadata["ss_network_args"]


def test_rates_are_the_kinds_own(watched: Watched, pictures: Path) -> None:
    """An embedding, a hypernetwork and a checkpoint are not learned at the LoRA's rates."""
    common: dict[str, Any] = {"training__max_steps": 1, "optimizer__unet_lr": 0.5, "optimizer__text_encoder_lr": 0.25}
    watched.run(pictures, **common, network__kind="embedding", embedding__learning_rate=0.125, output__name="zrk-a")
    metadata = metadata_of(watched.host.embedding_folder() / "zrk-a.safetensors")
    assert metadata["ss_learning_rate"] == "0.125" and metadata["modelspec.architecture"].endswith("/textual-inversion")
    assert (
        not {"ss_unet_lr", "ss_text_encoder_lr", "ss_network_dim", "ss_network_alpha", "ss_network_module"}
        & metadata.keys()
    )
    Watched(watched.host).run(
        pictures, **common, network__kind="checkpoint", finetune__unet_lr=1e-6, finetune__difference_rank=3
    )
    metadata = metadata_of(watched.host.checkpoint_folder() / "learned.safetensors")
    assert (metadata["ss_learning_rate"], metadata["ss_unet_lr"], metadata["ss_text_encoder_lr"]) == (
        "1e-06",
        "1e-06",
        "None",
    )
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1" and "ss_network_dim" not in metadata
    metadata = metadata_of(watched.host.lora_folder() / "learned.safetensors")
    assert metadata["ss_network_dim"] == "3" and metadata["ss_unet_lr"] == "1e-06"


def test_class_pictures_are_counted_apart(watched: Watched, pictures: Path) -> None:
    watched.run(pictures, prior__class_prompt="disc", prior__class_pictures=2, prior__weight=0.5, training__max_steps=1)
    metadata = metadata_of(watched.host.lora_folder() / "learned.safetensors")
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("6", "2")
    assert metadata["ss_prior_loss_weight"] == "0.5"


def test_hashes_are_sd_scripts(tmp_path: Path) -> None:
    """sd-scripts' precalculate_safetensors_hashes."""
    tensors = {
        "lora_unet_x.lora_down.weight": torch.randn(600, 600),
        "lora_unet_x.lora_up.weight": torch.randn(600, 600),
    }
    path, plain = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_lora(path, tensors, {"ss_output_name": "a", "modelspec.title": "b"}, overwrite=False)
    metadata = metadata_of(path)
    save_file(tensors, str(plain), {name: value for name, value in metadata.items() if name.startswith("ss_")})
    data = plain.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[8 + length :]).hexdigest()
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]


def test_embeddings_that_a_file_brings_along_stay(watched: Watched, pictures: Path) -> None:
    watched.run(
        pictures,
        **FAST,
        network__kind="pivotal",
        embedding__names="zrk-a, zrk-b",
        output__name="both",
        training__max_steps=1,
    )
    path = watched.host.lora_folder() / "both.safetensors"
    words = {name: tensor for name, tensor in read_lora(path).tensors.items() if name.startswith("bundle_emb.")}
    assert len(words) == 2
    for kind, names in (("pivotal", "zrk-a"), ("lora", "")):
        again = Watched(watched.host)
        view = again.run(
            pictures, **FAST, network__kind=kind, embedding__names=names, network__continue_from=str(path),
            output__name=kind, training__max_steps=1,
        )  # fmt: skip
        assert view.state == "finished", view.error
        after = watched.tensors(f"{kind}.safetensors")
        assert torch.equal(after["bundle_emb.zrk-b.string_to_param.*"], words["bundle_emb.zrk-b.string_to_param.*"])
        same = torch.equal(after["bundle_emb.zrk-a.string_to_param.*"], words["bundle_emb.zrk-a.string_to_param.*"])
        assert same == (kind == "lora")


def test_a_file_without_any_layer(watched: Watched, pictures: Path) -> None:
    path = watched.host.root / "strange.safetensors"
    save_file(layer("lora_unet_elsewhere", 4, 2.0), str(path))
    view = watched.run(pictures, network__continue_from=str(path))
    assert view.state == "failed" and "do not share lora_unet_elsewhere" in view.error
