"""Every change to a host's modules is undone bit for bit, also when the body raises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

from lib_trainer.host import holding
from lib_trainer.host.holding import checkpointed, encode_moments, fingerprint, frozen
from lib_trainer.host.ldm.model import LdmModel, without_own_checkpoints
from lib_trainer.host.standalone.model import DiffusersModel
from lib_trainer.host.weights import held_in
from lib_trainer.patching import attribute
from lib_trainer.ports import Conditioning, TrainingState
from tests import smaller
from tests.support import CONTEXT, differences, relative, roots_of, snapshot

ldm_model, diffusers_model = smaller.ldm_model, smaller.diffusers_model


class Bodied(Exception):
    """What a body raises."""


class Block(nn.Module):
    """A small network with what real ones have: tied weights, norms, an embedding, convolutions, half precision."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 4)
        self.linear, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.linear.weight
        self.norm, self.conv = nn.LayerNorm(4), nn.Conv2d(4, 4, 3, padding=1)
        self.use_checkpoint, self.checkpoint = True, True
        self.to(dtype)
        self.linear.bias.requires_grad_(False)
        self.norm.eval()
        self.conv.register_forward_hook(lambda *args: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.tied(self.norm(self.linear(x) + self.embedding.weight[0]))
        return self.conv(y.t().reshape(1, 4, 2, -1)).sum()


HOLDINGS: dict[str, Callable[[Block], AbstractContextManager[Any]]] = {
    "frozen": lambda block: frozen(block),
    "held in bf16": lambda block: held_in(torch.bfloat16, block),
    "held in fp32": lambda block: held_in(torch.float32, block),
    "held twice": lambda block: held_in(torch.bfloat16, block, block.linear),
    "checkpointed": lambda block: checkpointed([block.linear, block]),
    "attribute": lambda block: attribute(block, "use_checkpoint", False),
    "class attribute": lambda block: attribute(block, "dump_patches", True),
    "own checkpoints": lambda block: without_own_checkpoints(block),
    "in fp32": lambda block: holding._in_fp32(block),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("raising", [False, True], ids=["ends", "raises"])
@pytest.mark.parametrize("name", HOLDINGS)
def test_everything_is_put_back(name: str, raising: bool, dtype: torch.dtype) -> None:
    block = Block(dtype)
    before = snapshot(block)
    with contextlib.suppress(Bodied), HOLDINGS[name](block):
        changed = differences(before, snapshot(block))
        if raising:
            raise Bodied
    assert (
        changed or (name, dtype) in {("held in bf16", torch.bfloat16), ("held twice", torch.bfloat16)} or "fp32" in name
    )
    assert differences(before, snapshot(block)) == []


def test_frozen_asks_for_no_gradient() -> None:
    block = Block()
    with frozen(block):
        assert not any(parameter.requires_grad for parameter in block.parameters())
        assert not any(module.training for module in block.modules())


def test_held_weights_have_the_dtype_and_tied_ones_stay_tied() -> None:
    block = Block()
    with held_in(torch.bfloat16, block):
        assert block.linear.weight.dtype is block.conv.bias.dtype is torch.bfloat16
        assert block.norm.weight.dtype is block.embedding.weight.dtype is torch.float32
        assert block.tied.weight is block.linear.weight
        assert block.tied.weight.data_ptr() == block.linear.weight.data_ptr()
    assert block.tied.weight is block.linear.weight


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16], ids=str)
def test_a_half_precision_host_can_be_trained_on(held: torch.dtype) -> None:
    """The WebUI keeps everything in fp16: norms and embeddings too must go with fp32 or autocast activations."""
    block = Block(torch.float16)
    with held_in(held, block), torch.autocast("cpu", held, enabled=held is not torch.float32):
        assert torch.isfinite(block(torch.randn(8, 4)))


def test_eight_bit_storage_is_held_and_comes_back() -> None:
    block = Block()
    block.linear.weight.data = block.linear.weight.data.to(torch.float8_e4m3fn)
    before = snapshot(block)
    with held_in(torch.bfloat16, block):
        assert block.linear.weight.dtype is torch.bfloat16
    assert differences(before, snapshot(block)) == []


