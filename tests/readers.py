"""Who reads the files that are written here, as predicates: each raises an AssertionError (or its own) for a refusal.

The rules are read from the sources named and written anew, so that no WebUI has to be installed. A reader is listed
with the kinds of file that it takes; `tests/training/test_readers.py` holds every kind of result against every reader.
"""

from __future__ import annotations

import itertools
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ADAPTERS = ("lora", "locon", "loha", "lokr", "dora", "pivotal", "difference")


@dataclass(frozen=True)
class Reader:
    """`check` gets the path of a file of one of `kinds` with one of `endings`."""

    name: str
    endings: tuple[str, ...]
    kinds: tuple[str, ...]
    check: Callable[[Path], None]


WEBUI_NAMES = re.compile(r"^([^/]+)/((data/\d+)|version|byteorder|.data/serialization_id|(data\.pkl))$")
OLD_WEBUI_NAMES = re.compile(r"^([^/]+)/((data/\d+)|version|(data\.pkl))$")
WEBUI_GLOBALS = {
    "collections OrderedDict",
    *(f"torch._utils {name}" for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(f"torch {kind}Storage" for kind in ("Float", "Half", "Int", "Long", "Double", "Byte", "BFloat16")),
    "torch float32",
    "torch.nn.modules.container ParameterDict",
}


def pickled(path: Path) -> tuple[list[str], set[str]]:
    """Names in an archive, and the globals that its pickle asks for."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (program,) = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        found = {
            str(argument) for code, argument, _ in pickletools.genops(archive.read(program)) if code.name == "GLOBAL"
        }
        assert not any(code.name == "STACK_GLOBAL" for code, _, _ in pickletools.genops(archive.read(program)))
    return names, found


def webui_safe(path: Path, allowed: re.Pattern[str] = WEBUI_NAMES) -> None:
    """modules/safe.py of v1.10.1 (check_pt); Forge, reForge and SD.Next's older versions carry the same file."""
    names, found = pickled(path)
    assert [name for name in names if not allowed.match(name)] == []
    assert found <= WEBUI_GLOBALS


def old_webui_safe(path: Path) -> None:
    """modules/safe.py of v1.0 to v1.6, which forks still carry."""
    webui_safe(path, OLD_WEBUI_NAMES)


def torch_restricted(path: Path) -> None:
    """comfy/utils.py (load_torch_file) and diffusers: torch's own reader with weights_only."""
    torch.load(path, map_location="cpu", weights_only=True)


def safetensors_format(path: Path) -> None:
    """The format's own rules (github.com/huggingface/safetensors), which its readers in other languages insist on."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    assert all(isinstance(one, str) for pair in metadata.items() for one in pair)
    places = sorted(tuple(one["data_offsets"]) for one in header.values())
    assert places[0][0] == 0 and places[-1][1] == len(data) - 8 - length
    assert all(one[1] == other[0] for one, other in itertools.pairwise(places))
    assert data[8:9] == b"{" and length % 8 == 0
    assert load_file(path).keys() == header.keys()


def webui_lora(path: Path) -> None:
    """extensions-builtin/Lora/networks.py and network_*.py: each module has the names of one kind whole."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(path).items():
        key, _, part = name.partition(".")
        modules.setdefault(key, {})[part] = tensor
    for part in modules.pop("bundle_emb", {}):
        word, rest = part.split(".", 1)
        assert word and rest == "string_to_param.*"
    assert modules
    for key, weights in modules.items():
        assert key.startswith(("lora_unet_", "lora_te_text_model_encoder_layers_"))
        lora = {"lora_up.weight", "lora_down.weight"} <= weights.keys()
        loha = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= weights.keys()
        lokr = all(
            {f"lokr_{w}"} <= weights.keys() or {f"lokr_{w}_a", f"lokr_{w}_b"} <= weights.keys() for w in ("w1", "w2")
        )
        assert lora + loha + lokr == 1, key
        assert weights["alpha"].ndim == 0
        if "dora_scale" in weights:  # network.py's finalize_updown divides by norms over the input axis
            assert weights["dora_scale"].shape[0] == 1


def webui_card(path: Path) -> None:
    """sd_models.read_metadata_from_safetensors, network.py and ui_edit_user_metadata.py: what the card shows."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        assert file.read(2) == b'{"'
        file.seek(8)
        metadata = json.loads(file.read(length)).get("__metadata__", {})
    for value in metadata.values():
        if value[:1] == "{":
            json.loads(value)
    assert not metadata["ss_base_model_version"].startswith("sdxl_") and metadata["ss_v2"] == "False"
    float(metadata["ss_training_started_at"])
    for buckets in (json.loads(metadata["ss_bucket_info"])["buckets"],):
        assert all(len(one["resolution"]) == 2 and int(one["count"]) for one in buckets.values())
    assert all(int(one["img_count"]) for one in json.loads(metadata["ss_dataset_dirs"]).values())
    for counts in json.loads(metadata["ss_tag_frequency"]).values():
        assert all(int(count) for count in counts.values())


def sd_scripts_lora(path: Path) -> None:
    """networks/lora.py (create_network_from_weights): rank and alpha of each module from its tensors."""
    tensors = {name: one for name, one in load_file(path).items() if not name.startswith("bundle_emb.")}
    ranks = {name.split(".")[0]: one.size()[0] for name, one in tensors.items() if "lora_down" in name}
    alphas = {name.split(".")[0] for name in tensors if "alpha" in name}
    assert ranks and ranks.keys() == alphas
    for key, rank in ranks.items():
        assert tensors[f"{key}.lora_up.weight"].size()[1] == rank


def webui_embedding(path: Path) -> None:
    """modules/textual_inversion/textual_inversion.py (create_embedding_from_data)."""
    data = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    if "string_to_param" in data:
        (rows,) = data["string_to_param"].values()
        assert data["name"] == path.stem and isinstance(data["step"], int)
    else:
        assert type(next(iter(data.values()))) is torch.Tensor
        (rows,) = data.values()
    assert rows.ndim == 2 and rows.dtype == torch.float32


def diffusers_embedding(path: Path) -> None:
    """diffusers' own loader, from the package that is installed."""
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin, load_textual_inversion_state_dicts

    from lib_trainer.host.standalone.tokenizer import load_tokenizer

    (state,) = load_textual_inversion_state_dicts([str(path.parent)], weight_name=path.name)
    tokens, rows = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings(["<word>"], [state], load_tokenizer())
    assert tokens == ["<word>"] and rows[0].ndim == 2


def webui_hypernetwork(path: Path) -> None:
    """modules/hypernetworks/hypernetwork.py (Hypernetwork.load and HypernetworkModule.load_state_dict)."""
    from torch import nn

    data = torch.load(path, weights_only=True)
    layers, drops = data["layer_structure"], data["dropout_structure"]
    assert layers[0] == layers[-1] == 1 and len(drops) == len(layers)
    for size, pair in data.items():
        if type(size) is int:
            for state in pair:
                parts: list[nn.Module] = []
                for index in range(len(layers) - 1):
                    parts.append(nn.Linear(int(size * layers[index]), int(size * layers[index + 1])))
                    inner = index < len(layers) - 2 or data["activate_output"]
                    if data["activation_func"] not in ("linear", None) and inner:
                        parts.append(nn.Hardswish())
                    if data["is_layer_norm"]:
                        parts.append(nn.LayerNorm(int(size * layers[index + 1])))
                    if drops[index + 1] > 0:
                        parts.append(nn.Dropout(drops[index + 1]))
                module = nn.Module()
                module.linear = nn.Sequential(*parts)
                module.load_state_dict(state)


def webui_checkpoint(path: Path) -> None:
    """modules/sd_models.py: whole parts under CompVis' prefixes, nothing nested, nothing of another family."""
    tensors = load_file(path)
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model.")
    assert all(name.startswith(prefixes) for name in tensors)
    assert all(any(name.startswith(prefix) for name in tensors) for prefix in prefixes)
    assert len({tensor.dtype for tensor in tensors.values()}) == 1


READERS = (
    Reader("WebUI, modules/safe.py", (".pt",), ("embedding", "hypernetwork"), webui_safe),
    Reader("WebUI before 1.7 and its forks, modules/safe.py", (".pt",), ("embedding", "hypernetwork"), old_webui_safe),
    Reader("ComfyUI, torch with weights_only", (".pt",), ("embedding", "hypernetwork"), torch_restricted),
    Reader("the safetensors format", (".safetensors",), (*ADAPTERS, "embedding", "checkpoint"), safetensors_format),
    Reader("WebUI, Lora extension", (".safetensors",), ADAPTERS, webui_lora),
    Reader("WebUI, the card", (".safetensors",), (*ADAPTERS, "embedding", "checkpoint"), webui_card),
    Reader(
        "sd-scripts, networks/lora.py",
        (".safetensors",),
        ("lora", "locon", "dora", "pivotal", "difference"),
        sd_scripts_lora,
    ),
    Reader("WebUI, embeddings", (".pt", ".safetensors"), ("embedding",), webui_embedding),
    Reader("diffusers, embeddings", (".pt", ".safetensors"), ("embedding",), diffusers_embedding),
    Reader("WebUI, hypernetworks", (".pt",), ("hypernetwork",), webui_hypernetwork),
    Reader("WebUI, checkpoints", (".safetensors",), ("checkpoint",), webui_checkpoint),
)
