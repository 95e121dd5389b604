"""What the core's tests share: a tiny SD1-shaped model in two layouts, pictures, hosts, and a full snapshot of a model.

Where numbers of two ways are compared, latents are 16×16 and not 8×8: at the coarsest level the latter leave one cell,
where GroupNorm's 32 groups of 64 channels hold two values each, and rounding errors grow ten-thousandfold (in float64
the two ways agree).
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from bench import shapes
from lib_trainer.config import JobConfig, from_values
from lib_trainer.families.family import Family
from lib_trainer.families.prediction import Predicts
from lib_trainer.files import all_by_stem
from lib_trainer.host.folders import FoldersBelow
from lib_trainer.ports import Exchange, HeldPart, LoadedModel, NoiseSchedule, PreviewRequest
from lib_trainer.refusals import Sentence

CONTEXT = 32
SCALE = 0.18215
UNET: dict[str, Any] = shapes.SD1_UNET | {
    "image_size": 8,
    "model_channels": 32,
    "channel_mult": [1, 1, 2, 2],
    "num_heads": 4,
    "context_dim": CONTEXT,
}
VAE: dict[str, Any] = shapes.VAE | {"resolution": 64, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
CLIP: dict[str, Any] = {
    "hidden_size": CONTEXT,
    "intermediate_size": 64,
    "projection_dim": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}


@contextlib.contextmanager
def shallow() -> Iterator[None]:
    """What is built meanwhile, of whichever family, has two levels of one block each and attention on the lower one: a
    quarter of the tiny models' layers, for what does not hang on depth."""
    from unittest import mock

    from tests import tiny_families

    less = {"num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [2]}
    with contextlib.ExitStack() as stack:
        for shape in (UNET, tiny_families.V2_UNET, tiny_families.XL_UNET):
            stack.enter_context(mock.patch.dict(shape, less))
        yield


class Posterior:
    """As much of ldm's DiagonalGaussianDistribution as is read."""

    def __init__(self, parameters: torch.Tensor) -> None:
        self.parameters = parameters


class LdmVae(nn.Module):
    """ldm's real Encoder and Decoder, held as ldm's AutoencoderKL holds them (which itself wants pytorch-lightning)."""

    def __init__(self) -> None:
        from ldm.modules.diffusionmodules.model import Decoder, Encoder

        super().__init__()
        self.encoder, self.decoder = Encoder(**VAE), Decoder(**VAE)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def encode(self, pixels: torch.Tensor) -> Posterior:
        return Posterior(self.quant_conv(self.encoder(pixels)))


def scaled_linear() -> torch.Tensor:
    """SD1's ᾱ, float64, computed with numpy."""
    return torch.from_numpy(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))


@dataclass
class Tiny:
    """One set of random weights: real ldm and transformers modules, and the same as a single file at `path`."""

    path: Path
    unet: nn.Module
    vae: LdmVae
    text: nn.Module

    def in_ldm(self) -> Any:
        """The model through ldm's classes."""
        from lib_trainer.host.ldm.model import LdmModel
        from lib_trainer.host.standalone.tokenizer import load_tokenizer
        from lib_trainer.host.text.texts import Texts

        text = Texts([self.text], load_tokenizer())
        return LdmModel(self.unet, self.vae, text, tiny_schedule(), SCALE, "tiny", self.path)

    def in_diffusers(self) -> Any:
        """The same weights through the standalone host's loader."""
        from lib_trainer.host.standalone.model import DiffusersModel

        return DiffusersModel.load(self.path, torch.device("cpu"))


def build_tiny(folder: Path, shift: float = 0.0) -> Tiny:
    """`shift`: of the text encoder's last norm. Without one the mean of a context is a rounding error, perhaps 0, and
    emphasis divides by it."""
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(7)
        unet, vae, text = UNetModel(**UNET), LdmVae(), CLIPTextModel(CLIPTextConfig(**CLIP))
        with torch.no_grad():
            drawn(unet, vae)
            text.text_model.embeddings.token_embedding.weight.normal_(0, 1)
            text.text_model.embeddings.position_embedding.weight.normal_(0, 0.3)
            text.text_model.final_layer_norm.bias.fill_(shift)
    texts = {"cond_stage_model.transformer.": text.state_dict()}
    return Tiny(write_file(folder / "tiny.safetensors", unet, vae, texts, ldm_config()), unet, vae, text)


