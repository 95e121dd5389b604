"""Operations, memory traffic and kept activations of one training step, counted on meta tensors: nothing is computed.

    python -m bench.count_step                              SD 1.5's UNet and text encoder at 512², batch 1
    python -m bench.count_step --model sdxl --sgm FOLDER    SDXL's UNet at 1024²; FOLDER holds the package `sgm`
    python -m bench.count_step --kinds loha lora            what each kind keeps for the backward pass

What is counted is forward and backward of UNet and text encoder with adapters on them, from noisy latents and token ids
to gradients; not the optimizer. CUDA's autocast rules for bf16 are emulated: products in bf16, norms and losses in fp32
unless they are called outside autocast. Views and allocations are no operations; a fused kernel is one. Bytes are those
of every operand and result; "memory-bound" leaves products, convolutions and attention out. Kept are the distinct
storages that autograd saves, without weights.

  ours        `LoadedModel.training` and the network as a run applies it
  sd-scripts  their adapter, org(x) + up(down(x))·multiplier·scale, on the same UNet with the same attention
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.remembered import remembered
from bench.shapes import CLIP_L, SD1_UNET
from lib_trainer import autocasting
from lib_trainer.families.sdxl import SDXL
from lib_trainer.host.holding import frozen
from lib_trainer.host.ldm.attention import efficient_attention
from lib_trainer.host.ldm.model import LdmModel, without_own_checkpoints
from lib_trainer.host.norms import NORMS
from lib_trainer.host.text.texts import Texts
from lib_trainer.networks.adapters import AdapterSpec, LoraAdapter
from lib_trainer.networks.lora import LoraNetwork
from lib_trainer.patching import replaced_forward
from lib_trainer.ports import Conditioning, NoiseSchedule, TrainingState

DTYPE = torch.bfloat16
KINDS = ("lora", "locon", "loha", "lokr")
FORMS = ("ours", "sd-scripts")
META = torch.device("meta")

IN_HALF = {
    F.linear,
    F.conv2d,
    torch.conv2d,
    torch.matmul,
    torch.bmm,
    torch.mm,
    torch.addmm,
    torch.baddbmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.bmm,
}
IN_FULL = {
    F.layer_norm,
    F.group_norm,
    F.softmax,
    F.mse_loss,
    torch.layer_norm,
    torch.group_norm,
    torch.softmax,
    torch.exp,
    torch.norm,
    torch.Tensor.softmax,
    torch.Tensor.pow,
}
VIEWS = re.findall(
    r"\w+",
    """
    view _unsafe_view reshape _reshape_alias transpose t permute expand slice split split_with_sizes chunk
    unsqueeze squeeze detach alias select as_strided unbind narrow lift_fresh empty empty_like empty_strided
    new_empty _local_scalar_dense
    """,
)
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution", "convolution_backward")
PRODUCTS += ("attention", "attention_backward")


class CudaAutocast(TorchFunctionMode):
    """The rules of CUDA's autocast to bf16, and the switch by which the trainer's code asks for it and turns it off.

    A weight that learns is cast once in a forward pass, as autocast's cache does it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on, self._cast = True, dict[int, torch.Tensor]()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return FusedAttention.apply(*args[:3])
        wanted = (DTYPE if function in IN_HALF else torch.float32 if function in IN_FULL else None) if self.on else None
        if wanted is not None:
            args = [self._as(wanted, value) for value in args]
            kwargs = {name: self._as(wanted, value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    def _as(self, dtype: torch.dtype, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype is dtype:
            return value
        if dtype is DTYPE and value.is_leaf and value.requires_grad:
            if id(value) not in self._cast:
                self._cast[id(value)] = value.to(dtype)
            return self._cast[id(value)]
        return value.to(dtype)

    @contextlib.contextmanager
    def emulated(self) -> Iterator[None]:
        def turn(on: bool) -> None:
            self.on = on

        switch = autocasting.Switch(lambda: self.on, lambda: DTYPE, turn)
        with mock.patch.object(autocasting, "switch", lambda kind: switch), self:
            yield


class FusedAttention(torch.autograd.Function):
    """Stands for one fused kernel each way, which keeps its operands, its result and a fp32 number for each row."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        out = _ops().attention(q, k, v)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        return tuple(_ops().attention_backward(q, k, v, gradient))


def _ops() -> Any:
    """The two kernels as operators, defined when they are first asked for."""
    if not _LIBRARY:
        library = torch.library.Library("count_step", "DEF")
        library.define("attention(Tensor q, Tensor k, Tensor v) -> Tensor")
        library.define("attention_backward(Tensor q, Tensor k, Tensor v, Tensor g) -> Tensor[]")
        # the result lies as the heads' columns side by side, so that folding them is a view
        library.impl("attention", lambda q, k, v: torch.empty_like(q.transpose(1, 2)).transpose(1, 2), "Meta")
        library.impl("attention_backward", lambda q, k, v, g: [torch.empty_like(x) for x in (q, k, v)], "Meta")
        _LIBRARY.append(library)
    return torch.ops.count_step


_LIBRARY: list[torch.library.Library] = []


@dataclass
class Count:
    """Numbers by operation, and `kept` bytes."""

    times: collections.Counter[str] = field(default_factory=collections.Counter)
    moved: collections.Counter[str] = field(default_factory=collections.Counter)
    kept: int = 0

    @property
    def operations(self) -> int:
        return sum(self.times.values())

    @property
    def memory_bound(self) -> int:
        """Bytes."""
        return sum(size for name, size in self.moved.items() if name not in PRODUCTS)


class Counting(TorchDispatchMode):
    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = remembered(function, args, kwargs or {})
        name = function.__name__.partition(".")[0]
        if name not in VIEWS:
            self.count.times[name] += 1
            self.count.moved[name] += sum(map(_size, _tensors(args))) + sum(map(_size, _tensors((out,))))
        return out


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _half(root: nn.Module) -> nn.Module:
    """Products and norms in bf16, embeddings in fp32, as a run holds them: there is nothing to convert."""
    for module in root.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(module, nn.Embedding):
                parameter.data = parameter.data.to(DTYPE)
    return root.eval()


def sd1() -> LdmModel:
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with META:
        unet, text = UNetModel(**SD1_UNET), CLIPTextModel(CLIPTextConfig(**CLIP_L))
    return _model(unet, Texts([_half(text)], None))


def sdxl(folder: Path) -> LdmModel:
    """SDXL's UNet from Stability AI's own code, without its text encoders."""
    for name in ("sgm", "sgm.modules", "sgm.modules.diffusionmodules"):  # their packages import far more than the UNet
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, package)
    with contextlib.redirect_stdout(None):
        openaimodel = importlib.import_module("sgm.modules.diffusionmodules.openaimodel")
        with META:
            unet = openaimodel.UNetModel(
                **SDXL.config["model"]["params"]["unet_config"]["params"],
                use_spatial_transformer=True,
                use_checkpoint=False,
                spatial_transformer_attn_type="softmax",
            )
    return _model(unet, Texts([], None, dataclasses.replace(SDXL, encoders=())))


def _model(unet: nn.Module, text: Texts) -> LdmModel:
    module = sys.modules[type(unet).__module__]
    for block in (m for m in unet.modules() if type(m).__name__ == "SpatialTransformer"):
        block.__dict__["forward"] = types.MethodType(transformer_forward, block)
    _half(unet)
    unet.dtype = DTYPE  # type: ignore[assignment]
    assert hasattr(module, "timestep_embedding")
    return LdmModel(unet, nn.Module(), text, NoiseSchedule(torch.linspace(0.999, 0.01, 1000), "epsilon"), 0.18215)


def transformer_forward(self: Any, x: torch.Tensor, context: Any = None) -> torch.Tensor:
    """A spatial transformer as the WebUI runs it: the tokens are a view of the picture, and back."""
    batch, channels, height, width = x.shape
    out = self.norm(x)
    if not self.use_linear:
        out = self.proj_in(out)
    out = out.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    if self.use_linear:
        out = self.proj_in(out)
    for block in self.transformer_blocks:
        out = block(out, context=context)
    if self.use_linear:
        out = self.proj_out(out)
    out = out.view(batch, height, width, channels).permute(0, 3, 1, 2)
    if not self.use_linear:
        out = self.proj_out(out)
    return out + x


@contextlib.contextmanager
def scripts_adapters(model: LdmModel, network: LoraNetwork) -> Iterator[None]:
    """sd-scripts' form (networks/lora.py, `LoRAModule.forward`), its norms in fp32 as its autocast has them."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(frozen(model.unet, *model.text.parts().values()))
        stack.enter_context(efficient_attention(model.unet))
        stack.enter_context(without_own_checkpoints(model.unet))
        for norm in (
            m for root in (model.unet, *model.text.parts().values()) for m in root.modules() if isinstance(m, NORMS)
        ):
            for parameter in norm.parameters():
                stack.callback(setattr, parameter, "data", parameter.data)
                parameter.data = parameter.data.float()
        for adapter in network:
            assert isinstance(adapter, LoraAdapter)
            stack.enter_context(replaced_forward(adapter.layer, _scripts_forward(adapter)))
        yield


def _scripts_forward(adapter: LoraAdapter) -> Callable[[torch.Tensor], torch.Tensor]:
    base, layer = adapter.layer.forward, adapter.layer

    def forward(x: torch.Tensor) -> torch.Tensor:
        out = base(x)
        if isinstance(layer, nn.Conv2d):
            hidden = F.conv2d(x, adapter.down, None, layer.stride, layer.padding)
            added = F.conv2d(hidden, adapter.up)
        else:
            added = F.linear(F.linear(x, adapter.down), adapter.up)
        return out + added * 1.0 * adapter.scale

    return forward


def network_of(model: LdmModel, kind: str, rank: int, *, text_encoder: bool) -> LoraNetwork:
    """Adapters as the default job makes them: alpha half the rank; kinds other than LoRA adapt convolutions too."""
    planned = []
    for target in model.adaptable_modules():
        if (target.group == "convolution" and kind == "lora") or (target.part != "unet" and not text_encoder):
            continue
        spatial = isinstance(target.module, nn.Conv2d) and target.module.kernel_size != (1, 1)
        own = rank // 4 if spatial else rank
        planned.append((target, AdapterSpec("lora" if kind == "locon" else kind, own, own / 2)))  # type: ignore[arg-type]
    from lib_trainer.networks.lora import make_adapter

    return LoraNetwork([make_adapter(target, spec) for target, spec in planned])


def count_step(
    model: LdmModel,
    form: str = "ours",
    kind: str = "lora",
    *,
    rank: int = 32,
    batch: int = 1,
    side: int = 512,
    text_encoder: bool = True,
    checkpointing: bool = False,
) -> Count:
    """One step of a kind of training in one of `FORMS`."""
    network = network_of(model, kind, rank, text_encoder=text_encoder)
    if form == "ours":
        network.flatten(list(network), whole=True)
    count, keeping = Count(), dict[int, torch.UntypedStorage]()
    roots = (model.unet, *model.text.parts().values())
    weights = {p.untyped_storage()._cdata for root in roots for p in root.parameters()}
    weights |= {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            keeping[storage._cdata] = storage
        return tensor

    state = TrainingState(DTYPE, checkpointing, text_encoder=True)  # held alike; it is left out below
    own = contextlib.ExitStack()
    with own, CudaAutocast().emulated():
        if form == "ours":
            own.enter_context(model.training(state))
            own.enter_context(network.applied())
        else:
            own.enter_context(scripts_adapters(model, network))
        own.enter_context(mock.patch("transformers.models.clip.modeling_clip._make_causal_mask", _mask))
        with Counting(count):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = _loss(model, form, batch, side, text_encoder=text_encoder)
            count.kept = sum(storage.nbytes() for storage in keeping.values())
            _backward(loss)
    return count


def _loss(model: LdmModel, form: str, batch: int, side: int, *, text_encoder: bool) -> torch.Tensor:
    unet: Any = model.unet
    latents = torch.empty(batch, 4, side // 8, side // 8, device=META)
    timesteps = torch.zeros(batch, dtype=torch.int64, device=META)
    if text_encoder:
        told = model.text.encoders[0].encoded(torch.zeros(batch, 77, dtype=torch.int64, device=META), 1, 0)[0]
    else:
        width = next(m for m in unet.modules() if hasattr(m, "to_k") and m.to_k.in_features != m.to_q.in_features)
        told = torch.empty(batch, 77, width.to_k.in_features, device=META)
    noisy = latents.to(DTYPE) if form == "ours" else latents  # as the loop of each does
    if hasattr(unet, "label_emb"):
        vector = torch.empty(batch, 2816, device=META)
        out = unet(noisy, timesteps=timesteps, context=told.to(noisy.dtype), y=vector)
    else:
        out = model.predict(noisy, timesteps, Conditioning(told))
    return F.mse_loss(out.float(), latents)


def _mask(shape: Any, dtype: torch.dtype, device: torch.device, past_key_values_length: int = 0) -> torch.Tensor:
    """Of transformers' encoder, whose own asks a tensor for its value."""
    return torch.empty(shape[0], 1, shape[1], shape[1], dtype=dtype, device=device)


def _backward(loss: torch.Tensor) -> None:
    """Outside autocast, as torch runs it; what checkpointing computes again is inside, as torch restores it."""
    loss.backward()


def report(model: LdmModel, options: argparse.Namespace) -> None:
    where = f"{options.side}², batch {options.batch}, rank {options.rank}"
    where += "" if options.text_encoder else ", text encoder not trained"
    print(f"{options.model} {where}, bf16, torch {torch.__version__}")
    print("| form | kind | operations | memory-bound, GB | kept, GiB |\n|---|---|---|---|---|")
    for form in FORMS:
        for kind in options.kinds if form == "ours" else [k for k in options.kinds if k in ("lora", "locon")]:
            count = count_step(
                model,
                form,
                kind,
                rank=options.rank,
                batch=options.batch,
                side=options.side,
                text_encoder=options.text_encoder,
            )
            print(
                f"| {form} | {kind} | {count.operations} | {count.memory_bound / 1e9:.2f} | {count.kept / 2**30:.2f} |"
            )
            for name, times in count.times.most_common(options.top):
                print(f"    {name:30} {times:6} {count.moved[name] / 1e9:8.3f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sd1", "sdxl"), default="sd1")
    parser.add_argument("--sgm", type=Path, help="the folder that holds Stability AI's package `sgm`, for SDXL")
    parser.add_argument("--side", type=int, help="pixels; 512 for SD 1.x, 1024 for SDXL")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=["lora"])
    parser.add_argument("--no-text-encoder", dest="text_encoder", action="store_false")
    parser.add_argument("--top", type=int, default=0, help="also the most frequent operations")
    options = parser.parse_args()
    if options.model == "sdxl":
        if options.sgm is None:
            parser.error("--model sdxl needs --sgm")
        options.text_encoder, options.side = False, options.side or 1024
        model = sdxl(options.sgm)
    else:
        options.side = options.side or 512
        model = sd1()
    report(model, options)


if __name__ == "__main__":
    main()