def test_weights_that_fail_to_convert_leave_the_first_ones_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block()
    before = snapshot(block)
    real, calls = torch.Tensor.to, 0

    def failing(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += args[:1] == (torch.bfloat16,)
        if calls == 3:
            calls += 1
            raise RuntimeError("CUDA out of memory")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", failing)
    with pytest.raises(RuntimeError, match="out of memory"), held_in(torch.bfloat16, block):
        pass
    monkeypatch.undo()
    assert differences(before, snapshot(block)) == []


def test_checkpointed_blocks_give_the_same_gradients_and_keep_little() -> None:
    block, x = Block(), torch.randn(8, 4)
    wanted = torch.autograd.grad(block(x), block.conv.weight)[0]
    runs = 0

    def counted(*args: Any) -> None:
        nonlocal runs
        runs += 1

    block.linear.register_forward_hook(counted)
    with checkpointed([block]):
        torch.testing.assert_close(torch.autograd.grad(block(x), block.conv.weight)[0], wanted)
        assert runs == 2, "the block is run again in the backward pass"
        with torch.no_grad():
            block(x)
    assert runs == 3


def test_an_attribute_of_the_class_is_hidden_and_shown_again() -> None:
    class Thing:
        shared = 1

    thing = Thing()
    with attribute(thing, "shared", 2):
        assert thing.shared == 2 and Thing.shared == 1
    assert "shared" not in vars(thing) and thing.shared == 1
    with pytest.raises(AttributeError), attribute(thing, "absent", 2):
        pass
    assert not vars(thing)


STATES = {
    "fp32": TrainingState(torch.float32, False, True),
    "bf16": TrainingState(torch.bfloat16, False, True),
    "bf16 checkpointed": TrainingState(torch.bfloat16, True, True),
    "fp32 checkpointed, unet only": TrainingState(torch.float32, True, False),
    "bf16, unet only": TrainingState(torch.bfloat16, False, False),
}


@pytest.mark.parametrize("kind", ["ldm", "diffusers"])
@pytest.mark.parametrize("raising", [False, True], ids=["ends", "raises"])
@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_a_model_leaves_training_as_it_entered(
    kind: str, state: TrainingState, raising: bool, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"{kind}_model")
    before = snapshot(*roots_of(model))
    with contextlib.suppress(Bodied), model.training(state):
        assert not any(parameter.requires_grad for parameter in model.unet.parameters())
        assert not any(parameter.requires_grad for parameter in model.text.encoders[0].module.parameters())
        if raising:
            raise Bodied
    assert differences(before, snapshot(*roots_of(model))) == []


@pytest.mark.parametrize("kind", ["ldm", "diffusers"])
@pytest.mark.parametrize("state", [STATES["fp32"], STATES["bf16 checkpointed"]], ids=["fp32", "bf16"])
def test_an_fp16_model_trains_and_comes_back(kind: str, state: TrainingState, request: pytest.FixtureRequest) -> None:
    """Everything stored in fp16, as the WebUI stores it; the weights come back bit for bit."""
    import copy

    from lib_trainer.networks.lora import LoraNetwork
    from lib_trainer.training.precision import autocast

    model = copy.copy(request.getfixturevalue(f"{kind}_model"))
    model.unet = copy.deepcopy(model.unet).half()
    if hasattr(model.unet, "dtype") and "dtype" in vars(model.unet):
        model.unet.dtype = torch.float16
    model.text = copy.copy(model.text)
    model.text.encoders = [copy.copy(encoder) for encoder in model.text.encoders]
    model.text.encoders[0].module = _without_forwards(copy.deepcopy(model.text.encoders[0].module).half())
    _without_forwards(model.unet)
    before = snapshot(model.unet, model.text.encoders[0].module)
    targets = [target for target in model.adaptable_modules() if target.group == "transformer"]
    network = LoraNetwork.create(targets, 2, 2, torch.Generator().manual_seed(0))
    with model.training(state), network.applied(), autocast(torch.device("cpu"), state.dtype):
        told = model.encode_text(["a disc"], 1, 1)
        out = model.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), told)
        out.float().square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    assert all(bool(adapter.up.grad.any()) for adapter in network if adapter.part == "te1")  # type: ignore[union-attr]
    assert differences(before, snapshot(model.unet, model.text.encoders[0].module)) == []


def _without_forwards(root: nn.Module) -> nn.Module:
    """A deep copy's own forwards still belong to the original."""
    for module in root.modules():
        module.__dict__.pop("forward", None)
    return root