def drawn(*modules: nn.Module) -> None:
    """Random weights where a class begins with zeros, as ldm does in its residual branches."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(0, 0.7 / parameter[0].numel() ** 0.5)


def write_file(
    path: Path, unet: nn.Module, vae: nn.Module, texts: dict[str, dict[str, torch.Tensor]], config: dict[str, Any]
) -> Path:
    """A single file with its yaml (JSON is YAML) and the text encoder's config beside it. `texts`: by their prefix."""
    from safetensors.torch import save_file

    parts = {"model.diffusion_model.": unet.state_dict(), "first_stage_model.": vae.state_dict()} | texts
    tensors = {prefix + name: one.contiguous() for prefix, state in parts.items() for name, one in state.items()}
    save_file(tensors, str(path))
    path.with_suffix(".yaml").write_text(json.dumps(config), encoding="utf-8")
    (path.parent / "clip").mkdir(exist_ok=True)
    (path.parent / "clip" / "config.json").write_text(json.dumps(CLIP), encoding="utf-8")
    return path


def ldm_config(unet: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    return {
        "model": {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": 0.00085,
                "linear_end": 0.012,
                "timesteps": 1000,
                "scale_factor": SCALE,
                "unet_config": {"params": unet or UNET},
                "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": VAE}},
                "cond_stage_config": {"params": {"version": "clip"}},
                **params,
            },
        }
    }


def roots_of(model: Any) -> tuple[nn.Module, ...]:
    return model.unet, model.vae, model.text.encoders[0].module


def leave_traces(model: Any) -> None:
    """What another extension may have left: flags, modes, forwards and hooks that are not the defaults."""
    linear = next(m for m in model.unet.modules() if isinstance(m, nn.Linear) and m.in_features == CONTEXT)
    linear.__dict__["forward"] = functools.partial(type(linear).forward, linear)
    model.text.encoders[0].module.text_model.encoder.layers[1].__dict__["forward"] = (
        model.text.encoders[0].module.text_model.encoder.layers[1].forward
    )
    linear.register_forward_hook(_harmless_hook)
    norms = [m for m in model.unet.modules() if isinstance(m, nn.LayerNorm)]
    norms[0].train()
    norms[1].weight.requires_grad_(False)
    norms[1].eval()


def _harmless_hook(module: nn.Module, args: Any, out: Any) -> None:
    return None


def snapshot(*roots: nn.Module) -> dict[str, object]:
    """Everything about the modules that a run might change: flags, modes, types, bytes, attributes, hooks."""
    seen: dict[str, object] = {}
    for index, root in enumerate(roots):
        for name, module in root.named_modules():
            where, own = f"{index}.{name}", module.__dict__
            seen[f"{where} modes"] = (module.training, type(module), id(own.get("forward")))
            seen[f"{where} attributes"] = frozenset(own)
            plain = {k: (type(v), v) for k, v in own.items() if isinstance(v, (bool, int, float, str, torch.dtype))}
            seen[f"{where} values"] = plain
            hooks = {k: [*map(id, v.values())] for k, v in own.items() if "hooks" in k and isinstance(v, dict) and v}
            seen[f"{where} hooks"] = hooks
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            facts = (id(tensor), tensor.dtype, tensor.device, tuple(tensor.shape), tuple(tensor.stride()))
            seen[f"{index}.{name} tensor"] = (*facts, tensor.requires_grad, tensor.grad is None)
            seen[f"{index}.{name} bytes"] = data  # to compare takes less time than a digest
    return seen


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]


