"""Everything of the host that a run might change, and how it differs from an earlier snapshot."""

from __future__ import annotations

import copy
import hashlib

import ldm.modules.attention
import ldm.modules.diffusionmodules.model
import ldm.modules.diffusionmodules.openaimodel as openaimodel
import torch
from modules import call_queue, devices, lowvram, progress, sd_hijack, sd_models, sd_unet, shared
from torch import nn

CHECKS = ("take_snapshot", "compare_snapshot")
LORA_CACHE = {"network_weights_backup", "network_bias_backup", "network_current_names"}
"""What the built-in Lora extension keeps on modules from its first use on."""
PATCHABLE = (
    nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention, nn.SiLU,
    ldm.modules.attention.CrossAttention, ldm.modules.attention.BasicTransformerBlock,
    ldm.modules.attention.SpatialTransformer, ldm.modules.attention.GEGLU,
    ldm.modules.diffusionmodules.model.AttnBlock, openaimodel.UNetModel, openaimodel.ResBlock,
)  # fmt: skip
PLAIN = (bool, int, float, str, torch.dtype, torch.device)
STATE = ("job", "job_count", "skipped", "interrupted", "stopping_generation", "server_command")

_taken: dict[str, dict[str, object]] = {}


def take_snapshot(label: str) -> int:
    _taken[label] = snapshot()
    return len(_taken[label])


def compare_snapshot(label: str, limit: int = 20) -> list[str]:
    """Names of what differs from the snapshot of that label."""
    before, after = _taken[label], snapshot()
    names = sorted(before.keys() | after.keys())
    different = [name for name in names if before.get(name) != after.get(name)]
    return [f"{name}: {str(before.get(name))[:80]} → {str(after.get(name))[:80]}" for name in different[:limit]]


def snapshot() -> dict[str, object]:
    return {**_model(), **_classes(), **_host(), **_torch()}


def _model() -> dict[str, object]:
    seen: dict[str, object] = {}
    lowvram.send_everything_to_cpu()  # with --medvram the part that was used last is still on the card
    model = sd_models.model_data.sd_model
    for name, module in model.named_modules():
        attributes = vars(module)
        plain = {key: value for key, value in attributes.items() if isinstance(value, PLAIN)}
        seen[f"{name} class"] = type(module)
        seen[f"{name} attributes"] = sorted(attributes.keys() - LORA_CACHE)
        seen[f"{name} values"] = sorted((key, str(value)) for key, value in plain.items())
        seen[f"{name} forward"] = id(attributes["forward"]) if "forward" in attributes else None
        seen[f"{name} merged"] = getattr(module, "network_current_names", ()) != ()
        hooks = {key: value for key, value in attributes.items() if "hooks" in key and hasattr(value, "values")}
        seen[f"{name} hooks"] = sorted((key, [id(hook) for hook in value.values()]) for key, value in hooks.items())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        facts = (tensor.dtype, str(tensor.device), tuple(tensor.shape), tensor.stride(), tensor.requires_grad)
        seen[f"{name} tensor"] = (*facts, tensor.grad is None, digest(tensor))
    seen["alphas_cumprod_original"] = digest(model.alphas_cumprod_original)
    return seen


def _classes() -> dict[str, object]:
    return {f"class {kind.__name__}.forward": id(kind.forward) for kind in PATCHABLE}


def _host() -> dict[str, object]:
    hijack, state = sd_hijack.model_hijack, shared.state
    options = {key: value for key, value in shared.opts.data.items() if value != shared.opts.get_default(key)}
    return {
        "circular": hijack.circular_enabled,
        "fixes": hijack.fixes,
        "embeddings": sorted(hijack.embedding_db.word_embeddings),
        "layers": len(hijack.layers),
        "unet": (id(sd_unet.current_unet), id(sd_unet.current_unet_option)),
        "optimizer": str(sd_hijack.current_optimizer),
        "state": [getattr(state, name) for name in STATE],
        "state attributes": sorted(name for name in vars(state) if callable(getattr(state, name))),
        "queue": call_queue.queue_lock._lock.locked(),
        "tasks": (progress.current_task, list(progress.pending_tasks)),
        "console bar": shared.total_tqdm._tqdm,
        "options": copy.deepcopy(options),
        "command line": copy.deepcopy(vars(shared.cmd_opts)),
        "devices": [str(getattr(devices, name)) for name in ("device", "dtype", "dtype_vae", "dtype_unet", "fp8")],
        "checkpoint": sd_models.model_data.sd_model.sd_checkpoint_info.filename,
    }


def _torch() -> dict[str, object]:
    return {
        "grad": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "autocast": (torch.is_autocast_enabled(), torch.is_autocast_cpu_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


def digest(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()
