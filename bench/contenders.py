"""Who takes part in `bench.train_step`: one training step of LoRA, written by each in its own way.

  floor       forward and backward through frozen modules with plain adapters; no noise, optimizer, clipping or events
  ours        `lib_trainer.training.loop.train`: everything a run does in a step; on an NVIDIA card recorded passes
  unrecorded  the same without records, as runs are whose steps have too many forms, or something that forbids it
  peft        diffusers' own recipe: UNet and text encoders with peft's adapters, DDPMScheduler, clipping, AdamW
  sd-scripts  its own networks/lora.py on the same modules, and the step of its train_network.py: noise, gradients down
              to the latents, loss, clipping, AdamW, the loss read at once. Only where its checkout is named

All adapt the attention and feed-forward layers of the same architecture at one rank and alpha: 192 layers of SD 1.5's
UNet and 72 of its text encoder; 722 of SDXL's UNet, and 72 and 192 of its text encoders. Weights are random. The frozen
model is held in the run's precision by all of them, the adapters in fp32, products under autocast. CLIP attends by
torch's fused kernels in all of them: sd-scripts pins transformers 4.54, which does so; older ones do not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional as F

from bench.random_models import FamilyName, build_model
from lib_trainer.config import OptimizerConfig
from lib_trainer.host.holding import frozen
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.standalone.tokenizer import load_tokenizer
from lib_trainer.host.weights import held_in
from lib_trainer.kinds.recipe import Recipe
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.patching import attribute, replaced_forward
from lib_trainer.ports import Conditioning, PictureSize, TrainingState
from lib_trainer.training import graphs
from lib_trainer.training.captions import CachedCaptions, CaptionSource, LiveCaptions
from lib_trainer.training.loop import Batch, LoopOptions, StepBatches, train
from lib_trainer.training.objective import Objective
from lib_trainer.training.optimizers import make_optimizer
from lib_trainer.training.precision import autocast
from lib_trainer.training.scaling import loss_scaler
from lib_trainer.training.schedules import LearningRates
from lib_trainer.training.state import TrainState

CAPTION = "a red circle, white background"
RANK, ALPHA = 32, 16

Losses = list[Any]
"""Numbers, or tensors of one number that may still be on their way."""


@dataclass(frozen=True)
class Contender:
    """`step(count)` takes so many steps and gives their losses; `layers` are adapted, by `numbers` trained numbers."""

    step: Callable[[int], Losses]
    layers: int
    numbers: int


@dataclass(frozen=True)
class Setting:
    """What all contenders do. `side` in pixels."""

    family: FamilyName = "sd1"
    size: str = "mini"
    dtype: torch.dtype = torch.float32
    side: int = 64
    batch: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    text_encoder: bool = True
    scripts: Path | None = None

    def latents(self) -> torch.Tensor:
        return torch.randn(self.batch, 4, self.side // 8, self.side // 8)

    def picture(self) -> PictureSize:
        return PictureSize((self.side, self.side), (0, 0), (self.side, self.side))

    def targets(self, model: DiffusersModel) -> list[Any]:
        found = [target for target in model.adaptable_modules() if target.group == "transformer"]
        return [target for target in found if self.text_encoder or target.part == "unet"]

    def model(self) -> DiffusersModel:
        return build_model(self.size, self.device, self.family, self.dtype)


def floor(model: DiffusersModel, own: Setting, stack: contextlib.ExitStack) -> Contender:
    """The least that any trainer of these adapters must do. Adapters are written out here, not taken from ours."""
    stack.enter_context(frozen(model.unet, *model.text.parts().values()))
    stack.enter_context(held_in(own.dtype, model.unet, *model.text.parts().values()))
    stack.enter_context(_fused_clip(model))
    trained: list[nn.Parameter] = []
    for target in own.targets(model):
        down, up, forward = _plain_adapter(target.module)
        trained += [down, up]
        stack.enter_context(replaced_forward(target.module, forward))
    latents, target_noise = (own.latents().to(own.device) for _ in range(2))
    timesteps = torch.full((own.batch,), 500, device=own.device)
    sizes = [own.picture()] * own.batch

    def told() -> Conditioning:
        said = model.encode_text([CAPTION] * own.batch, 1, 1)
        return said.sized(sizes).to(own.device) if model.family.sizes else said

    encode = _encoder(model, own, stack, told)

    def step(count: int) -> Losses:
        losses = []
        for _ in range(count):
            for parameter in trained:
                parameter.grad = None
            with autocast(model.device, own.dtype):
                prediction = model.predict(latents, timesteps, encode())
            losses.append(F.mse_loss(prediction.float(), target_noise))
            losses[-1].backward()
            losses[-1] = losses[-1].detach()
        return losses

    return Contender(step, len(trained) // 2, _numbers(trained))


def _encoder(
    model: DiffusersModel, own: Setting, stack: contextlib.ExitStack, encode: Callable[[], Conditioning]
) -> Callable[[], Conditioning]:
    """Encodes at each call while the text encoders learn, once otherwise; they leave the device then, as sd-scripts' do
    when what they say is kept."""
    if own.text_encoder:
        return encode
    with torch.no_grad(), autocast(own.device, own.dtype):
        told = encode()
    for text in model.text.parts().values():
        stack.callback(text.to, own.device)
        text.to("cpu")
    return lambda: told


def _plain_adapter(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter, Callable[..., torch.Tensor]]:
    base, device = layer.forward, layer.weight.device
    if isinstance(layer, nn.Conv2d):
        down = nn.Parameter(torch.randn(RANK, layer.in_channels, 1, 1, device=device) * 0.01)  # type: ignore[arg-type]
        up = nn.Parameter(torch.zeros(layer.out_channels, RANK, 1, 1, device=device))  # type: ignore[arg-type]
        return down, up, lambda x: base(x) + F.conv2d(F.conv2d(x, down), up)
    assert isinstance(layer, nn.Linear)
    down = nn.Parameter(torch.randn(RANK, layer.in_features, device=device) * 0.01)  # type: ignore[arg-type]
    up = nn.Parameter(torch.zeros(layer.out_features, RANK, device=device))  # type: ignore[arg-type]
    return down, up, lambda x: base(x) + F.linear(F.linear(x, down), up)


@contextlib.contextmanager
def _fused_clip(model: DiffusersModel) -> Iterator[None]:
    """transformers' attention by torch's kernels, with its causal mask, where its own is written out."""
    with contextlib.ExitStack() as stack:
        for root in model.text.parts().values():
            for module in root.modules():
                kind = getattr(getattr(module, "config", None), "_attn_implementation", "eager")
                if type(module).__name__ == "CLIPAttention" and kind == "eager":
                    stack.enter_context(replaced_forward(module, _attending(module)))
        yield


def _attending(module: Any) -> Callable[..., Any]:
    def forward(
        hidden_states: torch.Tensor, attention_mask: Any = None, causal_attention_mask: Any = None, **_: Any
    ) -> Any:
        batch, tokens, width = hidden_states.shape
        layers = module.q_proj, module.k_proj, module.v_proj
        q, k, v = (layer(hidden_states).view(batch, tokens, module.num_heads, -1).transpose(1, 2) for layer in layers)
        mask = None if causal_attention_mask is None else causal_attention_mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        return module.out_proj(out.reshape(batch, tokens, width)), None

    return forward


class _Learned(Recipe):
    """The parameters that learn are set up beside it."""


def ours(model: DiffusersModel, own: Setting, stack: contextlib.ExitStack) -> Contender:
    """A whole step of a run, previews and saving aside; recorded from the third on, where passes are recorded."""
    recorder = graphs.recorder_for(own.device)
    if recorder is None:
        return unrecorded(model, own, stack)
    stack.enter_context(attribute(graphs, "PAYS", 0))
    recorded = graphs.Graphs(recorder)
    stack.callback(recorded.forget)
    return _ours(model, own, stack, recorded)


def unrecorded(model: DiffusersModel, own: Setting, stack: contextlib.ExitStack) -> Contender:
    """A whole step of a run whose passes are not recorded."""
    return _ours(model, own, stack, None)


def _ours(
    model: DiffusersModel, own: Setting, stack: contextlib.ExitStack, recorded: graphs.Graphs | None
) -> Contender:
    network = LoraNetwork.create(own.targets(model), RANK, ALPHA, torch.Generator().manual_seed(0))
    config = OptimizerConfig()
    groups: list[dict[str, Any]] = [
        {
            "params": network.flatten([adapter for adapter in network if adapter.part == part], whole=True),
            "lr": 1e-4,
            "name": part,
        }
        for part in network.parts()
    ]
    optimizer = make_optimizer(groups, config)
    live = LiveCaptions(model, 1, 75)
    captions: CaptionSource = live
    state = TrainingState(own.dtype, checkpointing=False, text_encoder=own.text_encoder)
    held = stack.enter_context(model.holding(state))
    if not own.text_encoder:
        captions = cached = CachedCaptions(live)
        with autocast(own.device, own.dtype):
            cached.fill([CAPTION], lambda done, total: None, lambda: False)
    held.train(text_encoder=own.text_encoder)
    stack.enter_context(network.applied())
    rates = LearningRates(optimizer, config, 1000)
    scaler, noise = loss_scaler(own.device, own.dtype), torch.Generator().manual_seed(2)
    learning = TrainState(_Learned(), optimizer, scaler, noise, Objective(model.schedule))
    batch = Batch(own.latents(), [CAPTION] * own.batch, [own.picture()] * own.batch)
    steps = itertools.repeat(StepBatches(1, [batch]))

    def step(count: int) -> Losses:
        learning.step, losses = 0, Losses()
        options = LoopOptions(count, own.dtype, 1.0, graphs=recorded)
        train(model, captions, steps, learning, rates, options, lambda done: losses.append(done.loss), lambda: False)
        return losses

    return Contender(step, len(network), _numbers([one for group in groups for one in group["params"]]))


def peft(model: DiffusersModel, own: Setting, stack: contextlib.ExitStack) -> Contender:
    """diffusers' text-to-image LoRA recipe, with the same layers as ours."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    words = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    parts = _frozen_parts(model, own)
    learning = parts if own.text_encoder else parts[:1]
    for part, layers in zip(parts, [names, *[words] * len(parts)], strict=False):
        if part in learning:
            stack.callback(_without_peft, part)
            told = LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=layers)
            inject_adapter_in_model(told, part)
    if own.dtype is not torch.float32:
        cast_training_params(learning, dtype=torch.float32)
    trained = [p for part in learning for p in part.parameters() if p.requires_grad]
    count = sum(isinstance(module, BaseTunerLayer) for part in learning for module in part.modules())
    return _usual(model, own, stack, trained, count)