def draw_pictures(folder: Path, count: int = 6, side: int = 64, size: tuple[int, int] | None = None) -> Path:
    """Coloured discs with captions; every second caption is in its own style."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = Image.new("RGB", size or (side, side), (250, 250, 40 * index % 255))
        ImageDraw.Draw(image).ellipse((4 + index, 8, 44 + index, 50), fill=(30 * index % 255, 90, 200))
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"disc, colour {index}, saber_(fate)", encoding="utf-8")
    return folder


def job_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """A small fp32 job; `changes` are `section__field=value`."""
    values: dict[str, Any] = {
        "dataset.folder": str(folder),
        "dataset.trigger_word": "zork",
        "dataset.width": 64,
        "dataset.height": 64,
        "dataset.repeats": 1,
        "network.rank": 4,
        "network.alpha": 2.0,
        "optimizer.unet_lr": 1e-3,
        "optimizer.text_encoder_lr": 1e-3,
        "optimizer.schedule": "constant",
        "training.max_steps": 3,
        "training.precision": "fp32",
        "training.seed": 5,
        "output.name": "learned",
        "output.precision": "fp32",
        "preview.steps": 1,
        "preview.every": 0,
    }
    return values | {name.replace("__", "."): value for name, value in changes.items()}


def make_job(folder: Path, **changes: Any) -> JobConfig:
    return from_values(job_values(folder, **changes))


@dataclass
class PlainLease:
    interrupted: str = ""
    shown: list[tuple[int, int, str]] = field(default_factory=list)

    def progress(self, done: int, total: int, text: str) -> None:
        self.shown.append((done, total, text))


@dataclass
class ModelHost(FoldersBelow):
    """A host around a model that is there already; its previews are blank."""

    loaded: LoadedModel
    root: Path
    lease_: PlainLease = field(default_factory=PlainLease)
    on_preview: Callable[[PreviewRequest], None] = lambda request: None

    def check(self) -> None: ...

    def device(self) -> torch.device:
        return torch.device("cpu")

    def family(self) -> Family:
        return self.loaded.family

    def inpaints(self) -> bool:
        return self.loaded is not None and self.loaded.inpaints

    def predicts(self) -> Predicts:
        schedule = self.loaded.schedule if self.loaded is not None else NoiseSchedule(torch.ones(1), "epsilon")
        return Predicts(schedule.prediction, schedule.zero_terminal, Sentence("prediction.by_yaml"))

    def model(self) -> LoadedModel:
        return self.loaded

    @contextlib.contextmanager
    def lease(self, title: str, *, trains: bool = False) -> Iterator[PlainLease]:
        yield self.lease_

    def preview(self, request: PreviewRequest) -> Image.Image:
        self.on_preview(request)
        return Image.new("RGB", (request.width, request.height))

    def describe(self) -> str:
        return "a test's"

    def samplers(self) -> Sequence[str]:
        return ()

    def prompt_files(self, folder: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
        return all_by_stem(folder, endings)

    @property
    def exchanged(self) -> None:
        return None

    def exchange(self, told: Sentence) -> Exchange:
        raise NotImplementedError

    def model_folders(self) -> dict[str, list[Path]]:
        return {}

    def token_count(self, text: str) -> int:
        return 2

    def parts(self) -> dict[str, HeldPart]:
        return {}

    def added(self, path: Path) -> None: ...


def tiny_schedule() -> NoiseSchedule:
    return NoiseSchedule(scaled_linear(), "epsilon")


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖ / ‖other‖."""
    one, other = one.cpu().double(), other.cpu().double()
    return float((one - other).norm() / other.norm())


def network_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative difference of two LoRAs, over all their tensors."""
    assert one.keys() == other.keys()
    names = sorted(one)
    return relative(torch.cat([one[n].flatten() for n in names]), torch.cat([other[n].flatten() for n in names]))


def assert_same_training(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], apart: dict[str, torch.Tensor]
) -> None:
    """Two runs of one job agree to a tenth of their distance to `apart`, a run that must differ.

    Not bit for bit: some processors' matrix products add in another order each time, and Adam magnifies the last bit of
    a gradient near zero.
    """
    distance = network_difference(one, apart)
    assert distance > 1e-3
    assert network_difference(one, other) < 0.1 * distance
