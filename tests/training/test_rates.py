"""Which parameters learn at which rate: LoRA+, and a text encoder that stops."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lib_trainer.config import from_values
from lib_trainer.kinds.outputs import Outputs
from lib_trainer.kinds.registry import kind_of
from lib_trainer.networks.lora import LoraAdapter


def recipe_of(model: Any, **changes: Any) -> Any:
    values = {"network.rank": 2, "optimizer.unet_lr": 1e-3, "optimizer.text_encoder_lr": 1e-4, **changes}
    job = from_values({path.replace("__", "."): value for path, value in values.items()})
    return kind_of(job).recipe(job, model, Outputs(()))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_second_matrices_learn_faster(diffusers_model: Any, dropout: float) -> None:
    """Hayou et al. 2024: B at λ times the rate of A; with dropouts the tensors stand by themselves."""
    recipe = recipe_of(diffusers_model, optimizer__lora_plus=16.0, network__dropout=dropout)
    groups = {group["name"]: group for group in recipe.groups()}
    assert {name: round(group["lr"], 9) for name, group in groups.items()} == {
        "unet": 1e-3, "unet B": 16e-3, "te1": 1e-4, "te1 B": 16e-4
    }  # fmt: skip
    for part in ("unet", "te1"):
        own = [one for one in recipe.network if one.part == part]
        assert all(isinstance(one, LoraAdapter) for one in own)
        assert {id(one) for one in groups[part]["params"]} == {id(one.down) for one in own}
        assert {id(one) for one in groups[f"{part} B"]["params"]} == {id(one.up) for one in own}


def test_without_it_each_part_is_one_group(diffusers_model: Any) -> None:
    assert [group["name"] for group in recipe_of(diffusers_model).groups()] == ["unet", "te1"]
    assert [len(group["params"]) for group in recipe_of(diffusers_model).groups()] == [1, 1]
    loha = recipe_of(diffusers_model, network__kind="loha", optimizer__lora_plus=16.0)
    assert [group["name"] for group in loha.groups()] == ["unet", "te1"], "its form does not offer it"


def test_what_is_given_to_an_optimizer_is_what_learns(diffusers_model: Any) -> None:
    """A step of the second matrices alone changes them and nothing else."""
    recipe = recipe_of(diffusers_model, optimizer__lora_plus=4.0)
    before = [(one.down.detach().clone(), one.up.detach().clone()) for one in recipe.network]
    with torch.no_grad():
        for group in recipe.groups():
            if group["name"].endswith(" B"):
                for parameter in group["params"]:
                    parameter.add_(1.0)
    for adapter, (down, up) in zip(recipe.network, before):
        assert torch.equal(adapter.down, down) and torch.equal(adapter.up, up + 1)


def test_files_tell_of_it_in_sd_scripts_names(diffusers_model: Any) -> None:
    values = {"optimizer.lora_plus": 16.0, "network.max_norm": 1.0}
    told = []
    for changes in ({}, values, values | {"network.dora": True}):
        job = from_values({"network.rank": 2, **changes})
        recipe = kind_of(job).recipe(job, diffusers_model, Outputs(()))
        told.append(kind_of(job).metadata(job, recipe))
    assert "loraplus" not in told[0]["ss_network_args"] and "ss_scale_weight_norms" not in told[0]
    assert json.loads(told[1]["ss_network_args"])["loraplus_lr_ratio"] == "16.0"
    assert told[1]["ss_scale_weight_norms"] == "1.0" and "ss_scale_weight_norms" not in told[2]


@pytest.mark.parametrize(("rate", "until"), [(1e-4, {"unet": 1.0, "te1": 0.5}), (0.0, {"unet": 1.0})])
def test_the_text_encoders_share_is_read_where_the_form_shows_it(
    diffusers_model: Any, rate: float, until: dict[str, float]
) -> None:
    for kind, section in (("lora", "optimizer"), ("checkpoint", "finetune")):
        changes = {"network.kind": kind, f"{section}.text_encoder_lr": rate, f"{section}.text_encoder_share": 0.5}
        recipe = recipe_of(diffusers_model, **changes)
        assert {group["name"]: group["until"] for group in recipe.groups()} == until