def _without_peft(root: nn.Module) -> None:
    for owner in list(root.modules()):
        for name, child in list(owner.named_children()):
            if hasattr(child, "base_layer"):
                setattr(owner, name, child.base_layer)


def _frozen_parts(model: DiffusersModel, own: Setting) -> list[Any]:
    """UNet and text encoders, frozen, in the precision that both recipes hold them in."""
    parts = [model.unet, *model.text.parts().values()]
    for part in parts:
        part.requires_grad_(False)
        part.to(own.dtype)
    return parts


def scripts(model: DiffusersModel, own: Setting, stack: contextlib.ExitStack) -> Contender:
    """sd-scripts' own adapters, from its checkout, in the step of its train_network.py."""
    assert own.scripts is not None
    module = _scripts_module(own.scripts)
    unet, *texts = _frozen_parts(model, own)
    sdxl = own.family == "sdxl"
    with own.device:
        network = module.LoRANetwork(texts, unet, multiplier=1.0, lora_dim=RANK, alpha=ALPHA, is_sdxl=sdxl)
    network.apply_to(texts, unet, own.text_encoder, True)
    for layer in (layer for root in (unet, *texts) for layer in root.modules() if "forward" in layer.__dict__):
        stack.callback(layer.__dict__.pop, "forward")
    network.to(own.device).requires_grad_(True)
    count = len(network.unet_loras) + len(network.text_encoder_loras)
    return _usual(model, own, stack, list(network.parameters()), count, as_scripts=True)