def test_timesteps_are_looked_up_and_are_what_the_host_makes_of_them(
    ldm_model: LdmModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.modules.diffusionmodules import openaimodel

    asked: list[torch.Size] = []
    own = openaimodel.timestep_embedding

    def hosts(timesteps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(timesteps.shape)
        return own(timesteps, *args, **kwargs)

    monkeypatch.setattr(openaimodel, "timestep_embedding", hosts)
    steps, width = torch.tensor([0, 7, 501, 999]), ldm_model.unet.model_channels
    with ldm_model.training(TrainingState(torch.float32, False, False)):
        found = openaimodel.timestep_embedding(steps, width, repeat_only=False)
        assert asked == [(1000,)]
        assert torch.equal(found, own(steps, width))
        others = openaimodel.timestep_embedding(steps, width + 2), openaimodel.timestep_embedding(steps / 2, width)
        assert torch.equal(others[0], own(steps, width + 2)) and torch.equal(others[1], own(steps / 2, width))
    assert openaimodel.timestep_embedding is hosts


def test_own_checkpoints_are_off_while_training(ldm_model: LdmModel) -> None:
    blocks = [m for m in ldm_model.unet.modules() if hasattr(m, "use_checkpoint") or hasattr(m, "checkpoint")]
    assert len(blocks) > 10
    with contextlib.ExitStack() as stack:
        for module in blocks:
            name = "use_checkpoint" if hasattr(module, "use_checkpoint") else "checkpoint"
            stack.enter_context(attribute(module, name, True))
        before = snapshot(ldm_model.unet)
        with ldm_model.training(STATES["fp32"]):
            for module in blocks:
                assert not getattr(module, "use_checkpoint", False) and not getattr(module, "checkpoint", False)
        assert differences(before, snapshot(ldm_model.unet)) == []


class NarrowVae(nn.Module):
    """Overflows in half precision, as the stock SDXL VAE does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)
        self.conv.weight.data.fill_(400.0)
        self.to(dtype)
        self.seen: list[torch.dtype] = []

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.dtype)
        out: torch.Tensor = self.conv(x)
        return out


def test_moments_that_overflow_in_fp16_are_computed_in_fp32() -> None:
    vae, pixels = NarrowVae(torch.float16), torch.ones(1, 3, 16, 16)
    before = snapshot(vae)
    moments, overflows = encode_moments(vae, vae.encode, pixels)
    assert overflows and vae.seen == [torch.float16, torch.float32]
    assert bool(moments.isfinite().all()) and moments.dtype is torch.float32
    assert float(moments.max()) == pytest.approx(400 * 192, rel=1e-3)
    after = {k: v for k, v in snapshot(vae).items() if not k.endswith("attributes")}
    assert differences({k: before[k] for k in after}, after) == []


def test_moments_in_fp32_are_computed_once_outside_autocast() -> None:
    vae = NarrowVae(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        moments, overflows = encode_moments(vae, vae.encode, torch.ones(1, 3, 16, 16))
    assert not overflows
    assert vae.seen == [torch.float32]
    assert moments.dtype is torch.float32 and not moments.requires_grad


def test_both_hosts_encode_pictures_alike(ldm_model: LdmModel, diffusers_model: DiffusersModel) -> None:
    pixels = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, other = ldm_model.encode_images(pixels), diffusers_model.encode_images(pixels)
    assert one.shape == other.shape == (2, 8, 8, 16)
    assert one.dtype is other.dtype is torch.float32
    assert relative(one, other) < 1e-5


def test_both_hosts_predict_alike(ldm_model: LdmModel, diffusers_model: DiffusersModel) -> None:
    latents, context = torch.randn(3, 4, 16, 24), torch.randn(3, 77, CONTEXT)
    with torch.no_grad():
        one, other = (
            m.predict(latents, torch.tensor([0, 500, 999]), Conditioning(context)) for m in (ldm_model, diffusers_model)
        )
    assert relative(one, other) < 1e-5


def test_a_fingerprint_follows_every_bit() -> None:
    block = Block()
    assert fingerprint(block) == "", "a hook may do anything"
    block.conv._forward_hooks.clear()
    first = fingerprint(block)
    assert fingerprint(block) == first and len(first) == 64
    with torch.no_grad():
        block.norm.weight[0] += 1e-6
    assert fingerprint(block) != first
    other = Block(torch.float16)
    other.conv._forward_hooks.clear()
    assert fingerprint(other) not in ("", first)


def test_an_error_in_a_checkpointed_block_leaves_no_hooks_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.1's own would stay until the error is collected, and then be taken off whichever thread's stack."""

    def hooked() -> Iterator[None]:
        def recompute(packed: object) -> torch.Tensor:
            raise AssertionError("the hook of the failed block is still there")

        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, recompute):
            yield

    def checkpoint_of_torch_2_1(forward: Any, *args: Any, use_reentrant: bool) -> Any:
        generator = hooked()
        next(generator)
        out = forward(*args)
        next(generator, None)
        return out

    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise MemoryError("no room")

    monkeypatch.setattr("lib_trainer.host.holding.checkpoint", checkpoint_of_torch_2_1)
    block = Failing()
    with checkpointed([block]), pytest.raises(MemoryError) as kept:
        block(torch.ones(2, requires_grad=True))
    x = torch.full((2,), 3.0, requires_grad=True)
    (x * x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [6, 6]
    del kept