def _scripts_module(folder: Path) -> Any:
    """networks/lora.py alone: of its library it uses the logger's set-up, and SDXL's class to tell it apart."""
    for name, content in (
        ("library", {}),
        ("library.utils", {"setup_logging": lambda *args, **kwargs: None}),
        ("library.sdxl_original_unet", {"SdxlUNet2DConditionModel": type("SdxlUNet2DConditionModel", (), {})}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules.setdefault(name, module)
    spec = importlib.util.spec_from_file_location("scripts_lora", folder / "networks" / "lora.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scripts_lora"] = module
    spec.loader.exec_module(module)
    return module


def _usual(
    model: DiffusersModel,
    own: Setting,
    stack: contextlib.ExitStack,
    trained: list[nn.Parameter],
    layers: int,
    *,
    as_scripts: bool = False,
) -> Contender:
    """Forward, loss, backward, clipping and AdamW, as diffusers' recipe and sd-scripts write them; the loss is read.

    `as_scripts`: timesteps are drawn on the CPU, the noise schedule goes back there in each step, and the latents want
    gradients, as in its train_util.get_noise_noisy_latents_and_timesteps and train_network.get_noise_pred_and_target.
    """
    stack.enter_context(_fused_clip(model))
    unet: Any = model.unet
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, drawn_on = own.latents().to(own.device), torch.device("cpu") if as_scripts else own.device
    encode = _encoder(model, own, stack, _usual_encoder(model, own))

    def one() -> float:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (own.batch,), device=drawn_on).to(own.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        if as_scripts:
            scheduler.alphas_cumprod = scheduler.alphas_cumprod.cpu()
            noisy.requires_grad_(True)
        with autocast(own.device, own.dtype):
            told = encode()
            more = {} if told.sizes is None else {"text_embeds": told.pooled, "time_ids": told.sizes}
            prediction = unet(noisy, timesteps, told.context, added_cond_kwargs=more, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), noise.float(), reduction="none").mean([1, 2, 3]).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return Contender(lambda count: [one() for _ in range(count)], layers, _numbers(trained))


def _usual_encoder(model: DiffusersModel, own: Setting) -> Callable[[], Conditioning]:
    """SD 1.x: the last layer, normed. SDXL: the last but one of both encoders, and the pooled vector of the second."""
    found = load_tokenizer()(CAPTION, padding="max_length", max_length=77, return_tensors="pt").input_ids
    tokens = found.expand(own.batch, -1).to(own.device)
    first, *others = model.text.parts().values()
    if not others:
        return lambda: Conditioning(first(tokens)[0])
    size = own.picture()
    numbers = [*size.original, *size.crop, *size.target]
    sizes = torch.tensor([numbers] * own.batch, dtype=torch.float32, device=own.device)

    def encode() -> Conditioning:
        said = [one(tokens, output_hidden_states=True) for one in (first, *others)]
        return Conditioning(torch.cat([one.hidden_states[-2] for one in said], -1), said[-1].text_embeds, sizes)

    return encode


def _numbers(parameters: Sequence[nn.Parameter]) -> int:
    return sum(one.numel() for one in parameters)


CONTENDERS: dict[str, Callable[[DiffusersModel, Setting, contextlib.ExitStack], Contender]] = {
    "floor": floor,
    "ours": ours,
    "unrecorded": unrecorded,
    "peft": peft,
    "sd-scripts": scripts,
}
"""Each puts its adapters on a model; leaving the stack takes them off again."""

USUALLY = ("floor", "ours", "peft", "sd-scripts")


def taking_part(own: Setting, wanted: Sequence[str], usually: Sequence[str] = USUALLY) -> list[str]:
    """The names asked for, else the usual ones, as far as they are at hand."""
    names = [name for name in CONTENDERS if name in (wanted or usually)]
    return [name for name in names if name != "sd-scripts" or own.scripts is not None]
